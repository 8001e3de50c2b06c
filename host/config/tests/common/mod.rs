//! A registry like the real one, and helpers to load text.
#![allow(dead_code)] // each test binary uses a part

use std::path::{Path, PathBuf};
use std::time::Duration;

use flumen_config::{CodecUse, Diagnostic, MemoryEnv, Registry, Sources, load_agent};
use flumen_pipeline::plan::{AgentPlan, PipelinePlan};
use flumen_pipeline::{ComponentSpec, OptionKind, OptionSpec};

const MIB: u64 = 1 << 20;

const fn option(name: &'static str, kind: OptionKind, default: Option<&'static str>) -> OptionSpec {
    OptionSpec { name, kind, required: false, default, about: "An option, in its unit." }
}

const fn required(name: &'static str, kind: OptionKind) -> OptionSpec {
    OptionSpec { name, kind, required: true, default: None, about: "What must be given." }
}

const fn duration() -> OptionKind {
    OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(86_400) }
}

const TAIL: &[OptionSpec] = &[
    required("paths", OptionKind::TextList),
    option("exclude", OptionKind::TextList, Some("[]")),
    option("start", OptionKind::Choice(&["beginning", "end"]), Some("\"beginning\"")),
    option("max_line", OptionKind::Size { min: 16, max: 64 * MIB }, Some("\"1 MiB\"")),
    option("long_lines", OptionKind::Choice(&["split", "quarantine"]), Some("\"split\"")),
    option("multiline_start", OptionKind::Text, None),
    option("multiline_continue", OptionKind::Text, None),
    option("multiline_max_lines", OptionKind::Integer { min: 1, max: 100_000 }, Some("500")),
    option("multiline_max_bytes", OptionKind::Size { min: 16, max: 64 * MIB }, Some("\"1 MiB\"")),
    option("multiline_timeout", duration(), Some("\"1s\"")),
    option("last_line_timeout", duration(), None),
    option("poll_interval", duration(), Some("\"250ms\"")),
    option("read_gzip", OptionKind::Bool, Some("false")),
    option("headers", OptionKind::TextMap, Some("{}")),
];

const GENERATOR: &[OptionSpec] = &[
    option("rate", OptionKind::Integer { min: 0, max: 10_000_000 }, Some("0")),
    option("size", OptionKind::Size { min: 1, max: MIB }, Some("128")),
    option("count", OptionKind::Integer { min: 0, max: i64::MAX }, Some("0")),
    option("seed", OptionKind::Integer { min: 0, max: i64::MAX }, Some("1")),
];

const FILE: &[OptionSpec] = &[
    required("path", OptionKind::Text),
    option("encoding", OptionKind::Choice(&["text", "json"]), Some("\"text\"")),
    option("compression", OptionKind::Choice(&["none", "gzip", "zstd"]), Some("\"none\"")),
    option("roll_size", OptionKind::Size { min: MIB, max: u64::MAX }, Some("\"256 MiB\"")),
    option("roll_interval", duration(), Some("\"1h\"")),
    option("roll_count", OptionKind::Integer { min: 1, max: i64::MAX }, None),
    option("flush_bytes", OptionKind::Size { min: 1, max: 64 * MIB }, Some("\"1 MiB\"")),
    option("flush_interval", duration(), Some("\"1s\"")),
];

const CONSOLE: &[OptionSpec] =
    &[option("encoding", OptionKind::Choice(&["text", "pretty", "json"]), Some("\"text\""))];

const KAFKA: &[OptionSpec] = &[
    required("brokers", OptionKind::TextList),
    option("topic", OptionKind::Text, None),
    option("properties", OptionKind::TextMap, None),
];

const fn component(kind: &'static str, options: &'static [OptionSpec]) -> ComponentSpec {
    ComponentSpec { kind, about: "One sentence.", options }
}

pub fn registry() -> Registry {
    Registry {
        sources: vec![component("tail", TAIL), component("generator", GENERATOR), component("stdin", &[])],
        sinks: vec![component("file", FILE), component("console", CONSOLE), component("null", &[])],
        channels: vec![component("kafka", KAFKA)],
        failovers: vec![component("kafka", KAFKA)],
        decoders: vec![CodecUse { kind: "tail", instead_of: &["long_lines"] }],
        encoders: vec![CodecUse { kind: "file", instead_of: &["encoding"] }],
        ..Registry::default()
    }
}

/// The files of a directory (and of its `pipelines`, `secrets`) as paths relative to it, and a few variables.
pub fn env_of(dir: &Path) -> MemoryEnv {
    let mut env = MemoryEnv::default();
    add_files(dir, Path::new(""), &mut env);
    for (name, value) in [("HOST", "web1"), ("PASSWORD", "hunter22"), ("RATE", "250"), ("EMPTY", "")] {
        env.vars.insert(name.into(), value.into());
    }
    env.vars.insert("OLD_KEY".into(), "5a".repeat(32));
    env
}

fn add_files(dir: &Path, below: &Path, env: &mut MemoryEnv) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = below.join(path.file_name().unwrap());
        if path.is_dir() {
            add_files(&path, &name, env);
        } else {
            env.files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

pub fn here(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// Loads one text as `test.toml`.
pub fn load(text: &str) -> Result<(AgentPlan, Sources), Vec<Diagnostic>> {
    load_bytes(text.as_bytes())
}

pub fn load_bytes(bytes: &[u8]) -> Result<(AgentPlan, Sources), Vec<Diagnostic>> {
    let mut env = env_of(&here("tests/wrong"));
    env.files.insert("test.toml".into(), bytes.into());
    load_agent(&["test.toml".into()], &registry(), &env)
}

/// The one pipeline of a text that must be right.
pub fn pipeline(text: &str) -> PipelinePlan {
    match load(text) {
        Ok((mut plan, _)) => plan.pipelines.remove(0),
        Err(diagnostics) => panic!("{}", flumen_config::render(&diagnostics)),
    }
}
