//! `cargo xtask bindings`: the generated half of the SDKs for C and Go, from the newest release of the interface.
//!
//! They are checked in, so that `flumen plugin new` has them to give without a generator of its own. Rust, Python and
//! JavaScript generate theirs in each build.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use flumen_author::Kind;
use flumen_tests::locate;
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

use crate::report::step;

/// Write or check.
#[derive(clap::Args)]
pub struct Arguments {
    /// Change nothing; fail if a file is stale
    #[arg(long)]
    check: bool,
}

/// The release that the SDKs are for.
pub const WIT: &str = "wit/0.2.0";
/// The shared half of Go's bindings, which the generator only names.
const GO_SHARED: &str = "go.bytecodealliance.org/pkg/wit/";

/// Every power, and the exports of every kind.
const EVERY_KIND: &str = "
world every-kind {
    import log;
    import metrics;
    import clock;
    import random;
    import state;
    import http;
    import tcp;
    export about;
    export guest;
    export aggregation;
    export decoding;
    export encoding;
    export delivery;
}
";

/// Writes or checks.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check { check() } else { write() }?;
    Ok(ExitCode::SUCCESS)
}

fn write() -> Result<()> {
    let root = locate::repository()?;
    for (path, text) in generated(&root)? {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Fails if a file is not as the generator would write it now.
///
/// # Errors
/// With the names of the stale ones.
pub fn check() -> Result<()> {
    step("bindings of the SDKs are up to date", || {
        let root = locate::repository()?;
        let generated = generated(&root)?;
        let is_stale = |(path, text): &(&PathBuf, &String)| {
            fs::read_to_string(root.join(path)).ok().as_ref() != Some(*text)
        };
        let stale: Vec<String> =
            generated.iter().filter(is_stale).map(|(path, _)| path.display().to_string()).collect();
        if !stale.is_empty() {
            bail!("stale: {}; run `cargo xtask bindings` and check in what it writes", stale.join(", "));
        }
        Ok(())
    })
}

/// Path in the repository, and text.
fn generated(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut out = BTreeMap::new();
    // Each kind has a world of its own in C: what it does not export is not linked.
    for kind in Kind::ALL {
        let c = wit_bindgen_c::Opts {
            no_object_file: true,
            rename_world: Some("wire".to_owned()),
            ..Default::default()
        };
        for (name, text) in bindings(root, &mut *c.build(), kind.word(), "")? {
            out.insert(Path::new("plugins/sdk/c").join(kind.word()).join(name), text);
        }
    }
    // In Go one world has the exports of all: those that a plugin's kind does not have are left out of the component.
    let go = wit_bindgen_go::Opts {
        pkg_name: Some("flumen".to_owned()),
        format: wit_bindgen_go::Format::False,
        ..Default::default()
    };
    for (name, text) in bindings(root, &mut *go.build(), "every-kind", EVERY_KIND)? {
        out.insert(Path::new("plugins/sdk/go").join(name), text.replace(GO_SHARED, "flumen/wit/"));
    }
    Ok(out)
}

/// `more`: worlds beside those of the interface.
fn bindings(
    root: &Path,
    generator: &mut dyn wit_bindgen_core::WorldGenerator,
    world: &str,
    more: &str,
) -> Result<BTreeMap<String, String>> {
    let mut resolve = Resolve::default();
    let interface = fs::read_to_string(root.join(WIT).join("flumen.wit"))?;
    let package = resolve.push_source("flumen.wit", &format!("{interface}{more}"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files)?;
    files.iter().map(|(name, text)| Ok((name.to_owned(), String::from_utf8(text.to_vec())?))).collect()
}
