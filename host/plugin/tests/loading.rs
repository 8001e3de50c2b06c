//! Which files are plugins, what a refusal says, and what the cache does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;
mod forge;

use std::os::unix::fs::MetadataExt;

use common::*;
use flumen_pipeline::plan::{InterceptorPlan, PluginLimits};
use flumen_pipeline::{Interceptor, InterceptorVersion};
use flumen_plugin::{FileKind, GuestMetric, HostConfig, PluginHost};
use forge::Forge;

#[track_caller]
fn refused(sandbox: &Sandbox, bytes: &[u8], code: &str, parts: &[&str]) {
    let path = sandbox.write("guest.wasm", bytes);
    let error = sandbox.host.open(&path, "guest", "{}", &[], PluginLimits::default()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    assert!(text.contains("guest.wasm"), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} has no {part:?}"));
}

fn noop() -> Vec<u8> {
    std::fs::read(guest("noop")).unwrap()
}

fn component(core: &[u8]) -> Vec<u8> {
    wit_component::ComponentEncoder::default().module(core).unwrap().encode().unwrap()
}

#[test]
fn a_core_module_and_a_component_both_load() {
    let sandbox = Sandbox::new();
    let old = std::fs::read(guest("old_release")).unwrap();
    for (bytes, kind, release) in [
        (noop(), FileKind::CoreModule, "0.2.0"),
        (component(&noop()), FileKind::Component, "0.2.0"),
        (old.clone(), FileKind::CoreModule, "0.1.0"),
        (component(&old), FileKind::Component, "0.1.0"),
    ] {
        let path = sandbox.write("guest.wasm", &bytes);
        let inspection = sandbox.host.inspect(&path, "{}").unwrap();
        assert_eq!(inspection.kind, kind);
        assert_eq!(inspection.world, format!("flumen:plugin/interceptor@{release}"));
        assert_eq!(inspection.size_bytes, bytes.len() as u64);
        assert_eq!(inspection.hash, blake3::hash(&bytes).to_hex().as_str());
        assert!(inspection.exports.contains(&format!("flumen:plugin/guest@{release}")), "{inspection:?}");
        assert!(inspection.reads.as_ref().unwrap().body && inspection.needs.is_empty());
        assert!(inspection.compile_ms.is_some());
        assert!(sandbox.host.inspect(&path, "{}").unwrap().compile_ms.is_none());
        let version = sandbox.host.open(&path, "guest", "{}", &[], patient()).unwrap();
        check_isolated(&version, &batch_with(100, &[], ""), &[], "");
    }
}

#[test]
fn what_is_not_webassembly_is_refused() {
    let sandbox = Sandbox::new();
    refused(&sandbox, b"#!/bin/sh\necho", "plugin-not-wasm", &["\"#!/bin/sh\\necho\""]);
    refused(&sandbox, b"", "plugin-damaged", &["it is empty"]);
    refused(&sandbox, b"\0asm\x01", "plugin-damaged", &["it ends within its first 8 bytes"]);
    refused(&sandbox, b"\0asm\x63\0\0\0rest", "plugin-damaged", &["unknown version"]);
    let missing =
        sandbox.host.open(&sandbox.dir.path().join("none.wasm"), "none", "{}", &[], PluginLimits::default());
    assert_eq!(missing.unwrap_err().code(), "plugin-unreadable");
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let sandbox = Sandbox::new();
    for bytes in [noop(), component(&noop())] {
        for percent in [1, 10, 33, 50, 75, 90, 99] {
            let path = sandbox.write("guest.wasm", &bytes[..bytes.len() * percent / 100]);
            let error = sandbox.host.open(&path, "guest", "{}", &[], PluginLimits::default()).unwrap_err();
            assert_eq!(error.code(), "plugin-damaged", "{percent} %: {error}");
        }
    }
}

#[test]
fn a_mutated_file_never_brings_the_host_down() {
    let sandbox = Sandbox::new();
    let limits = quick();
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 24) as usize
    };
    for bytes in [noop(), component(&noop())] {
        // The last part of a core module is what its component is made from.
        let core_end = bytes.len() * 3 / 4;
        for round in 0..60 {
            let mut mutated = bytes.clone();
            for _ in 0..3 {
                let first = if round % 2 == 0 { 0 } else { core_end };
                let at = first + random() % (mutated.len() - first);
                mutated[at] = random() as u8;
            }
            let path = sandbox.write("guest.wasm", &mutated);
            if let Ok(version) = sandbox.host.open(&path, "guest", "{}", &[], limits) {
                let processed = version.process(batch_with(50, &[], ""));
                let rows = processed.kept.rows() + quarantined(&processed).len();
                assert!(rows as u64 + processed.dropped >= 50);
            }
        }
    }
}

#[test]
fn another_world_is_refused() {
    let sandbox = Sandbox::new();
    refused(
        &sandbox,
        &wat::parse_str("(module)").unwrap(),
        "plugin-wrong-world",
        &["exports no interface of Flumen", "(its exports: none)"],
    );
    refused(
        &sandbox,
        &wat::parse_str("(component)").unwrap(),
        "plugin-wrong-world",
        &["build it from wit/0.2.0"],
    );
    refused(
        &sandbox,
        &wat::parse_str(r#"(module (import "env" "read_file" (func)))"#).unwrap(),
        "plugin-not-a-plugin",
        &["env", "wasm32-unknown-unknown"],
    );
    let other = r#"(component
        (core module $m (func (export "open")))
        (core instance $i (instantiate $m))
        (func $open (canon lift (core func $i "open")))
        (instance (export "flumen:plugin/guest@0.1.0") (export "open" (func $open))))"#;
    refused(
        &sandbox,
        &wat::parse_str(other).unwrap(),
        "plugin-wrong-shape",
        &["flumen:plugin/guest@0.1.0#open"],
    );
    let exported = r#"(component (core module $m) (export "a:b/c@1.0.0" (core module $m)))"#;
    let exported = wat::parse_str(exported).unwrap();
    refused(&sandbox, &exported, "plugin-wrong-world", &["(its exports: `a:b/c@1.0.0`)"]);
}

/// The noop as a component that also imports these interfaces, each with one function that nobody calls.
///
/// Sections of a component may follow each other in any order, so the imports are appended. What has to be found out is the
/// number of the type that each import refers to: the first at which the component is valid.
fn importing(sandbox: &Sandbox, interfaces: &[&str]) -> Vec<u8> {
    let with_types_from = |first: u8| {
        let mut bytes = component(&noop());
        for (number, interface) in (first..).zip(interfaces) {
            let text = format!(
                r#"(component (import "{interface}" (instance (export "call" (func (param "x" u32) (result u32))))))"#
            );
            let sections = wat::parse_str(text).unwrap();
            bytes.extend_from_slice(&sections[8..sections.len() - 1]);
            bytes.push(number);
        }
        bytes
    };
    let is_valid = |bytes: &Vec<u8>| {
        let path = sandbox.write("tried.wasm", bytes);
        !sandbox.host.inspect(&path, "{}").is_err_and(|error| error.code() == "plugin-damaged")
    };
    (0..127).map(with_types_from).find(is_valid).expect("a component with appended imports")
}

#[test]
fn unknown_imports_are_named_one_by_one() {
    let sandbox = Sandbox::new();
    let bytes = importing(
        &sandbox,
        &["acme:files/read@1.0.0", "wasi:cli/environment@0.2.3", "flumen:plugin/state@0.1.0"],
    );
    let names = "offer: `acme:files/read@1.0.0`, `flumen:plugin/state@0.1.0`;";
    refused(&sandbox, &bytes, "plugin-unknown-imports", &[names]);
}

#[test]
fn wasi_imports_of_any_version_load() {
    let sandbox = Sandbox::new();
    let path = sandbox
        .write("guest.wasm", &importing(&sandbox, &["wasi:cli/environment@0.2.3", "wasi:clocks/x@0.3.0"]));
    let version = sandbox.host.open(&path, "guest", "{}", &[], patient()).unwrap();
    check_isolated(&version, &batch_with(100, &[], ""), &[], "");
}

#[test]
fn imports_have_to_be_granted() {
    let sandbox = Sandbox::new();
    let open = |grants: &[&str]| {
        let grants: Vec<String> = grants.iter().map(|grant| grant.to_string()).collect();
        sandbox.host.open(&guest("greedy"), "greedy", "{}", &grants, patient())
    };
    let text = open(&[]).unwrap_err().to_string();
    assert!(text.contains("grant = ["), "{text}");
    ["log", "metrics", "clock"]
        .iter()
        .for_each(|power| assert!(text.contains(&format!("{power:?}")), "{text}"));
    let error = open(&["log", "clock"]).unwrap_err();
    assert_eq!(error.code(), "plugin-not-granted");
    let text = error.to_string();
    assert!(text.contains(r#"imports `metrics`, which"#), "{text}");
    assert!(text.contains(r#"grant = ["log", "clock", "metrics"]"#), "{text}");

    let version = open(&["log", "clock", "metrics"]).unwrap();
    check_isolated(&version, &batch_with(100, &[], ""), &[], "");
    let stats = version.stats();
    assert_eq!(stats.guest_metrics.get("rows"), Some(&GuestMetric::Counter(100)));
    let Some(GuestMetric::Gauge(seconds)) = stats.guest_metrics.get("clock_seconds") else {
        panic!("{stats:?}")
    };
    assert!(*seconds > 1.7e9, "{seconds}");
    assert_eq!(stats.metric_calls_dropped, 1);
}

/// An instance for `describe` alone is as large as any other of the plugin.
#[test]
fn what_a_plugin_tells_about_itself_may_take_what_its_place_gives() {
    let sandbox = Sandbox::new();
    // 75 MiB from the start, where the usual limit is 64 MiB.
    let large = Forge { memory: "1200", ..Forge::good() };
    sandbox.write("large.wasm", &large.described(""));
    let open = |memory_bytes| {
        let limits = PluginLimits { memory_bytes, ..patient() };
        sandbox.host.slot(InterceptorPlan { limits, ..plan("large", "{}") }, sandbox.dir.path())
    };
    let error = open(64 << 20).unwrap_err();
    assert_eq!(error.code(), "plugin-open");
    assert!(error.to_string().contains("its limit is 67108864"), "{error}");
    let slot = open(128 << 20).unwrap();
    assert_eq!(slot.current().process(batch_with(10, &[], "")).kept.rows(), 10);
}

#[test]
fn a_look_at_a_new_file_holds_the_options_that_run_against_its_schema() {
    let sandbox = Sandbox::new();
    sandbox.write("guest.wasm", &Forge::good().described(""));
    let slot = sandbox.host.slot(plan("guest", r#"{"old":1}"#), sandbox.dir.path()).unwrap();
    let schema = r#"{"type":"object","properties":{"new":{}},"additionalProperties":false}"#;
    sandbox.write("guest.wasm", &Forge::good().described(schema));
    assert_eq!(slot.check_file().unwrap_err().code(), "plugin-options");
    // Its `open` takes any options, so with these words alone it would run.
    let any = r#"{"type":"object","properties":{"new":{}}}"#;
    sandbox.write("guest.wasm", &Forge::good().described(any));
    slot.check_file().unwrap();
}

#[test]
fn a_flood_of_lines_is_counted_and_dropped() {
    let sandbox = Sandbox::new();
    let limits = PluginLimits { time: std::time::Duration::from_secs(60), ..PluginLimits::default() };
    let grants = ["log".to_owned()];
    let version = sandbox.host.open(&guest("log_flood"), "log-flood", "{}", &grants, limits).unwrap();
    check_isolated(&version, &batch_with(3, &[], ""), &[], "");
    let dropped = version.stats().log_lines_dropped;
    assert!((999_000..=999_990).contains(&dropped), "{dropped}");
}

fn entries(sandbox: &Sandbox) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(sandbox.dir.path().join("cache")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|suffix| suffix == "compiled")).collect()
}

#[test]
fn a_second_start_compiles_nothing_and_a_damaged_entry_is_made_again() {
    let sandbox = Sandbox::new();
    let path = guest("hostile");
    let first = sandbox.host.inspect(&path, r#"{"do":"loop-on"}"#).unwrap();
    assert!(first.compile_ms.is_some());
    let files = entries(&sandbox);
    assert_eq!(files.len(), 1);
    assert_eq!(std::fs::metadata(&files[0]).unwrap().mode() & 0o777, 0o600);
    let again = || {
        // The file is written to below, while nothing may run what is mapped of it: without a watch there are no threads that make
        // instances for later, so with the host all of it is let go.
        let config = HostConfig { watch: false, ..HostConfig::new(sandbox.dir.path().join("cache")) };
        let host = PluginHost::new(config).unwrap();
        host.inspect(&path, r#"{"do":"loop-on"}"#).unwrap()
    };
    let second = again();
    assert_eq!(second.compile_ms, None);
    assert_eq!(second.reads, first.reads);

    let good = std::fs::read(&files[0]).unwrap();
    for damage in [good.len() - 1, good.len() / 2, 20, 0] {
        let mut bad = good.clone();
        bad[damage] ^= 1;
        std::fs::write(&files[0], bad).unwrap();
        assert!(again().compile_ms.is_some());
        assert_eq!(again().compile_ms, None);
    }
    std::fs::write(&files[0], &good[..good.len() / 2]).unwrap();
    assert!(again().compile_ms.is_some());
    assert_eq!(std::fs::read(&files[0]).unwrap(), good);
}

#[test]
fn a_cache_that_cannot_be_written_stops_nothing() {
    let sandbox = Sandbox::new();
    std::fs::remove_dir_all(sandbox.dir.path().join("cache")).unwrap();
    let version = sandbox.open("noop", "{}", patient()).unwrap();
    check_isolated(&version, &batch_with(10, &[], ""), &[], "");
}
