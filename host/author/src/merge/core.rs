//! A core module, taken apart into what is put together again.

use anyhow::{Result, bail};
use wasmparser::{
    Data, Element, Export, ExternalKind, FunctionBody, Global, Import, MemoryType, Parser, Payload, RecGroup,
    Table, TypeRef,
};

/// Its sections. Names and other custom sections are left out: nothing reads them.
#[derive(Default)]
pub(super) struct Core<'a> {
    pub(super) types: Vec<RecGroup>,
    pub(super) imports: Vec<Import<'a>>,
    /// The type of each function that it defines.
    pub(super) functions: Vec<u32>,
    pub(super) tables: Vec<Table<'a>>,
    pub(super) memories: Vec<MemoryType>,
    pub(super) globals: Vec<Global<'a>>,
    pub(super) exports: Vec<Export<'a>>,
    pub(super) elements: Vec<Element<'a>>,
    pub(super) data: Vec<Data<'a>>,
    pub(super) bodies: Vec<FunctionBody<'a>>,
    /// Whether it runs when it is instantiated, or has what is not put together.
    pub(super) stands_alone: bool,
}

impl<'a> Core<'a> {
    pub(super) fn read(module: &'a [u8]) -> Result<Core<'a>> {
        let mut core = Core::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(types) => core.types = types.into_iter().collect::<Result<_, _>>()?,
                Payload::ImportSection(imports) => {
                    core.imports = imports.into_imports().collect::<Result<_, _>>()?
                }
                Payload::FunctionSection(functions) => {
                    core.functions = functions.into_iter().collect::<Result<_, _>>()?;
                }
                Payload::TableSection(tables) => {
                    core.tables = tables.into_iter().collect::<Result<_, _>>()?
                }
                Payload::MemorySection(memories) => {
                    core.memories = memories.into_iter().collect::<Result<_, _>>()?
                }
                Payload::GlobalSection(globals) => {
                    core.globals = globals.into_iter().collect::<Result<_, _>>()?
                }
                Payload::ExportSection(exports) => {
                    core.exports = exports.into_iter().collect::<Result<_, _>>()?
                }
                Payload::ElementSection(elements) => {
                    core.elements = elements.into_iter().collect::<Result<_, _>>()?
                }
                Payload::DataSection(data) => core.data = data.into_iter().collect::<Result<_, _>>()?,
                Payload::CodeSectionEntry(body) => core.bodies.push(body),
                Payload::StartSection { .. } | Payload::TagSection(_) => core.stands_alone = true,
                Payload::Version { .. }
                | Payload::CodeSectionStart { .. }
                | Payload::DataCountSection { .. }
                | Payload::CustomSection(_)
                | Payload::End(_) => {}
                other => bail!("a core module has an unknown section ({other:?})"),
            }
        }
        Ok(core)
    }

    pub(super) fn export(&self, name: &str) -> Option<&Export<'a>> {
        self.exports.iter().find(|export| export.name == name)
    }

    /// How many types it has: a group can have several.
    pub(super) fn type_count(&self) -> u32 {
        self.types.iter().map(|group| group.types().len() as u32).sum()
    }
}

/// What an import has to be.
pub(super) fn kind(import: &Import<'_>) -> ExternalKind {
    match import.ty {
        TypeRef::Func(_) | TypeRef::FuncExact(_) => ExternalKind::Func,
        TypeRef::Table(_) => ExternalKind::Table,
        TypeRef::Memory(_) => ExternalKind::Memory,
        TypeRef::Global(_) => ExternalKind::Global,
        TypeRef::Tag(_) => ExternalKind::Tag,
    }
}
