//! Channel failover between local disks, on the real binary: the channel's disk fills, or fails and becomes read-only; events go to
//! another one and come back in order, whoever is killed when.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::time::{Duration, Instant};

use flumen_tests::disk::{self, FailingDisk, Mount};
use flumen_tests::failover::{
    DRAIN_S, ROOM, fill_until, full_again_and_again, journal, make_room, pipeline, to_dir, wait_place,
    wait_taken,
};
use flumen_tests::flow::{judge, wait_lines, wait_progress, writer};
use flumen_tests::interceptors::Plugin;
use flumen_tests::oracle::Verdict;
use flumen_tests::scene::Scene;
use flumen_tests::soak_faults::counted_lost;
use flumen_tests::{limits, poll};
use serde_json::Value;

/// A channel of this kind that fails over to that kind, in another directory; the journal's is `journal`, where a test mounts a disk.
fn scene(channel: &str, failover: &str, plugins: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = format!("{DRAIN_S}s");
    let channel = format!("kind = \"{channel}\"\n{}", to_dir(&scene, failover, "other"));
    scene.pipeline(&format!("{plugins}{}", pipeline(&channel))).unwrap();
    scene
}

/// The channel's disk is filled by something else, again and again, with kills.
fn each_line_once_over_full_disks_and_kills_of(channel: &str, seed: u64) {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene(channel, "file", Plugin::Dedup.interceptors());
    Plugin::Dedup.install(&scene).unwrap();
    let verdict = full_again_and_again(&scene, "file", seed).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
}

#[test]
fn each_line_once_over_full_disks_and_kills() {
    each_line_once_over_full_disks_and_kills_of("file", 41);
}

/// The same of a channel that keeps no events itself: those that came while its disk was full are in the failover, and need not be read
/// again.
#[test]
fn a_source_backed_channel_fails_over() {
    each_line_once_over_full_disks_and_kills_of("source-backed", 67);
}

/// The channel's file system finds itself damaged, and is read-only from then on. Nothing can be delivered, but nothing holds the
/// sources up; when it was repaired everything is delivered once.
fn a_disk_that_fails_for_good_holds_no_source_up_of(channel: &str, seed: u64) {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene(channel, "file", "");
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, seed).unwrap();
    wait_progress(&[&scene], 1_500).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 3_000).unwrap();
    agent.kill().unwrap();
    // The source goes on without the journal.
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 3_000).unwrap();
    // A clean stop does not wait for a disk that is not there, beyond the drain limit.
    // Beyond that it would wait twice for a last commit, 10 s each; the machine may stand still meanwhile.
    let begin = Instant::now();
    agent.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(DRAIN_S + 18), "{:?}", begin.elapsed());
    failing.repair().unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 7_000, "{verdict}");
}

#[test]
fn a_disk_that_fails_for_good_holds_no_source_up() {
    a_disk_that_fails_for_good_holds_no_source_up_of("file", 43);
}

#[test]
fn a_disk_that_fails_for_good_holds_no_source_of_a_source_backed_channel_up() {
    a_disk_that_fails_for_good_holds_no_source_up_of("source-backed", 71);
}

/// The disk of a channel in memory fails: its positions are there. Nothing holds the sources up, what is in the failover is delivered once,
/// and a kill loses what was in the memory of the channel, to the event that the next start says.
#[test]
fn a_memory_channel_fails_over_when_its_disk_has_failed() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene("memory", "file", "");
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 73).unwrap();
    wait_progress(&[&scene], 1_500).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 3_000).unwrap();
    agent.kill().unwrap();
    // The source goes on without the journal.
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 2_000).unwrap();
    agent.stop().unwrap();
    failing.repair().unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let (written, lost) = (generator.stop().unwrap(), counted_lost(&scene).unwrap());
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum::<u64>() - lost).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    eprintln!("{lost} counted as lost: {verdict}");
    assert!(verdict.holds_but_for(lost) && verdict.events > 5_000, "{lost} counted as lost: {verdict}");
}

/// A failover in memory that overflows into a file: of what is there a kill costs what was in its memory, to the event that the next start
/// says; what was in its file comes back.
#[test]
fn a_spillable_failover_loses_its_memory_alone() {
    /// Events that it has in memory at most.
    const IN_MEMORY: u64 = 2_000;
    /// More than the commits that can be on their way at a time: with so many behind it what is in memory is committed, and not read again
    /// after the kill.
    const BEHIND: u64 = 12 * 500;
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", "spillable", "");
    let memory = format!("memory = {{ events = {IN_MEMORY}, bytes = \"2 MiB\" }}");
    let failover =
        to_dir(&scene, "spillable", "other").replace("check_interval", &format!("{memory}, check_interval"));
    // Nothing is delivered, so nothing makes room on the disk, and nothing is moved before the kill.
    let held = scene.output.join("held");
    fs::write(&held, "in the way").unwrap();
    let text = pipeline(&failover).replace("{out}/", "{out}/held/");
    scene.pipeline(&format!("[batch]\nrows = 500\n{text}")).unwrap();
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 79).unwrap();
    wait_taken(&scene, 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "spillable").unwrap();
    let figure = |name: &str| {
        let status = scene.answered().unwrap();
        status.0.pointer(&format!("/pipelines/0/channels/0/{name}")).and_then(Value::as_u64).unwrap()
    };
    poll::until("events in the file of the failover", limits::CONDITION, || {
        Ok(figure("events_overflowed") > BEHIND)
    })
    .unwrap();
    let at_risk = figure("events_at_risk");
    assert!((1..=IN_MEMORY).contains(&at_risk), "{at_risk}");
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "spillable").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    fs::remove_file(&held).unwrap();
    make_room(&mount).unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let (written, lost) = (generator.stop().unwrap(), counted_lost(&scene).unwrap());
    assert_eq!(lost, at_risk);
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum::<u64>() - lost).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds_but_for(lost) && verdict.events > 4_000, "{lost} counted as lost: {verdict}");
    let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
    assert!(answer.stdout.contains("at most 2000 events or 2 MiB there"), "{}", answer.stdout);
}

/// To memory: nothing is written to another disk but positions; a clean stop loses nothing, and `check` tells what a kill does.
#[test]
fn to_memory_and_back_without_a_kill() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", "memory", "");
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 47).unwrap();
    wait_progress(&[&scene], 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "memory").unwrap();
    wait_taken(&scene, 3_000).unwrap();
    agent.stop().unwrap();
    agent = scene.start_ready().unwrap();
    // The stop may have made room, with which it is at home before anybody has looked.
    fill_until(&scene, &agent, &mount, "memory").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    make_room(&mount).unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds() && verdict.events > 5_000, "{verdict}");
    let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
    assert!(answer.status.success(), "{}", answer.stderr);
    assert!(answer.stdout.contains("while its failover is in use"), "{}", answer.stdout);
}

/// A channel in memory that overflows: a clean stop loses nothing while events go elsewhere, and a kill what was in the memory of the
/// channel, to the event that the next start says; what is in the failover stays.
#[test]
fn a_spillable_channel_fails_over_and_a_kill_costs_its_memory_alone() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", "file", "");
    let memory = "kind = \"spillable\"\nmemory = { events = 2_000, bytes = \"2 MiB\" }\n";
    let batch = "[batch]\nrows = 500\n";
    let text = pipeline(&format!("{memory}{}", to_dir(&scene, "file", "other")));
    scene.pipeline(&format!("{batch}{text}")).unwrap();
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 53).unwrap();
    wait_progress(&[&scene], 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "file").unwrap();
    wait_taken(&scene, 3_000).unwrap();
    agent.stop().unwrap();
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    assert_eq!(counted_lost(&scene).unwrap(), 0, "a clean stop loses nothing");
    make_room(&mount).unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    fill_until(&scene, &agent, &mount, "file").unwrap();
    wait_taken(&scene, 2_000).unwrap();
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    make_room(&mount).unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let (written, lost) = (generator.stop().unwrap(), counted_lost(&scene).unwrap());
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum::<u64>() - lost).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds_but_for(lost) && verdict.events > 5_000, "{lost} counted as lost: {verdict}");
}

/// Without the failover, or with another, a start or a reload would leave behind what is in it: refused, with what to do. With `--drain`
/// a reload waits until all of it was moved.
#[test]
fn a_failover_in_use_is_not_left() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let mut scene = scene("file", "file", "");
    // Nothing is delivered, so nothing makes room on the disk.
    let held = scene.output.join("held");
    fs::write(&held, "in the way").unwrap();
    let (own, memory) = (to_dir(&scene, "file", "other"), to_dir(&scene, "memory", "other"));
    let elsewhere = to_dir(&scene, "file", "third");
    let edit = |scene: &Scene, channel: &str| {
        scene.pipeline(&pipeline(channel).replace("{out}/", "{out}/held/")).unwrap();
    };
    let config = scene.config().display().to_string();
    let asked = |scene: &Scene, words: &[&str]| {
        let answer = scene.flumen(&[words, &[&config]].concat()).unwrap();
        (answer.status.code(), answer.stdout + &answer.stderr)
    };
    edit(&scene, &own);
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 59).unwrap();
    wait_taken(&scene, 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    for other in ["", &elsewhere] {
        edit(&scene, other);
        let (code, text) = asked(&scene, &["reload"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("the failover of channel main is in use, and holds "), "{text}");
        assert!(text.contains("`flumen reload --drain` waits for that"), "{text}");
    }
    wait_taken(&scene, 500).unwrap();
    agent.stop().unwrap();

    let refused = |scene: &Scene, reason: &str, fix: &str| {
        let (code, text) = asked(scene, &["check"]);
        assert_eq!(code, Some(78), "{text}");
        let mut start = scene.start().unwrap();
        assert_eq!(start.wait_exit(limits::READY).unwrap().code(), Some(78), "{}", start.log_tail());
        for text in [text, start.log().unwrap()] {
            assert!(text.contains(reason) && text.contains(fix) && text.contains("main.toml"), "{text}");
        }
    };
    for other in ["", &elsewhere] {
        edit(&scene, other);
        refused(
            &scene,
            "holds events and the positions of the sources",
            "give the channel that `failover` again",
        );
    }
    let (there, moved) = (scene.root().join("other"), scene.root().join("moved"));
    fs::rename(&there, &moved).unwrap();
    edit(&scene, "");
    refused(&scene, "may hold events, and cannot be looked at", "bring that directory back");
    fs::rename(&moved, &there).unwrap();

    // Memory takes over what is in the file. A reload with --drain waits as long as a stop.
    scene.drain_timeout = "60s".to_owned();
    edit(&scene, &memory);
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "memory").unwrap();
    edit(&scene, "");
    fs::remove_file(&held).unwrap();
    make_room(&mount).unwrap();
    let (code, text) = asked(&scene, &["reload", "--drain"]);
    assert_eq!(code, Some(0), "{text}");
    let status = scene.answered().unwrap();
    assert!(status.mentions("\"failover\":null"), "{}", status.0);
    agent.stop().unwrap();
    // Nothing is there any more, so nobody asks for it.
    fs::remove_dir_all(&there).unwrap();
    agent = scene.start_ready().unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds() && verdict.events > 3_000, "{verdict}");
}

/// A group of sinks reads the channel: over a full disk, a disk that has failed, a start without it, and kills each line is at one of
/// them, once. Sources begin before the group can know what its members have.
#[test]
fn a_group_reads_a_channel_that_fails_over() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", "file", "");
    let sink = |name: &str| {
        format!(
            "[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"100ms\"\n"
        )
    };
    let text = pipeline(&to_dir(&scene, "file", "other"));
    let (before, _) = text.split_once("[sink]").unwrap();
    let group = "[group.both]\nkind = \"load-balancing\"\nsinks = [\"a\", \"b\"]\n";
    scene.pipeline(&format!("{before}{}{}{group}", sink("a"), sink("b"))).unwrap();
    let members = |scene: &Scene| -> Vec<String> {
        let status = scene.answered().unwrap().0;
        let members = status["pipelines"][0]["groups"][0]["members"].as_array().unwrap();
        members.iter().map(|member| member["state"].as_str().unwrap().to_owned()).collect()
    };
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 61).unwrap();
    wait_progress(&[&scene], 1_500).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 2_000).unwrap();
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 2_000).unwrap();
    assert_eq!(members(&scene), ["recovering"; 2]);
    // A clean stop does not wait for a group that does not know yet what it has.
    let begin = Instant::now();
    agent.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(DRAIN_S + 28), "{:?}", begin.elapsed());
    agent = scene.start_ready().unwrap();
    wait_taken(&scene, 1_000).unwrap();
    failing.repair().unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    wait_progress(&[&scene], 3_000).unwrap();
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    // One may deliver all that there is before the other has begun: what comes when both are ready goes to each in turn.
    let are_ready = || Ok(members(&scene) == ["ready"; 2]);
    poll::until("both members to be ready", limits::CONDITION, are_ready).unwrap();
    let has_some = |name: &str| fs::read_dir(scene.output.join(name)).is_ok_and(|files| files.count() > 0);
    poll::until("lines at each member", limits::CONDITION, || Ok(has_some("a") && has_some("b"))).unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    // What one member gives back, another gets behind what is later.
    let verdict = Verdict { out_of_order: 0, ..judge(&[&scene], &written, |_| true).unwrap() };
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 7_000, "{verdict}");
}

/// On its own disk a failover is none.
#[test]
fn a_failover_on_the_same_disk_is_refused() {
    let scene = scene("file", "file", "");
    let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
    assert!(!answer.status.success());
    let text = answer.stdout + &answer.stderr;
    assert!(text.contains("is on the disk of the channel itself"), "{text}");
    assert!(text.contains("name a directory on another disk"), "{text}");
}
