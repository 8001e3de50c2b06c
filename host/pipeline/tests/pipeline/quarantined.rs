//! Where events go that could not be processed: exactly once, with their headers and the reason.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_journal::{Commit, Journal, Put};
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::{Processed, quarantine};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, keep, label, quarantine as out, rows_where};
use crate::support::script::{Script, batch};
use crate::support::world::{World, interceptor, plan};
use crate::support::{Dice, assert_exactly, until};

const TOTAL: u64 = 3_000;

fn rejected(position: u64) -> bool {
    position.is_multiple_of(7)
}

fn failed(position: u64) -> bool {
    !rejected(position) && position.is_multiple_of(11)
}

fn dropped(position: u64) -> bool {
    !rejected(position) && !failed(position) && position.is_multiple_of(13)
}

fn judge(batch: flumen_event::Batch) -> Processed {
    let batch = label(batch, "seen", "by judge");
    Processed {
        kept: rows_where(&batch, |position| !rejected(position) && !failed(position)),
        quarantined: vec![out(&batch, "judge", true, rejected), out(&batch, "judge", false, failed)],
        dropped: 0,
    }
}

fn dropper(batch: flumen_event::Batch) -> Processed {
    let quarantined = vec![out(&batch, "dropper", true, dropped)];
    Processed { quarantined, ..keep(batch, |position| !dropped(position)) }
}

#[test]
fn rejected_and_failed_rows_are_kept_once_with_their_headers() {
    let mut plan = plan(&["one"], &[("main", 500)], &[("a", "main")]);
    plan.interceptors =
        vec![interceptor("judge", OnReject::Quarantine), interceptor("dropper", OnReject::Drop)];
    plan.interceptor_threads = 2;
    let mut world = World::new(plan);
    let mut destination = Destination::new();
    let start = |world: &World, destination: &Destination, gate: u64| {
        let plugins: Vec<Arc<dyn flumen_pipeline::Interceptor>> =
            vec![Plugin::new("judge", judge), Plugin::new("dropper", dropper)];
        let script = Script::new(1, TOTAL, 50);
        script.gate.store(gate, Ordering::Release);
        world.start(vec![script.make()], plugins, vec![destination.sink()])
    };
    // A crash somewhere in the middle, for the way from the pipeline's journal to the quarantine's; never later than the gate.
    let running = start(&world, &destination, 1_600);
    destination.wait_for_rows(900);
    world = world.crash(running);
    destination = destination.crash(&mut Dice(3));
    let first_run = destination.rows() as u64;

    let running = start(&world, &destination, u64::MAX);
    until("the source ends", || running.pipeline.sources_ended());
    let (judge, dropper) = (running.interceptor("judge").metrics, running.interceptor("dropper").metrics);
    running.finish();
    assert!(first_run < TOTAL / 2, "the crash came in the middle: {first_run}");
    assert!(judge["events_rejected"] > 0 && judge["events_failed"] > 0);
    let counted = judge["events_in"];
    let from = TOTAL - counted;
    assert_eq!(judge["events_rejected"], (from..TOTAL).filter(|position| rejected(*position)).count() as u64);
    assert_eq!(judge["events_failed"], (from..TOTAL).filter(|position| failed(*position)).count() as u64);
    assert_eq!(
        dropper["events_rejected"],
        (from..TOTAL).filter(|position| dropped(*position)).count() as u64
    );

    let good = |position| !rejected(position) && !failed(position) && !dropped(position);
    assert_exactly(&destination.records(), &[1], TOTAL, good, "delivered");
    let kept = world.quarantined();
    let (by_plugin, by_failure): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|record| record.header(quarantine::HEADER_KIND) == "rejected");
    assert_exactly(&by_plugin, &[1], TOTAL, rejected, "rejected");
    assert_exactly(&by_failure, &[1], TOTAL, failed, "failed");
    for record in by_plugin.iter().chain(&by_failure) {
        let odd = if record.position % 2 == 1 { format!("odd-{}", record.position) } else { String::new() };
        assert_eq!(record.header("odd"), odd);
        assert_eq!(record.header("host"), "host-1");
        assert_eq!(record.header("seen"), "by judge", "as the interceptor hands it over");
    }
}

/// The crash is between the two commits of the hop: the events are kept, the acknowledgement is not.
#[test]
fn a_crash_in_the_hop_keeps_events_once() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let (journal, kept) = (world.open_journal(), world.open_quarantine());
    let events = batch(9, 0, 20);
    let channel = journal.channel(quarantine::CHANNEL).unwrap();
    let put =
        Commit { puts: vec![Put { channels: vec![channel], batch: events.clone() }], ..Commit::default() };
    journal.commit(put, None).unwrap().wait(None).unwrap().unwrap();
    let channel = kept.channel(quarantine::KEPT_CHANNEL).unwrap();
    let put = Commit {
        puts: vec![Put { channels: vec![channel], batch: events }],
        positions: vec![(b"keeper/cursor".to_vec(), 20u64.to_le_bytes().to_vec())],
        ..Commit::default()
    };
    kept.commit(put, None).unwrap().wait(None).unwrap().unwrap();
    journal.close().unwrap();
    kept.close().unwrap();
    drop((journal, kept));

    let destination = Destination::new();
    world.start(vec![Script::new(1, 10, 5).make()], Vec::new(), vec![destination.sink()]).finish();
    assert_exactly(&world.quarantined(), &[9], 20, |_| true, "quarantine");
}

/// A new journal beside an old quarantine: its first events must not be taken for old ones.
#[test]
fn a_cursor_of_another_journal_skips_nothing() {
    let mut plan = plan(&["one"], &[("main", 500)], &[("a", "main")]);
    plan.interceptors = vec![interceptor("judge", OnReject::Quarantine)];
    let world = World::new(plan);
    let kept = world.open_quarantine();
    let positions = vec![(b"keeper/cursor".to_vec(), 100_000u64.to_le_bytes().to_vec())];
    kept.commit(Commit { positions, ..Commit::default() }, None).unwrap().wait(None).unwrap().unwrap();
    kept.close().unwrap();
    drop(kept);

    let destination = Destination::new();
    let sources = vec![Script::new(1, TOTAL, 50).make()];
    world.start(sources, vec![Plugin::new("judge", judge)], vec![destination.sink()]).finish();
    let kept = world.quarantined();
    let rejections: Vec<_> = kept.into_iter().filter(|record| rejected(record.position)).collect();
    assert_exactly(&rejections, &[1], TOTAL, rejected, "quarantine");
}

/// On a full disk acknowledgements pass puts. The acknowledgement of a later event must not pass the put that takes
/// an earlier one to quarantine: a crash there would lose it.
#[test]
fn a_full_disk_does_not_let_acknowledgements_pass_what_they_depend_on() {
    let bad = |position: u64| position < 60 && position % 6 == 1;
    let mut plan = plan(&["one"], &[("main", 1_000_000)], &[("a", "main")]);
    plan.sinks[0].interceptors = vec![interceptor("early", OnReject::Quarantine)];
    let mut world = World::new(plan);
    world.reserve_bytes = 256 << 10;
    let mut destination = Destination::new();
    let sink = |destination: &Destination| {
        let early = Plugin::new("early", move |batch| Processed {
            kept: rows_where(&batch, |position| !bad(position)),
            quarantined: vec![out(&batch, "early", true, bad)],
            dropped: 0,
        });
        (destination.make(), vec![early as Arc<dyn flumen_pipeline::Interceptor>])
    };
    // A sink with positions is held back by the journal: no commit passes one that writes the same position.
    destination.set_forgetful();
    destination.set_held(true);
    let script = Script::new(1, TOTAL, 50);
    // The rest comes when the disk is full: else all may be there by then.
    script.gate.store(script.starts()[25], Ordering::Release);
    let running = world.start(vec![script.make()], Vec::new(), vec![sink(&destination)]);
    until("some events are durable", || running.journal.status().commits > 20);
    world.gate.fill();
    script.gate.store(u64::MAX, Ordering::Release);
    until("the disk is full", || running.journal.status().waiting_for.is_some());
    let commits = running.journal.status().commits;
    destination.set_held(false);
    until("the sink has flushed", || destination.flushed() > 0);
    // Time for what must not happen. It ends early only when it does.
    let patience = std::time::Instant::now() + std::time::Duration::from_millis(400);
    until("a while", || running.journal.status().commits > commits || std::time::Instant::now() > patience);
    world = world.crash(running);
    destination = destination.crash(&mut Dice(2));

    world.start(vec![script.make()], Vec::new(), vec![sink(&destination)]).finish();
    assert_exactly(&world.quarantined(), &[1], TOTAL, bad, "quarantine");
    let mut delivered = destination.records();
    delivered.sort_by_key(|record| record.position);
    delivered.dedup();
    assert_exactly(&delivered, &[1], TOTAL, |position| !bad(position), "delivered, at least once");
}

/// A destination that takes nothing: what goes to quarantine does not pile up in memory until the next flush.
#[test]
fn what_a_sink_quarantines_is_bounded_in_memory() {
    let mut plan = plan(&["one"], &[("main", 1_000_000)], &[("a", "main")]);
    plan.sinks[0].interceptors = vec![interceptor("none", OnReject::Quarantine)];
    let world = World::new(plan);
    let mut destination = Destination::new();
    // By itself it would flush once an hour.
    destination.policy.linger = std::time::Duration::from_secs(3_600);
    let none = Plugin::new("none", |batch| {
        let heavy = label(batch, "padding", &"p".repeat(10_000));
        Processed {
            kept: rows_where(&heavy, |_| false),
            quarantined: vec![out(&heavy, "none", true, |_| true)],
            dropped: 0,
        }
    });
    let sinks: Vec<(_, Vec<Arc<dyn flumen_pipeline::Interceptor>>)> = vec![(destination.make(), vec![none])];
    let running = world.start(vec![Script::new(1, TOTAL, 50).make()], Vec::new(), sinks);
    let acknowledged = || running.cursors("main")[0];
    let bytes = flumen_pipeline::limits::SINK_QUARANTINE_BYTES as u64 + 50 * 10_100;
    until("nearly all is acknowledged", || acknowledged() > TOTAL - bytes / 10_000);
    // A stop gives the quarantine's own journal some seconds: these are tens of MB.
    let kept = || running.pipeline.kept().unwrap().events();
    until("the quarantine keeps it", || kept() >= acknowledged());
    running.finish();
    assert_exactly(&world.quarantined(), &[1], TOTAL, |_| true, "quarantine");
}
