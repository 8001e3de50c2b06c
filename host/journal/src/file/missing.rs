//! Segments that the newest snapshot names and that are not there.
//!
//! Deletion is recorded in a snapshot before it happens, so the newest snapshot never names a deleted segment. Only if that one
//! is damaged, the older one may: so a segment counts as missing if a reader, or the plugins' state, still needs it.

use std::collections::BTreeSet;
use std::path::Path;

use super::base::heads_by_name;
use super::format::commit::Location;
use super::format::registers::{ChannelRegister, ReaderRegister, Registers};
use super::format::snapshot::Snapshot;
use super::recovery::{NamedSegment, Recovered};
use super::segment::segment_name;
use crate::api::ChannelSpec;

/// A segment that is not there.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    pub id: u64,
    /// Commits in it that no scan can find missing.
    commits: std::ops::Range<u64>,
    /// Some reader has not had all of its events.
    has_events: bool,
}

/// What a snapshot names and is not there.
pub(super) fn missing(
    snapshot: &Snapshot,
    ids: &BTreeSet<u64>,
    now: &Registers,
    segments: &[NamedSegment],
    plan: &[ChannelSpec],
) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (index, info) in snapshot.segments.iter().enumerate().filter(|(_, info)| !ids.contains(&info.id)) {
        let behind = snapshot.registers.last_commit + 1;
        let next = snapshot.segments.get(index + 1);
        let ends = next.map(|next| heads_by_name(&snapshot.registers, &next.heads));
        // Of the last one in the table, a later segment knows the end; the registers do, at the latest.
        let later =
            segments.iter().find(|segment| segment.info.id > info.id).map(|segment| segment.heads.clone());
        let ends = ends.or(later);
        let starts = heads_by_name(&snapshot.registers, &info.heads);
        let has_events = now.channels.iter().any(|channel| {
            let end =
                ends.as_ref().and_then(|ends| ends.get(&channel.name)).map_or(channel.head, |end| end.0);
            let start = starts.get(&channel.name).map_or(0, |start| start.0);
            start < end && needed(channel, plan).is_some_and(|needed| needed < end)
        });
        let until = next.map_or(behind, |next| next.first_commit).min(behind);
        let commits = info.first_commit..until.max(info.first_commit);
        missing.push(Missing { id: info.id, commits, has_events });
    }
    missing
}

/// The cursor before which no reader of the plan needs anything. Of one that retired an older snapshot still says that it reads.
fn needed(channel: &ChannelRegister, plan: &[ChannelSpec]) -> Option<u64> {
    let spec = plan.iter().find(|spec| spec.name == channel.name)?;
    let reads = |reader: &&ReaderRegister| channel.live && reader.live && spec.readers.contains(&reader.name);
    channel.readers.iter().filter(reads).map(|reader| reader.cursor).min()
}

impl Recovered {
    /// Names and counts the missing segments whose events are needed, or that may have held state that its file does not have: the file
    /// has that of the commits up to `covered`.
    pub fn report_missing(&mut self, dir: &Path, covered: Option<u64>) {
        for missing in std::mem::take(&mut self.missing) {
            if !missing.has_events {
                // Not one to look for any more.
                self.segments.retain(|segment| segment.info.id != missing.id);
                if covered.is_none_or(|covered| missing.commits.end <= covered + 1) {
                    self.missing.push(missing);
                    continue;
                }
            }
            let commits = self.lost.add(&missing.commits);
            self.damage_seen.insert(Location { segment: missing.id, offset: 0 });
            tracing::error!(dir = %dir.display(), segment = %segment_name(missing.id), commits,
                first_missing_commit = missing.commits.start, "a segment is not there: its commits are lost");
        }
    }
}
