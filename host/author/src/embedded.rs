//! The files that `flumen plugin new` gives, as they are in this repository: the example in each language, its SDK, the
//! interface, the cases. So what is given is what is built and tested here.

use crate::manifest::{Kind, Lang};

/// A file: its path in the new directory, and its text.
pub(crate) type File = (&'static str, &'static str);

macro_rules! files {
    ($from:literal => $to:literal: $($name:literal),+ $(,)?) => {
        &[$((concat!($to, $name), include_str!(concat!("../../../", $from, $name)))),+]
    };
}

/// The interface.
pub(crate) const WIT: &[File] = files!("wit/0.2.0/" => "wit/": "flumen.wit");

/// Where the examples of a kind are, and what they are called: the same small plugin in each language.
#[must_use]
pub fn example(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Interceptor => ("examples/languages", "keep"),
        Kind::Aggregator => ("examples/aggregators", "count"),
        Kind::Codec => ("examples/codecs", "frames"),
        Kind::Sink => ("examples/sinks", "append"),
    }
}

/// The cases, which are the same in every language.
pub(crate) fn cases(kind: Kind) -> &'static [File] {
    match kind {
        Kind::Interceptor => files!("examples/languages/cases/" => "cases/":
            "border.toml", "bytes.toml", "header.toml", "keeps.toml", "missing-key.toml", "wrong-key.toml"),
        Kind::Aggregator => files!("examples/aggregators/cases/" => "cases/":
            "late.toml", "missing-key.toml", "ticks.toml", "windows.toml", "wrong-key.toml"),
        Kind::Codec => files!("examples/codecs/cases/" => "cases/":
            "broken.toml", "part.toml", "read.toml", "too-long.toml", "write-file.toml", "write.toml",
            "wrong-key.toml", "wrong-limit.toml"),
        Kind::Sink => files!("examples/sinks/cases/" => "cases/":
            "follows.toml", "no-answer.toml", "rejects.toml", "retry.toml", "starts.toml", "wrong-cursor.toml",
            "missing-key.toml", "wrong-key.toml"),
    }
}

/// The plugin itself.
pub(crate) fn sources(lang: Lang, kind: Kind) -> &'static [File] {
    match (lang, kind) {
        (Lang::Rust, Kind::Interceptor) => {
            files!("examples/languages/rust/" => "": "Cargo.toml", ".cargo/config.toml", "src/lib.rs")
        }
        (Lang::Rust, Kind::Aggregator) => {
            files!("examples/aggregators/rust/" => "": "Cargo.toml", ".cargo/config.toml", "src/lib.rs")
        }
        (Lang::Rust, Kind::Codec) => {
            files!("examples/codecs/rust/" => "": "Cargo.toml", ".cargo/config.toml", "src/lib.rs")
        }
        (Lang::Rust, Kind::Sink) => {
            files!("examples/sinks/rust/" => "": "Cargo.toml", ".cargo/config.toml", "src/lib.rs")
        }
        (Lang::Python, Kind::Interceptor) => files!("examples/languages/python/" => "": "plugin.py"),
        (Lang::Js, Kind::Interceptor) => files!("examples/languages/js/" => "": "plugin.js"),
        (Lang::Go, Kind::Interceptor) => files!("examples/languages/go/" => "": "go.mod", "plugin.go"),
        (Lang::C, Kind::Interceptor) => files!("examples/languages/c/" => "": "plugin.c"),
        (Lang::C, Kind::Aggregator) => files!("examples/aggregators/c/" => "": "plugin.c"),
        (Lang::C, Kind::Codec) => files!("examples/codecs/c/" => "": "plugin.c"),
        (Lang::C, Kind::Sink) => files!("examples/sinks/c/" => "": "plugin.c"),
        (Lang::Python, Kind::Aggregator) => files!("examples/aggregators/python/" => "": "plugin.py"),
        (Lang::Python, Kind::Codec) => files!("examples/codecs/python/" => "": "plugin.py"),
        (Lang::Python, Kind::Sink) => files!("examples/sinks/python/" => "": "plugin.py"),
        (Lang::Js, Kind::Aggregator) => files!("examples/aggregators/js/" => "": "plugin.js"),
        (Lang::Js, Kind::Codec) => files!("examples/codecs/js/" => "": "plugin.js"),
        (Lang::Js, Kind::Sink) => files!("examples/sinks/js/" => "": "plugin.js"),
        (Lang::Go, Kind::Aggregator) => files!("examples/aggregators/go/" => "": "go.mod", "plugin.go"),
        (Lang::Go, Kind::Codec) => files!("examples/codecs/go/" => "": "go.mod", "plugin.go"),
        (Lang::Go, Kind::Sink) => files!("examples/sinks/go/" => "": "go.mod", "plugin.go"),
    }
}

/// The SDK.
pub(crate) fn sdk(lang: Lang) -> &'static [File] {
    match lang {
        Lang::Rust => RUST,
        Lang::Python => files!("plugins/sdk/python/" => "sdk/":
            "flumen/__init__.py", "flumen/aggregator.py", "flumen/codec.py", "flumen/columns.py", "flumen/egress.py", "flumen/events.py",
            "flumen/http.py", "flumen/interceptor.py", "flumen/plugin.py", "flumen/sink.py", "flumen/state.py", "flumen/tcp.py"),
        Lang::Js => files!("plugins/sdk/js/" => "sdk/":
            "aggregator.js", "codec.js", "columns.js", "egress.js", "events.js", "flumen.d.ts", "flumen.js", "http.js",
            "interceptor.js", "plugin.js", "sink.js", "state.js", "tcp.js"),
        Lang::Go => GO,
        Lang::C => C,
    }
}

const C: &[File] = files!("plugins/sdk/c/" => "sdk/":
    "answer.c", "columns.h", "config.c", "events.c", "find.c", "flumen.c", "flumen.h", "http.c", "http.h", "state.c", "state.h",
    "aggregator/kind.c", "aggregator/kind.h", "aggregator/wire.c", "aggregator/wire.h",
    "codec/kind.c", "codec/kind.h", "codec/wire.c", "codec/wire.h",
    "interceptor/kind.c", "interceptor/kind.h", "interceptor/wire.c", "interceptor/wire.h",
    "sink/kind.c", "sink/kind.h", "sink/wire.c", "sink/wire.h");

const RUST: &[File] = files!("plugins/sdk/rust/" => "sdk/":
    "Cargo.standalone.toml", "README.md", "src/abi.rs", "src/aggregate.rs", "src/batch.rs", "src/bytes.rs", "src/codec.rs",
    "src/config.rs", "src/difference.rs", "src/event.rs", "src/export.rs", "src/find.rs", "src/host.rs", "src/http.rs",
    "src/lib.rs", "src/sink.rs", "src/state.rs", "src/table.rs", "src/tcp.rs", "src/testing.rs");

const GO: &[File] = files!("plugins/sdk/go/" => "sdk/":
    "go.mod", "aggregate.go", "answer.go", "codec.go", "column.go", "edit.go", "find.go", "flumen.go", "sink.go",
    "http/http.go", "state/state.go", "exports/call/call.go",
    "exports/export_flumen_plugin_aggregation/aggregation.go", "exports/export_flumen_plugin_decoding/decoding.go",
    "exports/export_flumen_plugin_delivery/delivery.go", "exports/export_flumen_plugin_encoding/encoding.go",
    "exports/export_flumen_plugin_about/about.go", "exports/export_flumen_plugin_guest/guest.go",
    "exports/wit_exports/wit_exports.go",
    "imports/flumen_plugin_aggregation/empty.s", "imports/flumen_plugin_aggregation/wit_bindings.go",
    "imports/flumen_plugin_decoding/empty.s", "imports/flumen_plugin_decoding/wit_bindings.go",
    "imports/flumen_plugin_delivery/empty.s", "imports/flumen_plugin_delivery/wit_bindings.go",
    "imports/flumen_plugin_encoding/empty.s", "imports/flumen_plugin_encoding/wit_bindings.go",
    "imports/flumen_plugin_about/empty.s", "imports/flumen_plugin_about/wit_bindings.go",
    "imports/flumen_plugin_clock/empty.s", "imports/flumen_plugin_clock/wit_bindings.go",
    "imports/flumen_plugin_egress/empty.s", "imports/flumen_plugin_egress/wit_bindings.go",
    "imports/flumen_plugin_guest/empty.s", "imports/flumen_plugin_guest/wit_bindings.go",
    "imports/flumen_plugin_http/empty.s", "imports/flumen_plugin_http/wit_bindings.go",
    "imports/flumen_plugin_log/empty.s", "imports/flumen_plugin_log/wit_bindings.go",
    "imports/flumen_plugin_metrics/empty.s", "imports/flumen_plugin_metrics/wit_bindings.go",
    "imports/flumen_plugin_random/empty.s", "imports/flumen_plugin_random/wit_bindings.go",
    "imports/flumen_plugin_state/empty.s", "imports/flumen_plugin_state/wit_bindings.go",
    "imports/flumen_plugin_tcp/empty.s", "imports/flumen_plugin_tcp/wit_bindings.go",
    "imports/flumen_plugin_types/empty.s", "imports/flumen_plugin_types/wit_bindings.go",
    "wit/LICENSE", "wit/runtime/empty.s", "wit/runtime/runtime.go",
    "wit/types/option.go", "wit/types/result.go", "wit/types/tuple.go", "wit/types/unit.go");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn files_in(dir: &Path, below: &Path, out: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            // What builds leave behind.
            if ["target", "build", "node_modules", "__pycache__", "Cargo.lock", ".gitignore"]
                .contains(&name.as_str())
                || name.ends_with(".wasm")
            {
                continue;
            }
            // The examples share their cases by a link.
            if path.is_symlink() {
                continue;
            }
            match path.is_dir() {
                true => files_in(&path, below, out),
                false => drop(out.insert(path.strip_prefix(below).unwrap().to_owned())),
            }
        }
    }

    /// A file that was added to an SDK and not to the list would be missing in a new plugin.
    #[test]
    fn every_file_is_embedded() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let check = |dir: PathBuf, prefix: &str, files: &[File], left_out: &[&str]| {
            let mut there = BTreeSet::new();
            files_in(&dir, &dir, &mut there);
            let embedded =
                files.iter().map(|(path, _)| PathBuf::from(path.strip_prefix(prefix).unwrap())).collect();
            let there: BTreeSet<PathBuf> =
                there.into_iter().filter(|path| !left_out.contains(&path.to_str().unwrap())).collect();
            assert_eq!(there, embedded, "{}", dir.display());
        };
        for lang in Lang::ALL {
            check(root.join("plugins/sdk").join(lang.word()), "sdk/", sdk(lang), &["Cargo.toml"]);
        }
        for kind in Kind::ALL {
            let dir = root.join(example(kind).0);
            for lang in Lang::ALL {
                let own = ["plugin.toml", "README.md"];
                check(dir.join(lang.word()), "", sources(lang, kind), &own);
            }
            check(dir.join("cases"), "cases/", cases(kind), &[]);
        }
        check(root.join("wit/0.2.0"), "wit/", WIT, &[]);
    }
}
