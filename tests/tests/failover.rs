//! Channel failover between local disks, on the real binary: the channel's disk fills, or fails and becomes read-only; events go to
//! another one and come back in order, whoever is killed when.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, FailingDisk, Mount};
use flumen_tests::flow::{DELIVERED, judge, load, wait_lines, wait_progress, writer};
use flumen_tests::generator::{Generator, Load};
use flumen_tests::interceptors::Plugin;
use flumen_tests::oracle::Verdict;
use flumen_tests::scene::Scene;
use flumen_tests::soak_faults::counted_lost;
use flumen_tests::{limits, poll};
use rustix::process::Signal;

/// Room on a channel's disk without the ballast: for all that is read and remembered while the machine is busy with other things.
const ROOM: u64 = 160 << 20;
const LEFT: &str = "takes nothing: events go to the";
const RETURNS: &str = "the disk of the channel is well";
const HOME: &str = "events go to the channel's disk again";

/// The drain limit, in seconds.
const DRAIN_S: u64 = 2;

/// Tails; the journal's directory is `journal`, where a test mounts a disk.
fn scene(kind: &str, plugins: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = format!("{DRAIN_S}s");
    scene.pipeline(&format!("{plugins}{}", pipeline(&failover(&scene, kind, "other")))).unwrap();
    scene
}

/// A failover in a directory of the scene.
fn failover(scene: &Scene, kind: &str, dir: &str) -> String {
    let dir = scene.root().join(dir).display().to_string();
    format!(
        "failover = {{ kind = \"{kind}\", dir = \"{dir}\", check_interval = \"200ms\", fail_after = 2, return_after = 2 }}\n"
    )
}

fn pipeline(channel: &str) -> String {
    format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n[journal]\nsegment = \"1 MiB\"\n[channel]\n{channel}\
         [sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n"
    )
}

fn journal(scene: &Scene) -> PathBuf {
    scene.data.join("pipelines/main/journal")
}

fn events(scene: &Scene) -> u64 {
    scene.answered().unwrap().metric("source", "events_out")
}

/// The source goes on.
fn wait_taken(scene: &Scene, more: u64) {
    let before = events(scene);
    poll::until("events of the source", DELIVERED, || Ok(events(scene) > before + more)).unwrap();
}

fn wait_place(scene: &Scene, agent: &Agent, place: &str) {
    let word = format!("\"failover\":\"{place}\"");
    let is_there = || Ok(scene.status()?.is_some_and(|status| status.mentions(&word)));
    poll::until(&word, DELIVERED, is_there)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", scene.status(), agent.log_tail()));
}

/// Takes all room on a disk.
fn fill(mount: &Mount) {
    let ballast = mount.dir().join("ballast");
    let mut file = fs::File::options().create(true).append(true).open(ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4 << 10]).is_ok() {}
}

/// Takes all room until events go elsewhere: sinks that go on make room, which is taken, too.
fn fill_until(scene: &Scene, agent: &Agent, mount: &Mount, place: &str) {
    let word = format!("\"failover\":\"{place}\"");
    let is_away = || {
        fill(mount);
        Ok(scene.status()?.is_some_and(|status| status.mentions(&word)))
    };
    poll::until(&word, DELIVERED, is_away)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", scene.status(), agent.log_tail()));
}

/// The channel's disk is filled by something else, again and again; the agent is killed before, while it is away, and on its way back.
/// What a plugin remembers goes along: of lines that are written twice one comes out.
#[test]
fn each_line_once_over_full_disks_and_kills() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", Plugin::Dedup.interceptors());
    Plugin::Dedup.install(&scene).unwrap();
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = Generator::start(Load { has_doubles: true, ..load(&scene, 41) }).unwrap();
    for round in 0..4 {
        wait_progress(&[&scene], 1_500).unwrap();
        let log_begin = fs::read_to_string(scene.log()).unwrap().len();
        fill(&mount);
        if round == 1 {
            agent.kill().unwrap();
            agent = scene.start_ready().unwrap();
        }
        fill_until(&scene, &agent, &mount, "file");
        // Whoever left: a machine that stands still between the disk's filling and the kill gives the one before the time.
        let has_left = || {
            let log = fs::read_to_string(scene.log())?;
            Ok(log.get(log_begin..).is_some_and(|log| log.contains(LEFT)))
        };
        poll::until(LEFT, DELIVERED, has_left).unwrap();
        wait_taken(&scene, 3_000);
        if round >= 2 {
            agent.kill().unwrap();
            agent = scene.start_ready().unwrap();
            fill_until(&scene, &agent, &mount, "file");
            wait_taken(&scene, 1_000);
        }
        fs::remove_file(mount.dir().join("ballast")).unwrap();
        if round == 3 {
            // The way back may be over before a status tells of it.
            agent.wait_log(RETURNS, DELIVERED).unwrap();
            agent.kill().unwrap();
            agent = scene.start_ready().unwrap();
        }
        wait_place(&scene, &agent, "primary");
    }
    // By whichever of them: the last one killed may have been at home already.
    assert!(fs::read_to_string(scene.log()).unwrap().contains(HOME));
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
}

/// The channel's file system finds itself damaged, and is read-only from then on. Nothing can be delivered, but nothing holds the
/// sources up; when it was repaired everything is delivered once.
#[test]
fn a_disk_that_fails_for_good_holds_no_source_up() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene("file", "");
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 43).unwrap();
    wait_progress(&[&scene], 1_500).unwrap();
    agent.signal(Signal::STOP).unwrap();
    failing.fail().unwrap();
    agent.signal(Signal::CONT).unwrap();
    wait_place(&scene, &agent, "file");
    wait_taken(&scene, 3_000);
    agent.kill().unwrap();
    // The source goes on without the journal.
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "file");
    wait_taken(&scene, 3_000);
    // A clean stop does not wait for a disk that is not there, beyond the drain limit.
    // Beyond that it would wait twice for a last commit, 10 s each; the machine may stand still meanwhile.
    let begin = Instant::now();
    agent.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(DRAIN_S + 18), "{:?}", begin.elapsed());
    failing.repair().unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "primary");
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 7_000, "{verdict}");
}

/// To memory: nothing is written to another disk but positions; a clean stop loses nothing, and `check` tells what a kill does.
#[test]
fn to_memory_and_back_without_a_kill() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let scene = scene("memory", "");
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 47).unwrap();
    wait_progress(&[&scene], 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "memory");
    wait_taken(&scene, 3_000);
    agent.stop().unwrap();
    agent = scene.start_ready().unwrap();
    // The stop may have made room, with which it is at home before anybody has looked.
    fill_until(&scene, &agent, &mount, "memory");
    wait_taken(&scene, 1_000);
    fs::remove_file(mount.dir().join("ballast")).unwrap();
    wait_place(&scene, &agent, "primary");
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
    let scene = scene("file", "");
    let memory = "kind = \"spillable\"\nmemory = { events = 2_000, bytes = \"2 MiB\" }\n";
    let batch = "[batch]\nrows = 500\n";
    let text = pipeline(&format!("{memory}{}", failover(&scene, "file", "other")));
    scene.pipeline(&format!("{batch}{text}")).unwrap();
    let mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 53).unwrap();
    wait_progress(&[&scene], 1_000).unwrap();
    fill_until(&scene, &agent, &mount, "file");
    wait_taken(&scene, 3_000);
    agent.stop().unwrap();
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "file");
    wait_taken(&scene, 1_000);
    assert_eq!(counted_lost(&scene).unwrap(), 0, "a clean stop loses nothing");
    fs::remove_file(mount.dir().join("ballast")).unwrap();
    wait_place(&scene, &agent, "primary");
    fill_until(&scene, &agent, &mount, "file");
    wait_taken(&scene, 2_000);
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    fill_until(&scene, &agent, &mount, "file");
    wait_taken(&scene, 1_000);
    fs::remove_file(mount.dir().join("ballast")).unwrap();
    wait_place(&scene, &agent, "primary");
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
    let mut scene = scene("file", "");
    // Nothing is delivered, so nothing makes room on the disk.
    let held = scene.output.join("held");
    fs::write(&held, "in the way").unwrap();
    let (own, memory) = (failover(&scene, "file", "other"), failover(&scene, "memory", "other"));
    let elsewhere = failover(&scene, "file", "third");
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
    wait_taken(&scene, 1_000);
    fill_until(&scene, &agent, &mount, "file");
    wait_taken(&scene, 1_000);
    for other in ["", &elsewhere] {
        edit(&scene, other);
        let (code, text) = asked(&scene, &["reload"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("the failover of channel main is in use, and holds "), "{text}");
        assert!(text.contains("`flumen reload --drain` waits for that"), "{text}");
    }
    wait_taken(&scene, 500);
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
    fill_until(&scene, &agent, &mount, "memory");
    edit(&scene, "");
    fs::remove_file(&held).unwrap();
    fs::remove_file(mount.dir().join("ballast")).unwrap();
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
    let scene = scene("file", "");
    let sink = |name: &str| {
        format!(
            "[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"100ms\"\n"
        )
    };
    let text = pipeline(&failover(&scene, "file", "other"));
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
    agent.signal(Signal::STOP).unwrap();
    failing.fail().unwrap();
    agent.signal(Signal::CONT).unwrap();
    wait_place(&scene, &agent, "file");
    wait_taken(&scene, 2_000);
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "file");
    wait_taken(&scene, 2_000);
    assert_eq!(members(&scene), ["recovering"; 2]);
    // A clean stop does not wait for a group that does not know yet what it has.
    let begin = Instant::now();
    agent.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(DRAIN_S + 28), "{:?}", begin.elapsed());
    agent = scene.start_ready().unwrap();
    wait_taken(&scene, 1_000);
    failing.repair().unwrap();
    wait_place(&scene, &agent, "primary");
    wait_progress(&[&scene], 3_000).unwrap();
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    // One may have delivered all of it before the other has begun.
    let are_ready = || Ok(members(&scene) == ["ready"; 2]);
    poll::until("both members to be ready", limits::CONDITION, are_ready).unwrap();
    agent.stop().unwrap();
    for name in ["a", "b"] {
        assert!(fs::read_dir(scene.output.join(name)).unwrap().count() > 0, "{name} has nothing");
    }
    // What one member gives back, another gets behind what is later.
    let verdict = Verdict { out_of_order: 0, ..judge(&[&scene], &written, |_| true).unwrap() };
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 7_000, "{verdict}");
}

/// On its own disk a failover is none.
#[test]
fn a_failover_on_the_same_disk_is_refused() {
    let scene = scene("file", "");
    let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
    assert!(!answer.status.success());
    let text = answer.stdout + &answer.stderr;
    assert!(text.contains("is on the disk of the channel itself"), "{text}");
    assert!(text.contains("name a directory on another disk"), "{text}");
}
