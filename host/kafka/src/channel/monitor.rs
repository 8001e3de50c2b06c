//! Looks after the ends of the channels' topics, for `status`: a question of `status` itself must not wait for a broker.

use std::sync::Arc;

use flumen_pipeline::source::Wake;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::committer::Figures;
use super::options::JournalOptions;
use crate::admin::{questioner, serve};
use crate::context::Context;
use crate::limits;

/// What was found at the last look.
pub(super) type Ends = Vec<i64>;

/// The thread's side.
pub(super) struct Monitor {
    pub options: Arc<JournalOptions>,
    pub figures: Arc<Figures>,
    /// Of each channel, the end of each partition.
    pub found: Arc<Mutex<Vec<Ends>>>,
    pub wake: Wake,
}

impl Monitor {
    pub fn run(self) {
        let mut client = None;
        while !self.wake.wait(limits::WATCH_EVERY) {
            if client.is_none() {
                client = self.client();
            }
            if let Some(client) = &client {
                // It may need another token.
                serve(client);
                self.look(client);
            }
        }
    }

    fn client(&self) -> Option<BaseConsumer<Context>> {
        let mut config = self.options.settings.config(&format!("{}/monitor", self.options.id()));
        config.set("isolation.level", "read_committed");
        let who = format!("journal {}", self.options.pipeline);
        questioner(&who, &self.options.settings, &config).ok()
    }

    fn look(&self, client: &BaseConsumer<Context>) {
        let topics = self.figures.topics.lock().clone();
        let mut found = Vec::new();
        for topic in &topics {
            let mut ends = Vec::new();
            for partition in 0..topic.partitions {
                let Ok((_, end)) = client.fetch_watermarks(&topic.name, partition, limits::REQUEST) else {
                    return;
                };
                ends.push(end);
            }
            found.push(ends);
        }
        *self.found.lock() = found;
    }
}
