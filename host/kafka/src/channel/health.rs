//! Whether the brokers answer: the probe of a Kafka channel's failover.

use std::time::Duration;

use flumen_journal::failover::Health;
use flumen_pipeline::source::Wake;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::options::JournalOptions;
use super::topics::POSITIONS;
use crate::admin::{questioner, serve};
use crate::context::Context;
use crate::limits;

/// Asks for the brokers' metadata until the journal closes.
pub(super) fn run(health: &Health, options: &JournalOptions, check_interval: Duration, wake: &Wake) {
    let mut client = None;
    let wait = |pause| wake.wait(pause);
    health.run(wait, || {
        if client.is_none() {
            client = questions(options);
        }
        client.as_ref().is_some_and(|client| answers(client, check_interval))
    });
}

fn questions(options: &JournalOptions) -> Option<BaseConsumer<Context>> {
    let config = options.settings.config(&format!("{}/health", options.id()));
    let who = format!("journal {}", options.pipeline);
    questioner(&who, &options.settings, &config).ok()
}

fn answers(client: &BaseConsumer<Context>, check_interval: Duration) -> bool {
    let limit = check_interval.clamp(Duration::from_secs(1), limits::REQUEST);
    let metadata = client.fetch_metadata(Some(POSITIONS), limit);
    serve(client);
    metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
}
