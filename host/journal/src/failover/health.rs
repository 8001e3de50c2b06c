//! Whether the primary is well, with hysteresis.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::FailoverPlan;

/// See the module. Whoever probes has a thread for it: a probe may hang, and that is an answer too.
pub struct Health {
    check_interval: Duration,
    fail_after: u32,
    return_after: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_down: bool,
    failed: u32,
    good: u32,
    /// When the probe that is under way began.
    asked: Option<Instant>,
}

impl Health {
    /// Of a primary that is thought to be well.
    pub fn new(plan: &FailoverPlan) -> Health {
        let FailoverPlan { check_interval, fail_after, return_after, .. } = *plan;
        Health { check_interval, fail_after, return_after, state: Mutex::default() }
    }

    /// It does not answer: for as many probes as that takes, or for as long as one of them has not come back.
    pub fn is_down(&self) -> bool {
        let state = self.state.lock();
        let hangs = |asked: Instant| asked.elapsed() >= self.check_interval * self.fail_after.max(2);
        state.is_down || state.asked.is_some_and(hangs)
    }

    /// It has failed: that needs no probe. So many good ones as ever lead back.
    pub fn has_failed(&self) {
        *self.state.lock() = State { is_down: true, ..State::default() };
    }

    /// Probes until `wait` says that it is over.
    pub fn run(&self, wait: impl Fn(Duration) -> bool, mut probe: impl FnMut() -> bool) {
        while !wait(self.check_interval) {
            self.state.lock().asked = Some(Instant::now());
            let is_good = probe();
            self.note(is_good);
        }
    }

    fn note(&self, is_good: bool) {
        // It hung for so long that it counts as down.
        let hung = self.is_down();
        let mut state = self.state.lock();
        state.asked = None;
        state.is_down |= hung;
        if is_good {
            (state.failed, state.good) = (0, state.good + 1);
        } else {
            (state.failed, state.good) = (state.failed + 1, 0);
        }
        if !state.is_down && state.failed >= self.fail_after {
            state.is_down = true;
        } else if state.is_down && state.good >= self.return_after {
            state.is_down = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::SecondaryKind;

    fn health(check_interval: Duration) -> Health {
        Health::new(&FailoverPlan {
            kind: SecondaryKind::File,
            dir: None,
            check_interval,
            fail_after: 3,
            return_after: 2,
            capacity_events: 1,
            capacity_bytes: 1,
            memory_events: 1,
            memory_bytes: 1,
        })
    }

    #[test]
    fn so_many_failures_lead_away_and_so_many_answers_back() {
        let health = health(Duration::from_secs(3_600));
        let mut told = Vec::new();
        for good in [true, false, false, true, false, false, false, true, false, true, true, false] {
            health.note(good);
            told.push(health.is_down());
        }
        let (up, down) = (false, true);
        assert_eq!(told, [up, up, up, up, up, up, down, down, down, down, up, up]);
        health.has_failed();
        health.note(true);
        assert!(health.is_down());
        health.note(true);
        assert!(!health.is_down());
    }

    #[test]
    fn a_probe_that_hangs_is_a_failure() {
        let patient = health(Duration::from_secs(3_600));
        patient.state.lock().asked = Some(Instant::now());
        assert!(!patient.is_down());
        let health = health(Duration::from_millis(2));
        health.state.lock().asked = Some(Instant::now());
        while !health.is_down() {
            std::thread::yield_now();
        }
        health.note(true);
        assert!(health.is_down(), "one good answer is not enough");
        health.note(true);
        assert!(!health.is_down());
    }
}
