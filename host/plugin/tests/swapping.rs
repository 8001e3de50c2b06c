//! A new file is a new behaviour at a batch boundary; a bad one changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use flumen_pipeline::Interceptor;
use flumen_plugin::{LoadError, PluginSlot, SlotStatus, SwapOutcome};

fn version_of(slot: &PluginSlot, rows: usize) -> String {
    let processed = slot.current().process(batch_with(rows, &[], ""));
    assert_eq!(processed.kept.rows(), rows);
    let mut versions = header(&processed.kept, "version");
    versions.dedup();
    assert_eq!(versions.len(), 1, "one batch, one version");
    versions.remove(0).unwrap()
}

#[track_caller]
fn wait_for(slot: &PluginSlot, what: impl Fn(&SlotStatus) -> bool) -> SlotStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = slot.status();
        if what(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn slot(sandbox: &Sandbox) -> Arc<PluginSlot> {
    let dir = sandbox.dir.path().join("plugins");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(guest("swap_a"), dir.join("swap.wasm")).unwrap();
    // What the first batches of a version cost beside others is not what is tested here: it would be rolled back for that.
    let mut settings = plan("swap", "{}");
    settings.limits.probation.slowdown = 0;
    sandbox.host.slot(settings, &dir).unwrap()
}

fn file(sandbox: &Sandbox) -> std::path::PathBuf {
    sandbox.dir.path().join("plugins/swap.wasm")
}

#[test]
fn a_file_that_is_copied_over_renamed_in_or_rewritten_is_swapped() {
    let sandbox = Sandbox::new();
    let slot = slot(&sandbox);
    assert_eq!(version_of(&slot, 10), "a");
    let path = file(&sandbox);

    std::fs::copy(guest("swap_b"), &path).unwrap();
    // The error of a file that was read half-copied ends a moment after the swap.
    let status = wait_for(&slot, |status| status.swaps == 1 && status.last_swap_error.is_none());
    assert_eq!(version_of(&slot, 10), "b");
    assert_eq!((status.version_generation, status.last_swap_error), (2, None));

    let beside = path.with_extension("new");
    std::fs::copy(guest("swap_a"), &beside).unwrap();
    std::fs::rename(&beside, &path).unwrap();
    wait_for(&slot, |status| status.swaps == 2);
    assert_eq!(version_of(&slot, 10), "a");

    // Rewritten slowly, in two parts, with time between them: the half file is refused, the whole one is taken.
    let bytes = std::fs::read(guest("swap_b")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    // A write begins with an empty file, which may be seen, too.
    wait_for(&slot, |status| {
        let error = status.last_swap_error.as_ref();
        error.is_some_and(|error| error.contains("damaged or incomplete WebAssembly"))
    });
    assert_eq!(version_of(&slot, 10), "a");
    std::fs::write(&path, &bytes).unwrap();
    let status = wait_for(&slot, |status| status.swaps == 3 && status.last_swap_error.is_none());
    assert_eq!(version_of(&slot, 10), "b");
    assert_eq!(status.stats.calls, 4, "{:?}", status.stats);
}

#[test]
fn what_is_broken_or_gone_changes_nothing_and_is_reported() {
    let sandbox = Sandbox::new();
    let slot = slot(&sandbox);
    let path = file(&sandbox);
    let before = slot.status();

    std::fs::write(&path, "not a plugin").unwrap();
    wait_for(&slot, |status| {
        status.last_swap_error.as_ref().is_some_and(|error| error.contains("not WebAssembly"))
    });

    std::fs::copy(guest("greedy"), &path).unwrap();
    wait_for(&slot, |status| {
        status.last_swap_error.as_ref().is_some_and(|error| error.contains("grant = ["))
    });

    std::fs::copy(guest("hostile"), &path).unwrap();
    wait_for(&slot, |status| status.last_swap_error.as_ref().is_some_and(|error| error.contains("`do`")));

    std::fs::remove_file(&path).unwrap();
    wait_for(&slot, |status| {
        status.last_swap_error.as_ref().is_some_and(|error| error.contains("there is no "))
    });

    let status = slot.status();
    assert_eq!((status.hash, status.swaps, status.version_generation), (before.hash.clone(), 0, 1));
    assert_eq!(version_of(&slot, 10), "a");

    // The same content again is no swap, but the error is over.
    std::fs::copy(guest("swap_a"), &path).unwrap();
    let status = wait_for(&slot, |status| status.last_swap_error.is_none());
    assert_eq!((status.hash, status.swaps), (before.hash, 0));
}

/// An agent that starts while a file is being copied waits for the rest of it.
#[test]
fn a_start_waits_for_a_file_that_is_being_copied() {
    /// It waits for twice as long.
    const COPY_MAX: Duration = Duration::from_secs(5);
    let sandbox = Sandbox::new();
    loop {
        let begun = Instant::now();
        let (is_early, started) = start_while_copied(&sandbox);
        if begun.elapsed() >= COPY_MAX && (is_early || started.is_err()) {
            // The machine stood still for longer than a start waits: that shows nothing.
            continue;
        }
        assert!(!is_early, "half a file was an answer");
        assert_eq!(version_of(&started.unwrap(), 10), "a");
        return;
    }
}

/// Whether the start had an answer before the file was whole, and what it was.
fn start_while_copied(sandbox: &Sandbox) -> (bool, Result<Arc<PluginSlot>, LoadError>) {
    let path = sandbox.dir.path().join("swap.wasm");
    let bytes = std::fs::read(guest("swap_a")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let is_read = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            is_read.store(true, Ordering::Release);
            sandbox.host.slot(plan("swap", "{}"), sandbox.dir.path())
        });
        while !is_read.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // Now and then a piece, so that the start sees several states.
        for part in 0..8 {
            std::fs::write(&path, &bytes[..bytes.len() / 2 + part]).unwrap();
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let is_early = starting.is_finished();
        std::fs::write(&path, &bytes).unwrap();
        (is_early, starting.join().unwrap())
    })
}

/// A damaged file that nobody has touched for long is refused at once.
#[test]
fn a_start_does_not_wait_for_an_old_damaged_file() {
    let sandbox = Sandbox::new();
    let path = sandbox.dir.path().join("swap.wasm");
    std::fs::write(&path, "\0asm").unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3_600);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let error = sandbox.host.slot(plan("swap", "{}"), sandbox.dir.path()).unwrap_err();
    assert_eq!(error.code(), "plugin-damaged");
}

#[test]
fn a_reload_says_what_it_did() {
    let sandbox = Sandbox::new();
    let slot = slot(&sandbox);
    assert_eq!(slot.reload_now().unwrap(), SwapOutcome::Unchanged);
    let (old, new) =
        (slot.status().hash, blake3::hash(&std::fs::read(guest("swap_b")).unwrap()).to_hex().to_string());
    std::fs::copy(guest("swap_b"), file(&sandbox)).unwrap();
    match slot.reload_now().unwrap() {
        SwapOutcome::Swapped { from, to } => assert_eq!((from, to), (old, new)),
        // The watcher may have been quicker.
        SwapOutcome::Unchanged => assert_eq!(slot.status().hash, new),
    }
    std::fs::write(file(&sandbox), "\0asm").unwrap();
    assert_eq!(slot.reload_now().unwrap_err().code(), "plugin-damaged");
    assert_eq!(version_of(&slot, 10), "b");
}

#[test]
fn batches_flow_through_swaps_whole() {
    let sandbox = Sandbox::new();
    let slot = slot(&sandbox);
    let (is_over, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut batches = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        version_of(&slot, 500);
                        batches += 1;
                        begun.fetch_add(usize::from(batches == 1), Ordering::Relaxed);
                    }
                    batches
                })
            })
            .collect();
        // One that has ended has failed, which is told below.
        while begun.load(Ordering::Relaxed) < workers.len() && !workers.iter().any(|it| it.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for round in 1..=6 {
            let next = if round % 2 == 1 { "swap_b" } else { "swap_a" };
            std::fs::copy(guest(next), file(&sandbox)).unwrap();
            slot.reload_now().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| assert!(worker.join().unwrap() > 0));
    });
    assert_eq!(slot.status().swaps, 6);
}

#[test]
fn an_old_version_is_gone_with_its_last_batch() {
    let sandbox = Sandbox::new();
    let slot = slot(&sandbox);
    let old = slot.current();
    let watch = Arc::downgrade(&old);
    std::fs::copy(guest("swap_b"), file(&sandbox)).unwrap();
    slot.reload_now().unwrap();
    // It still processes what it was asked for.
    let processed = old.process(batch_with(3, &[], ""));
    assert_eq!(header(&processed.kept, "version"), vec![Some("a".to_owned()); 3]);
    drop(old);
    // It may have to come back as long as the new one is on probation.
    assert!(watch.upgrade().is_some());
    (0..slot.plan().limits.probation.batches).for_each(|_| assert_eq!(version_of(&slot, 1), "b"));
    // The thread that watches files may be looking at it.
    wait_for(&slot, |_| watch.upgrade().is_none());
}

#[test]
fn a_plugin_is_found_by_name_as_cargo_writes_it_and_by_path() {
    let sandbox = Sandbox::new();
    let dir = plugins();
    let by_name =
        |name: &str, dir: &Path| sandbox.host.slot(plan(name, "{}"), dir).map(|slot| slot.status().path);
    assert_eq!(by_name("swap-a", &dir).unwrap(), dir.join("swap_a.wasm"));
    assert_eq!(by_name("swap_b.wasm", &dir).unwrap(), dir.join("swap_b.wasm"));
    assert_eq!(by_name(guest("noop").to_str().unwrap(), Path::new("/nowhere")).unwrap(), guest("noop"));
    let error = by_name("none", sandbox.dir.path()).unwrap_err();
    assert_eq!(error.code(), "plugin-missing");
    assert!(error.to_string().contains("none.wasm"), "{error}");
}
