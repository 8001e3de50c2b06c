//! What does not work now: said once, shown in `status` until it works again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use flumen_pipeline::ComponentMetrics;

use super::limits::ASK_AGAIN;

/// See the module.
pub struct Trouble {
    source: Arc<str>,
    metrics: Arc<ComponentMetrics>,
    present: Option<String>,
    /// What waits for a person, by partition.
    standing: BTreeMap<usize, String>,
    looked: Instant,
}

impl Trouble {
    /// None yet.
    pub fn new(source: Arc<str>, metrics: Arc<ComponentMetrics>) -> Trouble {
        Trouble { source, metrics, present: None, standing: BTreeMap::new(), looked: Instant::now() }
    }

    /// Something does not work; it is tried again.
    pub fn say(&mut self, text: String) {
        if self.present.as_ref() != Some(&text) {
            tracing::warn!(source = %self.source, "{text}");
            self.metrics.set_error(Some(text.clone()));
            self.present = Some(text);
        }
    }

    /// It works.
    pub fn over(&mut self) {
        if self.present.take().is_some() {
            tracing::info!(source = %self.source, "kafka works again");
            self.show();
        }
    }

    /// A partition is not read any more until a person has looked; everything else goes on.
    pub fn stand(&mut self, partition: usize, text: String) {
        tracing::error!(source = %self.source, "{text}");
        self.standing.insert(partition, text);
        self.show();
    }

    /// True if a partition waits for a person.
    pub fn stands(&self, partition: usize) -> bool {
        self.standing.contains_key(&partition)
    }

    /// The partition is not this agent's any more.
    pub fn forget(&mut self, partition: usize) {
        if self.standing.remove(&partition).is_some() {
            self.show();
        }
    }

    fn show(&self) {
        self.metrics.set_error(self.present.as_ref().or(self.standing.values().next()).cloned());
    }

    /// True if there is trouble and it is time to look whether it is over.
    pub fn is_due(&mut self) -> bool {
        let due = self.present.is_some() && self.looked.elapsed() >= ASK_AGAIN;
        if due {
            self.looked = Instant::now();
        }
        due
    }
}
