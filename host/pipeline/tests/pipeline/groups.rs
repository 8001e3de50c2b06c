//! Sink groups: each event at one member's destination, once, whatever fails or crashes; and who gets what.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_journal::Journal;
use flumen_pipeline::group::MemberStatus;
use flumen_pipeline::kept::filter::Filter;
use flumen_pipeline::kept::{Action, Request};
use flumen_pipeline::plan::{Balance, GroupKind, GroupPlan, OnReject, PipelinePlan};
use flumen_pipeline::{Interceptor, Processed};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, Record, assert_exactly, until};

const TOTAL: u64 = 3_000;
const SINKS: [&str; 3] = ["a", "b", "c"];

fn grouped(kind: GroupKind) -> PipelinePlan {
    let mut plan = plan(&["one", "two"], &[("main", 2_000)], &SINKS.map(|sink| (sink, "main")));
    plan.groups = vec![GroupPlan {
        name: "all".into(),
        channel: "main".into(),
        sinks: SINKS.map(str::to_owned).into(),
        kind,
        penalty: Duration::from_millis(5),
        penalty_max: Duration::from_millis(50),
    }];
    plan
}

/// What comes behind events in doubt stays in the channel.
fn roomy(kind: GroupKind) -> PipelinePlan {
    let mut plan = grouped(kind);
    plan.channels[0].capacity_events = 100_000;
    plan
}

fn start(world: &World, destinations: &[Destination; 3]) -> Running {
    let script = |stream| Script::new(stream, TOTAL, 40).make();
    world.start([1, 2].map(script).into(), Vec::new(), destinations.iter().map(Destination::sink).collect())
}

/// In the order of their streams: a group keeps none over its members.
fn everything(destinations: &[Destination]) -> Vec<Record> {
    let mut records: Vec<Record> = destinations.iter().flat_map(Destination::records).collect();
    records.sort_by_key(|record| (record.stream, record.position));
    records
}

fn members(running: &Running) -> Vec<MemberStatus> {
    running.pipeline.status().groups.remove(0).members
}

/// Who is not ready when events come is passed over after a while, and the next one gets what was meant for it.
fn wait_ready(running: &Running, wanted: &[usize]) {
    until("members are ready", || {
        let members = members(running);
        wanted.iter().all(|at| members[*at].state == "ready")
    });
}

/// Destinations of every class, with errors and panics at every step, over crashes.
fn crashes(seed: u64, kind: GroupKind) {
    let mut dice = Dice(seed);
    let mut world = World::new(grouped(kind));
    let mut destinations = [0, 1, 2].map(|at| Destination::with_faults(seed * 3 + at, 12));
    destinations[1].set_cursor_stored();
    if seed.is_multiple_of(2) {
        destinations[2].set_laned();
    }
    // A crash leaves its threads behind, so they are few.
    for _ in 0..3 {
        let running = start(&world, &destinations);
        let rows = || destinations.iter().map(Destination::rows).sum::<usize>();
        let wanted = (rows() + dice.roll(1_200) as usize).min(2 * TOTAL as usize - 200);
        until("it gets on", || rows() >= wanted);
        world = world.crash(running);
        destinations = destinations.map(|destination| destination.crash(&mut dice));
    }
    let running = start(&world, &destinations);
    running.finish();
    let what = format!("seed {seed}, {kind:?}");
    assert_exactly(&everything(&destinations), &[1, 2], TOTAL, |_| true, &what);
    let status = world.open_journal().status();
    assert_eq!(status.channels[0].readers, [("all".to_owned(), 2 * TOTAL)], "{what}");
}

#[test]
fn failover_over_crashes_and_faults() {
    (0..6).for_each(|seed| crashes(seed, GroupKind::Failover));
}

#[test]
fn load_balancing_over_crashes_and_faults() {
    for (seed, balance) in
        (0..6).zip([Balance::RoundRobin, Balance::Random, Balance::LeastInFlight].iter().cycle())
    {
        crashes(seed, GroupKind::LoadBalancing(*balance));
    }
}

#[test]
fn all_members_of_a_balanced_group_are_at_work_at_once() {
    for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastInFlight] {
        let world = World::new(grouped(GroupKind::LoadBalancing(balance)));
        let destinations = [Destination::new(), Destination::new(), Destination::new()];
        let scripts = [1, 2].map(|stream| Script::new(stream, TOTAL, 40));
        scripts.iter().for_each(|script| script.gate.store(0, Ordering::Release));
        let sources = scripts.iter().map(Script::make).collect();
        let sinks = destinations.iter().map(Destination::sink).collect();
        let running = world.start(sources, Vec::new(), sinks);
        // In parts: whose thread stands still for a moment misses the rest of one of them, not of everything. So many that the smallest
        // batch of each part is enough: each member is held in a delivery of each.
        const PARTS: u64 = 25;
        for part in 1..=PARTS {
            destinations.iter().for_each(|destination| destination.set_held(true));
            let gate = part * TOTAL / PARTS;
            scripts.iter().for_each(|script| script.gate.store(gate, Ordering::Release));
            // Each is held in a delivery of its own.
            until("all have something", || members(&running).iter().all(|member| member.in_flight > 0));
            destinations.iter().for_each(|destination| destination.set_held(false));
            let end =
                |script: &Script| script.starts().into_iter().find(|start| *start >= gate).unwrap_or(TOTAL);
            let end = scripts.iter().map(end).sum::<u64>();
            until("the part is acknowledged", || {
                running.head("main") == end && running.cursors("main") == [end]
            });
            assert!(members(&running).iter().all(|member| member.in_flight == 0));
        }
        running.finish();
        assert_exactly(&everything(&destinations), &[1, 2], TOTAL, |_| true, &format!("{balance:?}"));
        for destination in &destinations {
            assert!(destination.rows() > 100, "{balance:?}: {}", destination.rows());
        }
    }
}

/// The best one is away from the start: the second takes over, and gives way when the best is back.
#[test]
fn the_best_member_that_is_well_gets_everything() {
    let world = World::new(grouped(GroupKind::Failover));
    let destinations = [Destination::new(), Destination::new(), Destination::new()];
    destinations[0].set_down(true);
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    script.gate.store(0, Ordering::Release);
    let idle = Script::new(2, 0, 1);
    let sinks = destinations.iter().map(Destination::sink).collect();
    let running = world.start(vec![script.make(), idle.make()], Vec::new(), sinks);
    wait_ready(&running, &[1, 2]);
    until("the best has failed", || members(&running)[0].failures > 0);
    script.gate.store(1_000, Ordering::Release);
    until("the second has the first part", || {
        let head = running.head("main");
        head >= 1_000 && destinations[1].rows() as u64 == head
    });
    let first = destinations[1].rows() as u64;
    assert_eq!(destinations[0].rows(), 0);
    let away = members(&running).remove(0);
    assert!(away.failures > 0 && away.state != "ready", "{away:?}");

    destinations[0].set_down(false);
    until("the best is well", || members(&running)[0].state == "ready");
    script.gate.store(u64::MAX, Ordering::Release);
    destinations[0].wait_for_rows((TOTAL - first) as usize);
    running.stop_within(Duration::from_secs(20));
    assert_eq!((destinations[1].rows() as u64, destinations[2].rows()), (first, 0));
    assert_exactly(&everything(&destinations), &[1], TOTAL, |_| true, "all");
}

/// A flush is done and its answer is lost; then the destination is away. Nobody else gets those events, all others go on.
fn in_doubt(make: fn(&Destination), is_known_at_once: bool) {
    let world = World::new(roomy(GroupKind::Failover));
    let destinations = [Destination::new(), Destination::new(), Destination::new()];
    make(&destinations[0]);
    destinations[0].dies_at_flush();
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    script.gate.store(0, Ordering::Release);
    let idle = Script::new(2, 0, 1);
    let sinks = destinations.iter().map(Destination::sink).collect();
    let running = world.start(vec![script.make(), idle.make()], Vec::new(), sinks);
    wait_ready(&running, &[0, 1, 2]);
    script.gate.store(1_000, Ordering::Release);
    until("the best dies", || destinations[0].is_down());
    script.gate.store(u64::MAX, Ordering::Release);
    until("everything is in the channel", || running.head("main") == TOTAL);
    if is_known_at_once {
        // It may double events anyway: the second takes what it has, too.
        destinations[1].wait_for_rows(TOTAL as usize);
    } else {
        let in_doubt = || members(&running)[0].in_doubt;
        until("the others have all but what is in doubt", || {
            destinations[1].rows() as u64 + in_doubt() == TOTAL && members(&running)[1].in_flight == 0
        });
        assert!(in_doubt() > 0 && members(&running)[0].failures > 0);
        assert_eq!(running.cursors("main"), [0], "the channel keeps what is in doubt");
    }
    destinations[0].set_down(false);
    until("everything is acknowledged", || running.cursors("main") == [TOTAL]);
    running.stop_within(Duration::from_secs(20));
    if !is_known_at_once {
        assert_exactly(&everything(&destinations), &[1], TOTAL, |_| true, "all");
    }
}

#[test]
fn what_is_in_doubt_waits_for_its_member() {
    in_doubt(|_| {}, false);
    in_doubt(Destination::set_cursor_stored, false);
}

#[test]
fn a_member_that_may_double_events_holds_nothing() {
    in_doubt(Destination::set_forgetful, true);
}

/// The same over a crash: after it, the member that has events in doubt is asked first.
#[test]
fn what_is_in_doubt_survives_a_crash() {
    for make in [|_: &Destination| {}, Destination::set_cursor_stored as fn(&Destination)] {
        let mut world = World::new(roomy(GroupKind::Failover));
        let mut destinations = [Destination::new(), Destination::new(), Destination::new()];
        make(&destinations[0]);
        destinations[0].dies_at_flush();
        let scripts = [1, 2].map(|stream| Script { stays: true, ..Script::new(stream, TOTAL, 40) });
        scripts.iter().for_each(|script| script.gate.store(0, Ordering::Release));
        let sources = scripts.iter().map(Script::make).collect();
        let sinks = destinations.iter().map(Destination::sink).collect();
        let running = world.start(sources, Vec::new(), sinks);
        wait_ready(&running, &[0, 1, 2]);
        scripts.iter().for_each(|script| script.gate.store(u64::MAX, Ordering::Release));
        until("the best dies, the second goes on", || {
            destinations[0].is_down() && destinations[1].flushed() > 500
        });
        world = world.crash(running);
        let mut dice = Dice(5);
        destinations = destinations.map(|destination| destination.crash(&mut dice));
        destinations[0].set_down(true);
        let running = start(&world, &destinations);
        until("all but what is in doubt", || {
            let members = members(&running);
            // The third gets something if the second is late to begin.
            let others = (destinations[1].rows() + destinations[2].rows()) as u64;
            let done = others + members[0].in_doubt;
            let is_idle = members[1].in_flight + members[2].in_flight == 0;
            // What the best had flushed before is there too.
            running.pipeline.sources_ended() && is_idle && done + 50 > 2 * TOTAL
        });
        destinations[0].set_down(false);
        running.finish();
        assert_exactly(&everything(&destinations), &[1, 2], TOTAL, |_| true, "all");
    }
}

/// A destination says what it holds, and then carries out what it was asked for before. Until then nobody else was given those
/// events: not after the failure, and not after a restart.
#[test]
fn what_may_still_be_carried_out_stays_with_its_member() {
    const ROWS: u64 = 600;
    for kind in [GroupKind::Failover, GroupKind::LoadBalancing(Balance::RoundRobin)] {
        let world = World::new(roomy(kind));
        let destinations = [2, 3, 2].map(|every| {
            let mut destination = Destination::new();
            destination.policy.bytes = 600;
            destination.set_late(every);
            destination
        });
        let start = || {
            let sources = [1, 2].map(|stream| Script::new(stream, ROWS, 40).make()).into();
            world.start(sources, Vec::new(), destinations.iter().map(Destination::sink).collect())
        };
        for rows in [200, 500] {
            let running = start();
            until("it gets on", || destinations.iter().map(Destination::flushed).sum::<usize>() >= rows);
            running.stop_within(Duration::from_millis(1));
        }
        let running = start();
        until("all is acknowledged", || running.cursors("main") == [2 * ROWS]);
        running.finish();
        assert!(destinations.iter().any(|it| it.late_done() > 0), "{kind:?}: none was late");
        assert_exactly(&everything(&destinations), &[1, 2], ROWS, |_| true, &format!("{kind:?}"));
    }
}

fn is_late(position: u64) -> bool {
    position % 11 == 3
}

/// What a member's own interceptor rejects is in quarantine once; replayed, it goes to any member.
#[test]
fn quarantine_and_replay_of_a_group_over_crashes() {
    let mut dice = Dice(3);
    let mut plan = grouped(GroupKind::LoadBalancing(Balance::RoundRobin));
    plan.sinks
        .iter_mut()
        .for_each(|sink| sink.interceptors = vec![interceptor("late", OnReject::Quarantine)]);
    let mut world = World::new(plan);
    let mut destinations =
        [Destination::with_faults(1, 10), Destination::with_faults(2, 10), Destination::with_faults(3, 10)];
    destinations[1].set_cursor_stored();
    let run = |world: &World, destinations: &[Destination; 3], is_strict: bool| {
        let late = || -> Vec<Arc<dyn Interceptor>> {
            vec![Plugin::new("late", move |batch| match is_strict {
                true => Processed {
                    kept: rows_where(&batch, |position| !is_late(position)),
                    quarantined: vec![out(&batch, "late", true, is_late)],
                    dropped: 0,
                },
                false => all(batch),
            })]
        };
        let sinks = destinations.iter().map(|destination| (destination.make(), late())).collect();
        world.start([1, 2].map(|stream| Script::new(stream, TOTAL, 40).make()).into(), Vec::new(), sinks)
    };
    let delivered = 2 * (0..TOTAL).filter(|position| !is_late(*position)).count();
    for _ in 0..4 {
        let running = run(&world, &destinations, true);
        let rows = || destinations.iter().map(Destination::rows).sum::<usize>();
        // However late this thread looks: there are no more than all.
        let wanted = (rows() + dice.roll(900) as usize).min(delivered - 200);
        until("it gets on", || rows() >= wanted);
        world = world.crash(running);
        destinations = destinations.map(|destination| destination.crash(&mut dice));
    }
    run(&world, &destinations, true).finish();
    assert_exactly(&everything(&destinations), &[1, 2], TOTAL, |position| !is_late(position), "delivered");
    let mut quarantined = world.quarantined();
    quarantined.sort_by_key(|record| (record.stream, record.position));
    assert_exactly(&quarantined, &[1, 2], TOTAL, is_late, "quarantined");

    let running = run(&world, &destinations, false);
    let request = Request { action: Action::Replay, filter: Filter::default(), limit: None };
    running.pipeline.kept().unwrap().request(request).unwrap();
    until("it is replayed", || running.pipeline.kept().unwrap().next_job().is_none());
    running.finish();
    assert_exactly(&everything(&destinations), &[1, 2], TOTAL, |_| true, "after the replay");
}
