//! Sinks that fail at any step, and sinks that take a part.

use std::sync::Arc;
use std::time::Duration;

use flumen_journal::Journal;
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::{Interceptor, Processed};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, keep, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{World, interceptor, plan};
use crate::support::{Dice, assert_exactly, until};

const TOTAL: u64 = 3_000;

/// Errors and panics at recover, in deliver, before and after flush, at committed, and while made anew.
#[test]
fn a_failing_sink_recovers_exactly_once_in_order() {
    let mut errors = 0;
    for seed in 0..3 {
        let world = World::new(plan(&["one", "two"], &[("main", 800)], &[("good", "main"), ("bad", "main")]));
        let (good, bad) = (Destination::new(), Destination::with_faults(seed, 15));
        let sources = [1, 2].map(|stream| Script::new(stream, TOTAL, 40).make()).into();
        let running = world.start(sources, Vec::new(), vec![good.sink(), bad.sink()]);
        until("the sources end", || running.pipeline.sources_ended());
        until("all is acknowledged", || running.cursors("main") == [2 * TOTAL, 2 * TOTAL]);
        errors += running.pipeline.status().sinks[1].component.metrics["errors"];
        running.finish();
        assert_exactly(&good.records(), &[1, 2], TOTAL, |_| true, &format!("seed {seed}, good"));
        assert_exactly(&bad.records(), &[1, 2], TOTAL, |_| true, &format!("seed {seed}, bad"));
    }
    assert!(errors > 15, "the faults happened: {errors}");
}

/// What is left of a burst when nothing comes any more is flushed at once, however long a trickle would wait.
#[test]
fn the_end_of_a_burst_does_not_wait() {
    let world = World::new(plan(&["one"], &[("main", 10_000)], &[("a", "main")]));
    let mut destination = Destination::new();
    destination.policy.linger = Duration::from_secs(3_600);
    // One burst: where a thread before the sink stands still for a moment, there would be two, and the second may be no full flush.
    destination.set_held(true);
    let running = world.start(vec![Script::new(1, TOTAL, 40).make()], Vec::new(), vec![destination.sink()]);
    until("all is in the channel and durable", || running.pipeline.sources_ended());
    destination.set_held(false);
    until("all is acknowledged", || running.cursors("main") == [TOTAL]);
    running.finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "burst");
}

/// A sink's own chain decides what it gets; the cursor counts what the channel holds.
#[test]
fn a_sink_takes_a_part_and_its_cursor_counts_all() {
    let part = |position: u64| position % 10 == 4;
    let bad = |position: u64| position % 100 == 77;
    let mut plan = plan(&["one"], &[("main", 800)], &[("all", "main"), ("part", "main"), ("none", "main")]);
    plan.sinks[1].interceptors = vec![interceptor("part", OnReject::Quarantine)];
    plan.sinks[2].interceptors = vec![interceptor("none", OnReject::Quarantine)];
    let world = World::new(plan);
    let destinations = [Destination::new(), Destination::with_faults(5, 10), Destination::new()];
    let chains = || -> [Vec<Arc<dyn Interceptor>>; 3] {
        let take_part = Plugin::new("part", move |batch| Processed {
            kept: rows_where(&batch, part),
            quarantined: vec![out(&batch, "part", true, bad)],
            dropped: 0,
        });
        [vec![], vec![take_part], vec![Plugin::new("none", |batch| keep(batch, |_| false))]]
    };
    for total in [TOTAL / 2, TOTAL] {
        // The second start reads on where the first one stopped.
        let sinks = destinations.iter().map(Destination::make).zip(chains()).collect();
        let running = world.start(vec![Script::new(1, total, 40).make()], Vec::new(), sinks);
        until("all is acknowledged", || running.cursors("main") == [total; 3]);
        let sinks = || running.pipeline.status().sinks;
        until("the status says so", || {
            sinks().iter().all(|s| s.component.metrics["delivered_position"] == total)
        });
        assert_eq!(sinks()[2].component.metrics["events_delivered"], 0);
        assert_eq!(running.journal.status().channels[0].events, 0);
        running.finish();
    }
    assert_exactly(&destinations[0].records(), &[1], TOTAL, |_| true, "all");
    assert_exactly(&destinations[1].records(), &[1], TOTAL, part, "part");
    assert!(destinations[2].records().is_empty());
    assert_exactly(&world.quarantined(), &[1], TOTAL, bad, "quarantined by the sink's chain");
}

/// A destination that stores the cursor itself is asked for it: what it holds is not delivered again, although the
/// acknowledgement was lost.
#[test]
fn a_destination_that_knows_its_cursor_gets_nothing_twice() {
    for seed in 0..4 {
        let mut dice = Dice(seed);
        let mut world = World::new(plan(&["one"], &[("main", 800)], &[("a", "main")]));
        let mut destination = Destination::with_faults(seed, 10);
        destination.set_cursor_stored();
        let script = Script::new(1, TOTAL, 40);
        for rows in [500, 1_200, 2_500] {
            let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
            destination.wait_for_rows(rows + dice.roll(200) as usize);
            world = world.crash(running);
            destination = destination.crash(&mut dice);
        }
        world.start(vec![script.make()], Vec::new(), vec![destination.sink()]).finish();
        assert_exactly(&destination.records(), &[1], TOTAL, |_| true, &format!("seed {seed}"));
    }
}

/// A destination says what it holds, and then carries out what it was asked for before: what went to quarantine with that is not lost
/// with the record of what was flushed next.
#[test]
fn quarantine_beside_a_flush_that_is_late_is_exactly_once() {
    const ROWS: u64 = 800;
    let bad = |position: u64| position % 20 == 7;
    for every in [1, 2, 3] {
        let mut plan = plan(&["one"], &[("main", 800)], &[("a", "main")]);
        plan.sinks[0].interceptors = vec![interceptor("part", OnReject::Quarantine)];
        let world = World::new(plan);
        let mut destination = Destination::new();
        destination.policy.bytes = 400;
        destination.set_late(every);
        let plugin = Plugin::new("part", move |batch| Processed {
            kept: rows_where(&batch, |position| !bad(position)),
            quarantined: vec![out(&batch, "part", true, bad)],
            dropped: 0,
        });
        let script = Script::new(1, ROWS, 40);
        let start = || {
            let sink = (destination.make(), vec![plugin.clone() as Arc<dyn Interceptor>]);
            world.start(vec![script.make()], Vec::new(), vec![sink])
        };
        for rows in [100, 200] {
            let running = start();
            destination.wait_for_rows(rows);
            running.stop_within(Duration::from_millis(1));
        }
        let running = start();
        until("all is acknowledged", || running.cursors("main") == [ROWS]);
        running.finish();
        assert!(destination.late_done() > 0, "{} were late", destination.late_done());
        assert_exactly(&destination.records(), &[1], ROWS, |position| !bad(position), "at the destination");
        assert_exactly(&world.quarantined(), &[1], ROWS, bad, "in quarantine");
    }
}

/// What goes to quarantine while the destination stores the cursor: a crash between the destination's step
/// and the commit here neither loses nor doubles it, with one lane and with lanes that are not committed together.
#[test]
fn quarantine_beside_a_stored_cursor_is_exactly_once() {
    let bad = |position: u64| position % 50 == 7;
    for (seed, is_laned) in [(0, false), (1, false), (2, true), (3, true)] {
        let mut dice = Dice(seed);
        let mut plan = plan(&["one", "two"], &[("main", 800)], &[("a", "main")]);
        plan.sinks[0].interceptors = vec![interceptor("part", OnReject::Quarantine)];
        let mut world = World::new(plan);
        let mut destination = Destination::with_faults(seed, 15);
        if is_laned {
            destination.set_laned()
        } else {
            destination.set_cursor_stored()
        }
        let sources = || [1, 2].map(|stream| Script::new(stream, TOTAL, 40).make()).into();
        // Each life judges the rows in another way: the first verdict on a row is the one that counts.
        let sink = |destination: &Destination, life: u64| {
            let plugin = Plugin::new("part", move |batch| Processed {
                kept: rows_where(&batch, |position| !bad(position + life)),
                quarantined: vec![out(&batch, "part", true, |position| bad(position + life))],
                dropped: 0,
            });
            vec![(destination.make(), vec![plugin as Arc<dyn Interceptor>])]
        };
        for (life, rows) in [800, 1_600, 2_400, 3_200].into_iter().enumerate() {
            let running = world.start(sources(), Vec::new(), sink(&destination, life as u64));
            destination.wait_for_rows(rows + dice.roll(200) as usize);
            world = world.crash(running);
            destination = destination.crash(&mut dice);
        }
        world.start(sources(), Vec::new(), sink(&destination, 9)).finish();
        let mut all: Vec<(u64, u64)> = destination
            .records()
            .iter()
            .chain(&world.quarantined())
            .map(|r| (r.stream, r.position))
            .collect();
        all.sort_unstable();
        let expected: Vec<(u64, u64)> =
            [1, 2].iter().flat_map(|stream| (0..TOTAL).map(move |position| (*stream, position))).collect();
        assert!(world.quarantined().len() > 50);
        assert!(all == expected, "seed {seed}: {} events, expected {}", all.len(), expected.len());
    }
}

/// A new journal, and a destination that remembers the cursor of an old one: nothing of the new one is skipped.
#[test]
fn a_cursor_past_the_channel_skips_nothing() {
    let destination = Destination::new();
    destination.set_cursor_stored();
    let run = |stream: u64, total: u64| {
        let world = World::new(plan(&["one"], &[("main", 800)], &[("a", "main")]));
        world
            .start(vec![Script::new(stream, total, 40).make()], Vec::new(), vec![destination.sink()])
            .finish();
    };
    run(1, TOTAL);
    run(2, 50);
    let new = destination.records().split_off(TOTAL as usize);
    assert_exactly(&new, &[2], 50, |_| true, "of the new journal");
}
