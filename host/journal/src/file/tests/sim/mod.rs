//! The journal under a simulated disk and a simulated clock, one step after the other: a schedule is the same each time it runs.
//!
//! A schedule is random commits, turns of the committer, reads, readers that come and go, compression and keys that change,
//! faults of the disk's calls (of `create_dir` and `len`: [`super::hard`], [`super::once`]), full disks, memory that is short, ends of
//! the process and power cuts, also within a recovery; and at the end of some, damage. After each step that can tell, the journal is
//! compared with a plain model ([`truth`]). What is proven so is listed in the docs of [`crate::file`].
//!
//! `FLUMEN_CASES=100000 FLUMEN_SEED=7 cargo test -p flumen-journal sim::` runs as many schedules from that seed; a failing one is
//! shrunk and printed, and belongs into [`regressions`] then: as its steps, so that what a seed means may change. CI runs 2,000, and
//! says what they asked for and what of it happened. By hand 100,000 passed: 10,000 from each of the seeds 201 to 210, which asked for
//! 2,999,546 steps, 305,692 power cuts, 109,126 other ends and 34,016 damaged journals; and 20,000 from each of 7 and 302 to 307.
//!
//! A journal that syncs nothing of itself has schedules of its own: an end of the process takes nothing from it, a power cut leaves a
//! beginning of what was acknowledged.

pub mod figures;
mod harm;
mod regressions;
mod step;
pub mod truth;
pub mod world;

use std::cell::RefCell;

use proptest::strategy::{BoxedStrategy, Strategy};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::file::{Durability, FileConfig};
use figures::{Asked, Figures};
use step::{Schedule, ends, schedule};
use world::{World, small};

/// What a run of all tests can afford.
const CASES: u32 = 2_000;

/// The same without syncs.
const UNSYNCED_CASES: u32 = 300;

/// The same for everybody, so that a change fails by what it changes; other seeds are for runs by hand.
const SEED: u64 = 7;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(schedule: &Schedule, config: &FileConfig) -> Figures {
    let mut world = World::new(config.clone());
    for step in &schedule.steps {
        world.step(step);
    }
    if world.settle() {
        world.check();
    }
    world.figures.faults = world.fired() as usize;
    if let Some((end, hits)) = &schedule.damage
        && world.settle()
    {
        harm::harm(&mut world, end, hits);
    }
    world.figures
}

/// Runs schedules, and says what they asked for and what happened.
fn explore(cases: u32, schedules: &BoxedStrategy<Schedule>, config: &FileConfig) -> (Asked, Figures) {
    let seed = number("FLUMEN_SEED").unwrap_or(SEED);
    eprintln!("{cases} schedules: FLUMEN_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let settings = Config { failure_persistence: None, max_shrink_iters: 4_000, ..Config::with_cases(cases) };
    let all = RefCell::new((Asked::default(), Figures::default()));
    let outcome = TestRunner::new_with_rng(settings, random).run(schedules, |schedule| {
        let happened = run(&schedule, config);
        let mut all = all.borrow_mut();
        all.0.add(&schedule);
        all.1.add(&happened);
        Ok(())
    });
    let (asked, figures) = all.into_inner();
    eprintln!("{asked:?}\n{figures:?}");
    if let Err(TestError::Fail(reason, schedule)) = outcome {
        panic!("FLUMEN_SEED={seed}: {reason}\n{schedule:?}");
    }
    (asked, figures)
}

fn cases(usual: u32) -> u32 {
    number("FLUMEN_CASES").map_or(usual, |cases| cases as u32)
}

#[test]
fn schedules() {
    let cases = cases(CASES);
    let (asked, figures) = explore(cases, &schedule().boxed(), &small());
    if cases >= CASES {
        figures.assert_share(&asked);
    }
}

#[test]
fn schedules_without_syncs() {
    let cases = cases(UNSYNCED_CASES);
    let config = FileConfig { durability: Durability::Os, ..small() };
    let (_, figures) = explore(cases, &ends().boxed(), &config);
    assert!(cases < UNSYNCED_CASES || figures.unsynced > 0, "no power cut took anything");
}

#[test]
fn regressions() {
    for (what, schedule) in regressions::all() {
        eprintln!("{what}");
        run(&schedule, &small());
    }
}
