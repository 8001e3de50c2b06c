//! Which events of a channel are meant, as arguments.

use anyhow::Result;
use flumen_journal::inspect::Inspector;
use flumen_pipeline::again::{Again, Bounds, Words};
use jiff::Timestamp;

use crate::cmd::quarantine::{numbers, time};
use crate::exit::Failure;

/// Which events; everything that is said has to be true of an event.
#[derive(Debug, clap::Args)]
pub struct Chosen {
    /// The channel. May be left out if there is only one beside the quarantine's.
    #[arg(long)]
    channel: Option<String>,
    /// Only the event with this number in the channel, or a range: 17..40 is 17 to 39.
    #[arg(long)]
    number: Option<String>,
    /// Only events of this time or later: 2026-05-01T12:00:00Z, or 2h for two hours ago. It is the event's own time.
    #[arg(long)]
    since: Option<String>,
    /// Only events before this time, written as for --since.
    #[arg(long)]
    before: Option<String>,
}

impl Chosen {
    /// As plain values: to the channel itself, all its sinks. What is not in the journal any more is not in the range.
    pub fn request(&self, inspector: &Inspector) -> Result<Again, Failure> {
        let present = inspector.present()?;
        let quarantine = flumen_pipeline::quarantine::CHANNEL;
        let known: Vec<&str> = present
            .channels
            .iter()
            .filter(|channel| channel.live && channel.name != quarantine)
            .map(|channel| channel.name.as_str())
            .collect();
        let channel = match (&self.channel, known.as_slice()) {
            (Some(channel), _) => channel.clone(),
            (None, [only]) => (*only).to_owned(),
            (None, known) => {
                return Err(anyhow::anyhow!("say which channel (--channel): {}", known.join(", ")).into());
            }
        };
        let head = present.channels.iter().find(|known| known.name == channel).map(|channel| channel.head);
        let Some(head) = head else {
            return Err(anyhow::anyhow!("no channel {channel:?}; there are: {}", known.join(", ")).into());
        };
        let (from, until) = self.number.as_deref().map(numbers).transpose()?.unwrap_or((0, head));
        let oldest = inspector.events(&channel, 0)?.next().transpose()?.map_or(head, |rows| rows.first);
        // Both are counted back from the same instant.
        let now = Timestamp::now();
        let at = |text: &Option<String>| -> Result<Option<i64>> {
            text.as_deref().map(|text| time(text, now)).transpose()
        };
        let bounds = Bounds {
            from: if self.number.is_some() { from } else { from.max(oldest) },
            until: until.min(head),
            since: at(&self.since)?,
            before: at(&self.before)?,
        };
        Ok(Again { bounds, words: self.words(), to: channel.clone(), channel, sink: None, gives_up: false })
    }

    fn words(&self) -> Words {
        Words { number: self.number.clone(), since: self.since.clone(), before: self.before.clone() }
    }
}
