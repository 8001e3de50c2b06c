//! Sources that fail: run again from what is committed.

use flumen_pipeline::plan::OnReject;

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, busy};
use crate::support::script::Script;
use crate::support::world::{World, interceptor, plan};
use crate::support::{Dice, assert_exactly, until};

const TOTAL: u64 = 3_000;

#[test]
fn a_failing_source_is_run_again_from_its_committed_positions() {
    for seed in 0..3u64 {
        let mut plan = plan(&["bad", "good"], &[("main", 800)], &[("a", "main")]);
        plan.interceptors = vec![interceptor("slow", OnReject::Quarantine)];
        plan.interceptor_threads = 3;
        let world = World::new(plan);
        let destination = Destination::new();
        let mut bad = Script::new(1, TOTAL, 40);
        bad.faults = 60;
        *bad.dice.lock() = Dice(seed);
        let slow = Plugin::new("slow", |batch| {
            // What is emitted is still on its way when the source fails.
            busy(std::time::Duration::from_micros(300));
            all(batch)
        });
        let sources = vec![bad.make(), Script::new(2, TOTAL, 40).make()];
        let running = world.start(sources, vec![slow], vec![destination.sink()]);
        until("the sources end", || running.pipeline.sources_ended());
        let errors = running.pipeline.status().sources[0].metrics["errors"];
        assert!(errors > 3, "the faults happened: {errors}");
        running.finish();
        assert_exactly(&destination.records(), &[1, 2], TOTAL, |_| true, &format!("seed {seed}"));
    }
}
