//! The bridge's steps on the file system, for tests that break it on purpose (`docs/faults.md`).

use std::io;

use flumen_journal::faults::{self, Class, Point, Step, point};

/// Before the names of the bridge's steps.
pub const PLACE: &str = "bridge";

/// Places at which a test may kill the process, behind [`PLACE`].
pub const POINTS: &[Point] = &[
    point("work.emptied", "what an earlier run left in the work directory is gone"),
    point("directory.created", "a directory is there"),
    point("directory.synced", "and durably"),
    point("spool.created", "a partition's records of the bucket have a file in the work directory"),
    point("spool.written", "a block of them is written"),
    point("spool.synced", "and all of them are durable"),
    point("file.created", "a file of several partitions, or of a part of one, is in the work directory"),
    point("file.written", "some of it is written"),
    point("file.synced", "and all of it is durable"),
    point("stale.removed", "a file of a run that did not live to finish is gone from the bucket's directory"),
    point("file.placed", "a file has its name in the bucket's directory"),
    point("file.place-synced", "such names are durable"),
    point("late.placed", "a file of late records has its name in `late/`"),
    point("late.place-synced", "such names are durable"),
    point("addition.placed", "late records have their name in the directory of their own bucket"),
    point("addition.place-synced", "such names are durable"),
    point(
        "addition.written",
        "the `_SUCCESS` of that bucket, which names them, is written beside the old one",
    ),
    point("addition.synced", "and durable"),
    point("addition.named", "it has its name"),
    point("addition.name-synced", "that name is durable; the run's own bucket is not finished"),
    point("addition.removed", "a file of an earlier attempt, which made others, is gone from there"),
    point("addition.removal-synced", "and durably"),
    point("success.written", "the bucket's own `_SUCCESS`, with the offsets, is written under another name"),
    point("success.synced", "and durable"),
    point("success.named", "it has its name"),
    point("success.name-synced", "that name is durable: the bucket is finished"),
    point("progress.written", "where the next bucket begins is written under another name"),
    point("progress.synced", "and durable"),
    point("progress.named", "it has its name"),
    point("progress.name-synced", "that name is durable"),
];

/// What a step is about: the first word of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Work,
    Directory,
    Spool,
    File,
    Stale,
    Late,
    Addition,
    Success,
    Progress,
}

impl About {
    fn word(self) -> &'static str {
        match self {
            About::Work => "work",
            About::Directory => "directory",
            About::Spool => "spool",
            About::File => "file",
            About::Stale => "stale",
            About::Late => "late",
            About::Addition => "addition",
            About::Success => "success",
            About::Progress => "progress",
        }
    }

    /// A call of the file system.
    pub fn step<T>(self, done: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let step = || {
            let class = match done {
                "written" => Class::Write,
                done if done.ends_with("synced") => Class::Sync,
                _ => Class::Name,
            };
            let grows = matches!(done, "written" | "created");
            Step { name: format!("{PLACE}.{}.{done}", self.word()), class, grows }
        };
        faults::do_step(step, call)
    }
}
