//! A connection for questions: it gives up soon, and says why in words.
//!
//! Questions go through a producer, because rdkafka polls one by itself (for errors and tokens) and because
//! it joins no group. Nothing is ever produced by it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::Client;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{Producer, ThreadedProducer};

use crate::context::Context;
use crate::limits;
use crate::settings::{Sasl, Settings};

use super::native;

/// What a person is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

/// A connection for questions.
pub struct Link {
    settings: Arc<Settings>,
    client: ThreadedProducer<Context>,
}

impl Link {
    /// Makes a client; connecting goes on in the background.
    pub fn open(settings: &Arc<Settings>) -> Result<Link, Trouble> {
        settings.check_files().map_err(|error| Trouble(format!("{error}; {}", error.fix)))?;
        let mut config = settings.config("flumen-kafka");
        config.set("allow.auto.create.topics", "false");
        let context = Context::new("kafka", settings.clone(), None);
        let client = ThreadedProducer::from_config_and_context(&config, context)
            .map_err(|error| Trouble(crate::words::explain(&error, settings, None)))?;
        Ok(Link { settings: settings.clone(), client })
    }

    /// The settings it was made of.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    pub(super) fn client(&self) -> &Client<Context> {
        self.client.client()
    }

    fn context(&self) -> &Context {
        self.client.client().context()
    }

    /// An error of this connection in words.
    pub fn trouble(&self, error: &KafkaError) -> Trouble {
        Trouble(self.context().explain(error))
    }

    /// What the cluster says of itself and of all topics, or of one. No topic is made by asking.
    pub fn metadata(&self, topic: Option<&str>) -> Result<Metadata, Trouble> {
        self.ask(|limit| self.client().fetch_metadata(topic, limit))
    }

    /// Asks until there is an answer, a reason that will not go away by waiting, or [`limits::ADMIN`] is over.
    pub(super) fn ask<T>(&self, mut question: impl FnMut(Duration) -> KafkaResult<T>) -> Result<T, Trouble> {
        let begun = Instant::now();
        let mut slice = limits::ADMIN_SLICE;
        loop {
            let left = limits::ADMIN.saturating_sub(begun.elapsed());
            match question(slice.min(left.max(Duration::from_millis(1)))) {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let is_told = self.context().last_error().is_some() && slice > limits::ADMIN_SLICE;
                    if is_told || left <= slice || !is_of_connection(&error) {
                        return Err(self.trouble(&error));
                    }
                }
            }
            slice *= 2;
        }
    }

    /// Runs one administrative request.
    pub(super) fn admin<T, F>(
        &self,
        request: impl FnOnce(&AdminClient<Context>, &AdminOptions) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = KafkaResult<T>>,
    {
        let admin =
            native::admin_client("flumen-kafka", &self.settings).map_err(|error| self.trouble(&error))?;
        let options =
            AdminOptions::new().request_timeout(Some(limits::ADMIN)).operation_timeout(Some(limits::ADMIN));
        let future = request(&admin, &options);
        match wait(future, limits::ADMIN + limits::ADMIN_SLICE) {
            Some(outcome) => outcome.map_err(|error| self.trouble(&error)),
            None => Err(Trouble(format!("no answer within {} s", limits::ADMIN.as_secs()))),
        }
    }

    /// A consumer for looking: it joins no group and commits nothing; `group` is whose offsets it can ask for.
    pub fn reader(
        &self,
        group: Option<&str>,
        is_committed_only: bool,
    ) -> Result<BaseConsumer<Context>, Trouble> {
        reader(&self.settings, group, is_committed_only)
    }
}

/// As [`Link::reader`].
pub(super) fn reader(
    settings: &Arc<Settings>,
    group: Option<&str>,
    is_committed_only: bool,
) -> Result<BaseConsumer<Context>, Trouble> {
    let mut config = settings.config("flumen-kafka");
    // librdkafka wants a name even where no group is joined.
    config.set("group.id", group.unwrap_or("flumen-kafka"));
    config.set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true");
    config.set("auto.offset.reset", "error");
    config.set("isolation.level", if is_committed_only { "read_committed" } else { "read_uncommitted" });
    config.set("queued.max.messages.kbytes", limits::LOOK_AHEAD_KIB.to_string());
    let context = Context::new("kafka", settings.clone(), None);
    let consumer = BaseConsumer::from_config_and_context(&config, context)
        .map_err(|error| Trouble(crate::words::explain(&error, settings, None)))?;
    // The first thing in its queue is the question for a token; nothing connects before it is answered.
    if settings.sasl == Some(Sasl::OauthBearer)
        && let Some(Err(error)) = consumer.poll(limits::ADMIN_SLICE / 4)
    {
        return Err(Trouble(consumer.client().context().explain(&error)));
    }
    Ok(consumer)
}

fn is_of_connection(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        crate::words::code(error),
        Some(
            Code::OperationTimedOut
                | Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::RequestTimedOut
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::NotCoordinator
        )
    )
}

/// Waits for a future on this thread; `None`: not within the limit.
pub(super) fn wait<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut task = std::task::Context::from_waker(&waker);
    let mut future = pin!(future);
    let end = Instant::now() + limit;
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut task) {
            return Some(outcome);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_has_an_end() {
        assert_eq!(wait(std::future::ready(7), Duration::ZERO), Some(7));
        assert_eq!(wait(std::future::pending::<()>(), Duration::from_millis(5)), None);
    }
}
