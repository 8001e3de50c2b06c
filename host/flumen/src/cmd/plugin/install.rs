//! `flumen plugin package` and `install`.
//!
//! What is installed is noted in `plugins.lock` beside the plugins:
//! ```toml
//! [first]
//! source = "https://example.org/first-0.1.0.wasm"
//! sha256 = "…"
//! version = "0.1.0"
//! key = "RWQ…"              # minisign's public key, if one was given
//! ```
//! A source whose bytes have changed is refused until `--update` says that it may.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flumen_plugin::{Inspection, PluginHost};
use serde::{Deserialize, Serialize};

use super::fetch::{self, Fetched, sha256};
use super::{cases, toml_text};
use crate::Output;
use crate::cmd::{Scratch, print_json};
use crate::exit::Failure;

/// What to pack.
#[derive(Debug, clap::Args)]
pub struct PackageArgs {
    /// The plugin's directory, built.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where the files go.
    #[arg(long, default_value = "dist")]
    to: PathBuf,
}

/// What to install.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// A directory, a file, an http(s) URL, or oci://REGISTRY/REPOSITORY:TAG. Without one: all of plugins.lock again.
    source: Option<String>,
    /// The plugin directory of the agent.
    #[arg(long, default_value = "plugins", value_name = "PLUGIN_DIR")]
    into: PathBuf,
    /// Name to install it under. Default: that of the file, without its version.
    #[arg(long)]
    name: Option<String>,
    /// The SHA-256 that it has to have.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// minisign's public key: SOURCE.minisig has to be its signature; in a registry, a layer of that name.
    #[arg(long)]
    key: Option<String>,
    /// Take other bytes than plugins.lock notes for this name.
    #[arg(long)]
    update: bool,
}

const LOCK: &str = "plugins.lock";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    source: String,
    sha256: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    key: Option<String>,
}

/// Writes NAME-VERSION.wasm and its digest: what a web server or a registry needs.
pub fn package(host: &PluginHost, args: &PackageArgs, output: Output) -> Result<(), Failure> {
    let wasm = cases::find_wasm(&args.dir)?;
    let found = inspected(host, &wasm)?;
    let name = wasm.file_stem().context("a plugin without a name")?.to_string_lossy().into_owned();
    let version = if found.about.version.is_empty() { "0.0.0" } else { found.about.version.as_str() };
    if !version.chars().all(|letter| letter.is_ascii_alphanumeric() || ".-+".contains(letter)) {
        return Err(anyhow::anyhow!(
            "{version:?} is no version for a file's name: change what the plugin says of itself"
        )
        .into());
    }
    let file = format!("{name}-{version}.wasm");
    let bytes = std::fs::read(&wasm)?;
    std::fs::create_dir_all(&args.to)?;
    let path = args.to.join(&file);
    write(&path, &bytes)?;
    let digest = sha256(&bytes);
    write(&args.to.join(format!("{file}.sha256")), format!("{digest}  {file}\n").as_bytes())?;
    if output == Output::Json {
        return print_json(&serde_json::json!({ "path": path, "sha256": digest, "bytes": bytes.len() }));
    }
    writeln!(
        std::io::stdout(),
        "{path}\nsha256 {digest}\nsign it with `minisign -Sm {path}`\npush it with `cd {dir} && oras push REGISTRY/{name}:{tag} {file}:application/wasm`, \
         and {file}.minisig behind it if it is signed",
        path = path.display(),
        dir = args.to.display(),
        // A tag has no `+`.
        tag = version.replace('+', "-"),
    )?;
    Ok(())
}

/// Installs one source, or everything that the lock file names.
pub fn install(host: &PluginHost, args: &InstallArgs, output: Output) -> Result<(), Failure> {
    let mut lock = read_lock(&args.into)?;
    let wanted: Vec<(String, Entry)> = match &args.source {
        Some(source) => {
            let name = args.name.clone().map_or_else(|| name_of(source), Ok)?;
            check_name(&name)?;
            let noted = lock.get(&name);
            let key = args.key.clone().or_else(|| noted.and_then(|noted| noted.key.clone()));
            let expected = args
                .sha256
                .clone()
                .or_else(|| noted.filter(|_| !args.update).map(|noted| noted.sha256.clone()));
            let sha256 = expected.unwrap_or_default().to_ascii_lowercase();
            vec![(name, Entry { source: source.clone(), sha256, version: String::new(), key })]
        }
        None if lock.is_empty() => {
            return Err(
                anyhow::anyhow!("{} names nothing: give a source", args.into.join(LOCK).display()).into()
            );
        }
        None => lock.clone().into_iter().collect(),
    };
    let mut done = Vec::new();
    for (name, entry) in wanted {
        let entry = one(host, &args.into, &name, entry)?;
        if output == Output::Human {
            writeln!(
                std::io::stdout(),
                "{name} {} from {} (sha256 {})",
                entry.version,
                entry.source,
                entry.sha256
            )?;
        }
        done.push(serde_json::json!({ "name": name, "entry": entry }));
        lock.insert(name, entry);
        write_lock(&args.into, &lock)?;
    }
    if output == Output::Json { print_json(&done) } else { Ok(()) }
}

/// Gets, checks, and only then puts a file into the directory. Gives the entry of the lock file.
fn one(host: &PluginHost, into: &Path, name: &str, wanted: Entry) -> Result<Entry, Failure> {
    let Fetched { bytes, signature } = fetch::fetch(&wanted.source, wanted.key.is_some())?;
    let digest = sha256(&bytes);
    if !wanted.sha256.is_empty() && wanted.sha256 != digest {
        return Err(anyhow::anyhow!(
            "{name}: {} has sha256 {digest}, and {} was expected; nothing is installed (--update takes it)",
            wanted.source,
            wanted.sha256
        )
        .into());
    }
    if let Some(key) = &wanted.key {
        verify(key, &bytes, signature.as_deref().unwrap_or_default())
            .with_context(|| format!("{name}: {}", wanted.source))?;
    }
    let scratch = Scratch::new()?;
    let file = scratch.path().join(format!("{name}.wasm"));
    write(&file, &bytes)?;
    let version = inspected(host, &file)?.about.version;
    std::fs::create_dir_all(into)?;
    write(&into.join(format!("{name}.wasm")), &bytes)?;
    Ok(Entry { sha256: digest, version, ..wanted })
}

fn inspected(host: &PluginHost, path: &Path) -> Result<Inspection, Failure> {
    host.inspect(path, "{}").map_err(|error| Failure::Unfit(vec![error.to_string()]))
}

fn verify(key: &str, bytes: &[u8], signature: &str) -> Result<()> {
    let key = minisign_verify::PublicKey::from_base64(key.trim())
        .map_err(|error| anyhow::anyhow!("--key: {error}"))?;
    let signature = minisign_verify::Signature::decode(signature)
        .map_err(|error| anyhow::anyhow!("the signature: {error}"))?;
    key.verify(bytes, &signature, false)
        .map_err(|error| anyhow::anyhow!("the signature does not fit: {error}"))
}

/// `https://host/dir/first-0.1.0.wasm` and `oci://host/dir/first:0.1.0` are `first`.
fn name_of(source: &str) -> Result<String> {
    let path = source.split(['?', '#']).next().unwrap_or(source).trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    let last =
        if source.starts_with("oci://") { last.split([':', '@']).next().unwrap_or(last) } else { last };
    let stem = last.strip_suffix(".wasm").unwrap_or(last);
    let is_version =
        |rest: &str| rest.starts_with(|letter: char| letter.is_ascii_digit()) && rest.contains('.');
    let name = stem.split_once('-').filter(|(_, rest)| is_version(rest)).map(|(name, _)| name.to_owned());
    // A name may have dashes itself.
    let name = name.or_else(|| {
        let (at, _) = stem.match_indices('-').find(|(at, _)| stem.get(at + 1..).is_some_and(is_version))?;
        stem.get(..at).map(str::to_owned)
    });
    let name = name.unwrap_or_else(|| stem.to_owned());
    check_name(&name).with_context(|| format!("{source}: give a name with --name"))?;
    Ok(name)
}

/// It becomes a file's name in the plugin directory, and must not lead out of it.
fn check_name(name: &str) -> Result<()> {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_good) {
        bail!("{name:?} is no name for a plugin: use letters, digits, dashes and underscores, at most 64");
    }
    Ok(())
}

fn read_lock(dir: &Path) -> Result<BTreeMap<String, Entry>> {
    let path = dir.join(LOCK);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let lock: BTreeMap<String, Entry> =
        toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    lock.keys().try_for_each(|name| check_name(name)).with_context(|| format!("{}", path.display()))?;
    Ok(lock)
}

fn write_lock(dir: &Path, lock: &BTreeMap<String, Entry>) -> Result<()> {
    let mut text =
        "# Written by `flumen plugin install`: what is installed here, and the bytes that it has to have.\n"
            .to_owned();
    for (name, Entry { source, sha256, version, key }) in lock {
        text.push_str(&format!("\n[{name}]\nsource = {}\nsha256 = \"{sha256}\"\n", toml_text(source)));
        text.push_str(&format!("version = {}\n", toml_text(version)));
        if let Some(key) = key {
            text.push_str(&format!("key = {}\n", toml_text(key)));
        }
    }
    write(&dir.join(LOCK), text.as_bytes())
}

/// In one step: a running agent that watches the directory never sees half a file.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    std::fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_sources() {
        for (source, name) in [
            ("https://example.org/p/first-0.1.0.wasm?x=1", "first"),
            ("https://example.org/access-log-1.2.3.wasm", "access-log"),
            ("oci://ghcr.io/me/first:0.1.0", "first"),
            ("oci://127.0.0.1:5000/me/keep-503:1", "keep-503"),
            ("dist/first.wasm", "first"),
            ("first/", "first"),
        ] {
            assert_eq!(name_of(source).unwrap(), name, "{source}");
        }
        assert!(name_of("https://example.org/..").is_err());
        assert!(check_name("../a").is_err());
    }

    #[test]
    fn a_signature_has_to_fit() {
        // From the documentation of minisign-verify.
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let signature = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1633700835\tfile:test\tprehashed
wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==";
        assert!(verify(key, b"test", signature).is_ok());
        assert!(verify(key, b"Test", signature).is_err());
        assert!(verify(key, b"test", "nothing").is_err());
    }

    #[test]
    fn the_lock_file_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let entry =
            Entry { source: "a\"b".into(), sha256: "00".into(), version: "1".into(), key: Some("k".into()) };
        let lock: BTreeMap<String, Entry> = [("first".to_owned(), entry)].into();
        write_lock(dir.path(), &lock).unwrap();
        assert_eq!(read_lock(dir.path()).unwrap(), lock);
    }
}
