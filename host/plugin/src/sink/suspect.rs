//! Which of the events that a plugin fails on is guilty, found by giving it fewer at once.
//!
//! A batch that fails is tried once more; then batches of half its size come, and so on, until one event fails alone
//! twice. Each that passes lets the next be twice as large, until all events of the first batch are through. One guilty
//! event among 1,000 costs some 20 calls.

/// Where the search stands.
#[derive(Debug, Default)]
pub(super) struct Suspect {
    /// Events at once; 0: as many as the policy says.
    most: u64,
    /// Events of the batch under suspicion that are not through.
    left: u64,
    /// It failed once at this size.
    was_tried: bool,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same once more.
    Again,
    /// Fewer events at once.
    Fewer,
    /// It is the only event left.
    Guilty,
}

impl Suspect {
    /// Events that may be given at once.
    pub(super) fn most(&self, policy: usize) -> usize {
        match self.most {
            0 => policy,
            most => usize::try_from(most).unwrap_or(usize::MAX).min(policy),
        }
    }

    /// A batch of so many events failed.
    pub(super) fn failed(&mut self, events: u64) -> Verdict {
        // Halves are not tried twice: what fails there is only cut further.
        let is_last = events <= 1 || self.most == 1;
        if !self.was_tried && (self.most == 0 || is_last) {
            self.was_tried = true;
            return Verdict::Again;
        }
        if is_last {
            return Verdict::Guilty;
        }
        self.narrow(events);
        Verdict::Fewer
    }

    /// Half as many at once.
    pub(super) fn narrow(&mut self, events: u64) {
        self.left = self.left.max(events);
        self.most = (events / 2).max(1);
        self.was_tried = false;
    }

    /// So many events are through.
    pub(super) fn passed(&mut self, events: u64) {
        self.was_tried = false;
        self.left = self.left.saturating_sub(events);
        self.most = if self.left == 0 { 0 } else { self.most.saturating_mul(2) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Delivers `events` events of which some are guilty; gives the ones that were found, and the number of calls.
    fn search(events: u64, guilty: &[u64], policy: u64) -> (Vec<u64>, u32) {
        let (mut suspect, mut at, mut found, mut calls) = (Suspect::default(), 0, Vec::new(), 0);
        while at < events {
            let size = (suspect.most(policy as usize) as u64).min(events - at);
            calls += 1;
            let fails = guilty.iter().any(|guilty| (at..at + size).contains(guilty));
            if !fails || suspect.failed(size) == Verdict::Guilty {
                if fails {
                    found.extend(at..at + size);
                }
                suspect.passed(size);
                at += size;
            }
            assert!(calls < 100_000);
        }
        (found, calls)
    }

    #[test]
    fn a_guilty_event_costs_some_calls() {
        let (found, calls) = search(10_000, &[1_234], 1_000);
        assert_eq!(found, [1_234]);
        assert!(calls < 10 + 40, "{calls}");
        assert_eq!(search(5_000, &[], 1_000), (vec![], 5));
        assert_eq!(search(1, &[0], 1_000), (vec![0], 2));
    }

    proptest! {
        #[test]
        fn exactly_the_guilty_are_found(guilty in proptest::collection::btree_set(0..3_000_u64, 0..20), policy in 1..2_000_u64) {
            let guilty: Vec<u64> = guilty.into_iter().collect();
            let (found, calls) = search(3_000, &guilty, policy);
            prop_assert!(calls as u64 <= 3_000 / policy + 2 + 60 * guilty.len() as u64);
            prop_assert_eq!(found, guilty);
        }
    }
}
