//! From a core module to a component, and what a file may not do to who does it.
//!
//! The engine's own parser is made for foreign files. The encoder (wit-component 0.262) and the parser of a module's interface
//! types (wit-parser) are tools of authors: on some damaged files they panic, which is caught here, and on some they recur without
//! an end, which nothing catches and which would end the process. So what is known to do that is refused before.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use wit_parser::{PackageId, Resolve};

use crate::limits;

const CUSTOM: u8 = 0;
const NESTED_COMPONENT: u8 = 4;
/// How the names of sections with interface types begin.
const TYPES: &[u8] = b"component-type";

/// Whether components hold components over the limit. What is malformed is left to the parser.
pub(crate) fn is_nested_too_deep(bytes: &[u8]) -> bool {
    // Each is what is left of one component.
    let mut open = vec![bytes.get(8..).unwrap_or_default()];
    while let Some(sections) = open.pop() {
        let Some((id, size, content)) = section(sections) else { continue };
        let (content, rest) = content.split_at_checked(size).unwrap_or((content, &[]));
        open.push(rest);
        if id == NESTED_COMPONENT {
            open.push(content.get(8..).unwrap_or_default());
        }
        if open.len() > limits::NESTED_COMPONENTS_MAX {
            return true;
        }
    }
    false
}

/// The first section: its id, its size, and what follows the size.
fn section(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (&id, mut rest) = bytes.split_first()?;
    let mut size = 0_u64;
    for shift in (0..35).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        size |= u64::from(byte & 0x7f) << shift;
        rest = after;
        if byte & 0x80 == 0 {
            return Some((id, usize::try_from(size).ok()?, rest));
        }
    }
    None
}

/// Makes a component of a valid core module, or says what stands in the way.
pub(crate) fn component_of(module: &[u8]) -> Result<Vec<u8>, String> {
    let encode = || {
        check_types(module)?;
        let mut encoder = wit_component::ComponentEncoder::default();
        let encoded = encoder.module(module).and_then(|encoder| encoder.validate(true).encode());
        encoded.map_err(|error| format!("{error:#}"))
    };
    // The module is validated before it gets here: a panic is the fault of its custom sections.
    catch_unwind(AssertUnwindSafe(encode))
        .unwrap_or_else(|_| Err("its custom sections are damaged".to_owned()))
}

/// Refuses packages of interface types that depend on each other in a circle: the encoder would follow them without an end.
fn check_types(module: &[u8]) -> Result<(), String> {
    let mut sections = module.get(8..).unwrap_or_default();
    while let Some((id, size, content)) = section(sections) {
        let (content, rest) = content.split_at_checked(size).unwrap_or((content, &[]));
        sections = rest;
        let Some(types) = (id == CUSTOM).then(|| types_of(content)).flatten() else { continue };
        if !types.starts_with(b"\0asm") {
            return Err("its interface types are of a format that is no longer made".to_owned());
        }
        let (resolve, _) = wit_parser::decoding::decode_world(types).map_err(|error| format!("{error:#}"))?;
        check_packages(&resolve)?;
    }
    Ok(())
}

/// The content of a custom section that holds interface types.
fn types_of(custom: &[u8]) -> Option<&[u8]> {
    // The name's length, read as the size of a section.
    let prefixed = [&[CUSTOM], custom.get(..custom.len().min(5))?].concat();
    let (_, length, rest) = section(&prefixed)?;
    let begin = prefixed.len() - 1 - rest.len();
    let (name, content) = custom.get(begin..)?.split_at_checked(length)?;
    name.starts_with(TYPES).then_some(content)
}

fn check_packages(resolve: &Resolve) -> Result<(), String> {
    let count = resolve.packages.len();
    if count > limits::PACKAGES_MAX {
        return Err(format!(
            "its interface types are of {count} packages, at most {} can be",
            limits::PACKAGES_MAX
        ));
    }
    let ids = || resolve.packages.iter().map(|(id, _)| id);
    let mut needs: BTreeMap<PackageId, Vec<PackageId>> =
        ids().map(|id| (id, resolve.package_direct_deps(id).collect())).collect();
    // Whatever needs none that is left is taken away, until nothing is left, or only a circle.
    while !needs.is_empty() {
        let free: Vec<PackageId> = needs
            .iter()
            .filter(|(id, of)| of.iter().all(|need| need != *id && !needs.contains_key(need)))
            .map(|(id, _)| *id)
            .collect();
        if free.is_empty() {
            return Err("packages of its interface types depend on each other in a circle".to_owned());
        }
        needs.retain(|id, _| !free.contains(id));
    }
    Ok(())
}
