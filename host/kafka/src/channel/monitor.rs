//! Looks after the brokers and the lag of the channels, for `status`: a question of `status` itself must not wait for them.

use std::sync::Arc;

use flumen_pipeline::source::Wake;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::committer::Figures;
use super::options::JournalOptions;
use super::reader::ReaderShared;
use crate::context::Context;
use crate::limits;

/// What was found at the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Lag {
    /// Records of the channel's topic, from its beginning.
    pub head: u64,
    /// Per reader: what is behind its acknowledged offsets, of the partitions that are this agent's.
    pub waiting: Vec<u64>,
}

/// The thread's side.
pub(super) struct Monitor {
    pub options: Arc<JournalOptions>,
    pub figures: Arc<Figures>,
    /// Readers of each channel.
    pub readers: Vec<Vec<Arc<ReaderShared>>>,
    pub found: Arc<Mutex<Vec<Lag>>>,
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
                self.look(client);
            }
        }
    }

    fn client(&self) -> Option<BaseConsumer<Context>> {
        let mut config = self.options.settings.config(&format!("{}/monitor", self.options.id()));
        config.set("isolation.level", "read_committed");
        let who = format!("journal {}", self.options.pipeline);
        config.create_with_context(Context::new(&who, self.options.settings.clone(), None)).ok()
    }

    fn look(&self, client: &BaseConsumer<Context>) {
        let topics = self.figures.topics.lock().clone();
        let mut found = Vec::new();
        for (topic, readers) in topics.iter().zip(&self.readers) {
            let mut ends = Vec::new();
            for partition in 0..topic.partitions {
                let Ok((_, end)) = client.fetch_watermarks(&topic.name, partition, limits::REQUEST) else {
                    return;
                };
                ends.push(end);
            }
            let waiting = readers.iter().map(|reader| {
                let behind = |(partition, offset): (i32, i64)| {
                    let end = usize::try_from(partition).ok().and_then(|partition| ends.get(partition));
                    end.map_or(0, |end| u64::try_from(end - offset).unwrap_or(0))
                };
                reader.offsets().into_iter().map(behind).sum()
            });
            found.push(Lag {
                waiting: waiting.collect(),
                head: ends.iter().map(|end| end.unsigned_abs()).sum(),
            });
        }
        *self.found.lock() = found;
    }
}
