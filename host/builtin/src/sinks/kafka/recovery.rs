//! Taking over, and finding out what the broker holds. See the sink's own text for the order of steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use flumen_kafka::channel::Acknowledger;
use flumen_kafka::ends::{self, Nature};
use flumen_kafka::lane::Lane;
use flumen_kafka::produce::Record;
use flumen_kafka::progress::{self, By, Found, Progress, ReadError, Who};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::rdkafka::producer::BaseProducer;
use flumen_kafka::topics::Topics;
use flumen_kafka::{Context, words};
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::{Cursors, SinkContext, Stored};

use super::faults;
use super::link::{LaneState, Link, PROGRESS_ID, Sizes};
use super::options::{Delivery, Settings};
use super::patience::Patience;
use super::routes::Routes;
use crate::sinks::limits;

/// Where brokers keep what they know of transactions: its leaders are the coordinators.
const COORDINATORS: &str = "__transaction_state";

/// New producers, and what the broker holds of us.
pub(super) fn recover(
    settings: &Arc<Settings>,
    by: &By,
    sizes: Sizes,
    context: &SinkContext,
    cursors: &mut Cursors<'_>,
    patience: &Patience,
) -> Result<(Link, Option<Stored>), SinkError> {
    let topics = questions(settings, context)?;
    let mut link = Link {
        settings: settings.clone(),
        who: who(context),
        by: by.clone(),
        lanes: Vec::new(),
        used: settings.lanes,
        since: Vec::new(),
        group: None,
        stored_mark: Vec::new(),
        topics,
        routes: Routes::default(),
        delivered: Vec::new(),
        alone: Default::default(),
        reached: AtomicU64::new(0),
        until: 0,
        is_fenced: false,
        handed: None,
        sizes,
    };
    link.check_topic()?;
    if settings.delivery != Delivery::ExactlyOnce {
        link.add_lanes(settings.lanes, context, patience)?;
        return Ok((link, None));
    }
    link.join_channel(cursors)?;
    link.check_progress_topic(patience)?;
    // Side by side: each waits for the coordinator.
    let who = link.who.clone();
    let (claim, added) = std::thread::scope(|scope| {
        let claim = scope.spawn(|| claim_lane(settings, &who, patience));
        let added = link.add_lanes(settings.lanes, context, patience);
        (claim.join().unwrap_or(Ok(Err(KafkaError::Flush(Code::Fatal)))), added)
    });
    added?;
    faults::passed("start.taken-over");
    link.claim(claim?, patience)?;
    faults::passed("start.claimed");
    tracing::info!(sink = link.who.sink, id = transactional_id(&link.who, 0), "takes over");
    let mut found = link.read_progress(patience)?;
    let recorded = found.lanes.get(&0).map_or(0, |progress| usize::from(progress.lanes));
    if recorded > link.lanes.len() {
        // Another process could still commit in these: they are taken over before what they hold counts.
        link.add_lanes(recorded.min(limits::LANES_MAX), context, patience)?;
        found = link.read_progress(patience)?;
    }
    if found.corrupted > 0 {
        let (records, topic) = (found.corrupted, &settings.progress_topic);
        tracing::error!(
            sink = link.who.sink,
            topic,
            records,
            "records of this sink's progress cannot be read, and are passed over: if none that can be read is newer, what the broker holds may come twice"
        );
    }
    context.metrics.set_gauges("progress_corrupted", [("progress_corrupted".to_owned(), found.corrupted)]);
    let stored = match link.group.clone() {
        Some(group) => link.take_up_group(&group, &found.lanes, cursors)?,
        None => link.take_up(&found.lanes, cursors),
    };
    Ok((link, Some(stored)))
}

/// After the broker took our transactional id away: whether another process claimed this sink since we did.
pub(super) fn look_for_another(
    settings: &Arc<Settings>,
    by: &By,
    context: &SinkContext,
    patience: &Patience,
) -> Result<(), SinkError> {
    let (who, topics) = (who(context), questions(settings, context)?);
    let found = read(settings, &topics, &who, patience)?;
    match found.claim {
        Some((other, since)) if other.instance != by.instance => Err(SinkError::Fatal(format!(
            "another agent named {:?} has taken over this sink (host {:?}, process {}, at {since}): it is the only one that \
             delivers as {:?} now, and nothing is delivered twice. Give one of the two agents another name, or stop one",
            who.agent,
            other.host,
            other.pid,
            transactional_id(&who, 0),
        ))),
        _ => {
            tracing::warn!(
                sink = who.sink,
                "the broker aborted a transaction of ours that took too long; delivery begins anew"
            );
            Ok(())
        }
    }
}

fn who(context: &SinkContext) -> Who {
    Who {
        agent: context.place.agent.to_string(),
        pipeline: context.place.pipeline.to_string(),
        channel: context.place.channel.to_string(),
        sink: context.name.to_string(),
    }
}

fn transactional_id(who: &Who, lane: usize) -> String {
    format!("flumen/{}/{}/{}/{lane}", who.agent, who.pipeline, who.sink)
}

/// The producer of the claim; who had its id is fenced. The inner error is its own.
fn claim_lane(
    settings: &Arc<Settings>,
    who: &Who,
    patience: &Patience,
) -> Result<Result<Lane, KafkaError>, SinkError> {
    let name = format!("sink {}", who.sink);
    let id = format!("{}claim", transactional_id(who, 0).trim_end_matches('0'));
    let taken_over = Lane::new(&name, &settings.client, &settings.producer(&name), Some(id.clone()), None)
        .and_then(|mut lane| {
            lane.take_over(limits::TAKE_OVER, &|| !patience.is_stopping())?;
            Ok(lane)
        });
    let lane = match taken_over {
        Ok(lane) => lane,
        Err(error) => return Ok(Err(error)),
    };
    let key = who.claim_key();
    end_lost(settings, (&name, &id), lane, |lane| lane.producer.client(), &key, None, patience).map(Ok)
}

/// Ends what a broker may have left open of a lane that was just taken over: see [`ends`]. An error: the lane is of no use.
fn end_lost<T: Send + 'static>(
    settings: &Arc<Settings>,
    (name, id): (&str, &str),
    lane: T,
    client: fn(&T) -> &BaseProducer<Context>,
    key: &[u8],
    group: Option<&Acknowledger>,
    patience: &Patience,
) -> Result<T, SinkError> {
    let is_own = |of: &[u8]| of == key;
    let nature = |topic: &str| match topic == settings.progress_topic {
        true => Nature::Registers(&is_own),
        false => Nature::Events(None),
    };
    let groups: Vec<(String, String)> = group.iter().map(|group| group.group()).collect();
    let owner = ends::Owner {
        who: name,
        settings: &settings.client,
        transactional_id: id,
        nature: &nature,
        groups: &groups,
        anchor: &settings.progress_topic,
    };
    let give_up = || patience.is_stopping() || !patience.go_on();
    let settled = ends::settle(&owner, lane, client, &give_up);
    let (lane, settled) = settled.map_err(|reason| match give_up() {
        true => SinkError::Stopped,
        false => SinkError::Retry(reason),
    })?;
    if let Err(reason) = settled {
        tracing::info!(id, "whether a broker lost the end of a transaction is not known: {reason}");
    }
    Ok(lane)
}

fn questions(settings: &Arc<Settings>, context: &SinkContext) -> Result<Topics, SinkError> {
    let failed = |error: KafkaError| SinkError::Retry(words::explain(&error, &settings.client, None));
    Topics::new(&format!("sink {}", context.name), &settings.client).map_err(failed)
}

fn read(
    settings: &Arc<Settings>,
    topics: &Topics,
    who: &Who,
    patience: &Patience,
) -> Result<Found, SinkError> {
    // An open transaction ends when it times out at the latest, and the broker looks every 10 s.
    let wait = settings.transaction_timeout + limits::TAKE_OVER;
    let go_on = || patience.go_on() && !patience.is_stopping();
    let found = progress::read(topics, &settings.client, &settings.progress_topic, who, wait, &go_on);
    found.map_err(|error| match error {
        ReadError::Stopped => SinkError::Stopped,
        ReadError::Kafka(error) => {
            SinkError::Retry(format!("topic {:?}: {}", settings.progress_topic, topics.explain(&error)))
        }
        hidden => SinkError::Retry(hidden.to_string()),
    })
}

impl Link {
    fn read_progress(&self, patience: &Patience) -> Result<Found, SinkError> {
        read(&self.settings, &self.topics, &self.who, patience)
    }

    /// The plain topic is looked for at once, not at the first event.
    fn check_topic(&mut self) -> Result<(), SinkError> {
        let settings = self.settings.clone();
        let Some(name) = settings.topic.plain() else { return Ok(()) };
        let index = self.find_route(name)?;
        let (partitions, is_denied) =
            self.routes.get_mut(index).map_or((None, false), |route| (route.partitions, route.is_denied));
        if is_denied {
            return Err(self.topic_missing(name, is_denied));
        }
        if partitions.is_none() {
            // Said again, as an error, when there is something to deliver.
            tracing::warn!(sink = self.who.sink, topic = name, "the topic does not exist yet");
            self.routes.forget();
        }
        if let Some(limit) = self.routes.known_limit(name) {
            self.sizes.batch = self.sizes.batch.min(limit as u64);
        }
        Ok(())
    }

    fn check_progress_topic(&self, patience: &Patience) -> Result<(), SinkError> {
        let topic = &self.settings.progress_topic;
        let explain =
            |error: KafkaError| SinkError::Retry(format!("topic {topic:?}: {}", self.topics.explain(&error)));
        if self.topics.partitions(topic).map_err(explain)?.is_none() {
            self.make_progress_topic()?;
            let begin = Instant::now();
            while self.topics.partitions(topic).map_err(explain)?.is_none() {
                if begin.elapsed() > limits::TAKE_OVER || patience.is_stopping() {
                    return Err(SinkError::Retry(format!("topic {topic:?} was made, but is not there yet")));
                }
                std::thread::sleep(limits::KAFKA_QUEUE_WAIT * 10);
            }
        }
        let policy = self.topics.limits(topic).ok().and_then(|limits| limits.cleanup_policy);
        if let Some(policy) = policy.filter(|policy| !policy.contains("compact") || policy.contains("delete"))
        {
            tracing::warn!(
                sink = self.who.sink,
                topic,
                policy,
                "the progress topic is not compacted, so brokers will delete progress: set cleanup.policy=compact \
                 (`kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy=compact …`)"
            );
        }
        Ok(())
    }

    fn make_progress_topic(&self) -> Result<(), SinkError> {
        let topic = &self.settings.progress_topic;
        let made = self.topics.create(topic, 1, &limits::PROGRESS_TOPIC_CONFIG);
        made.map_err(|error| {
            let config: String =
                limits::PROGRESS_TOPIC_CONFIG.iter().map(|(key, value)| format!(" --config {key}={value}")).collect();
            let brokers = self.settings.client.brokers.join(",");
            SinkError::Retry(format!(
                "topic {topic:?}, which stores how far this sink is, is missing and could not be made ({}). Make it: \
                 kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions 1{config}",
                self.topics.explain(&error)
            ))
        })?;
        tracing::info!(sink = self.who.sink, topic, "made the topic that stores progress");
        Ok(())
    }

    /// Makes lanes until there are `count`, and takes their transactional ids over, side by side.
    fn add_lanes(
        &mut self,
        count: usize,
        context: &SinkContext,
        patience: &Patience,
    ) -> Result<(), SinkError> {
        let name = format!("sink {}", context.name);
        let mut config = self.settings.producer(&name);
        config.set("batch.size", self.sizes.batch.to_string());
        config.set("message.max.bytes", self.sizes.record.to_string());
        let is_transactional = self.settings.delivery == Delivery::ExactlyOnce;
        let first = self.lanes.len();
        for number in first..count {
            let id = is_transactional.then(|| transactional_id(&self.who, number));
            // One lane's statistics stand for all: they talk to the same brokers.
            let metrics = (number == 0).then(|| context.metrics.clone());
            let lane = Lane::new(&name, &self.settings.client, &config, id, metrics);
            let lane =
                lane.map_err(|error| SinkError::Retry(words::explain(&error, &self.settings.client, None)))?;
            self.lanes.push(LaneState { lane, cursor: 0, topic_ids: Vec::new() });
        }
        let fresh = self.lanes.get_mut(first..).unwrap_or_default();
        let taken: Vec<Result<(), KafkaError>> = std::thread::scope(|scope| {
            let take =
                |lane: &mut LaneState| lane.lane.take_over(limits::TAKE_OVER, &|| !patience.is_stopping());
            let threads: Vec<_> = fresh.iter_mut().map(|lane| scope.spawn(move || take(lane))).collect();
            let failed = KafkaError::Flush(Code::Fatal);
            threads.into_iter().map(|thread| thread.join().unwrap_or(Err(failed.clone()))).collect()
        });
        match taken.into_iter().find_map(Result::err) {
            None => self.end_lost(first, &name, patience),
            Some(_) if patience.is_stopping() => Err(SinkError::Stopped),
            Some(error) => Err(self.take_over_error(&error)),
        }
    }

    /// Of the lanes from this one on, side by side: each asks the coordinators.
    fn end_lost(&mut self, first: usize, name: &str, patience: &Patience) -> Result<(), SinkError> {
        if self.settings.delivery != Delivery::ExactlyOnce {
            return Ok(());
        }
        let fresh: Vec<LaneState> = self.lanes.drain(first..).collect();
        let (settings, who, group) = (&self.settings, &self.who, self.group.as_deref());
        let settled: Vec<Result<LaneState, SinkError>> = std::thread::scope(|scope| {
            let settle = |(number, lane): (usize, LaneState)| {
                let id = transactional_id(who, first + number);
                let key = who.lane_key(u16::try_from(first + number).unwrap_or(u16::MAX));
                scope.spawn(move || {
                    end_lost(
                        settings,
                        (name, &id),
                        lane,
                        |lane| lane.lane.producer.client(),
                        &key,
                        group,
                        patience,
                    )
                })
            };
            let threads: Vec<_> = fresh.into_iter().enumerate().map(settle).collect();
            let failed =
                || Err(SinkError::Retry("a thread that looks for lost ends of transactions failed".into()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| failed())).collect()
        });
        for lane in settled {
            self.lanes.push(lane?);
        }
        Ok(())
    }

    /// The same lanes with fresh producers: what is open is aborted.
    pub fn renew_lanes(&mut self, context: &SinkContext, patience: &Patience) -> Result<(), SinkError> {
        let cursors: Vec<u64> = self.lanes.drain(..).map(|lane| lane.cursor).collect();
        self.add_lanes(cursors.len(), context, patience)?;
        self.lanes.iter_mut().zip(cursors).for_each(|(lane, cursor)| lane.cursor = cursor);
        Ok(())
    }

    fn take_over_error(&mut self, error: &KafkaError) -> SinkError {
        let code = words::code(error);
        // Brokers answered about topics a moment ago: who does not answer is the coordinator.
        let about_coordinator = code.is_some_and(|code| {
            matches!(
                code,
                Code::CoordinatorNotAvailable
                    | Code::CoordinatorLoadInProgress
                    | Code::ConcurrentTransactions
                    | Code::NotCoordinator
                    | Code::OperationTimedOut
            )
        });
        let has_connection_trouble =
            self.lanes.iter().any(|lane| lane.lane.producer.context().last_error().is_some());
        let reason = match self.too_few_coordinators().filter(|_| about_coordinator) {
            Some(reason) => reason,
            None if code == Some(Code::ConcurrentTransactions) => {
                "the brokers have not ended an earlier transaction of it yet".into()
            }
            None if about_coordinator && !has_connection_trouble => {
                let error = KafkaError::Global(Code::CoordinatorNotAvailable);
                words::explain(&error, &self.settings.client, None)
            }
            None => return self.error(error),
        };
        let (id, waited_s) = (transactional_id(&self.who, 0), limits::TAKE_OVER.as_secs());
        SinkError::Retry(format!("transactional id {id:?} after {waited_s} s: {reason}"))
    }

    /// Whether a coordinator can write down anything at all.
    fn too_few_coordinators(&self) -> Option<String> {
        let copies = self.topics.copies(COORDINATORS).ok()??;
        let needed = self.topics.limits(COORDINATORS).ok().and_then(|limits| limits.in_sync_min);
        let needed = needed.unwrap_or(copies.replicas);
        (copies.in_sync < needed).then(|| {
            format!(
                "too few replicas of {COORDINATORS} are in sync, {} of {} where {needed} are needed \
                 (transaction.state.log.min.isr): start the brokers that are down, or find out why they lag (alive: {})",
                copies.in_sync, copies.replicas, copies.brokers
            )
        })
    }

    /// Says in a transaction that this process delivers now. Under an id of its own: what a lane commits would end a
    /// transaction of that lane whose end a broker has lost as if it counted, before it was looked for.
    fn claim(&mut self, lane: Result<Lane, KafkaError>, patience: &Patience) -> Result<(), SinkError> {
        let (key, value) = (self.who.claim_key(), self.by.claim());
        let timeout = self.settings.transaction_timeout;
        let claimed = lane.and_then(|mut lane| {
            lane.begin()?;
            let topic = lane.producer.topic(&self.settings.progress_topic)?;
            let partition = Some(progress::PARTITION);
            let record =
                Record { topic, partition, key: Some(&key), time_ms: None, headers: &[], id: PROGRESS_ID };
            lane.producer.send_copy(&record, value).map_err(KafkaError::MessageProduction)?;
            lane.commit(timeout, &|| patience.go_on())
        });
        match claimed {
            Ok(()) => Ok(()),
            Err(_) if patience.is_stopping() => Err(SinkError::Stopped),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// If the channel is a topic of the same cluster, its acknowledgement is to be in our transactions.
    fn join_channel(&mut self, cursors: &Cursors<'_>) -> Result<(), SinkError> {
        let offered = cursors.acknowledger().and_then(|offered| offered.downcast::<Acknowledger>().ok());
        let Some(offered) = offered.filter(|_| self.settings.lanes == 1) else { return Ok(()) };
        let (Some(channel), Some(own)) = (offered.cluster_id(), self.topics.cluster_id()) else {
            let brokers = self.settings.client.brokers.join(", ");
            return Err(SinkError::Retry(format!("no broker of {brokers} said of which cluster it is")));
        };
        if channel == own {
            self.group = Some(offered);
        } else {
            tracing::warn!(
                sink = self.who.sink,
                "the channel is a topic of another cluster, and one transaction cannot span two: what an agent had \
                 delivered and not acknowledged when it died comes twice if another agent gets its partitions"
            );
        }
        Ok(())
    }

    /// The group's offsets say where to go on: whatever transaction of ours they were in, nothing of ours is open now.
    fn take_up_group(
        &mut self,
        group: &Acknowledger,
        found: &BTreeMap<u16, Progress>,
        cursors: &Cursors<'_>,
    ) -> Result<Stored, SinkError> {
        group.refresh().map_err(SinkError::Retry)?;
        self.used = 1;
        self.stored_mark = found.get(&0).map(|progress| progress.mark.clone()).unwrap_or_default();
        let acknowledged = cursors.acknowledged();
        self.lanes.iter_mut().for_each(|lane| lane.cursor = acknowledged);
        Ok(self.stand(acknowledged, acknowledged))
    }

    /// Where each lane goes on, and in how many.
    fn take_up(&mut self, found: &BTreeMap<u16, Progress>, cursors: &mut Cursors<'_>) -> Stored {
        let acknowledged = cursors.acknowledged();
        // First, so that what the lanes have is the newest that the reader of the channel is asked for.
        let since = found.get(&0).filter(|progress| !progress.since.is_empty());
        let since = since.and_then(|progress| cursors.resolve(&progress.since));
        let first = found.get(&0).and_then(|progress| Some((progress, cursors.resolve(&progress.mark)?)));
        let Some((progress, cursor)) = first else {
            // Nothing of this journal: one lane, as if it were the first time.
            self.used = 1;
            self.lanes.iter_mut().for_each(|lane| lane.cursor = acknowledged);
            return self.stand(acknowledged, acknowledged);
        };
        self.used = usize::from(progress.lanes).clamp(1, limits::LANES_MAX);
        self.since = progress.since.clone();
        let base = since.map_or(acknowledged, |since| since.max(acknowledged));
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let stored = match number {
                0 => Some(cursor),
                number if number < self.used => {
                    let progress = u16::try_from(number).ok().and_then(|number| found.get(&number));
                    progress.and_then(|progress| cursors.resolve(&progress.mark))
                }
                _ => None,
            };
            lane.cursor = stored.unwrap_or(base).max(base);
        }
        let used = self.lanes.iter().take(self.used).map(|lane| lane.cursor);
        let (from, until) = (used.clone().min().unwrap_or(base), used.max().unwrap_or(base));
        self.stand(from, until)
    }

    fn stand(&mut self, from: u64, until: u64) -> Stored {
        self.reached = AtomicU64::new(from);
        self.until = until;
        Stored { from, until }
    }
}
