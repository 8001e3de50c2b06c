//! What is done to agents, broker and network, how often, and the random choices in it.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::pipelines::TRANSACTION_TIMEOUT;

/// Longest life before a harm.
const LIFE_MAX: Duration = Duration::from_millis(1_500);
/// One life in so many ends while an agent still starts and finds out how far it had come.
const EARLY_ODDS: u32 = 4;
/// Longest of these: a connection, `init_transactions` and reading the progress fit into it.
const EARLY_LIFE_MAX: Duration = Duration::from_millis(300);
/// Longest absence of a broker or a connection that no transaction outlives.
const AWAY_MAX: Duration = Duration::from_millis(3_000);
/// One absence in so many is longer than a transaction may last: the broker aborts it and fences its producer.
const LONG_AWAY_ODDS: u32 = 4;

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// SIGKILL of an agent, and its start.
    KillAgent,
    /// SIGKILL of the broker, and its start; agents go on.
    KillBroker,
    /// SIGKILL of agents and broker; agents start while nobody answers.
    KillBoth,
    /// Bytes stop on the way and come later.
    PauseLink,
    /// Connections are reset, and refused for a while.
    CutLink,
    /// SIGSTOP of the broker, SIGCONT later.
    StopBroker,
    /// SIGKILL of an agent whose last words are held up on the way, and come beside those of its successor.
    KillBehindPause,
    /// The disk with the first agent's data goes back to what it had made durable; the broker knows more than it.
    PowerCut,
}

impl Act {
    const ALL: [Self; 8] = [
        Self::KillAgent,
        Self::KillBroker,
        Self::KillBoth,
        Self::PauseLink,
        Self::CutLink,
        Self::StopBroker,
        Self::KillBehindPause,
        Self::PowerCut,
    ];
}

/// How often each thing is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mix {
    counts: [u32; Act::ALL.len()],
}

impl Mix {
    /// So many harms in all, without power cuts: two in three kill an agent.
    #[must_use]
    pub fn of(times: u32) -> Self {
        // Parts of 20: each restart of the broker costs 5 to 15 s, so these are fewer.
        const PARTS: [u32; Act::ALL.len()] = [9, 2, 1, 2, 2, 1, 3, 0];
        const WHOLE: u32 = 20;
        let mix = Self { counts: PARTS.map(|part| times * part / WHOLE) };
        let rest = times.saturating_sub(mix.total());
        mix.add(Act::KillAgent, rest)
    }

    /// With more of one thing.
    #[must_use]
    pub fn add(mut self, act: Act, times: u32) -> Self {
        for (known, count) in Act::ALL.iter().zip(&mut self.counts) {
            *count += if *known == act { times } else { 0 };
        }
        self
    }

    /// Without what needs an agent.
    #[must_use]
    pub fn without_agents(mut self) -> Self {
        let needs_agent =
            |act: &Act| matches!(act, Act::KillAgent | Act::KillBoth | Act::KillBehindPause | Act::PowerCut);
        for (_, count) in Act::ALL.iter().zip(&mut self.counts).filter(|(act, _)| needs_agent(act)) {
            *count = 0;
        }
        self
    }

    /// How often a thing is done.
    #[must_use]
    pub fn count(&self, act: Act) -> u32 {
        Act::ALL.iter().zip(self.counts).filter(|(known, _)| **known == act).map(|(_, count)| count).sum()
    }

    /// How many things are done.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    /// All of them in random order.
    pub(super) fn shuffled(&self, random: &mut StdRng) -> Vec<Act> {
        let mut acts: Vec<Act> = Vec::new();
        for (act, count) in Act::ALL.iter().zip(self.counts) {
            acts.extend((0..count).map(|_| *act));
        }
        acts.shuffle(random);
        acts
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Tally {
    /// SIGKILLs of agents.
    pub agent_kills: u32,
    /// SIGKILLs of the broker.
    pub broker_kills: u32,
    /// Pauses of the connection.
    pub pauses: u32,
    /// Of these, the cuts and the stops: longer than a transaction may last.
    pub long: u32,
    /// Cuts of the connection.
    pub cuts: u32,
    /// SIGSTOPs of the broker.
    pub stops: u32,
    /// Power cuts of the first agent's disk.
    pub power_cuts: u32,
}

impl Tally {
    /// Of all kinds.
    #[must_use]
    pub fn total(&self) -> u32 {
        let Self { agent_kills, broker_kills, pauses, long: _, cuts, stops, power_cuts } = self;
        agent_kills + broker_kills + pauses + cuts + stops + power_cuts
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent_kills, broker_kills, pauses, long, cuts, stops, power_cuts } = self;
        write!(
            formatter,
            "{agent_kills} kills of agents, {broker_kills} of the broker, {pauses} pauses, {cuts} cuts, {stops} stops ({long} longer than a transaction), {power_cuts} power cuts"
        )
    }
}

/// The random choices of a run.
#[derive(Debug)]
pub(super) struct Choices {
    pub random: StdRng,
}

impl Choices {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// How long the agents live until the next harm.
    pub fn life(&mut self) -> Duration {
        let longest = if self.one_in(EARLY_ODDS) { EARLY_LIFE_MAX } else { LIFE_MAX };
        self.upto(longest)
    }

    /// How long a broker or a connection is away, and whether that is longer than a transaction lasts.
    pub fn away(&mut self) -> (Duration, bool) {
        if self.one_in(LONG_AWAY_ODDS) {
            return (TRANSACTION_TIMEOUT + self.upto(AWAY_MAX), true);
        }
        (self.upto(AWAY_MAX), false)
    }

    pub fn upto(&mut self, longest: Duration) -> Duration {
        self.random.random_range(Duration::ZERO..longest)
    }

    pub fn one_in(&mut self, odds: u32) -> bool {
        self.random.random_ratio(1, odds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_complete_and_its_order_follows_from_the_seed() {
        for times in [1, 7, 19, 20, 66, 67, 200] {
            assert_eq!(Mix::of(times).total(), times);
        }
        let acts = |seed| Mix::of(200).shuffled(&mut StdRng::seed_from_u64(seed));
        assert!(Act::ALL.iter().all(|act| acts(1).contains(act) || *act == Act::PowerCut));
        assert_eq!(Mix::of(20).add(Act::PowerCut, 3).count(Act::PowerCut), 3);
        assert_eq!(acts(1), acts(1));
        assert_ne!(acts(1), acts(2));
        let bare = Mix::of(20).without_agents().shuffled(&mut StdRng::seed_from_u64(1));
        assert!(!bare.contains(&Act::KillAgent) && bare.contains(&Act::KillBroker));
    }
}
