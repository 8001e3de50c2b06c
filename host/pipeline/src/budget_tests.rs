use flumen_event::Batch;

use super::*;
use crate::interceptor::Processed;
use crate::metrics::ComponentKind;

struct Nothing;

impl InterceptorVersion for Nothing {
    fn process(&self, batch: Batch) -> Processed {
        Processed { kept: batch, quarantined: Vec::new(), dropped: 0 }
    }
}

struct Bench {
    budget: Budget,
    metrics: Arc<ComponentMetrics>,
    /// A field makes versions differ in their address.
    version: Arc<dyn InterceptorVersion>,
    start: Instant,
}

const SECOND: Duration = Duration::from_secs(1);

impl Bench {
    fn new(plan: ErrorPlan) -> Bench {
        let metrics = ComponentMetrics::new(ComponentKind::Interceptor, "test".into());
        Bench { budget: Budget::new(plan), metrics, version: fresh(), start: Instant::now() }
    }

    fn judge(&self, at_s: u32, events: u64, failed: u64) -> bool {
        self.budget.judge(&self.version, events, failed, self.start + SECOND * at_s, &self.metrics)
    }

    fn gate(&self, at_s: u32) -> Gate {
        let mut version = self.version.clone();
        let current = || self.version.clone();
        self.budget.gate(&mut version, current, self.start + SECOND * at_s, &self.metrics)
    }
}

fn fresh() -> Arc<dyn InterceptorVersion> {
    struct Padded(#[allow(dead_code, reason = "it has an address of its own")] u64);
    impl InterceptorVersion for Padded {
        fn process(&self, batch: Batch) -> Processed {
            Nothing.process(batch)
        }
    }
    Arc::new(Padded(1))
}

fn plan(action: OnError) -> ErrorPlan {
    ErrorPlan { action, batches_percent: 100, ..ErrorPlan::default() }
}

#[test]
fn a_share_is_judged_over_the_window() {
    let bench = Bench::new(plan(OnError::Stop));
    // 10 % exactly is within the budget; the same again, with one more, is not.
    assert!(!bench.judge(0, 1_000, 0) && !bench.judge(1, 1_000, 200));
    assert_eq!(bench.gate(1), Gate::Process);
    assert!(bench.judge(2, 10, 2));
    assert_eq!((bench.gate(2), bench.budget.word()), (Gate::Hold, "holding"));
    assert_eq!(bench.metrics.get(Metric::InterceptorBudgetPassed), 1);
    assert!(bench.metrics.error().unwrap().contains("it failed on 202 of 2010 events, in 2 of 3 batches"));

    let bench = Bench::new(plan(OnError::Stop));
    assert!(!bench.judge(0, 1_000, 100));
    // The failures of a minute and a half ago are forgotten: there are enough events since.
    (40..90).for_each(|at| assert!(!bench.judge(at, 100, 0)));
    assert!(!bench.judge(90, 1_000, 100));
    assert_eq!(bench.budget.word(), "running");
}

#[test]
fn few_events_are_judged_together_with_those_before_the_window() {
    let bench = Bench::new(plan(OnError::Stop));
    // One event in ten minutes, and the plugin fails on each.
    let judged: Vec<bool> = (0..120).map(|at| bench.judge(at * 600, 1, 1)).collect();
    assert_eq!(judged.iter().position(|is_over| *is_over), Some(99));
}

#[test]
fn a_bad_event_in_every_batch_is_over_the_budget_of_batches() {
    let bench = Bench::new(ErrorPlan { batches_percent: 50, ..plan(OnError::Bypass) });
    assert!(!bench.judge(0, 8_000, 0) && !bench.judge(0, 8_000, 1));
    assert!(bench.judge(1, 8_000, 1));
    assert_eq!(bench.budget.word(), "bypassed");
}

#[test]
fn by_default_it_only_says_so_until_it_is_over() {
    let bench = Bench::new(plan(OnError::Quarantine));
    assert!(!bench.judge(0, 1_000, 900));
    assert_eq!((bench.gate(0), bench.budget.word()), (Gate::Process, "failing"));
    assert!(bench.metrics.error().unwrap().contains("they go to quarantine"));
    (1..100).for_each(|at| assert!(!bench.judge(at, 1_000, 0)));
    assert_eq!((bench.budget.word(), bench.metrics.error()), ("running", None));
}

#[test]
fn another_version_begins_anew_and_the_old_one_gets_no_more() {
    let mut bench = Bench::new(plan(OnError::Stop));
    let old = bench.version.clone();
    assert!(bench.judge(0, 1_000, 900));
    assert_eq!(bench.gate(1), Gate::Hold);
    bench.version = fresh();
    // A batch that was stamped with the old one is given to the new one.
    let mut stamped = old.clone();
    let gate = bench.budget.gate(&mut stamped, || bench.version.clone(), bench.start, &bench.metrics);
    assert!(gate == Gate::Process && is(&Some(Arc::downgrade(&stamped)), &bench.version));
    assert!(!bench.judge(2, 1_000, 100));
    assert_eq!((bench.budget.word(), bench.metrics.error()), ("running", None));
    // The old one may be put back.
    bench.version = old;
    assert_eq!(bench.gate(3), Gate::Process);
    assert!(!bench.judge(3, 1_000, 0));
}

#[test]
fn a_bypassed_plugin_is_tried_now_and_then() {
    let bench = Bench::new(plan(OnError::Bypass));
    assert!(bench.judge(0, 1_000, 900));
    let pause = limits::BYPASS_PROBE.as_secs() as u32;
    assert_eq!(bench.gate(pause - 1), Gate::Bypass);
    // One batch only, and if it fails the next one is a pause later.
    assert_eq!((bench.gate(pause), bench.gate(pause)), (Gate::Process, Gate::Bypass));
    assert!(bench.judge(pause, 1_000, 500));
    assert_eq!(bench.gate(2 * pause - 1), Gate::Bypass);
    assert_eq!(bench.gate(2 * pause), Gate::Process);
    assert!(!bench.judge(2 * pause, 1_000, 100), "within the budget: its failures go to quarantine");
    assert_eq!((bench.gate(2 * pause), bench.budget.word()), (Gate::Process, "running"));
}
