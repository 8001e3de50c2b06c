//! What an author of plugins types, through the real binary: a new directory, cases that are updated, packages that are
//! installed. Builds in every language are `cargo xtask test`'s, since they need toolchains.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flumen_tests::agent::Agent;
use flumen_tests::http::{Reply, Server};
use flumen_tests::kafka::packages;
use flumen_tests::{locate, scene};

fn flumen(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(locate::flumen().unwrap());
    // Nothing of this user's is read or written.
    command.env("FLUMEN_TOOLCHAINS", dir.join("cache/toolchains")).stdin(Stdio::null());
    command.args(arguments).current_dir(dir);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_new_plugin_is_whole_in_every_language() {
    let scratch = tempfile::tempdir().unwrap();
    for (kind, case) in
        [("interceptor", "keeps"), ("aggregator", "windows"), ("codec", "read"), ("sink", "starts")]
    {
        for language in ["rust", "python", "js", "go", "c"] {
            let name = format!("my-{kind}-{language}");
            let new = ["plugin", "new", "--lang", language, "--kind", kind, &name];
            let output = flumen(scratch.path(), &new);
            assert!(output.status.success(), "{}", said(&output));
            let dir = scratch.path().join(&name);
            for part in ["plugin.toml", "README.md", "wit/flumen.wit", &format!("cases/{case}.toml"), "sdk"] {
                assert!(dir.join(part).exists(), "{kind}, {language}: {part}");
            }
            // A second one does not write over it.
            assert!(!flumen(scratch.path(), &new).status.success());
        }
    }
    let output = flumen(scratch.path(), &["plugin", "new", "--lang", "c", "../Wrong"]);
    assert!(said(&output).contains("no name for a plugin"), "{}", said(&output));
}

#[test]
fn a_toolchain_that_is_missing_is_told_with_the_command_that_gets_it() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(flumen(scratch.path(), &["plugin", "new", "--lang", "python", "p"]).status.success());
    let mut command = Command::new(locate::flumen().unwrap());
    command.env("FLUMEN_TOOLCHAINS", scratch.path().join("none")).env("PATH", "/nowhere");
    let output = command.args(["plugin", "build", "p"]).current_dir(scratch.path()).output().unwrap();
    let said = said(&output);
    assert!(!output.status.success());
    assert!(
        said.contains("componentize-py is not there") && said.contains("pip install componentize-py=="),
        "{said}"
    );
}

/// A directory with the cases and the component of `filter`.
fn filter(scratch: &Path) -> PathBuf {
    let dir = scratch.join("filter");
    fs::create_dir(&dir).unwrap();
    scene::copy_tree(&locate::repository().unwrap().join("plugins/filter/cases"), &dir.join("cases"))
        .unwrap();
    fs::copy(locate::plugin("filter").unwrap(), dir.join("filter.wasm")).unwrap();
    dir
}

#[test]
fn what_one_of_a_users_commands_has_compiled_no_other_compiles_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    filter(dir);
    fs::create_dir(dir.join("in")).unwrap();
    let agent =
        "[agent]\nname = \"a\"\ndata_dir = \"data\"\nplugin_dir = \"filter\"\npipelines = [\"web.toml\"]\n";
    fs::write(dir.join("flumen.toml"), agent).unwrap();
    let pipeline = "[source.web]\ntype = \"tail\"\npaths = [\"in/*.log\"]\n\n[[interceptor]]\nplugin = \"filter\"\n\
                    config = { keep = { contains = \"a\" } }\n\n[sink.out]\ntype = \"null\"\n";
    fs::write(dir.join("web.toml"), pipeline).unwrap();
    const WORDS: &str = "plugin compiled";
    let compiled = |arguments: &[&str]| {
        let output = flumen(dir, &[arguments, &["--log-level", "info"]].concat());
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        said.matches(WORDS).count()
    };
    let test = ["plugin", "test", "filter"];
    let check = ["check", "flumen.toml"];
    assert_eq!([compiled(&test), compiled(&test), compiled(&check)], [1, 0, 0]);
    let mut agent = Agent::spawn(command(dir, &["run", "flumen.toml"]), &dir.join("log")).unwrap();
    agent.wait_ready().unwrap();
    agent.stop().unwrap();
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap().matches(WORDS).count(), 0);
    // The other way round: the agent has it.
    fs::remove_dir_all(dir.join("cache/compiled")).unwrap();
    assert_eq!([compiled(&check), compiled(&test)], [0, 0]);
    for cache in ["cache/compiled", "data/cache"] {
        fs::remove_dir_all(dir.join(cache)).unwrap();
    }
    assert_eq!([compiled(&check), compiled(&test)], [1, 0]);
}

#[test]
fn wrong_outputs_of_cases_are_updated_and_pass() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = filter(scratch.path());
    let case = dir.join("cases/contains.toml");
    let right = fs::read_to_string(&case).unwrap();
    let (input, _) = right.split_once("[[output]]").unwrap();
    fs::write(&case, format!("{input}[[output]]\nbody = \"wrong\"\n")).unwrap();
    let test = |more: &[&str]| {
        flumen(scratch.path(), &[&["plugin", "test", "filter", "--seed", "7"], more].concat())
    };
    let failed = test(&[]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("FAILED contains"), "{}", said(&failed));
    let updated = test(&["--update"]);
    assert!(
        updated.status.success() && said(&updated).contains("updated filter/cases/contains.toml"),
        "{}",
        said(&updated)
    );
    let passed = test(&[]);
    assert!(passed.status.success(), "{}", said(&passed));
    assert!(said(&passed).contains("random batches (--seed 7)"), "{}", said(&passed));
}

#[test]
fn a_plugin_that_traps_on_random_events_is_found_out() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("hostile");
    fs::create_dir_all(dir.join("cases")).unwrap();
    fs::copy(locate::plugin("hostile").unwrap(), dir.join("hostile.wasm")).unwrap();
    let case = "config = { do = \"trap-on\", only_bodies_containing = \"\" }\n[[input]]\nbody = \"x\"\n";
    fs::write(dir.join("cases/one.toml"), case).unwrap();
    let output = flumen(scratch.path(), &["plugin", "test", "hostile", "--seed", "1"]);
    assert!(said(&output).contains("it failed in batch 0"), "{}", said(&output));
}

#[test]
fn what_a_sink_sends_is_compared_and_answered_as_its_case_says() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("sink");
    fs::create_dir_all(dir.join("cases")).unwrap();
    fs::copy(locate::plugin("http-append").unwrap(), dir.join("sink.wasm")).unwrap();
    let test = |steps: &str| {
        let case = format!("config = {{ url = \"http://store.example/log\" }}\n{steps}");
        fs::write(dir.join("cases/one.toml"), case).unwrap();
        let output = flumen(scratch.path(), &["plugin", "test", "sink", "--seed", "1"]);
        (output.status.success(), said(&output))
    };
    let step = |more: &str| format!("[[step]]\ncursor = \"c1\"\n{more}[[step.input]]\nbody = \"x\"\n");
    let request = "[[step.request]]\nmethod = \"POST\"\nbody = \"x\\n\"\n";
    let (passed, text) = test(&format!("{}{request}status = 204\n", step("")));
    assert!(passed && text.contains("ok     50 random batches"), "{text}");
    for (steps, difference) in [
        (step(""), "a request was not expected"),
        (format!("{}{request}{request}", step("")), "request 1 is not sent"),
        (format!("{}{request}url = \"http://other/\"\n", step("")), "the address of request 0 differs"),
        (format!("{}{request}headers = {{ flumen-after = \"6330\" }}\n", step("")), "header flumen-after"),
        (format!("{}{request}status = 500\n", step("")), "it failed: the server says 500"),
        (format!("{}{request}status = 503\n", step("")), "shall come again, which was not expected"),
        (format!("{}{request}", step("retry = \"busy\"\n")), "it is delivered, but was to come again"),
        (format!("{}{request}", step("error = \"no\"\n")), "it did not fail"),
        (format!("{}{request}[[step.rejected]]\nrow = 0\n", step("")), "row 0 is not rejected"),
        ("[[step]]\nrecovered = \"c1\"\n[[step.request]]\nstatus = 404\n".into(), "the cursor differs"),
        ("[[input]]\nbody = \"x\"\n".into(), "a case of a sink has steps"),
    ] {
        let (passed, text) = test(&steps);
        assert!(!passed && text.contains(difference), "{steps}: {difference} is not in {text}");
    }
}

#[test]
fn codecs_and_sinks_that_trap_on_random_input_are_found_out() {
    let scratch = tempfile::tempdir().unwrap();
    for (plugin, case) in [
        ("hostile-codec", "[decode]\ntext = \"TRAP\"\n"),
        ("hostile-codec", "[[input]]\nbody = \"TRAP\"\n[encode]\npayloads = [\"\"]\n"),
        ("bad-sink", "config = { url = \"http://a/\" }\n[[step]]\n[[step.input]]\nbody = \"TRAP\"\n"),
    ] {
        let dir = scratch.path().join(plugin);
        fs::create_dir_all(dir.join("cases")).unwrap();
        fs::copy(locate::plugin(plugin).unwrap(), dir.join("it.wasm")).unwrap();
        fs::write(dir.join("cases/one.toml"), case).unwrap();
        let output = flumen(scratch.path(), &["plugin", "test", plugin, "--seed", "1"]);
        let said = said(&output);
        assert!(said.contains("it failed in batch") && said.contains("the plugin trapped"), "{case}: {said}");
    }
}

#[test]
fn codecs_and_sinks_are_measured() {
    let scratch = tempfile::tempdir().unwrap();
    for (plugin, config) in [("json-lines", "{}"), ("http-append", "{\"url\":\"http://a/\"}")] {
        let path = locate::plugin(plugin).unwrap().display().to_string();
        let output =
            flumen(scratch.path(), &["plugin", "bench", &path, "--config", config, "--time", "10ms"]);
        assert!(output.status.success() && said(&output).contains("ns/event"), "{}", said(&output));
    }
}

#[test]
fn packages_are_installed_and_their_bytes_are_watched() {
    let scratch = tempfile::tempdir().unwrap();
    let here = scratch.path();
    fs::create_dir(here.join("mine")).unwrap();
    fs::copy(locate::plugin("swap-a").unwrap(), here.join("mine/mine.wasm")).unwrap();
    let packed = flumen(here, &["plugin", "package", "mine"]);
    assert!(packed.status.success(), "{}", said(&packed));
    // Named by the version that the plugin tells.
    let files = fs::read_dir(here.join("dist"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let name = files.into_iter().find(|name| name.starts_with("mine-") && name.ends_with(".wasm")).unwrap();
    let package = &format!("dist/{name}");
    let install = |more: &[&str]| flumen(here, &[&["plugin", "install", "--into", "plugins"], more].concat());
    assert!(install(&[package]).status.success());
    let lock = fs::read_to_string(here.join("plugins/plugins.lock")).unwrap();
    assert!(lock.contains("[mine]") && lock.contains("sha256 = "), "{lock}");
    // Without a source everything is installed again.
    fs::remove_file(here.join("plugins/mine.wasm")).unwrap();
    assert!(install(&[]).status.success());
    assert!(here.join("plugins/mine.wasm").is_file());
    // Other bytes are refused until they are asked for.
    fs::copy(locate::plugin("swap-b").unwrap(), here.join(package)).unwrap();
    let refused = install(&[package]);
    assert!(!refused.status.success() && said(&refused).contains("--update"), "{}", said(&refused));
    assert!(install(&[package, "--update"]).status.success());
    // What is no plugin never gets there.
    fs::write(here.join("dist/bad.wasm"), "text").unwrap();
    let bad = install(&["dist/bad.wasm"]);
    assert!(!bad.status.success() && !here.join("plugins/bad.wasm").exists(), "{}", said(&bad));
}

/// A layer of an image, as clients of registries write it.
fn layer(kind: &str, title: &str, bytes: &[u8], blobs: &mut BTreeMap<String, Vec<u8>>) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let said = sum.wait_with_output().unwrap();
    let digest = format!("sha256:{}", String::from_utf8_lossy(&said.stdout).split(' ').next().unwrap());
    blobs.insert(format!("/v2/me/mine/blobs/{digest}"), bytes.to_vec());
    let annotations = format!("{{\"org.opencontainers.image.title\":\"{title}\"}}");
    format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"annotations\":{annotations}}}")
}

#[test]
fn an_image_in_a_registry_has_to_be_signed_if_a_key_is_given() {
    packages::need("minisign", "minisign").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let here = scratch.path();
    let minisign = |arguments: &[&str]| {
        let output = Command::new("minisign").args(arguments).current_dir(here).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    for name in ["mine", "other"] {
        minisign(&["-G", "-W", "-p", &format!("{name}.pub"), "-s", &format!("{name}.key")]);
    }
    let key = |name: &str| {
        let text = fs::read_to_string(here.join(format!("{name}.pub"))).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let (wasm, other) = (
        fs::read(locate::plugin("swap-a").unwrap()).unwrap(),
        fs::read(locate::plugin("swap-b").unwrap()).unwrap(),
    );
    let signature = |bytes: &[u8]| {
        fs::write(here.join("mine.wasm"), bytes).unwrap();
        minisign(&["-S", "-s", "mine.key", "-m", "mine.wasm"]);
        fs::read(here.join("mine.wasm.minisig")).unwrap()
    };
    let mut answers = BTreeMap::new();
    for (tag, signed) in [("signed", Some(&wasm)), ("unsigned", None), ("swapped", Some(&other))] {
        let mut layers = vec![layer("application/wasm", "mine.wasm", &wasm, &mut answers)];
        if let Some(bytes) = signed {
            let kind = "application/vnd.oci.image.layer.v1.tar";
            layers.insert(0, layer(kind, "mine.wasm.minisig", &signature(bytes), &mut answers));
        }
        let manifest = format!("{{\"schemaVersion\":2,\"layers\":[{}]}}", layers.join(","));
        answers.insert(format!("/v2/me/mine/manifests/{tag}"), manifest.into_bytes());
    }
    let registry = Server::start(move |request| match answers.get(&request.path) {
        Some(bytes) => Reply::new(200, bytes.clone()),
        None => Reply::new(404, ""),
    })
    .unwrap();
    let install = |tag: &str, more: &[&str]| {
        let source = format!("oci://{}/me/mine:{tag}", registry.address);
        flumen(here, &[&["plugin", "install", &source, "--into", "plugins"], more].concat())
    };
    for (tag, key, reason) in [
        ("unsigned", key("mine"), "the image is not signed"),
        ("swapped", key("mine"), "the signature does not fit"),
        ("signed", key("other"), "the signature does not fit"),
    ] {
        let refused = install(tag, &["--key", &key]);
        assert!(!refused.status.success() && said(&refused).contains(reason), "{tag}: {}", said(&refused));
        assert!(!here.join("plugins").exists(), "{tag}");
    }
    let output = install("signed", &["--key", &key("mine")]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read(here.join("plugins/mine.wasm")).unwrap(), wasm);
    // From now on the key is asked for without being given.
    let refused = install("unsigned", &[]);
    assert!(said(&refused).contains("the image is not signed"), "{}", said(&refused));
    assert!(install("signed", &[]).status.success());
}

#[test]
fn a_plugin_of_the_first_release_still_works() {
    let plugin = locate::plugin("old-release").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let output = flumen(scratch.path(), &["plugin", "inspect", &plugin.display().to_string()]);
    assert!(said(&output).contains("@0.1.0"), "{}", said(&output));
    let output =
        flumen(scratch.path(), &["plugin", "bench", &plugin.display().to_string(), "--time", "10ms"]);
    assert!(output.status.success(), "{}", said(&output));
}
