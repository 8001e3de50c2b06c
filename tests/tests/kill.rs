//! The promise under SIGKILL and power cuts, through the real binary: each sequence number exactly once,
//! in order within each input file. `cargo xtask soak` does the same for longer.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use flumen_tests::disk;
use flumen_tests::generator::Rotation;
use flumen_tests::soak::{self, Channel, Plugin, Soak};

/// Not the same in each run; printed, so that it can be repeated.
fn seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64
}

fn check(soak: &Soak) {
    eprintln!("seed {}", soak.seed);
    let report = soak::run(soak).unwrap();
    eprintln!("{report}");
    assert!(report.holds(), "{report}");
    assert!(report.verdict.events > 0);
    assert!(report.rotations > 0, "nothing was rotated: {report}");
}

// Together 65 kills.

#[test]
fn kills_without_plugin() {
    check(&Soak::kills(15, seed(), Plugin::None));
}

#[test]
fn kills_with_filter_and_swaps() {
    check(&Soak::kills(15, seed(), Plugin::Filter));
}

#[test]
fn kills_with_access_log_and_swaps() {
    check(&Soak::kills(15, seed(), Plugin::AccessLog));
}

/// Swaps (buggy versions too) and edits of the pipeline, with kills between and within them.
#[test]
fn kills_with_swaps_and_edits() {
    let soak = Soak {
        changes: 40,
        bytes_per_s: 1_000_000,
        is_tidy: true,
        ..Soak::kills(3, seed(), Plugin::AccessLog)
    };
    eprintln!("seed {}", soak.seed);
    let report = soak::run(&soak).unwrap();
    eprintln!("{report}");
    assert!(report.holds(), "{report}");
    assert!(report.verdict.events > 0 && report.edits > 1 && report.rollbacks > 1, "{report}");
}

/// Some lines are written twice: each comes out once, whenever the agent is killed, because what the plugin remembers is in
/// the same commit as the lines.
#[test]
fn kills_with_dedup_and_doubled_lines() {
    check(&Soak::kills(15, seed(), Plugin::Dedup));
}

#[test]
fn kills_with_copytruncate() {
    check(&Soak { rotation: Rotation::CopyTruncate, ..Soak::kills(5, seed(), Plugin::None) });
}

/// Bodies are in no journal: after each kill they are read again, and each line comes once all the same. With a plugin that
/// remembers, what it remembers is as old as what is read again.
#[test]
fn kills_with_a_source_backed_channel() {
    let channel = Channel::SourceBacked;
    check(&Soak { channel, ..Soak::kills(10, seed(), Plugin::AccessLog) });
    check(&Soak { channel, ..Soak::kills(10, seed(), Plugin::Dedup) });
}

/// Two sinks of one channel, each at its own pace: each has each line once.
#[test]
fn kills_with_a_source_backed_channel_and_two_sinks() {
    let channel = Channel::SourceBackedTwice;
    check(&Soak { channel, ..Soak::kills(10, seed(), Plugin::AccessLog) });
    check(&Soak { channel, ..Soak::kills(10, seed(), Plugin::Dedup) });
}

/// Errors of the disk in every life: of reads, writes, syncs (which lose what was written) and names, a disk that is full for moments,
/// and one that fails until the agent gives up and is started again.
fn check_with_faults(channel: Channel, plugin: Plugin, seed: u64) {
    let soak = Soak { channel, has_faults: true, bytes_per_s: 1_000_000, ..Soak::kills(12, seed, plugin) };
    let report = soak::run(&soak).unwrap();
    eprintln!("{report}");
    assert!(report.holds(), "{report}");
    assert!(report.verdict.events > 0 && report.refused > 0, "{report}");
    assert!(channel.may_lose() || report.counted_lost == 0, "{report}");
}

#[test]
fn faults_of_the_disk_with_a_file_channel() {
    check_with_faults(Channel::File, Plugin::AccessLog, 11);
    check_with_faults(Channel::File, Plugin::Dedup, 12);
}

#[test]
fn faults_of_the_disk_with_a_source_backed_channel() {
    check_with_faults(Channel::SourceBacked, Plugin::AccessLog, 21);
    check_with_faults(Channel::SourceBacked, Plugin::Dedup, 22);
}

/// Kills and stops lose what was in memory, as many events as the next start says; nothing comes twice or out of order.
#[test]
fn faults_of_the_disk_with_a_spillable_channel() {
    check_with_faults(Channel::Spillable, Plugin::AccessLog, 31);
}

/// What is truncated was delivered before: then copytruncate is safe.
#[test]
fn kills_with_a_source_backed_channel_and_copytruncate() {
    let (channel, rotation) = (Channel::SourceBacked, Rotation::CopyTruncate);
    check(&Soak { channel, rotation, ..Soak::kills(5, seed(), Plugin::None) });
}

#[test]
fn power_cuts_with_a_source_backed_channel() {
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    check(&Soak { channel: Channel::SourceBacked, ..Soak::power_cuts(5, seed(), Plugin::Dedup) });
}

/// What was in memory is lost, and counted; nothing else is, and nothing comes twice: the positions of sources and sinks are durable.
#[test]
fn kills_and_power_cuts_with_channels_in_memory() {
    let check = |soak: &Soak| {
        let report = soak::run(soak).unwrap();
        eprintln!("{report}");
        assert!(report.holds() && report.verdict.events > 0, "{report}");
    };
    check(&Soak { channel: Channel::Memory, ..Soak::kills(10, seed(), Plugin::AccessLog) });
    if !disk::may_mount() {
        eprintln!("power cuts not run: they mount a disk of their own, and this is not root");
        return;
    }
    for channel in [Channel::Memory, Channel::Spillable] {
        check(&Soak { channel, ..Soak::power_cuts(5, seed(), Plugin::AccessLog) });
    }
}

/// Together 15 cuts.
#[test]
fn power_cuts() {
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    check(&Soak::power_cuts(5, seed(), Plugin::None));
    check(&Soak::power_cuts(5, seed(), Plugin::AccessLog));
    check(&Soak::power_cuts(5, seed(), Plugin::Dedup));
}

/// A disk that refuses, forgets and fills up, and then loses its power: each line once all the same.
#[test]
fn power_cuts_with_faults_of_the_disk() {
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    for (channel, plugin) in [(Channel::File, Plugin::AccessLog), (Channel::SourceBacked, Plugin::Dedup)] {
        let soak = Soak { channel, has_faults: true, ..Soak::power_cuts(8, seed(), plugin) };
        eprintln!("seed {}", soak.seed);
        let report = soak::run(&soak).unwrap();
        eprintln!("{report}");
        assert!(report.holds() && report.counted_lost == 0, "{report}");
        assert!(report.verdict.events > 0 && report.refused > 0, "{report}");
    }
}

/// The same without `fdatasync` in the journal does not hold: so it is the syncs that carry the test above. Each life lasts until
/// something was delivered, and a cut may still come before that is durable, so cuts go on until one bites.
#[test]
fn power_cuts_have_teeth() {
    /// One run has four cuts.
    const RUNS_MAX: u64 = 10;
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    let seed = seed();
    let has_bitten = |run: u64| {
        let soak = Soak { is_durable: false, ..Soak::power_cuts(4, seed + run, Plugin::None) };
        let report = soak::run(&soak).unwrap();
        eprintln!("{report}");
        !report.holds()
    };
    assert!(
        (0..RUNS_MAX).any(has_bitten),
        "nothing was lost or doubled without durability: the cuts do not cut"
    );
}
