//! The component with one module instead of a group. Aliases and instances that only give names are written where they are
//! used; what is of components keeps its indexes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use wasm_encoder::reencode::{Error, Reencode, ReencodeComponent};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, Component, ComponentAliasSection, ComponentSectionId, ExportKind,
    InstanceSection, ModuleArg, RawSection,
};
use wasmparser::{ExternalKind, Instance};

use super::component::{Exported, Group, Item, Origin, Parts};
use super::core::kind;
use super::module::{self, Merged, Wanted};

pub(super) fn write(parts: &Parts<'_>, group: &Group) -> Result<Vec<u8>> {
    let wanted = wanted(parts, group)?;
    let members = members(parts, group)?;
    let merged = module::merge(&members, &wanted, |function| Ok((String::new(), function.to_string())))?;
    let mut writer = Writer {
        parts,
        group,
        merged: &merged,
        made: None,
        out: Component::new(),
        counts: Counts::default(),
        modules: BTreeMap::new(),
        instances: BTreeMap::new(),
        items: BTreeMap::new(),
    };
    for (number, item) in parts.items.iter().enumerate() {
        if number == group.before_item {
            writer.make()?;
        }
        writer.item(item)?;
    }
    Ok(writer.out.finish())
}

fn members<'p, 'a>(
    parts: &'p Parts<'a>,
    group: &Group,
) -> Result<Vec<(&'p super::core::Core<'a>, Vec<module::Source>)>> {
    let core = |instance: &u32| match parts.instance(*instance)? {
        Instance::Instantiate { module_index, .. } => parts.core(*module_index),
        Instance::FromExports(_) => bail!("a member is no module"),
    };
    let cores = group.members.keys().map(core);
    cores.zip(&group.sources).map(|(core, sources)| Ok((core?, sources.clone()))).collect()
}

/// What of the group is used outside of it: by functions of the component, and by modules that stay.
fn wanted(parts: &Parts<'_>, group: &Group) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    let mut want = |instance: u32, name: &str| {
        let member = group.members.get(&instance);
        if let Some((member, export)) = member.zip(parts.module_export(instance, name)) {
            wanted.push((called(*member, name), *member, export.kind, export.index));
        }
    };
    for function in parts.items.iter().filter_map(|item| match item {
        Item::Canonical(function, _) => Some(function),
        _ => None,
    }) {
        for (kind, index) in used(function) {
            if let Origin::Export(instance, name) = parts.origin(kind, index)?
                && let Exported::Module(instance, name) = parts.exported(instance, name)?
            {
                want(instance, name);
            }
        }
    }
    for (instance, _) in staying(parts, group) {
        let Instance::Instantiate { module_index, args } = instance else { continue };
        for import in &parts.core(*module_index)?.imports {
            let arg =
                args.iter().find(|arg| arg.name == import.module).context("an import without a source")?;
            if let Exported::Module(instance, name) = parts.exported(arg.index, import.name)? {
                want(instance, name);
            }
        }
    }
    Ok(wanted)
}

/// What a member's export is called in the exports of the one module.
fn called(member: usize, name: &str) -> String {
    format!("{member}:{name}")
}

fn staying<'p, 'a>(
    parts: &'p Parts<'a>,
    group: &'p Group,
) -> impl Iterator<Item = &'p (Instance<'a>, usize)> {
    let with_index = (0_u32..).zip(&parts.instances);
    with_index.filter(|(index, _)| !group.members.contains_key(index)).map(|(_, instance)| instance)
}

/// The core items that a canonical function names.
fn used(function: &wasmparser::CanonicalFunction) -> Vec<(ExternalKind, u32)> {
    use wasmparser::{CanonicalFunction as Function, CanonicalOption as Option_};
    let of_options = |options: &[Option_]| -> Vec<(ExternalKind, u32)> {
        let named = options.iter().filter_map(|option| match option {
            Option_::Memory(index) => Some((ExternalKind::Memory, *index)),
            Option_::Realloc(index) | Option_::PostReturn(index) | Option_::Callback(index) => {
                Some((ExternalKind::Func, *index))
            }
            _ => None,
        });
        named.collect()
    };
    match function {
        Function::Lift { core_func_index, options, .. } => {
            let mut used = of_options(options);
            used.push((ExternalKind::Func, *core_func_index));
            used
        }
        Function::Lower { options, .. } => of_options(options),
        _ => Vec::new(),
    }
}

/// How many there are of each in the new component.
#[derive(Default)]
struct Counts {
    modules: u32,
    instances: u32,
    functions: u32,
    tables: u32,
    memories: u32,
    globals: u32,
}

impl Counts {
    fn next(&mut self, kind: ExternalKind) -> Result<u32> {
        let count = match kind {
            ExternalKind::Func | ExternalKind::FuncExact => &mut self.functions,
            ExternalKind::Table => &mut self.tables,
            ExternalKind::Memory => &mut self.memories,
            ExternalKind::Global => &mut self.globals,
            ExternalKind::Tag => bail!("it has tags"),
        };
        Ok(take(count))
    }
}

fn take(count: &mut u32) -> u32 {
    *count += 1;
    *count - 1
}

struct Writer<'p, 'a> {
    parts: &'p Parts<'a>,
    group: &'p Group,
    merged: &'p Merged,
    /// The group's instance, once it is there.
    made: Option<u32>,
    out: Component,
    counts: Counts,
    // From indexes of the old component to those of the new one.
    modules: BTreeMap<u32, u32>,
    instances: BTreeMap<u32, u32>,
    items: BTreeMap<(u8, u32), u32>,
}

impl<'a> Writer<'_, 'a> {
    fn item(&mut self, item: &Item<'a>) -> Result<()> {
        match item {
            Item::Raw { id, data } => {
                self.out.section(&RawSection { id: *id, data });
            }
            Item::Module(index) => self.module(*index)?,
            Item::Instance(index) => self.stays(*index)?,
            Item::Alias(alias) => {
                let mut section = ComponentAliasSection::new();
                section.alias(self.component_alias(alias.clone()).map_err(broken)?);
                self.out.section(&section);
            }
            Item::Canonical(function, index) => {
                let mut section = CanonicalFunctionSection::new();
                self.parse_component_canonical(&mut section, function.clone()).map_err(broken)?;
                self.out.section(&section);
                if let Some(index) = index {
                    let new = take(&mut self.counts.functions);
                    self.items.insert((key(ExternalKind::Func), *index), new);
                }
            }
        }
        Ok(())
    }

    /// A module that is not of the group.
    fn module(&mut self, index: u32) -> Result<()> {
        let is_member = |instance: &u32| matches!(self.parts.instance(*instance), Ok(Instance::Instantiate { module_index, .. }) if *module_index == index);
        if self.group.members.keys().any(is_member) {
            return Ok(());
        }
        let (bytes, _) = self.parts.modules.get(index as usize).context("a module that is none")?;
        self.module_bytes(bytes);
        let new = take(&mut self.counts.modules);
        self.modules.insert(index, new);
        Ok(())
    }

    fn module_bytes(&mut self, bytes: &[u8]) {
        self.out.section(&RawSection { id: ComponentSectionId::CoreModule.into(), data: bytes });
    }

    /// Makes the group's instance.
    fn make(&mut self) -> Result<()> {
        let merged = self.merged;
        let function =
            |index: &u32| Ok((index.to_string(), ExportKind::Func, self.mapped(ExternalKind::Func, *index)?));
        let functions: Vec<_> = merged.outside.iter().map(function).collect::<Result<_>>()?;
        self.module_bytes(&merged.bytes);
        let module = take(&mut self.counts.modules);
        let mut section = InstanceSection::new();
        let mut args = Vec::new();
        if !functions.is_empty() {
            section.export_items(functions);
            args.push(("", ModuleArg::Instance(take(&mut self.counts.instances))));
        }
        section.instantiate(module, args);
        self.made = Some(take(&mut self.counts.instances));
        self.out.section(&section);
        Ok(())
    }

    /// An instance that is not of the group. Those that only give names are written when they are used.
    fn stays(&mut self, index: u32) -> Result<()> {
        let Instance::Instantiate { module_index, args } = self.parts.instance(index)? else { return Ok(()) };
        if self.group.members.contains_key(&index) {
            return Ok(());
        }
        let core = self.parts.core(*module_index)?;
        let mut given = Vec::new();
        for arg in args {
            let mut exports = Vec::new();
            for import in core.imports.iter().filter(|import| import.module == arg.name) {
                let kind = kind(import);
                let new = self.export(kind, arg.index, import.name)?;
                let item = (import.name, export_kind(kind)?, new);
                // A module can import the same twice.
                if !exports.contains(&item) {
                    exports.push(item);
                }
            }
            let mut section = InstanceSection::new();
            section.export_items(exports);
            self.out.section(&section);
            given.push((arg.name, ModuleArg::Instance(take(&mut self.counts.instances))));
        }
        let module = *self.modules.get(module_index).context("a module that is not there yet")?;
        let mut section = InstanceSection::new();
        section.instantiate(module, given);
        self.out.section(&section);
        let new = take(&mut self.counts.instances);
        self.instances.insert(index, new);
        Ok(())
    }

    /// The new index of an old item; an alias is written if it has none yet.
    fn mapped(&mut self, kind: ExternalKind, index: u32) -> Result<u32> {
        if let Some(new) = self.items.get(&(key(kind), index)) {
            return Ok(*new);
        }
        let Origin::Export(instance, name) = self.parts.origin(kind, index)? else {
            bail!("a function is used before it is there");
        };
        let new = self.export(kind, instance, name)?;
        self.items.insert((key(kind), index), new);
        Ok(new)
    }

    /// An alias of what an old instance exports.
    fn export(&mut self, kind: ExternalKind, instance: u32, name: &'a str) -> Result<u32> {
        let (of, name) = match self.parts.exported(instance, name)? {
            Exported::Canonical { index, .. } => return self.mapped(ExternalKind::Func, index),
            Exported::Module(instance, name) => match self.group.members.get(&instance) {
                Some(member) => {
                    (self.made.context("a module is used before it can be made")?, called(*member, name))
                }
                None => {
                    let made =
                        self.instances.get(&instance).context("a module is used before it is there")?;
                    (*made, name.to_owned())
                }
            },
        };
        let mut section = ComponentAliasSection::new();
        section.alias(Alias::CoreInstanceExport { instance: of, kind: export_kind(kind)?, name: &name });
        self.out.section(&section);
        self.counts.next(kind)
    }
}

fn key(kind: ExternalKind) -> u8 {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => 0,
        ExternalKind::Table => 1,
        ExternalKind::Memory => 2,
        ExternalKind::Global => 3,
        ExternalKind::Tag => 4,
    }
}

fn export_kind(kind: ExternalKind) -> Result<ExportKind> {
    Ok(match kind {
        ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
        ExternalKind::Table => ExportKind::Table,
        ExternalKind::Memory => ExportKind::Memory,
        ExternalKind::Global => ExportKind::Global,
        ExternalKind::Tag => bail!("it has tags"),
    })
}

/// An error of this module, as the encoder's.
#[derive(Debug)]
struct Failed(anyhow::Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:#}", self.0)
    }
}

fn broken(error: Error<Failed>) -> anyhow::Error {
    match error {
        Error::ParseError(error) => error.into(),
        Error::UserError(Failed(error)) => error,
        other => anyhow!("{other}"),
    }
}

impl Reencode for Writer<'_, '_> {
    type Error = Failed;

    fn function_index(&mut self, function: u32) -> Result<u32, Error<Failed>> {
        self.mapped(ExternalKind::Func, function).map_err(|error| Error::UserError(Failed(error)))
    }

    fn table_index(&mut self, table: u32) -> Result<u32, Error<Failed>> {
        self.mapped(ExternalKind::Table, table).map_err(|error| Error::UserError(Failed(error)))
    }

    fn memory_index(&mut self, memory: u32) -> Result<u32, Error<Failed>> {
        self.mapped(ExternalKind::Memory, memory).map_err(|error| Error::UserError(Failed(error)))
    }
}

impl ReencodeComponent for Writer<'_, '_> {}
