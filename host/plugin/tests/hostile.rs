//! What a hostile plugin does costs the guilty rows and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use flumen_pipeline::InterceptorVersion;
use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::LoadError;

#[test]
fn a_row_that_traps_goes_alone() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"trap-on"}"#, patient());
    for bad in [vec![0], vec![999], vec![500, 501], vec![0, 1, 2, 3, 500, 998, 999]] {
        check_isolated(
            &version,
            &batch_with(1_000, &bad, "TRAP"),
            &bad,
            "the plugin trapped: wasm `unreachable`",
        );
    }
    check_isolated(&version, &batch_with(1, &[0], "TRAP"), &[0], "the plugin trapped");
    check_isolated(&version, &batch_with(1_000, &[], ""), &[], "");
    let stats = version.stats();
    assert!(stats.traps > 40 && stats.retries == 5 && stats.bisections == 4, "{stats:?}");
    assert!(stats.last_failure.unwrap().text.contains("trapped"));
}

#[test]
fn a_row_that_loops_goes_alone() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"loop-on"}"#, PluginLimits::default());
    check_isolated(&version, &batch_with(1_000, &[321], "LOOP"), &[321], "took longer than 1000 ms");
    // Two for the batch, ten short ones, one to be sure: some 4 limits. A busy machine may cost short ones more, each of which is halved
    // in turn: two calls for one that failed. How many they are where nothing is slow is in `src/isolation_tests.rs`.
    let stats = version.stats();
    assert!(stats.timeouts >= 13 && stats.calls < 2 * stats.timeouts, "{stats:?}");
    check_isolated(&version, &batch_with(100, &[5, 50], "LOOP"), &[5, 50], "took longer than 1000 ms");
    check_isolated(&version, &batch_with(1_000, &[], ""), &[], "");
    assert!(version.stats().timeouts > 20);
}

#[test]
fn a_row_that_eats_memory_goes_alone() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"bomb-on"}"#, patient());
    check_isolated(&version, &batch_with(1_000, &[7, 900], "BOMB"), &[7, 900], "its limit is 67108864");
    let stats = version.stats();
    assert!(stats.memory_failures > 20, "{stats:?}");
    assert!(stats.memory_max_bytes <= 64 << 20, "{stats:?}");
}

/// Misbehaves only in batches with a `BAD` row, with this misdeed.
fn check_misdeed(misdeed: &str, limits: PluginLimits, reason: &str) {
    let sandbox = Sandbox::new();
    let config = format!(r#"{{"do":"{misdeed}","only_bodies_containing":"BAD"}}"#);
    let version = sandbox.hostile(&config, limits);
    check_isolated(&version, &batch_with(200, &[3, 77, 199], "BAD"), &[3, 77, 199], reason);
    check_isolated(&version, &batch_with(200, &[], ""), &[], "");
}

#[test]
fn offsets_beyond_the_data() {
    check_misdeed("lying-offsets", patient(), "body: the last offset is 1, the data has 0 bytes");
}

#[test]
fn falling_offsets() {
    check_misdeed("falling-offsets", patient(), "the plugin's answer lies: body: ");
}

#[test]
fn a_body_too_many() {
    check_misdeed("wrong-rows", patient(), "body: 12 bytes of offsets, 1 rows need 8");
}

#[test]
fn header_values_that_are_not_utf8() {
    check_misdeed("bad-utf8", patient(), "header \"bad\": row 0 is not UTF-8");
}

#[test]
fn rows_that_the_input_does_not_have() {
    check_misdeed("rows-out-of-range", patient(), "rows-from names row 1000000, the batch has 1");
}

#[test]
fn a_rejection_of_a_row_that_the_input_does_not_have() {
    check_misdeed("reject-out-of-range", patient(), "rejected names row 1000000, the batch has 1");
}

#[test]
fn an_error_from_process() {
    check_misdeed("process-error", patient(), "the plugin failed: `process-error` was asked for");
}

#[test]
fn an_answer_of_100_mib() {
    let roomy = PluginLimits { memory_bytes: 512 << 20, ..patient() };
    check_misdeed("huge-answer", roomy, "larger than its limit of 67108864 bytes");
    check_misdeed("huge-answer", patient(), "bytes of memory; its limit is 67108864");
}

#[test]
fn a_plugin_that_always_loops_has_an_end() {
    let sandbox = Sandbox::new();
    let limits = PluginLimits { time: Duration::from_millis(100), ..PluginLimits::default() };
    let version = sandbox.hostile(r#"{"do":"loop"}"#, limits);
    let batch = batch_with(8_192, &[], "");
    let processed = version.process(batch);
    let found = quarantined(&processed);
    assert_eq!(found.iter().map(|(row, _)| *row).collect::<Vec<_>>(), (0..8_192).collect::<Vec<u64>>());
    assert!(
        found[8_191].1.contains("failed calls of the batch took 10 times the time limit"),
        "{}",
        found[8_191].1
    );
    assert!(processed.kept.is_empty());
    let stats = version.stats();
    assert_eq!(stats.budgets_exhausted, 1);
    // Each of them ends by its limit: two for the batch, at most 50 short ones until ten limits are spent, what is left then.
    assert!(stats.calls == stats.timeouts && stats.calls < 80, "{stats:?}");
}

#[test]
fn a_plugin_that_fails_on_every_row_has_an_end() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"process-error"}"#, patient());
    let processed = version.process(batch_with(8_192, &[], ""));
    let found = quarantined(&processed);
    assert_eq!(found.iter().map(|(row, _)| *row).collect::<Vec<_>>(), (0..8_192).collect::<Vec<u64>>());
    assert!(found[0].1 == "the plugin failed: `process-error` was asked for", "{}", found[0].1);
    assert!(found[8_191].1.contains("budget of 16 failures per batch reached"), "{}", found[8_191].1);
    // Two for the batch, halvings down to the first 16 rows, one to be sure of each, what is left then.
    let calls = version.stats().calls;
    assert!(calls < 80, "{calls}");
}

#[test]
fn an_open_that_says_no_or_never_returns() {
    let sandbox = Sandbox::new();
    let error = sandbox.open("hostile", r#"{"do":"open-error"}"#, patient()).unwrap_err();
    assert!(matches!(error, LoadError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("`open-error` was asked for; use another value"), "{error}");
    let error = sandbox.open("hostile", r#"{"do":"open-loop"}"#, quick()).unwrap_err();
    assert_eq!(error.code(), "plugin-open");
    assert!(error.to_string().contains("took longer than 200 ms"), "{error}");
    let error = sandbox.open("hostile", r#"{"does":"loop"}"#, patient()).unwrap_err();
    assert!(error.to_string().contains("unknown key `does`"), "{error}");
}

#[test]
fn many_threads_share_a_version_that_fails() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"trap-on"}"#, patient());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let version = &version;
            scope.spawn(move || {
                for round in 0..20 {
                    let bad = [(thread * 37 + round) % 300];
                    check_isolated(version, &batch_with(300, &bad, "TRAP"), &bad, "trapped");
                }
            });
        }
    });
}

#[test]
fn more_threads_than_sandboxes_wait_for_each_other() {
    let sandbox = Sandbox::new();
    let versions: Vec<_> = (0..10).map(|_| sandbox.open("noop", "{}", patient()).unwrap()).collect();
    // 10 idle instances here, and 200 versions more than the 128 that fit.
    let more: Vec<_> = (0..200).map(|_| sandbox.open("noop", "{}", patient()).unwrap()).collect();
    for version in versions.iter().chain(&more) {
        check_isolated(version, &batch_with(10, &[], ""), &[], "");
    }
}

#[test]
fn an_instance_that_takes_long_to_make_is_there_before_it_is_needed() {
    let sandbox = Sandbox::new();
    let version = sandbox.hostile(r#"{"do":"slow-open"}"#, patient());
    let wait_for_spare = || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !version.has_spare() {
            assert!(Instant::now() < deadline, "no spare instance");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let guilty = batch(&["TRAP".to_owned()]);
    // The row fails in two instances; the one that the next batch needs is made while nothing waits for it.
    wait_for_spare();
    check_isolated(&version, &guilty, &[0], "unreachable");
    wait_for_spare();
    check_isolated(&version, &batch_with(10, &[], ""), &[], "");
    assert_eq!(version.stats().instances, 3);

    // Without its host there is no other spare than this one.
    wait_for_spare();
    drop(sandbox);
    check_isolated(&version, &guilty, &[0], "unreachable");
    assert!(!version.has_spare());
    check_isolated(&version, &batch_with(10, &[], ""), &[], "");
}

#[test]
fn instances_are_replaced_by_their_batches_and_their_memory() {
    let sandbox = Sandbox::new();
    let by_batches = PluginLimits { recycle_batches: 3, ..patient() };
    let version = sandbox.open("noop", "{}", by_batches).unwrap();
    (0..12).for_each(|_| check_isolated(&version, &batch_with(10, &[], ""), &[], ""));
    let stats = version.stats();
    assert_eq!((stats.recycled, stats.instances), (4, 4), "{stats:?}");

    // A batch of 4 MiB stays in the guest's memory, which never shrinks.
    let by_memory = PluginLimits { memory_bytes: 64 << 20, recycle_memory_percent: 6, ..patient() };
    let version = sandbox.open("noop", "{}", by_memory).unwrap();
    check_isolated(&version, &batch_with(10, &[], ""), &[], "");
    assert_eq!(version.stats().recycled, 0);
    check_isolated(&version, &batch(&["x".repeat(4 << 20)]), &[], "");
    assert_eq!(version.stats().recycled, 1);
}
