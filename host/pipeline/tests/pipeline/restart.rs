//! Exactly once over clean stops and crashes, any number of them, in any order.

use std::sync::Arc;
use std::time::Duration;

use flumen_journal::Journal;
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::{Interceptor, Processed, StopOutcome, quarantine};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, assert_exactly};

const TOTAL: u64 = 4_000;

fn good(position: u64) -> bool {
    position % 97 != 3
}

fn picky() -> Arc<dyn Interceptor> {
    Plugin::new("picky", |batch| Processed {
        kept: rows_where(&batch, good),
        quarantined: vec![out(&batch, "picky", true, |position| !good(position))],
        dropped: 0,
    })
}

fn start(world: &World, destinations: &[Destination]) -> Running {
    let sources = [1, 2].map(|stream| Script::new(stream, TOTAL, 40).make()).into();
    let sinks = destinations.iter().map(Destination::sink).collect();
    let running = world.start(sources, vec![picky()], sinks);
    assert_eq!(running.journal.status().damaged_commits, 0);
    running
}

fn run(seed: u64, crashes_per_hundred: u64) {
    let mut dice = Dice(seed);
    let channels = [("main", 700), ("second", 500)];
    let mut plan = plan(&["one", "two"], &channels, &[("a", "main"), ("b", "main"), ("c", "second")]);
    plan.interceptors = vec![interceptor("picky", OnReject::Quarantine)];
    plan.interceptor_threads = 3;
    let mut world = World::new(plan);
    let mut destinations = [Destination::new(), Destination::new(), Destination::new()];
    // One of them flushes rarely: a crash finds much that is delivered and not committed.
    destinations[1].policy.bytes = 12_000;
    let all = 2 * (0..TOTAL).filter(|position| good(*position)).count();
    for _ in 0..6 {
        let running = start(&world, &destinations);
        let watched = &destinations[dice.roll(3) as usize];
        watched.wait_for_rows(all.min(watched.rows() + dice.roll(1_500) as usize));
        if dice.roll(100) < crashes_per_hundred {
            world = world.crash(running);
            destinations = destinations.map(|destination| destination.crash(&mut dice));
        } else {
            let outcome = running.stop_within(Duration::from_millis(dice.roll(20)));
            assert!(
                matches!(outcome, StopOutcome::Drained | StopOutcome::Left(_)),
                "seed {seed}: {outcome:?}"
            );
        }
    }
    start(&world, &destinations).finish();
    for (index, destination) in destinations.iter().enumerate() {
        assert_exactly(&destination.records(), &[1, 2], TOTAL, good, &format!("seed {seed}, sink {index}"));
    }
    let quarantined = world.quarantined();
    assert_exactly(
        &quarantined,
        &[1, 2],
        TOTAL,
        |position| !good(position),
        &format!("seed {seed}, quarantine"),
    );
    for record in quarantined {
        assert_eq!(record.header(quarantine::HEADER_REASON), format!("reason {}", record.position));
    }
}

#[test]
fn exactly_once_over_clean_stops() {
    (0..3).for_each(|seed| run(seed, 0));
}

#[test]
fn exactly_once_over_crashes() {
    (100..106).for_each(|seed| run(seed, 100));
}

#[test]
fn exactly_once_over_stops_and_crashes() {
    (200..204).for_each(|seed| run(seed, 50));
}
