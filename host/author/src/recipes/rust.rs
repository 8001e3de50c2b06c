//! Rust: cargo for `wasm32-unknown-unknown`; the macro of wit-bindgen has put the world's types into the module.

use std::fs;

use anyhow::{Context, Result};

use super::{Made, Work};
use crate::component::wrap;
use crate::rust;

pub(super) fn build(work: &Work<'_>) -> Result<Made> {
    work.source(&["Cargo.toml"])?;
    let toolchain = rust::guest_toolchain(work.install)?;
    let target = work.rust_target.map_or_else(|| work.build.join("target"), Into::into);
    let package = package_name(work)?;
    toolchain.build_package(work.dir, &target, &package)?;
    let core = rust::output(&target).join(format!("{}.wasm", package.replace('-', "_")));
    let core =
        fs::read(&core).with_context(|| format!("cargo made no {}: is it a cdylib?", core.display()))?;
    Ok(Made { component: wrap(&core)?, toolchain: toolchain.describe() })
}

fn package_name(work: &Work<'_>) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
    }
    #[derive(serde::Deserialize)]
    struct Cargo {
        package: Package,
    }
    let path = work.dir.join("Cargo.toml");
    let cargo: Cargo =
        toml::from_str(&fs::read_to_string(&path)?).with_context(|| format!("{}", path.display()))?;
    Ok(cargo.package.name)
}
