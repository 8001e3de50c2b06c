//! The reference of the interface as Markdown, from the WIT itself: what it says about every world, function and type.

use std::fmt::Write;

use anyhow::{Context, Result};
use wit_parser::{Docs, Function, Handle, Interface, Resolve, Type, TypeDefKind, TypeId, World, WorldItem, WorldKey};

use crate::component::INTERFACE;

const HEAD: &str = "\
# The worlds of plugins

Release 0.2.0 of the interface, generated from `wit/0.2.0` by `cargo xtask schema`. A plugin exports the interfaces of one
world; what it imports are host powers that the pipeline grants.
";

/// The page.
///
/// # Errors
/// Never in a binary whose tests passed.
pub fn worlds_markdown() -> Result<String> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("flumen.wit", INTERFACE)?;
    let package = resolve.packages.get(package).context("the package")?;
    let mut out = HEAD.to_owned();
    let page = Page { resolve: &resolve };
    writeln!(out, "\n## Worlds\n\n| world | what it is | exports | may import |\n|---|---|---|---|")?;
    for world in package.worlds.values().filter_map(|id| resolve.worlds.get(*id)) {
        page.world(&mut out, world)?;
    }
    for (name, interface) in &package.interfaces {
        if let Some(interface) = resolve.interfaces.get(*interface) {
            page.interface(&mut out, name, interface)?;
        }
    }
    Ok(out)
}

struct Page<'a> {
    resolve: &'a Resolve,
}

impl Page<'_> {
    fn world(&self, out: &mut String, world: &World) -> Result<()> {
        let names = |items: &mut dyn Iterator<Item = (&WorldKey, &WorldItem)>| {
            let interfaces = items.filter_map(|(_, item)| match item {
                WorldItem::Interface { id, .. } => self.resolve.interfaces.get(*id)?.name.as_deref(),
                _ => None,
            });
            // Types and what `http` and `tcp` share are no power of their own.
            let named = interfaces.filter(|name| !["types", "egress"].contains(name));
            let list: Vec<String> = named.map(|name| format!("[`{name}`](#{name})")).collect();
            list.join(", ")
        };
        let (exports, imports) = (names(&mut world.exports.iter()), names(&mut world.imports.iter()));
        writeln!(out, "| `{}` | {} | {exports} | {imports} |", world.name, one_line(&world.docs))?;
        Ok(())
    }

    fn interface(&self, out: &mut String, name: &str, interface: &Interface) -> Result<()> {
        writeln!(out, "\n## {name}\n\n{}", text(&interface.docs))?;
        for (name, function) in &interface.functions {
            writeln!(out, "\n### `{}`\n\n{}", self.signature(name, function), text(&function.docs))?;
        }
        for (name, id) in &interface.types {
            self.definition(out, name, *id)?;
        }
        Ok(())
    }

    fn signature(&self, name: &str, function: &Function) -> String {
        let params: Vec<String> =
            function.params.iter().map(|param| format!("{}: {}", param.name, self.word(&param.ty))).collect();
        let result = function.result.as_ref().map(|result| format!(" -> {}", self.word(result)));
        format!("{name}({}){}", params.join(", "), result.unwrap_or_default())
    }

    fn definition(&self, out: &mut String, name: &str, id: TypeId) -> Result<()> {
        let Some(definition) = self.resolve.types.get(id) else { return Ok(()) };
        let rows: Vec<(String, String)> = match &definition.kind {
            TypeDefKind::Record(record) => {
                let row = |field: &wit_parser::Field| {
                    (format!("`{}: {}`", field.name, self.word(&field.ty)), one_line(&field.docs))
                };
                record.fields.iter().map(row).collect()
            }
            TypeDefKind::Variant(variant) => {
                let row = |case: &wit_parser::Case| {
                    let of = case.ty.as_ref().map(|ty| format!("({})", self.word(ty))).unwrap_or_default();
                    (format!("`{}{of}`", case.name), one_line(&case.docs))
                };
                variant.cases.iter().map(row).collect()
            }
            TypeDefKind::Enum(list) => {
                list.cases.iter().map(|case| (format!("`{}`", case.name), one_line(&case.docs))).collect()
            }
            // A name that another interface gives.
            TypeDefKind::Type(_) => return Ok(()),
            _ => Vec::new(),
        };
        writeln!(out, "\n### {} `{name}`\n", definition.kind.as_str())?;
        if let Some(docs) = &definition.docs.contents {
            writeln!(out, "{}\n", docs.trim())?;
        }
        if !rows.is_empty() {
            writeln!(out, "| | |\n|---|---|")?;
        }
        for (left, right) in rows {
            writeln!(out, "| {left} | {right} |")?;
        }
        Ok(())
    }

    /// A type as it is written.
    fn word(&self, ty: &Type) -> String {
        let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
        let Some(definition) = self.resolve.types.get(*id) else { return String::new() };
        if let Some(name) = &definition.name {
            return name.clone();
        }
        let optional = |ty: &Option<Type>| ty.as_ref().map_or_else(|| "_".to_owned(), |ty| self.word(ty));
        match &definition.kind {
            TypeDefKind::List(of) => format!("list<{}>", self.word(of)),
            TypeDefKind::Option(of) => format!("option<{}>", self.word(of)),
            TypeDefKind::Result(of) => format!("result<{}, {}>", optional(&of.ok), optional(&of.err)),
            TypeDefKind::Tuple(of) => {
                format!("tuple<{}>", of.types.iter().map(|ty| self.word(ty)).collect::<Vec<_>>().join(", "))
            }
            TypeDefKind::Handle(Handle::Own(id) | Handle::Borrow(id)) => self.word(&Type::Id(*id)),
            other => other.as_str().to_owned(),
        }
    }
}

fn text(docs: &Docs) -> &str {
    docs.contents.as_deref().unwrap_or_default().trim()
}

/// For the cell of a table.
fn one_line(docs: &Docs) -> String {
    text(docs).lines().map(str::trim).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_functions_and_types_are_there() {
        let page = worlds_markdown().unwrap();
        for part in [
            "| `interceptor` | A batch in, the difference out. | [`about`](#about), [`guest`](#guest) |",
            "### `process(batch: batch) -> result<difference, string>`",
            "### record `difference`",
            "| `rows-from: option<list<u8>>` | Which input row each output row came from",
            "| `secret(string)` | The secret of this name",
        ] {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
    }
}
