//! A component, taken apart as far as core modules and their instances go.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, Encoding, ExternalKind, Instance, Parser, Payload,
};

use super::core::{Core, kind};
use super::module::Source;

/// The custom section that names items by indexes, which change.
const NAMES: &str = "component-name";

/// In the order of the file.
pub(super) enum Item<'a> {
    /// A section without indexes of core items.
    Raw { id: u8, data: &'a [u8] },
    /// By its index.
    Module(u32),
    /// By its index.
    Instance(u32),
    /// Of a component's item.
    Alias(ComponentAlias<'a>),
    /// With its index, if it is a core function.
    Canonical(CanonicalFunction, Option<u32>),
}

/// Where a core item comes from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// An instance's export.
    Export(u32, &'a str),
    /// Of a function: an item of the component.
    Canonical {
        /// The item's number.
        item: usize,
        /// Whether it needs nothing of any core instance.
        is_free: bool,
    },
}

/// What an export of an instance is.
pub(super) enum Exported<'a> {
    /// An export of an instance of a module.
    Module(u32, &'a str),
    /// A canonical function: its index, its item, and whether it needs nothing of any core instance.
    Canonical { index: u32, item: usize, is_free: bool },
}

/// What there is of a component.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) items: Vec<Item<'a>>,
    pub(super) modules: Vec<(&'a [u8], Core<'a>)>,
    /// With the number of their items.
    pub(super) instances: Vec<(Instance<'a>, usize)>,
    pub(super) functions: Vec<Origin<'a>>,
    pub(super) tables: Vec<Origin<'a>>,
    pub(super) memories: Vec<Origin<'a>>,
    pub(super) globals: Vec<Origin<'a>>,
}

/// Instances whose modules become one.
pub(super) struct Group {
    /// Their numbers in the order of their making, by their indexes.
    pub(super) members: BTreeMap<u32, usize>,
    /// Where each import of each comes from.
    pub(super) sources: Vec<Vec<Source>>,
    /// The first item before which the one instance can be made.
    pub(super) before_item: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Parts<'a>> {
        let mut parts = Parts::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            match &payload {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    bail!("it is no component")
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                    if depth == 0 {
                        parts.add(&payload, bytes)?;
                    }
                    depth += 1;
                }
                Payload::End(_) => depth = depth.saturating_sub(1),
                _ if depth == 0 => parts.add(&payload, bytes)?,
                _ => {}
            }
        }
        Ok(parts)
    }

    fn add(&mut self, payload: &Payload<'a>, bytes: &'a [u8]) -> Result<()> {
        match payload {
            Payload::Version { .. } => {}
            Payload::ModuleSection { unchecked_range, .. } => {
                let module = slice(bytes, unchecked_range)?;
                self.items.push(Item::Module(self.modules.len() as u32));
                self.modules.push((module, Core::read(module)?));
            }
            Payload::InstanceSection(instances) => {
                for instance in instances.clone() {
                    let item = self.items.len();
                    self.items.push(Item::Instance(self.instances.len() as u32));
                    self.instances.push((instance?, item));
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    match alias? {
                        ComponentAlias::CoreInstanceExport { kind, instance_index, name } => {
                            self.space_mut(kind)?.push(Origin::Export(instance_index, name));
                        }
                        alias => self.items.push(Item::Alias(alias)),
                    }
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions.clone() {
                    self.canonical(function?);
                }
            }
            Payload::ComponentStartSection { .. } => bail!("it has a start function"),
            Payload::CustomSection(section) if section.name() == NAMES => {}
            payload => {
                let (id, range) = payload.as_section().context("it has a section that is none")?;
                self.items.push(Item::Raw { id, data: slice(bytes, &range)? });
            }
        }
        Ok(())
    }

    fn canonical(&mut self, function: CanonicalFunction) {
        let item = self.items.len();
        let is_free = match &function {
            CanonicalFunction::Lift { .. } => {
                return self.items.push(Item::Canonical(function, None));
            }
            CanonicalFunction::Lower { options, .. } => options.iter().all(|option| {
                matches!(
                    option,
                    CanonicalOption::UTF8 | CanonicalOption::UTF16 | CanonicalOption::CompactUTF16
                )
            }),
            CanonicalFunction::ResourceNew { .. }
            | CanonicalFunction::ResourceDrop { .. }
            | CanonicalFunction::ResourceRep { .. } => true,
            _ => false,
        };
        self.items.push(Item::Canonical(function, Some(self.functions.len() as u32)));
        self.functions.push(Origin::Canonical { item, is_free });
    }

    fn space_mut(&mut self, kind: ExternalKind) -> Result<&mut Vec<Origin<'a>>> {
        Ok(match kind {
            ExternalKind::Func | ExternalKind::FuncExact => &mut self.functions,
            ExternalKind::Table => &mut self.tables,
            ExternalKind::Memory => &mut self.memories,
            ExternalKind::Global => &mut self.globals,
            ExternalKind::Tag => bail!("it has tags"),
        })
    }

    pub(super) fn origin(&self, kind: ExternalKind, index: u32) -> Result<Origin<'a>> {
        let space = match kind {
            ExternalKind::Func | ExternalKind::FuncExact => &self.functions,
            ExternalKind::Table => &self.tables,
            ExternalKind::Memory => &self.memories,
            ExternalKind::Global => &self.globals,
            ExternalKind::Tag => bail!("it has tags"),
        };
        space.get(index as usize).copied().context("an index leads nowhere")
    }

    pub(super) fn instance(&self, index: u32) -> Result<&Instance<'a>> {
        Ok(&self.instances.get(index as usize).context("an instance that is none")?.0)
    }

    pub(super) fn core(&self, module: u32) -> Result<&Core<'a>> {
        Ok(&self.modules.get(module as usize).context("a module that is none")?.1)
    }

    /// Follows an export through instances that only give names to what others have.
    pub(super) fn exported(&self, mut instance: u32, mut name: &'a str) -> Result<Exported<'a>> {
        // Each step leads to an instance before.
        for _ in 0..=self.instances.len() {
            let exports = match self.instance(instance)? {
                Instance::Instantiate { .. } => return Ok(Exported::Module(instance, name)),
                Instance::FromExports(exports) => exports,
            };
            let export = exports.iter().find(|export| export.name == name);
            let export = export.with_context(|| format!("an instance has no {name}"))?;
            match self.origin(export.kind, export.index)? {
                Origin::Export(of, called) => (instance, name) = (of, called),
                Origin::Canonical { item, is_free } => {
                    return Ok(Exported::Canonical { index: export.index, item, is_free });
                }
            }
        }
        bail!("instances lead in a circle")
    }

    /// Instances of modules that can become one; `None`: fewer than two.
    pub(super) fn group(&self) -> Option<Group> {
        let mut group = Group { members: BTreeMap::new(), sources: Vec::new(), before_item: 0 };
        let mut seen = Vec::new();
        for (index, (instance, item)) in (0..).zip(&self.instances) {
            let Instance::Instantiate { module_index, args } = instance else { continue };
            let is_again = seen.contains(module_index);
            seen.push(*module_index);
            let Ok(core) = self.core(*module_index) else { continue };
            if is_again || core.stands_alone {
                continue;
            }
            let source = |import: &wasmparser::Import<'a>| -> Option<(Source, usize)> {
                let arg = args.iter().find(|arg| arg.name == import.module)?;
                match self.exported(arg.index, import.name).ok()? {
                    Exported::Module(instance, name) => {
                        let member = *group.members.get(&instance)?;
                        let export = self.module_export(instance, name)?;
                        Some((Source::Member(member, export.index), 0))
                    }
                    Exported::Canonical { index, item, is_free } => {
                        let fits = is_free && kind(import) == ExternalKind::Func;
                        fits.then_some((Source::Outside(index), item + 1))
                    }
                }
            };
            let sources: Option<Vec<(Source, usize)>> = core.imports.iter().map(source).collect();
            let Some(sources) = sources else { continue };
            // The first one is not made before its place, so nothing of its component is used before it is there.
            let first = if group.members.is_empty() { *item } else { 0 };
            let needed = sources.iter().map(|(_, item)| *item).max().unwrap_or(0);
            group.before_item = group.before_item.max(first).max(needed);
            group.members.insert(index, group.sources.len());
            group.sources.push(sources.into_iter().map(|(source, _)| source).collect());
        }
        (group.members.len() > 1).then_some(group)
    }

    /// An export of an instance of a module.
    pub(super) fn module_export(&self, instance: u32, name: &str) -> Option<&wasmparser::Export<'a>> {
        let Ok(Instance::Instantiate { module_index, .. }) = self.instance(instance) else { return None };
        self.core(*module_index).ok()?.export(name)
    }
}

fn slice<'a>(bytes: &'a [u8], range: &std::ops::Range<u64>) -> Result<&'a [u8]> {
    let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
    bytes.get(range).context("a section ends behind the end")
}
