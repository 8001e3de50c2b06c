//! `flumen plugin new`: a directory that builds at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::embedded::{self, File};
use crate::manifest::{Kind, Lang, MANIFEST, check_name};

/// Where the examples of this repository find SDK and interface, and where a new plugin does.
const PLACES: [(&str, &str); 3] = [
    ("../../../plugins/sdk/rust", "sdk"),
    ("../../../plugins/sdk/go", "./sdk"),
    // The SDK for Rust reads the interface itself.
    ("../../../wit/0.2.0", "../wit"),
];

/// What to make.
#[derive(Debug, Clone)]
pub struct New {
    /// The plugin's name.
    pub name: String,
    /// Its language.
    pub lang: Lang,
    /// What it is.
    pub kind: Kind,
    /// Where; absent: a directory of that name.
    pub dir: Option<PathBuf>,
}

/// Makes the directory, and gives it back.
///
/// # Errors
/// If the name is none, or the directory is there and not empty.
pub fn create(new: &New) -> Result<PathBuf> {
    check_name(&new.name)?;
    let dir = new.dir.clone().unwrap_or_else(|| PathBuf::from(&new.name));
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is there and not empty; choose another place with --dir", dir.display());
    }
    let manifest =
        format!("name = \"{}\"\nlang = \"{}\"\nkind = \"{}\"\n", new.name, new.lang, new.kind.word());
    write(&dir, MANIFEST, &format!("{manifest}{}", imports(new)))?;
    write(&dir, "README.md", &readme(new))?;
    write(
        &dir,
        ".gitignore",
        "/build/\n/*.wasm\n/*.wasm.new\n/target/\n/node_modules/\n/.venv/\n__pycache__/\n",
    )?;
    let (sources, cases) = (embedded::sources(new.lang, new.kind), embedded::cases(new.kind));
    for file in [sources, embedded::sdk(new.lang), embedded::WIT, cases].concat() {
        let (path, text) = adapted(file, new);
        write(&dir, &path, &text)?;
    }
    Ok(dir)
}

fn write(dir: &Path, path: &str, text: &str) -> Result<()> {
    let path = dir.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A file of this repository as it stands in a new directory.
fn adapted((path, text): File, new: &New) -> (String, String) {
    // The one file that is not alike: here the SDK belongs to a workspace.
    let path = path.replace("Cargo.standalone.toml", "Cargo.toml");
    let mut text = text.to_owned();
    for (from, to) in PLACES {
        text = text.replace(from, to);
    }
    let (_, example) = embedded::example(new.kind);
    // In Cargo.toml and go.mod.
    for (before, after) in [("name = \"", "\""), ("module ", "\n")] {
        let with = |name: &str| format!("{before}{name}{after}");
        text = text.replace(&with(example), &with(&new.name));
    }
    (path, text)
}

/// Python and JavaScript tools import all that a world names, so the manifest names what the plugin calls.
fn imports(new: &New) -> String {
    let calls = match (new.lang, new.kind) {
        (Lang::Rust | Lang::Go | Lang::C, _) => return String::new(),
        (_, Kind::Interceptor | Kind::Codec) => "",
        (_, Kind::Aggregator) => "\"state\"",
        (_, Kind::Sink) => "\"http\"",
    };
    let powers = new.kind.powers().join(", ");
    format!("# Host powers that the plugin calls: {powers}. The pipeline grants them.\nimports = [{calls}]\n")
}

/// Which file to change, by language.
fn source(lang: Lang) -> &'static str {
    match lang {
        Lang::Rust => "src/lib.rs",
        Lang::Python => "plugin.py",
        Lang::Js => "plugin.js",
        Lang::Go => "plugin.go",
        Lang::C => "plugin.c",
    }
}

/// What the example does.
fn about(kind: Kind) -> &'static str {
    match kind {
        Kind::Interceptor => "It keeps the events whose body holds a text, and marks them with a header",
        Kind::Aggregator => "It counts events by the value of a header, in windows of event time",
        Kind::Codec => "It reads and writes frames: four bytes with the length, then the body",
        Kind::Sink => "It appends events as lines to a resource over HTTP, each exactly once",
    }
}

/// Where it stands in a pipeline. `NAME` is the plugin's.
fn pipeline(kind: Kind) -> &'static str {
    match kind {
        Kind::Interceptor => {
            "[[interceptor]]
plugin = \"NAME\"            # NAME.wasm in the agent's plugin directory
config = { contains = \" 503 \" }"
        }
        Kind::Aggregator => {
            "[[interceptor]]
plugin = \"NAME\"            # NAME.wasm in the agent's plugin directory
config = { by = \"host\" }
grant = [\"state\"]"
        }
        Kind::Codec => {
            "[source.in.codec]           # or [sink.out.codec]
plugin = \"NAME\"            # NAME.wasm in the agent's plugin directory"
        }
        Kind::Sink => {
            "[sink.out]
plugin = \"NAME\"            # NAME.wasm in the agent's plugin directory
config = { url = \"https://store.example.com/log\" }
grant = [\"http\"]
egress = { allow = [\"store.example.com:443\"] }"
        }
    }
}

fn readme(new: &New) -> String {
    let New { name, lang, kind, .. } = new;
    let (source, about) = (source(*lang), about(*kind));
    let pipeline = pipeline(*kind).replace("NAME", name);
    format!(
        "# {name}

A plugin for Flumen: {kind}. {about}: change `{source}`.

```
flumen plugin build          # makes {name}.wasm; --install gets a toolchain that is missing
flumen plugin test           # runs cases/*.toml in the sandbox, and random input that it must not fail on
flumen plugin bench          # what it costs per event
flumen plugin dev            # builds and runs the cases whenever a file is saved
```

In a pipeline:

```toml
{pipeline}
```

| place | what |
|---|---|
| `{source}` | the plugin |
| `cases/` | what goes in, and what has to come out |
| `sdk/` | the SDK, for {lang}; yours to keep, no other copy is used |
| `wit/` | the interface between Flumen and plugins |
| `plugin.toml` | name, language, kind |
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_points_out_of_the_new_directory() {
        let all = Kind::ALL.into_iter().flat_map(|kind| Lang::ALL.into_iter().map(move |lang| (kind, lang)));
        for (kind, lang) in all {
            let scratch = tempfile::tempdir().unwrap();
            let dir = scratch.path().join("my-plugin");
            let new = New { name: "my-plugin".into(), lang, kind, dir: Some(dir.clone()) };
            create(&new).unwrap();
            let manifest = crate::Manifest::read(&dir).unwrap();
            assert_eq!((manifest.name.as_str(), manifest.kind), ("my-plugin", kind));
            let mut todo = vec![dir.clone()];
            while let Some(path) = todo.pop() {
                if path.is_dir() {
                    todo.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                // A link of a README is for people.
                if path.extension().is_none_or(|extension| extension != "md") {
                    assert!(!text.contains("../../"), "{}", path.display());
                }
            }
            assert!(create(&new).is_err(), "a directory with files in it is left alone");
        }
    }
}
