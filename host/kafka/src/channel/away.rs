//! The committer while Kafka is away, and on its way back: see [`flumen_journal::failover`]. The secondary is the journal on this machine;
//! its channels have the names of the Kafka channels.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow_array::UInt32Array;
use flumen_event::Batch;
use flumen_journal::failover::{Away, AwayError, CURSOR, Moved, Primary, SOURCES};
use flumen_journal::{ChannelId, Commit, CommitError, Put, StateWrites};
use rdkafka::producer::Producer;

use super::committer::{Committer, Trouble, puts, send_batch, send_register, too_large, too_large_rows};
use super::connection::ReadBack;
use super::limbo;
use super::queue::{Pending, Positions};
use super::topics::{POSITIONS, Topic};
use crate::limits;

fn fatal(error: CommitError) -> Trouble {
    Trouble::Fatal(format!("what takes events while Kafka is away: {error}"))
}

impl From<AwayError> for Trouble {
    fn from(error: AwayError) -> Trouble {
        match error {
            AwayError::Lost(error) => fatal(error),
            AwayError::Unread(reason) => Trouble::Unknown(reason),
        }
    }
}

impl Committer {
    /// Goes on in the file if the last life ended there.
    pub fn begin(&mut self) -> Result<(), Trouble> {
        let Some(failover) = &self.failover else { return Ok(()) };
        if let Some(sources) = failover.reopen().map_err(fatal)? {
            self.queue.set_sources(sources);
            self.is_away = true;
        }
        self.say();
        Ok(())
    }

    fn say(&self) {
        let Some(plan) = &self.options.failover else { return };
        let word = match (self.is_away, &self.connection) {
            (false, _) => "shared",
            (true, None) => plan.kind.word(),
            (true, Some(_)) => "returning",
        };
        *self.figures.failover.lock() = Some(word.to_owned());
    }

    /// What takes the events meanwhile.
    fn word(&self) -> &'static str {
        self.options.failover.as_ref().map_or("", |plan| plan.kind.word())
    }

    /// What a connection found of the way back.
    pub fn note_marks(&mut self, read: &ReadBack) {
        if let Some(failover) = &self.failover {
            let marks = read.positions.iter().filter(|(key, _)| key.starts_with(CURSOR));
            failover.add_marks(marks.map(|(key, value)| (key.clone(), value.clone())));
        }
    }

    /// The positions that count: Kafka's, with the sources' of the file if that is open.
    pub fn merge(&mut self, kafka: Positions) -> Positions {
        let mut positions: Positions = kafka.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        if self.is_away {
            positions.retain(|key, _| !key.starts_with(SOURCES));
            let (gone, known) = self.failover.as_ref().map_or_else(Default::default, |failover| {
                (failover.gone(b"").collect::<Vec<_>>(), failover.positions(b"").collect::<Vec<_>>())
            });
            positions.retain(|key, _| !gone.contains(key));
            positions.extend(known);
        }
        positions
    }

    /// Kafka is given up: events go to the file from here on.
    pub fn leave(&mut self) -> Result<(), Trouble> {
        let doubt = self.is_in_doubt.then_some(self.number + 1);
        self.connection = None;
        let topics = self.figures.topics.lock().clone();
        let (with_acks, group) = split(std::mem::take(&mut self.group));
        let mut commits: Vec<Commit> = group.iter().map(|pending| pending.commit.clone()).collect();
        if doubt.is_some() {
            // What a topic does not take is in quarantine whether the group counts or not.
            let quarantine = ChannelId(u16::try_from(topics.len()).unwrap_or(u16::MAX));
            let put = |batch: Batch| Put { channels: vec![quarantine], batch };
            let large = group.iter().flat_map(|pending| {
                puts(pending).filter_map(|(channel, batch)| too_large(topics.get(channel)?, batch))
            });
            let large = Commit { puts: large.map(put).collect(), ..Commit::default() };
            for commit in &mut commits {
                commit.puts = commit.puts.drain(..).flat_map(|put| fitting(&topics, put)).collect();
            }
            commits.push(large);
        }
        let sources = self.queue.durable(SOURCES);
        let Some(failover) = &self.failover else { return Ok(()) };
        let commits = commits.into_iter().map(|commit| (doubt, commit)).collect();
        // What the group in doubt quarantines is here now, whether it counts or not.
        let settled = (limbo::KEY.to_vec(), Vec::new());
        failover.open(sources, commits, vec![settled]).map_err(fatal)?;
        match doubt {
            Some(number) => self.held_in_doubt = (number, with_acks),
            None => self.held.extend(with_acks),
        }
        (self.is_away, self.is_in_doubt) = (true, false);
        self.answer(&group);
        self.figures.failovers.fetch_add(1, Ordering::Relaxed);
        self.say();
        tracing::error!(
            pipeline = &*self.options.pipeline,
            "Kafka cannot be reached: events go to the {}",
            self.word()
        );
        Ok(())
    }

    /// One group to the file, and a step of the way back if Kafka answers.
    pub fn step_away(&mut self) -> Result<bool, Trouble> {
        let is_up = !self.is_given_up() && !self.queue.is_closing();
        let mut wait = limits::SLICE;
        if is_up {
            if self.connection.is_none() {
                self.connect()?;
                self.begin_return()?;
                self.say();
            }
            self.send_held()?;
            let moved = self.move_some()?;
            if self.group.is_empty() && self.held.is_empty() {
                if moved == 0 {
                    self.come_back()?;
                    return Ok(true);
                }
                // Nearly there: what is still in the queue waits for Kafka, or a busy source would never let it end.
                if moved < limits::GROUP_BYTES {
                    return Ok(true);
                }
            }
            wait = Duration::ZERO;
        } else if self.connection.take().is_some() {
            self.say();
        }
        if self.group.is_empty() {
            self.group = self.queue.take_group(wait);
        }
        if !self.group.is_empty() {
            self.put_away()?;
        } else if self.queue.is_closing() {
            // They are Kafka's; the sinks do it again after the next start.
            let held = self.held.drain(..).chain(self.held_in_doubt.1.drain(..));
            held.for_each(|pending| pending.slot.answer(Err(CommitError::Closing)));
            return Ok(!self.queue.is_empty());
        }
        Ok(true)
    }

    /// Kafka answers, and the way back does not succeed: what waits meanwhile goes to the file, for a moment.
    pub fn put_waiting_away(&mut self) -> Result<(), Trouble> {
        let until = Instant::now() + limits::RECONNECT_MAX;
        while self.is_away && Instant::now() < until {
            if self.group.is_empty() {
                self.group = self.queue.take_group(Duration::ZERO);
            }
            if self.group.is_empty() {
                break;
            }
            self.put_away()?;
            if !self.group.is_empty() {
                // It is full.
                break;
            }
        }
        Ok(())
    }

    /// Acknowledgements are for Kafka alone; everything else goes to the file.
    fn put_away(&mut self) -> Result<(), Trouble> {
        let (with_acks, group) = split(std::mem::take(&mut self.group));
        self.held.extend(with_acks);
        let Some(failover) = &self.failover else { return Ok(()) };
        let word = self.word();
        let mut group = group.into_iter();
        let (mut put, mut tickets) = (Vec::new(), Vec::new());
        while let Some(pending) = group.next() {
            match failover.put(pending.commit.clone(), Instant::now() + limits::SLICE) {
                Ok(ticket) => {
                    tickets.push(ticket);
                    put.push(pending);
                }
                // What comes after it waits too, and the way back makes room.
                Err(CommitError::Full { .. }) => {
                    *self.figures.waiting_for.lock() = Some(format!(
                        "Kafka is away, and the {word} is full (`events` and `bytes` of failover): sources wait"
                    ));
                    self.group = std::iter::once(pending).chain(group).collect();
                    break;
                }
                Err(error) => return Err(fatal(error)),
            }
        }
        for ticket in tickets {
            ticket.wait(None).unwrap_or(Err(CommitError::Closing)).map_err(fatal)?;
        }
        self.answer(&put);
        if self.group.is_empty() {
            *self.figures.waiting_for.lock() =
                Some(format!("Kafka cannot be reached; events go to the {word}"));
            return Ok(());
        }
        if self.queue.is_closing() {
            let refused = self.group.drain(..);
            refused.for_each(|pending| pending.slot.answer(Err(CommitError::Closing)));
        }
        Ok(())
    }

    /// Finds where the file is to be read from, and what became of the group in doubt.
    fn begin_return(&mut self) -> Result<(), Trouble> {
        let Some(failover) = &self.failover else { return Ok(()) };
        failover.begin_return(self.number).map_err(fatal)?;
        let (number, in_doubt) = std::mem::take(&mut self.held_in_doubt);
        if number <= self.number {
            self.answer(&in_doubt);
        } else {
            self.held.splice(0..0, in_doubt);
        }
        tracing::info!(
            pipeline = &*self.options.pipeline,
            "Kafka answers: the {}'s events are moved to it",
            self.word()
        );
        Ok(())
    }

    /// Acknowledgements of what sinks read of Kafka.
    fn send_held(&mut self) -> Result<(), Trouble> {
        if self.held.is_empty() {
            return Ok(());
        }
        // What waits for room in the file keeps its place.
        let waiting = std::mem::replace(&mut self.group, std::mem::take(&mut self.held));
        self.drop_late();
        let sent = self.send_group();
        self.held = std::mem::replace(&mut self.group, waiting);
        if self.is_in_doubt {
            // Not events, so there is nothing for the file to hold: the commit record tells them apart.
            self.held_in_doubt = (self.number + 1, std::mem::take(&mut self.held));
            self.is_in_doubt = false;
        }
        sent
    }

    /// Moves a part of the file; its bytes. 0: that was all.
    fn move_some(&mut self) -> Result<usize, Trouble> {
        self.with_away(|away, committer| away.move_some(committer))
    }

    /// The secondary's side, which is not the committer's meanwhile.
    fn with_away<T: Default>(
        &mut self,
        step: impl FnOnce(&Away, &mut Committer) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let Some(away) = self.failover.take() else { return Ok(T::default()) };
        let outcome = step(&away, self);
        self.failover = Some(away);
        outcome
    }

    /// The file is empty: its state and its positions go to Kafka, it is closed, and Kafka takes the next commit.
    fn come_back(&mut self) -> Result<(), Trouble> {
        self.with_away(|away, committer| away.come_back(committer))?;
        self.is_away = false;
        *self.figures.waiting_for.lock() = None;
        self.say();
        tracing::info!(
            pipeline = &*self.options.pipeline,
            "everything in the {} was moved: events go to Kafka again",
            self.word()
        );
        Ok(())
    }
}

impl Primary for Committer {
    type Trouble = Trouble;

    /// One transaction.
    fn step(
        &mut self,
        moved: &[Moved],
        positions: &[(Vec<u8>, Vec<u8>)],
        state: &[StateWrites],
    ) -> Result<(), Trouble> {
        let Some(connection) = &self.connection else { return Err(Trouble::Again) };
        let producer = &connection.producer;
        let unknown = |error| Trouble::Unknown(producer.context().explain(&error));
        let large = moved.iter().filter_map(|one| too_large(connection.topics.get(one.channel)?, &one.batch));
        self.limbo.prepare(self.number + 1, &large.collect::<Vec<_>>()).map_err(fatal)?;
        producer.begin_transaction().map_err(unknown)?;
        for one in moved {
            if let Some(topic) = connection.topics.get(one.channel) {
                send_batch(producer, topic, &one.batch)?;
            }
        }
        for (key, value) in positions {
            let value = (!value.is_empty()).then_some(value.as_slice());
            let key = self.owner.position_key(key);
            send_register(producer, POSITIONS, connection.places.positions, &key, value)?;
        }
        self.write_state(connection, state)?;
        self.write_record(connection, self.number + 1)?;
        self.end(producer)?;
        self.count()
    }
}

/// Those with acknowledgements, and the others.
fn split(group: Vec<Pending>) -> (Vec<Pending>, Vec<Pending>) {
    group.into_iter().partition(|pending| !pending.acks.is_empty())
}

/// A put without the rows that a topic does not take, channel by channel.
fn fitting(topics: &[Topic], put: Put) -> Vec<Put> {
    let one = |channel: &ChannelId| {
        let rows = topics.get(usize::from(channel.0)).map(|topic| too_large_rows(topic, &put.batch));
        let batch = match rows {
            Some(large) if !large.is_empty() => {
                let rows = (0..put.batch.rows() as u32).filter(|row| !large.contains(row));
                put.batch.take(&UInt32Array::from_iter_values(rows)).ok()?
            }
            _ => put.batch.clone(),
        };
        (!batch.is_empty()).then(|| Put { channels: vec![*channel], batch })
    };
    put.channels.iter().filter_map(one).collect()
}
