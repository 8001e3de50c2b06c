//! The kill points of a file journal: the names of its steps, in the words of `docs/faults.md`; and those around a destination that
//! stores how far it is.
//!
//! Before each of a journal stands which one it is (`journal`, `quarantine`, `failover`). `start.` is what an opening does until its first
//! snapshot is durable, or the disk has no room for that.
//!
//! A step that changes the disk is in one of these lists: a point, or an exception with its reason ([`UNWALKED`]). One that is in none
//! ends the process ([`super::Faults::passed`]).

/// A place between two steps on a disk, at which a test may kill the process.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Its name, without whose it is.
    pub name: &'static str,
    /// What has just been done.
    pub meaning: &'static str,
}

/// One of a list.
#[must_use]
pub const fn point(name: &'static str, meaning: &'static str) -> Point {
    Point { name, meaning }
}

/// Points that every file journal passes.
pub const ANY_JOURNAL: &[Point] = &[
    point("start.directory.created", "the directory, and those above it, are there and durable"),
    point("start.snapshot.created", "a slot has its name"),
    point("start.snapshot.allocated", "a slot has its space"),
    point("start.snapshot.name-synced", "a slot's name is durable"),
    point("start.snapshot.written", "the first snapshot of this opening is written"),
    point("start.snapshot.synced", "and durable"),
    point("start.segment.removed", "a segment without content, which a crash left, is gone"),
    point("start.segment.removal-synced", "and durably"),
    point("start.segment.cut", "what is no commit is cut off the end of a segment"),
    point("start.segment.written", "commits that nothing proves to be durable are written once more"),
    point("start.segment.synced", "and durable"),
    point("segment.created", "a new segment has its name"),
    point("segment.allocated", "it has its space"),
    point("segment.begun", "its header and checkpoint are written"),
    point("segment.begun-synced", "and durable"),
    point("segment.name-synced", "its name is durable"),
    point("segment.first-written", "its first group of commits is written"),
    point("segment.first-synced", "and durable, not acknowledged"),
    point("segment.written", "a group of commits is written"),
    point("segment.synced", "and durable, not acknowledged"),
    point(
        "segment.cut",
        "a segment that is full, or the last one at the close, has given the rest of its space back",
    ),
    point("snapshot.written", "a snapshot is written to the older slot"),
    point("snapshot.synced", "and durable"),
];

/// Points of a journal that rolls.
pub const ROLLING_JOURNAL: &[Point] = &[
    point("start.spare.removed", "a spare segment of an earlier opening is gone"),
    point("segment.spared", "a segment that is done with has the name of a spare"),
    point("segment.removed", "a segment that is done with is gone"),
    point("segment.removal-synced", "segments that are done with are gone durably"),
    point("spare.allocated", "a spare that becomes a segment has its space"),
    point("spare.begun", "it has its header and checkpoint"),
    point("spare.begun-synced", "and they are durable"),
    point("spare.taken", "it has a segment's name"),
    point("spare.name-synced", "that name is durable"),
    point("spare.removed", "on a full disk: the space of a spare is given back"),
];

/// Points of a journal that keeps space in reserve and has plugins with state.
pub const BUSY_JOURNAL: &[Point] = &[
    point("start.state.removed", "a file of the plugins' state that is unfinished or older is gone"),
    point("reserve.created", "the file with the reserved space has its name"),
    point("reserve.allocated", "it has its space"),
    point("reserve.name-synced", "its name is durable"),
    point("state.created", "a file for the plugins' state has its unfinished name"),
    point("state.allocated", "it has its space"),
    point("state.written", "a part of it is written"),
    point("state.cut", "it has its length"),
    point("state.synced", "it is durable"),
    point("state.named", "it has its name"),
    point("state.name-synced", "that name is durable"),
    point("state.removed", "the file before it is gone"),
];

/// Points of a journal with a reserve on a full disk.
pub const FULL_JOURNAL: &[Point] = &[
    point("reserve.removed", "on a full disk: the reserved space is given up"),
    point("reserve.removal-synced", "and durably"),
];

/// Points of the probe of a journal's disk, behind the journal's place.
pub const PROBE: &[Point] = &[
    point("probe.created", "the file that a failover writes to see whether the disk is well has its name"),
    point("probe.allocated", "it has its space"),
    point("probe.written", "it has its content"),
    point("probe.synced", "and durably"),
    point("probe.removed", "it is gone"),
    point("probe.removal-synced", "and durably: the disk counts as well"),
];

const DAMAGE: &str =
    "what damage costs is lost, whoever is killed; the simulated disk of host/journal crashes there";
const REFUSED: &str = "a slot whose sync was refused, or that a snapshot outgrew: the other one is valid, and this one counts with \
                       its snapshot's sync alone";
const NOBODY: &str = "nobody waits for it: what comes back, the next start removes again";
const NOTHING: &str = "no name was changed since the sync before: the disk is as it was";

/// Steps of any journal that change its disk and are no points, each with the reason.
pub const UNWALKED: &[Point] = &[
    point("start.damage.created", DAMAGE),
    point("start.damage.written", DAMAGE),
    point("start.damage.synced", DAMAGE),
    point("start.damage.name-synced", DAMAGE),
    point("start.segment.set-aside", DAMAGE),
    point("damage.created", DAMAGE),
    point("damage.written", DAMAGE),
    point("damage.synced", DAMAGE),
    point("damage.name-synced", DAMAGE),
    point("start.snapshot.removed", REFUSED),
    point("snapshot.removed", REFUSED),
    point("snapshot.removal-synced", REFUSED),
    point("snapshot.created", REFUSED),
    point("snapshot.allocated", REFUSED),
    point("snapshot.name-synced", REFUSED),
    point("start.state.removal-synced", NOBODY),
    point("state.removal-synced", NOBODY),
    point("start.spare.removal-synced", NOBODY),
    point("spare.removal-synced", NOBODY),
    point("start.directory.synced", NOTHING),
    point("directory.synced", NOTHING),
];

/// Before the names of [`STORED_MARK`].
pub const STORED_MARK_PLACE: &str = "sink";

/// Points of a sink whose destination stores its mark, in the journal's part of a flush.
pub const STORED_MARK: &[Point] = &[
    point(
        "refused-on-record",
        "what the sink refuses is on record; its destination does not have the mark that decides about it",
    ),
    point(
        "promised",
        "source-backed: what the acknowledgement will change is on record; the destination does not have its mark",
    ),
    point(
        "promise-kept",
        "source-backed, at a start: the destination had the mark, and the journal has what was promised",
    ),
];
