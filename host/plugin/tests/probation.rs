//! A new version that fails or costs too much is rolled back by itself, and the old one processes what it failed on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use flumen_event::Batch;
use flumen_pipeline::Interceptor;
use flumen_pipeline::plan::{InterceptorPlan, PluginLimits, Probation};
use flumen_plugin::{HostConfig, PluginHost, PluginSlot, ShadowBounds, ShadowError, SwapOutcome};

const BAD: &str = "\" 404 ";

struct Place {
    _dir: tempfile::TempDir,
    host: Arc<PluginHost>,
    plugins: PathBuf,
}

impl Place {
    /// Files are not watched: each swap is asked for.
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let cache_dir = dir.path().join("cache");
        let host = PluginHost::new(HostConfig { watch: false, ..HostConfig::new(cache_dir) }).unwrap();
        let plugins = dir.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        Place { _dir: dir, host, plugins }
    }

    fn slot(&self, probation: Probation) -> Arc<PluginSlot> {
        self.put("swap_a");
        let limits = PluginLimits { probation, ..patient() };
        self.host.slot(InterceptorPlan { limits, ..plan("swap", "{}") }, &self.plugins).unwrap()
    }

    fn put(&self, name: &str) {
        std::fs::copy(guest(name), self.plugins.join("swap.wasm")).unwrap();
    }

    fn swap(&self, slot: &PluginSlot, name: &str) {
        self.put(name);
        assert!(matches!(slot.reload_now().unwrap(), SwapOutcome::Swapped { .. }));
    }
}

/// All rows come out, by one version.
fn version_of(slot: &PluginSlot, batch: &Batch) -> String {
    let processed = slot.current().process(batch.clone());
    assert_eq!(positions(&processed.kept), positions(batch));
    assert!(quarantined(&processed).is_empty(), "{:?}", quarantined(&processed));
    let mut versions = header(&processed.kept, "version");
    versions.dedup();
    assert_eq!(versions.len(), 1);
    versions.remove(0).unwrap()
}

fn good() -> Batch {
    batch_with(1_000, &[], "")
}

fn bad() -> Batch {
    batch_with(1_000, &[500], BAD)
}

#[test]
fn what_a_new_version_fails_on_is_processed_by_the_old_one_until_that_comes_back() {
    let place = Place::new();
    let slot = place.slot(Probation { failures: 2, ..Probation::DEFAULT });
    place.swap(&slot, "swap_trap");
    assert!(slot.status().on_probation);
    for _ in 0..2 {
        assert_eq!(version_of(&slot, &good()), "t");
        assert_eq!(version_of(&slot, &bad()), "a", "the batch that it fails on is the old one's");
    }
    assert_eq!(slot.status().rollbacks, 0);
    // Batches that are on their way with the new version.
    let on_their_way = slot.current();
    assert_eq!(version_of(&slot, &bad()), "a");
    let status = slot.status();
    assert_eq!((status.rollbacks, status.on_probation, status.version_generation), (1, false, 3));
    let error = status.last_swap_error.unwrap();
    assert!(error.contains("rolled back") && error.contains("failed in 3 of 5 batches"), "{error}");
    assert_eq!(version_of(&slot, &good()), "a");
    let processed = on_their_way.process(good());
    assert_eq!(header(&processed.kept, "version")[0].as_deref(), Some("a"));

    // The file is still there, and is not tried again; the next one is.
    assert_eq!(slot.reload_now().unwrap(), SwapOutcome::Unchanged);
    assert!(!slot.check_file().unwrap());
    assert!(slot.status().last_swap_error.is_some());
    place.swap(&slot, "swap_b");
    assert_eq!(version_of(&slot, &bad()), "b");
    assert_eq!(slot.status().last_swap_error, None);
}

#[test]
fn a_version_that_stands_its_probation_is_there_to_stay() {
    let place = Place::new();
    let slot = place.slot(Probation { batches: 3, ..Probation::DEFAULT });
    place.swap(&slot, "swap_trap");
    (0..3).for_each(|_| assert_eq!(version_of(&slot, &good()), "t"));
    assert!(!slot.status().on_probation);
    let processed = slot.current().process(bad());
    assert_eq!(quarantined(&processed).len(), 1, "it is on its own now");
    assert_eq!(slot.status().rollbacks, 0);
}

#[test]
fn a_version_without_probation_is_on_its_own_at_once() {
    let place = Place::new();
    let slot = place.slot(Probation { batches: 0, ..Probation::DEFAULT });
    place.swap(&slot, "swap_trap");
    assert!(!slot.status().on_probation);
    assert_eq!(quarantined(&slot.current().process(bad())).len(), 1);
}

/// Another swap during a probation: what comes back is the last version that proved itself.
#[test]
fn an_unproven_version_is_not_what_comes_back() {
    let place = Place::new();
    let slot = place.slot(Probation { failures: 0, ..Probation::DEFAULT });
    place.swap(&slot, "swap_b");
    assert_eq!(version_of(&slot, &good()), "b");
    place.swap(&slot, "swap_trap");
    assert_eq!(version_of(&slot, &bad()), "a");
    assert_eq!(version_of(&slot, &good()), "a");
    assert_eq!(slot.status().rollbacks, 1);
}

/// A pipeline that keeps state goes on with the version before, which it holds: the status shows that one.
#[test]
fn a_version_that_does_not_take_over_the_state_does_not_run() {
    for batches in [Probation::DEFAULT.batches, 0] {
        let place = Place::new();
        let slot = place.slot(Probation { batches, ..Probation::DEFAULT });
        let (held, hash) = (slot.current(), slot.status().hash);
        place.swap(&slot, "swap_b");
        slot.refused(&held, "it is not in place any more");
        assert_eq!((slot.status().rollbacks, slot.status().last_swap_error), (0, None));
        let refused = slot.current();
        slot.refused(&refused, "no");
        assert!(Arc::ptr_eq(&slot.current(), &held));
        let status = slot.status();
        let shown = (status.hash, status.on_probation, status.rollbacks, status.version_generation);
        assert_eq!(shown, (hash, false, 1, 3), "{batches}");
        let error = status.last_swap_error.unwrap();
        assert!(error.contains("does not take over the state: no"), "{error}");
        // The file is still there, and is not tried again; the next one is.
        assert_eq!(slot.reload_now().unwrap(), SwapOutcome::Unchanged);
        assert_eq!(slot.status().last_swap_error, Some(error));
        place.swap(&slot, "swap_slow");
        assert_eq!(slot.status().last_swap_error, None);
    }
}

/// What wrote the state last may itself be on probation, or have lost it.
#[test]
fn what_the_pipeline_goes_on_with_is_in_place_whatever_a_rollback_leads_to() {
    let place = Place::new();
    let slot = place.slot(Probation { failures: 0, ..Probation::DEFAULT });
    place.swap(&slot, "swap_b");
    let held = slot.current();
    place.swap(&slot, "swap_slow");
    slot.refused(&slot.current(), "no");
    assert!(Arc::ptr_eq(&slot.current(), &held));
    assert!(slot.status().on_probation, "its own has not ended");

    place.swap(&slot, "swap_trap");
    let held = slot.current();
    assert_eq!(version_of(&slot, &bad()), "a");
    assert_eq!(slot.status().rollbacks, 2);
    slot.refused(&slot.current(), "it is too new");
    assert!(Arc::ptr_eq(&slot.current(), &held));
    let status = slot.status();
    assert_eq!((status.rollbacks, status.on_probation), (3, false), "there is no way back");
    assert!(status.last_swap_error.unwrap().contains("it is too new"));
}

#[test]
fn a_version_that_costs_too_much_is_rolled_back() {
    let place = Place::new();
    let slot = place.slot(Probation::DEFAULT);
    // Its cost is that of the batch in the middle: of so many a busy machine does not hold up half.
    (0..64).for_each(|_| assert_eq!(version_of(&slot, &good()), "a"));
    place.swap(&slot, "swap_slow");
    let mut batches = 0;
    while slot.status().rollbacks == 0 {
        assert_eq!(version_of(&slot, &good()), "s");
        batches += 1;
        assert!(batches < 50, "{:?}", slot.status());
    }
    let error = slot.status().last_swap_error.unwrap();
    assert!(error.contains("an event costs"), "{error}");
    assert_eq!(version_of(&slot, &good()), "a");
}

fn shadow(slot: &Arc<PluginSlot>, file: &Path, feed: Vec<Batch>) -> flumen_plugin::ShadowReport {
    let bounds = ShadowBounds { time: Duration::from_secs(60), rows: 3_000, examples: 2 };
    let (running, file) = (slot.clone(), file.to_owned());
    let shadow = std::thread::spawn(move || running.shadow(&file, bounds).unwrap());
    let mut next = feed.iter().cycle();
    while !shadow.is_finished() {
        let batch = next.next().unwrap();
        assert_eq!(version_of(slot, batch), "a", "the flow is not what it was");
    }
    shadow.join().unwrap()
}

#[test]
fn a_version_runs_beside_without_effect_and_differences_are_shown() {
    let place = Place::new();
    let slot = place.slot(Probation::DEFAULT);
    let report = shadow(&slot, &guest("swap_a"), vec![good()]);
    assert_eq!((report.events, report.same, report.changed), (3_000, 3_000, 0));
    let report = shadow(&slot, &guest("swap_b"), vec![good()]);
    assert_eq!((report.events, report.same, report.changed), (3_000, 0, 3_000));
    assert_eq!(report.differences.len(), 2);
    let difference = &report.differences[0];
    assert_eq!(header(&difference.input, "version"), [None]);
    assert_eq!(header(&difference.running, "version"), [Some("a".to_owned())]);
    assert_eq!(header(&difference.new, "version"), [Some("b".to_owned())]);
    assert!(report.running_ns_per_event > 0 && report.new_ns_per_event > 0);
    let report = shadow(&slot, &guest("swap_trap"), vec![bad()]);
    assert_eq!((report.only_running, report.failed_new, report.quarantined_running), (3, 3, 0));
    assert!(report.reason.unwrap().contains("wasm"));
    let status = slot.status();
    assert_eq!((status.swaps, status.last_swap_error), (0, None));
}

#[test]
fn what_cannot_run_beside_is_refused() {
    let place = Place::new();
    let slot = place.slot(Probation::DEFAULT);
    let bounds = ShadowBounds { time: Duration::from_millis(50), rows: 1, examples: 0 };
    let missing = slot.shadow(Path::new("/no/such.wasm"), bounds);
    assert!(matches!(missing, Err(ShadowError::Load(_))), "{missing:?}");
    // Without events it ends in its time.
    let report = slot.shadow(&guest("swap_b"), bounds).unwrap();
    assert_eq!(report.events, 0);
}
