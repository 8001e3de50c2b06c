//! `flumen plugin new` and `build`.

use std::io::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use flumen_author::{Kind, Lang, New, Options};

use crate::Output;
use crate::cmd::{print_json, status};
use crate::exit::Failure;

/// What to make.
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// The plugin's name: lower-case letters, digits and dashes.
    name: String,
    /// The language.
    #[arg(long, value_parser = langs())]
    lang: Lang,
    /// What the plugin is to a pipeline.
    #[arg(long, default_value = "interceptor", value_parser = kinds())]
    kind: Kind,
    /// Where; a directory of the plugin's name if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn langs() -> impl TypedValueParser<Value = Lang> {
    let words = PossibleValuesParser::new(Lang::ALL.map(Lang::word));
    words.try_map(|word| Lang::ALL.into_iter().find(|lang| lang.word() == word).ok_or("not a language"))
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    let words = PossibleValuesParser::new(Kind::ALL.map(Kind::word));
    words.try_map(|word| Kind::ALL.into_iter().find(|kind| kind.word() == word).ok_or("not a kind"))
}

/// What to build.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// The plugin's directory.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where the component goes; NAME.wasm in the directory if not given.
    #[arg(long, short)]
    to: Option<PathBuf>,
    /// Install what is missing of the toolchain.
    #[arg(long)]
    install: bool,
    /// Where what is made on the way is kept; `build` in the directory if not given.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Cargo's target directory, for Rust plugins that share what they depend on.
    #[arg(long, value_name = "DIR", hide = true)]
    rust_target: Option<PathBuf>,
}

/// Starts a language's runtime in the sandbox, for a component that begins with what that left.
pub fn started(module: &[u8]) -> anyhow::Result<flumen_author::State> {
    let names = flumen_plugin::Names {
        initialize: flumen_author::INITIALIZE,
        memory: flumen_author::MEMORY,
        global: flumen_author::GLOBAL,
    };
    let (memory, globals) = flumen_plugin::started(module, names)?;
    Ok(flumen_author::State { memory, globals })
}

/// Makes a directory.
pub fn new(args: NewArgs, output: Output) -> Result<(), Failure> {
    let NewArgs { name, lang, kind, dir } = args;
    let dir = flumen_author::create(&New { name, lang, kind, dir })?;
    if output == Output::Json {
        return print_json(&serde_json::json!({ "dir": dir }));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{} is made; next:", dir.display())?;
    writeln!(out, "  cd {}", dir.display())?;
    writeln!(out, "  flumen plugin build      # --install gets a toolchain that is missing")?;
    writeln!(out, "  flumen plugin test")?;
    Ok(())
}

/// Builds a directory.
pub fn build(args: BuildArgs, output: Output) -> Result<(), Failure> {
    let options = Options {
        install: args.install,
        output: args.to,
        work_dir: args.work_dir,
        rust_target: args.rust_target,
        run: Some(started),
    };
    let built = flumen_author::build(&args.dir, &options)?;
    if output == Output::Json {
        let ms = u64::try_from(built.took.as_millis()).unwrap_or(u64::MAX);
        return print_json(
            &serde_json::json!({ "path": built.path, "bytes": built.bytes, "ms": ms, "toolchain": built.toolchain }),
        );
    }
    writeln!(
        std::io::stdout(),
        "{} ({}) in {:.1} s, with {}",
        built.path.display(),
        status::size(built.bytes),
        built.took.as_secs_f64(),
        built.toolchain
    )?;
    Ok(())
}
