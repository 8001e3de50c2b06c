//! The journal under a simulated disk and a simulated clock, one step after the other: a schedule is the same each time it runs.
//!
//! A schedule is random commits, turns of the committer, reads, readers that come and go, compression and keys that change,
//! faults of every call of the disk, full disks, ends of the process and power cuts, also within a recovery; and at the end of some,
//! damage. After each step that can tell, the journal is compared with a plain model ([`truth`]). What is proven so is listed in the
//! docs of [`crate::file`].
//!
//! `FLUMEN_CASES=100000 FLUMEN_SEED=7 cargo test -p flumen-journal sim::` runs as many schedules from that seed; a failing one is
//! shrunk and printed, and belongs into [`regressions`] then. CI runs 2,000. By hand 100,000 passed: 10,000 from each of the seeds 201 to
//! 210, with 2,999,546 steps, 305,692 power cuts, 109,126 other ends and 34,016 damaged journals; and 20,000 from each of 7 and 302 to 307.

mod harm;
mod regressions;
mod step;
pub mod truth;
pub mod world;

use std::cell::RefCell;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use step::{End, Schedule, Step, schedule};
use world::World;

/// What a run of all tests can afford.
const CASES: u32 = 2_000;

/// The same for everybody, so that a change fails by what it changes; other seeds are for runs by hand.
const SEED: u64 = 7;

/// What a run was made of.
#[derive(Debug, Default)]
struct Figures {
    steps: usize,
    commits: usize,
    faults: usize,
    power_cuts: usize,
    other_ends: usize,
    damaged: usize,
}

impl Figures {
    fn add(&mut self, schedule: &Schedule) {
        self.steps += schedule.steps.len();
        for step in &schedule.steps {
            match step {
                Step::Crash { again, .. } => self.power_cuts += 1 + usize::from(again.is_some()),
                Step::Close | Step::Kill { .. } => self.other_ends += 1,
                Step::Fault { .. } | Step::Full { .. } | Step::ShortWrites { .. } => self.faults += 1,
                step => self.commits += usize::from(step.is_commit()),
            }
        }
        if let Some((end, _)) = &schedule.damage {
            self.damaged += 1;
            // It goes on over two more power cuts.
            self.power_cuts += 2 + usize::from(matches!(end, End::Crash(_)));
            self.other_ends += usize::from(!matches!(end, End::Crash(_)));
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(schedule: &Schedule) {
    let mut world = World::new();
    for step in &schedule.steps {
        world.step(step);
    }
    if world.settle() {
        world.check();
    }
    if let Some((end, hits)) = &schedule.damage
        && world.settle()
    {
        harm::harm(&mut world, end, hits);
    }
}

#[test]
fn schedules() {
    let cases = number("FLUMEN_CASES").map_or(CASES, |cases| cases as u32);
    let seed = number("FLUMEN_SEED").unwrap_or(SEED);
    eprintln!("{cases} schedules: FLUMEN_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { failure_persistence: None, max_shrink_iters: 4_000, ..Config::with_cases(cases) };
    let figures = RefCell::new(Figures::default());
    let outcome = TestRunner::new_with_rng(config, random).run(&schedule().boxed(), |schedule| {
        figures.borrow_mut().add(&schedule);
        run(&schedule);
        Ok(())
    });
    eprintln!("{:?}", figures.borrow());
    if let Err(TestError::Fail(reason, schedule)) = outcome {
        panic!("FLUMEN_SEED={seed}: {reason}\n{schedule:?}");
    }
}

#[test]
fn regressions() {
    for (what, schedule) in regressions::all() {
        eprintln!("{what}");
        run(&schedule);
    }
}
