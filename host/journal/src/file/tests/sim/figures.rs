//! What a run was made of: what its schedules asked for, and what then happened.

use super::step::{End, Schedule, Step};

/// What schedules asked for.
#[derive(Debug, Default)]
pub struct Asked {
    pub commits: usize,
    pub faults: usize,
    pub power_cuts: usize,
    pub other_ends: usize,
    pub damaged: usize,
    pub hits: usize,
}

/// What happened: counted where it happens.
#[derive(Debug, Default)]
pub struct Figures {
    pub steps: usize,
    /// Handed in.
    pub commits: usize,
    /// Calls of the disk that failed.
    pub faults: usize,
    /// Turns of the committer that ended in waiting for space.
    pub waits: usize,
    /// Sectors that were read as something else after a failed sync.
    pub evicted: usize,
    pub power_cuts: usize,
    /// Commits that a power cut took which were not synced: without syncs only.
    pub unsynced: usize,
    /// Closes, and processes that ended.
    pub other_ends: usize,
    /// Journals that were hit, opened, compared, and went on.
    pub damaged: usize,
    /// What changed something of those.
    pub hits: usize,
    /// Commits that were hit where they count.
    pub lost: usize,
    /// Journals made whole again: all copies of something were hit at once.
    pub spared: usize,
}

impl Asked {
    pub fn add(&mut self, schedule: &Schedule) {
        for step in &schedule.steps {
            match step {
                Step::Crash { again, .. } => self.power_cuts += 1 + usize::from(again.is_some()),
                Step::Close | Step::Kill { .. } => self.other_ends += 1,
                Step::Fault { .. } => self.faults += 1,
                step => self.commits += usize::from(step.is_commit()),
            }
        }
        if let Some((end, hits)) = &schedule.damage {
            self.damaged += 1;
            self.hits += hits.len();
            // It goes on over two more power cuts.
            self.power_cuts += 2 + usize::from(matches!(end, End::Crash(_)));
            self.other_ends += usize::from(!matches!(end, End::Crash(_)));
        }
    }
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.steps += other.steps;
        self.commits += other.commits;
        self.faults += other.faults;
        self.waits += other.waits;
        self.evicted += other.evicted;
        self.power_cuts += other.power_cuts;
        self.unsynced += other.unsynced;
        self.other_ends += other.other_ends;
        self.damaged += other.damaged;
        self.hits += other.hits;
        self.lost += other.lost;
        self.spared += other.spared;
    }

    /// A run proves what happened in it: so much, in percent, of what was asked for.
    pub fn assert_share(&self, asked: &Asked) {
        let shares = [
            // Those behind damage come if there was some.
            ("power cuts", self.power_cuts, asked.power_cuts, 80),
            ("other ends", self.other_ends, asked.other_ends, 90),
            ("commits", self.commits, asked.commits, 50),
            ("damaged journals", self.damaged, asked.damaged, 50),
            ("hits", self.hits, asked.hits, 50),
            // Many are for a call that does not come before the next end.
            ("faults", self.faults, asked.faults, 10),
        ];
        for (what, happened, asked, percent) in shares {
            assert!(happened * 100 >= asked * percent, "{what}: {happened} of {asked}");
        }
    }
}
