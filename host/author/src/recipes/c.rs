//! C: clang with wasi-libc, of which nothing that needs WASI is linked; the world's types are added here.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::Result;

use super::{Made, Work, apt_command, apt_install, missing};
use crate::component::wrap_for;
use crate::run::{find, quietly};
use crate::world;

const PACKAGES: [&str; 4] = ["clang-19", "lld-19", "wasi-libc", "libclang-rt-19-dev-wasm32"];
/// Debian's names.
const CLANG: &str = "clang-19";
const LIBC_HEADER: &str = "/usr/include/wasm32-wasi/stdlib.h";
/// Powers that have a file in the SDK.
const POWERS: [&str; 2] = ["state", "http"];
/// A WASI SDK brings its own compiler and library.
const SDK_VAR: &str = "WASI_SDK_PATH";
const FLAGS: [&str; 6] = ["-mexec-model=reactor", "-O3", "-msimd128", "-Wall", "-Wextra", "-Wl,--strip-all"];

pub(super) fn build(work: &Work<'_>) -> Result<Made> {
    let source = work.source(&["plugin.c"])?;
    let mut clang = compiler(work.install)?;
    let sdk = work.sdk();
    let kind = work.manifest.kind;
    let of_kind = sdk.join(kind.word());
    let core = work.build.join("core.wasm");
    clang.args(FLAGS).arg("-I").arg(&sdk).arg("-I").arg(&of_kind).arg("-o").arg(&core);
    let mut sources = vec![source];
    for dir in [&sdk, &of_kind, &work.dir.join("src")] {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            // A file of the SDK that is named after a power is for the kinds that have it.
            let is_left_out = *dir == sdk && POWERS.contains(&stem) && !kind.powers().contains(&stem);
            if path.extension().is_some_and(|extension| extension == "c") && !is_left_out {
                sources.push(path);
            }
        }
    }
    sources.sort();
    quietly(clang.args(&sources))?;
    let (resolve, world) = world::full(work.dir, work.manifest)?;
    let toolchain = clang.get_program().to_string_lossy().into_owned();
    Ok(Made { component: wrap_for(fs::read(core)?, &resolve, world)?, toolchain })
}

fn compiler(install: bool) -> Result<Command> {
    if let Some(sdk) = env::var_os(SDK_VAR).map(PathBuf::from) {
        let mut clang = Command::new(sdk.join("bin/clang"));
        clang
            .arg("--target=wasm32-wasip1")
            .arg(format!("--sysroot={}", sdk.join("share/wasi-sysroot").display()));
        return Ok(clang);
    }
    let is_there = || find(CLANG, &[]).is_some() && PathBuf::from(LIBC_HEADER).is_file();
    if !is_there() && install {
        apt_install(&PACKAGES)?;
    }
    if !is_there() {
        let what = format!("there is no {CLANG} with wasi-libc (a WASI SDK that {SDK_VAR} names does, too)");
        return Err(missing(&what, &[apt_command(&PACKAGES)]));
    }
    let mut clang = Command::new(CLANG);
    clang.args(["--target=wasm32-wasi", "--sysroot=/usr"]);
    clang.args(["-I/usr/include/wasm32-wasi", "-L/usr/lib/wasm32-wasi"]);
    Ok(clang)
}
