//! The harm itself, and what is waited for before it.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Plugin;
use super::harm::Act;
use super::pipelines;
use super::stage::Stage;
use crate::{limits, poll};

/// One harm in so many is preceded by a swap.
const SWAP_ODDS: u32 = 3;
/// One life in so many is ended before events flow again.
const EARLY_ODDS: u32 = 4;
/// More than the talk before the first batch of events.
const FLOW_BYTES: u64 = 100_000;
/// One kill in so many is followed by another number of lanes.
const LANES_ODDS: u32 = 4;
/// Longest time between the two kills of agent and broker, and before the broker comes back.
const APART_MAX: Duration = Duration::from_millis(500);

impl Stage<'_> {
    /// Until the next harm; now and then a plugin is swapped meanwhile.
    pub(super) fn live(&mut self) -> Result<()> {
        if !self.choices.one_in(EARLY_ODDS) {
            self.wait_flow()?;
        }
        let life = self.choices.life();
        if self.soak.plugin == Plugin::None || !self.choices.one_in(SWAP_ODDS) {
            thread::sleep(life);
            return Ok(());
        }
        // The experiment itself, not a wait for something.
        let before = self.choices.upto(life.max(limits::POLL));
        thread::sleep(before);
        let host = self.hosts.first().context("no scene")?;
        self.swaps.swap(&host.scene, &mut self.choices.random)?;
        thread::sleep(life.saturating_sub(before));
        Ok(())
    }

    /// Until events flow again: harm to what only starts is done often enough.
    fn wait_flow(&mut self) -> Result<()> {
        let before = self.proxy.moved_bytes();
        let flows = poll::until("bytes between agents and broker", limits::KAFKA_FLOW, || {
            self.expect_agents()?;
            Ok(self.proxy.moved_bytes() > before + FLOW_BYTES)
        });
        let Err(error) = flows else { return Ok(()) };
        // Whether it ever goes on is for the drain to say.
        self.expect_agents()?;
        self.note(&format!("{error:#}"));
        Ok(())
    }

    pub(super) fn expect_agents(&mut self) -> Result<()> {
        self.hosts.iter_mut().filter(|host| host.agent.is_some()).try_for_each(|host| host.agent().map(drop))
    }

    pub(super) fn act(&mut self, act: Act) -> Result<()> {
        self.expect_agents()?;
        match act {
            Act::KillAgent => self.kill_agents()?,
            Act::KillBroker => {
                self.kill_broker()?;
                thread::sleep(self.choices.upto(APART_MAX));
                self.broker.restart()?;
            }
            Act::KillBoth => self.kill_both()?,
            Act::PauseLink => {
                let away = self.away();
                self.proxy.pause()?;
                self.tally.pauses += 1;
                thread::sleep(away);
                self.proxy.resume()?;
            }
            Act::CutLink => {
                let away = self.away();
                self.proxy.cut()?;
                self.tally.cuts += 1;
                thread::sleep(away);
                self.proxy.mend()?;
            }
            Act::StopBroker => {
                let away = self.away();
                self.broker.pause()?;
                self.tally.stops += 1;
                thread::sleep(away);
                self.broker.resume()?;
            }
            Act::KillBehindPause => {
                self.proxy.pause()?;
                self.tally.pauses += 1;
                thread::sleep(self.choices.upto(APART_MAX));
                self.kill_agents()?;
                self.start_agents()?;
                thread::sleep(self.choices.upto(APART_MAX));
                self.proxy.resume()?;
            }
            Act::PowerCut => {
                let disk = self.disk.as_mut().context("no disk to cut off")?;
                disk.cut()?;
                self.hosts.first_mut().context("no scene")?.kill()?;
                disk.power_up()?;
                self.tally.power_cuts += 1;
            }
        }
        self.start_agents()
    }

    fn kill_both(&mut self) -> Result<()> {
        let is_broker_first = self.choices.one_in(2);
        if is_broker_first {
            self.kill_broker()?;
            thread::sleep(self.choices.upto(APART_MAX));
        }
        self.kill_agents()?;
        if !is_broker_first {
            thread::sleep(self.choices.upto(APART_MAX));
            self.kill_broker()?;
        }
        self.start_agents()?;
        self.broker.launch()?;
        if self.choices.one_in(2) {
            // Once more, while it asks a broker that does not answer yet.
            thread::sleep(self.choices.upto(APART_MAX * 4));
            self.kill_agents()?;
            self.start_agents()?;
        }
        self.broker.wait_ready()
    }

    fn kill_broker(&mut self) -> Result<()> {
        self.tally.broker_kills += 1;
        self.broker.kill()
    }

    /// One of them, or all.
    fn kill_agents(&mut self) -> Result<()> {
        let count = self.hosts.len();
        let chosen = self.choices.upto(Duration::from_nanos(count as u64 + 1)).as_nanos() as usize;
        for (_, host) in self.hosts.iter_mut().enumerate().filter(|(at, _)| chosen == count || *at == chosen)
        {
            host.kill()?;
            self.tally.agent_kills += 1;
        }
        if pipelines::may_change_lanes(self.soak) && self.choices.one_in(LANES_ODDS) {
            self.change_lanes()?;
        }
        Ok(())
    }

    /// The number of lanes is a user's to change, also while transactions of the old ones are open.
    fn change_lanes(&mut self) -> Result<()> {
        let soak = pipelines::with_other_lanes(self.soak, &mut self.choices.random);
        self.note(&format!("{} lanes", soak.lanes.unwrap_or_default()));
        let texts = pipelines::texts(&soak, &self.broker.bootstrap_proxied());
        self.hosts.iter().zip(texts).try_for_each(|(host, text)| host.scene.pipeline(&text))
    }

    fn away(&mut self) -> Duration {
        let (away, is_long) = self.choices.away();
        self.tally.long += u32::from(is_long);
        away
    }
}
