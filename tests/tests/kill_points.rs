//! The agent is killed between every two steps of its journals, of a failover and of the file sink, each in turn (`docs/faults.md`), and
//! started again: each line is in the output once, in order, or once in the quarantine. Here are no random moments: the binary tells its kill
//! points, one that is never reached fails, and a step that has none ends the agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::os::unix::process::ExitStatusExt;

use flumen_tests::disk::{self, CuttableDisk, Mount};
use flumen_tests::generator::{Generator, Load, is_malformed};
use flumen_tests::interceptors::Plugin;
use flumen_tests::kill_points::{self, is_of_disk, is_of_failover, walk_each};
use flumen_tests::scene::Scene;
use flumen_tests::soak::Channel;
use flumen_tests::soak_faults::{counted_lost, stop_behind, wait_all};
use flumen_tests::soak_tidy::Tidy;
use flumen_tests::{flow, limits, poll};
use rustix::process::Signal;

/// Agents side by side: they wait for the disk more than they work.
const AGENTS: usize = 3;

/// A plugin that remembers keeps segments until a file of its state covers them; where they are to go there is none.
fn is_about_deletion(point: &str) -> bool {
    let is_of_events = point.starts_with("journal.") || point.starts_with("failover.");
    is_of_events && (point.contains("spare") || point.contains("segment.remov"))
}

const DEDUP: &str =
    "[[interceptor]]\nplugin = \"dedup\"\ngrant = [\"state\"]\nconfig = { by = \"body\", window = \"2h\" }\n";

/// Room for what events take on another disk.
const ROOM: u64 = 64 << 20;

/// The channel's disk has no room for half of the time, from a moment after the start on: events go elsewhere and come back.
const FAILS_OVER: &str = ",seed=1500,full=3000:1500@journal";

/// A file channel with a failover in a directory of the scene.
fn failing_over(scene: &Scene) -> String {
    let dir = scene.root().join(ELSEWHERE).display().to_string();
    format!(
        "[channel]\nfailover = {{ kind = \"file\", dir = \"{dir}\", check_interval = \"100ms\", fail_after = 2, return_after = 2 }}\n"
    )
}

/// Where another disk is mounted for that, below the scene's directory.
const ELSEWHERE: &str = "other";

/// Small batches and segments: everything happens in the first seconds. `channel`: its table.
fn pipeline(channel: &str, has_state: bool) -> String {
    format!(
        r#"
[batch]
bytes = "2 KiB"
linger = "5ms"

[journal]
segment = "16 KiB"

{channel}

[source.in]
type = "tail"
paths = ["{{in}}/web-*.log*"]

{dedup}
[[interceptor]]
plugin = "access-log"

[sink.out]
type = "file"
path = "{{out}}/{{header.status}}/all.log"
encoding = "json"
roll_size = "32 KiB"
flush_interval = "20ms"
"#,
        dedup = if has_state { DEDUP } else { "" },
    )
}

/// The kill points of a pipeline without a failover.
fn points() -> Vec<String> {
    let all = kill_points::points().unwrap().into_iter();
    let points: Vec<String> = all.filter(|it| is_of_disk(it) && !is_of_failover(it)).collect();
    assert!(points.len() > 50, "{points:?}");
    points
}

/// Kills before the one at a point, so that a start finds what that point is about.
fn before(point: &str) -> Option<&'static str> {
    let (journal, step) = point.split_once('.').unwrap();
    Some(match (journal, step) {
        // A group may fill its segment to the last byte; one that has just begun has something to cut off.
        ("journal", "start.segment.cut") => "journal.segment.name-synced",
        ("journal", "start.segment.written" | "start.segment.synced") => "journal.segment.synced:20",
        ("journal", "start.segment.removed" | "start.segment.removal-synced") => "journal.segment.allocated",
        // A short one is kept as no spare.
        ("journal", "segment.removed") => "journal.segment.synced:2",
        ("journal", "start.spare.removed") => "journal.segment.spared",
        ("journal", "start.state.removed") => "journal.state.written",
        ("failover", "start.segment.cut") => "failover.segment.name-synced",
        ("failover", "start.segment.written" | "start.segment.synced") => "failover.segment.synced:5",
        ("failover", "start.segment.removed" | "start.segment.removal-synced") => {
            "failover.segment.allocated"
        }
        ("failover", "start.spare.removed") => "failover.segment.spared",
        ("failover", "start.state.removed") => "failover.state.written",
        ("quarantine", "start.segment.cut") => "quarantine.segment.name-synced",
        ("quarantine", "start.segment.written" | "start.segment.synced") => "quarantine.segment.synced:2",
        ("quarantine", "start.segment.removed" | "start.segment.removal-synced") => {
            "quarantine.segment.allocated"
        }
        ("file-sink", "file.cut") => "file-sink.file.written:20",
        ("file-sink", "file.removed" | "file.removal-synced") => "file-sink.file.created:2",
        _ => return None,
    })
}

/// Points that only a full disk leads to.
fn needs_full_disk(point: &str) -> bool {
    [
        "journal.reserve.removed",
        "journal.reserve.removal-synced",
        "journal.spare.removed",
        "journal.state.removed",
    ]
    .contains(&point)
}

const FULL_DISK: &str = ",full=300:150@journal.segment,full=300:150@journal.spare";

/// The same where events go meanwhile.
fn needs_full_failover(point: &str) -> bool {
    ["failover.spare.removed", "failover.state.removed"].contains(&point)
}

const FULL_FAILOVER: &str = ",full=300:150@failover.segment,full=300:150@failover.spare";

/// What goes wrong with the disks besides the kill at a point.
fn faults(point: &str) -> String {
    let away = if is_of_failover(point) { FAILS_OVER } else { "" };
    let full = match point {
        _ if needs_full_disk(point) => FULL_DISK,
        _ if needs_full_failover(point) => FULL_FAILOVER,
        _ => "",
    };
    format!("{away}{full}")
}

/// Points of a start without the failover that there was.
fn is_without_failover(point: &str) -> bool {
    point.starts_with("failover-record.file.remov")
}

/// What is passed again and again is passed some times before: then everything is under way.
fn count(point: &str) -> u32 {
    match point {
        "journal.segment.written"
        | "journal.segment.synced"
        | "file-sink.file.written"
        | "file-sink.file.synced" => 17,
        "failover.segment.written" | "failover.segment.synced" => 5,
        "file-sink.file.created" | "file-sink.file.renamed" => 3,
        _ => 1,
    }
}

/// Points that come with a clean stop: what is rarely written to rolls nowhere else.
fn needs_stop(point: &str) -> bool {
    ["quarantine.segment.cut", "quarantine.snapshot.written", "quarantine.snapshot.synced"].contains(&point)
}

/// One agent and its disk, for one point.
struct Stage {
    /// The disk of a failover, if there is one. Before the scene: it is mounted there.
    _elsewhere: Option<Mount>,
    // Before the disk: nothing of the disk may be open when it is unmounted.
    scene: Scene,
    /// `None`: the agent is killed, and keeps its disk as it was.
    disk: Option<CuttableDisk>,
}

impl Stage {
    fn new(point: &str, channel: Channel, end: End, has_state: bool) -> Stage {
        let mut scene = Scene::new().unwrap();
        let disk = (end == End::PowerCut).then(|| CuttableDisk::new().unwrap());
        if let Some(disk) = &disk {
            scene.data = disk.dir().join("data");
            scene.output = disk.dir().join("out");
        }
        scene.install("dedup", "dedup").unwrap();
        scene.install("access-log", "access-log").unwrap();
        let has_failover = is_of_failover(point);
        let table = if has_failover { failing_over(&scene) } else { channel.table().to_owned() };
        let elsewhere = has_failover.then(|| Mount::tmpfs(&scene.root().join(ELSEWHERE), ROOM).unwrap());
        scene.pipeline(&pipeline(&table, has_state)).unwrap();
        Stage { _elsewhere: elsewhere, scene, disk }
    }

    /// The failover is used no more, and with the next start its record goes.
    fn give_failover_up(&self, channel: Channel, has_state: bool) {
        self.scene.start_ready().unwrap().stop().unwrap();
        self.scene.pipeline(&pipeline(channel.table(), has_state)).unwrap();
    }

    /// Until the agent has ended itself there; with `is_stopped` it is asked to stop when it has something to put in order.
    fn die(&mut self, end: End, point: &str, more: &str, is_stopped: bool) {
        let verb = if end == End::PowerCut { "stop" } else { "kill" };
        let faults = format!("{verb}={point}{more}");
        self.scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults.clone())];
        let mut agent = self.scene.start().unwrap();
        self.scene.env.clear();
        if is_stopped {
            agent.wait_ready().unwrap();
            let has_some = || Ok(!self.scene.quarantine()?.is_empty());
            poll::until("something in quarantine", limits::CONDITION, has_some).unwrap();
            agent.signal(Signal::TERM).unwrap();
        }
        let never = |error| format!("{faults} is never reached: {error:#}");
        if end == End::Kill || self.disk.is_none() {
            let status = agent.wait_exit(limits::KILL_POINT);
            let status = status.unwrap_or_else(|error| panic!("{}", never(error)));
            let lives = agent.log().unwrap().matches("FLUMEN_FAULTS IS SET").count();
            if status.code() == Some(1) && is_of_failover(point) && lives < 10 {
                // A start while the disk is full is refused (on a slow machine): a supervisor starts it again.
                return self.die(end, point, more, is_stopped);
            }
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{faults}: {}", agent.log_tail());
            assert!(agent.log().unwrap().contains("killed on purpose"), "{faults}: {}", agent.log_tail());
            return;
        }
        let disk = self.disk.as_mut().unwrap();
        poll::until("the agent to stand still", limits::KILL_POINT, || {
            agent.expect_running()?;
            agent.is_stopped()
        })
        .unwrap_or_else(|error| panic!("{}", never(error)));
        disk.cut().unwrap();
        agent.kill().unwrap();
        disk.power_up().unwrap();
    }
}

/// How an agent ends at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
}

/// Ends an agent at one point, and judges what the next start makes of it.
fn walk(point: &str, channel: Channel, end: End) {
    let has_state = !is_about_deletion(point);
    let mut stage = Stage::new(point, channel, end, has_state);
    let base = flow::load(&stage.scene, 1);
    let load = Load { has_malformed: true, has_doubles: has_state, bytes_per_s: 300_000, ..base };
    let generator = Generator::start(load).unwrap();
    if is_without_failover(point) {
        stage.give_failover_up(channel, has_state);
    }
    let faults = faults(point);
    if let Some(before) = before(point) {
        // What a start then finds in order was never durable if the power went.
        let more = if is_of_failover(point) { faults.as_str() } else { "" };
        stage.die(End::Kill, before, more, false);
    }
    stage.die(end, point, &format!(":{}{faults}", count(point)), needs_stop(point));
    let scene = &stage.scene;
    let mut agent = scene.start_ready().unwrap();
    let written = stop_behind(generator).unwrap();
    let tidy = Tidy::new(Plugin::AccessLog);
    if let Err(error) = wait_all(scene, &mut agent, &tidy, Plugin::AccessLog, &written) {
        eprintln!("{point}: {error:#}");
    }
    agent.stop().unwrap();
    let may_lose = counted_lost(scene).unwrap();
    let verdict = flow::judge(&[scene], &written, |seq| !is_malformed(seq)).unwrap();
    let quarantine = Plugin::AccessLog.judge_quarantine(scene, &written).unwrap();
    eprintln!("{point}: {verdict}; quarantine: {quarantine}");
    assert!(
        verdict.holds_but_for(may_lose) && quarantine.holds(),
        "{point}: {verdict}; quarantine: {quarantine}"
    );
    assert!(channel.may_lose() || may_lose == 0);
}

/// Each point in turn, a few at a time; tells all that fail.
fn walk_all(points: Vec<String>, channel: Channel, end: End) {
    let failed = walk_each(points, AGENTS, |point| walk(point, channel, end));
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn every_kill_point_with_a_file_channel() {
    walk_all(points(), Channel::File, End::Kill);
}

/// The channel's disk fills up again and again, so that events go to another disk and come back.
#[test]
fn every_kill_point_of_a_failover() {
    if !disk::may_mount() {
        eprintln!("not run: another disk has to be mounted, and this is not root");
        return;
    }
    let points: Vec<String> =
        kill_points::points().unwrap().into_iter().filter(|it| is_of_failover(it)).collect();
    assert!(points.len() > 50, "{points:?}");
    walk_all(points, Channel::File, End::Kill);
}

/// What is in memory is not written; positions, state, quarantine and the sink's files are.
fn without_full_disk() -> Vec<String> {
    points().into_iter().filter(|point| !needs_full_disk(point)).collect()
}

#[test]
fn every_kill_point_with_a_source_backed_channel() {
    walk_all(without_full_disk(), Channel::SourceBacked, End::Kill);
}

/// What was in memory is lost, and counted to the last event: no more and no less.
#[test]
fn every_kill_point_with_a_spillable_channel() {
    walk_all(without_full_disk(), Channel::Spillable, End::Kill);
}

/// What is not durable at a point is gone. Where only a kill leads to a point, that kill leaves what was not durable yet.
#[test]
fn the_power_goes_at_every_kill_point() {
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    walk_all(points(), Channel::File, End::PowerCut);
}

/// Points that only a full disk leads to.
fn with_full_disk() -> Vec<String> {
    points().into_iter().filter(|point| needs_full_disk(point)).collect()
}

/// On a full disk, too, where the events are in memory.
#[test]
fn a_kill_on_a_full_disk_with_channels_in_memory() {
    walk_all(with_full_disk(), Channel::SourceBacked, End::Kill);
    walk_all(with_full_disk(), Channel::Spillable, End::Kill);
}

#[test]
fn the_power_goes_on_a_full_disk_with_channels_in_memory() {
    if !disk::may_mount() {
        eprintln!("not run: power cuts mount a disk of their own, and this is not root");
        return;
    }
    walk_all(with_full_disk(), Channel::SourceBacked, End::PowerCut);
    walk_all(with_full_disk(), Channel::Spillable, End::PowerCut);
}

#[test]
fn a_point_that_there_is_not_is_refused_with_those_that_there_are() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(&pipeline("", true)).unwrap();
    for faults in
        ["kill=journal.segment.eaten", "kill=journal.segment.synced:x", "eio=2", "full=1", "nonsense"]
    {
        scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults.to_owned())];
        let mut agent = scene.start().unwrap();
        let status = agent.wait_exit(limits::READY).unwrap();
        assert_eq!(status.code(), Some(2), "{faults}");
        let log = agent.log().unwrap();
        assert!(log.contains("FLUMEN_FAULTS: "), "{log}");
        let names_points = log.contains("journal.segment.first-synced");
        assert_eq!(names_points, faults.ends_with("eaten"), "{log}");
    }
}
