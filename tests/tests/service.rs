//! Flumen as a service of systemd: what it tells its supervisor, and when; and the unit file.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, poll};
use rustix::process::Signal;

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\n";

/// The socket of `NOTIFY_SOCKET`, in the place of systemd's.
struct Systemd(UnixDatagram);

impl Systemd {
    /// Three pings, then the stop that is asked for: the time that it wants, in microseconds.
    fn lives_and_stops(&self, agent: &Agent) -> u64 {
        (0..3).for_each(|_| drop(self.find("WATCHDOG=1")));
        // Room for what comes: a queue that is full of pings is waited for only so long.
        self.rest();
        agent.signal(Signal::TERM).unwrap();
        let stopping = self.find("STOPPING=1");
        value(&stopping, "EXTEND_TIMEOUT_USEC").parse().unwrap()
    }

    /// Supervises the agents of a scene, as `Type=notify` does.
    fn of(scene: &mut Scene) -> Systemd {
        let path = scene.root().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        notified(scene, &path);
        Systemd(socket)
    }

    /// Messages up to the first one with this line.
    fn until(&self, line: &str) -> Vec<String> {
        let (start, mut messages) = (Instant::now(), Vec::new());
        self.0.set_read_timeout(Some(limits::CONDITION)).unwrap();
        while start.elapsed() < limits::CONDITION {
            let message = self.receive().unwrap_or_else(|| panic!("no {line}, only {messages:?}"));
            messages.push(message);
            if messages[messages.len() - 1].lines().any(|it| it == line) {
                return messages;
            }
        }
        panic!("no {line}, only {messages:?}");
    }

    /// The first message with this line.
    fn find(&self, line: &str) -> String {
        self.until(line).pop().unwrap()
    }

    /// What was sent and nobody has taken yet.
    fn rest(&self) -> Vec<String> {
        // The kernel takes no zero for a timeout.
        self.0.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        std::iter::from_fn(|| self.receive()).collect()
    }

    fn receive(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        match self.0.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8(bytes[..length].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn notified(scene: &mut Scene, socket: &Path) {
    scene.env.push(("NOTIFY_SOCKET".to_owned(), socket.display().to_string()));
}

/// Has pings come every 200 ms, as `WatchdogSec=400ms` does. The socket holds ten of them: only for a test that reads.
fn watched(scene: &mut Scene) {
    scene.env.push(("WATCHDOG_USEC".to_owned(), "400000".to_owned()));
}

/// The value of a line of a message.
fn value<'a>(message: &'a str, name: &str) -> &'a str {
    let found = message.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name);
    found.map_or_else(|| panic!("no {name} in {message:?}"), |(_, value)| value)
}

#[test]
fn systemd_is_told_of_start_life_and_stop() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let systemd = Systemd::of(&mut scene);
    watched(&mut scene);
    let mut agent = scene.start().unwrap();
    let messages = systemd.until("READY=1");
    assert_eq!(messages.len(), 1, "nothing is said before READY=1, from which systemd counts: {messages:?}");
    assert_eq!(value(&messages[0], "STATUS"), "1 pipeline");
    // At once: the socket takes the question, whenever the agent has the time to answer.
    std::os::unix::net::UnixStream::connect(scene.data.join("control.sock")).unwrap();
    scene.answered().unwrap();
    let extended_us = systemd.lives_and_stops(&agent);
    assert!(extended_us >= 30_000_000, "less than drain_timeout: {extended_us}");
    assert!(agent.wait_exit(limits::STOP).unwrap().success(), "{}", agent.log_tail());
    assert!(systemd.rest().is_empty(), "STOPPING=1 is the last word");
}

/// READY=1 comes behind the control socket: here that one cannot open, and so READY=1 never comes.
#[test]
fn an_agent_that_nobody_can_ask_is_not_ready() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    fs::create_dir(scene.data.join("control.sock")).unwrap();
    let systemd = Systemd::of(&mut scene);
    let mut agent = scene.start().unwrap();
    assert_eq!(agent.wait_exit(limits::READY).unwrap().code(), Some(1), "{}", agent.log_tail());
    assert_eq!(systemd.rest(), Vec::<String>::new());
}

/// A destination that is away is waited for: the pings go on, and the stop may take what `drain_timeout` says.
#[test]
fn a_destination_that_is_away_is_no_reason_for_a_restart() {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = "10m".to_owned();
    scene.pipeline(PIPELINE).unwrap();
    fs::remove_dir(&scene.output).unwrap();
    fs::write(&scene.output, "in the way").unwrap();
    fs::write(scene.input().join("a.log"), "one\n").unwrap();
    let systemd = Systemd::of(&mut scene);
    watched(&mut scene);
    let mut agent = scene.start_ready().unwrap();
    systemd.find("READY=1");
    poll::until("a sink that tries again", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| status.0["pipelines"][0]["sinks"][0]["state"] == "retrying"))
    })
    .unwrap();
    // These were sent before.
    systemd.rest();
    let extended_us = systemd.lives_and_stops(&agent);
    assert!(extended_us >= 600_000_000, "systemd would kill it while it drains: {extended_us}");
    agent.expect_running().unwrap();
    agent.kill().unwrap();
}

#[test]
fn a_reload_is_told_with_its_outcome() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let systemd = Systemd::of(&mut scene);
    let agent = scene.start_ready().unwrap();
    systemd.find("READY=1");
    let data = scene.data.display().to_string();
    let reload = || scene.flumen(&["reload", "--data-dir", &data]).unwrap().status.code();
    assert_eq!(reload(), Some(0));
    let began = systemd.find("RELOADING=1");
    assert!(value(&began, "MONOTONIC_USEC").parse::<u64>().unwrap() > 0, "{began}");
    assert_eq!(value(&systemd.find("READY=1"), "STATUS"), "1 pipeline");

    scene.pipeline(&PIPELINE.replace("tail", "tale")).unwrap();
    assert_eq!(reload(), Some(78));
    // Before the answer: who has it finds the unit running again. (The watch may have seen the edit first, and told the same.)
    let told = systemd.rest();
    let told_refusal = told.iter().any(|it| it.starts_with("READY=1\n") && it.contains("not taken over"));
    assert!(told_refusal, "{told:?}");

    scene.pipeline(PIPELINE).unwrap();
    agent.signal(Signal::HUP).unwrap();
    systemd.until("STATUS=1 pipeline");
    agent.stop().unwrap();
}

/// systemd's socket is not there: that costs one line in the log, however often it is missed.
#[test]
fn a_supervisor_that_is_not_there_costs_a_line_in_the_log() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let nobody = scene.root().join("nobody");
    notified(&mut scene, &nobody);
    watched(&mut scene);
    let mut agent = scene.start_ready().unwrap();
    agent.wait_log("NOTIFY_SOCKET", limits::CONDITION).unwrap();
    scene.answered().unwrap();
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait_exit(limits::STOP).unwrap().success(), "{}", agent.log_tail());
    // READY=1, the first ping and STOPPING=1 at least could not be sent.
    assert_eq!(agent.log().unwrap().matches("NOTIFY_SOCKET").count(), 1, "{}", agent.log_tail());
}

#[test]
fn without_a_supervisor_nothing_is_said() {
    let scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let mut agent = scene.start_ready().unwrap();
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait_exit(limits::STOP).unwrap().success(), "{}", agent.log_tail());
    assert!(!agent.log().unwrap().contains("systemd"), "{}", agent.log_tail());
}

/// The commands of `examples/flumen.service` do what it is for, and its exit codes are those of the program.
#[test]
fn the_unit_file_fits_the_program() {
    let mut scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let unit = fs::read_to_string(locate::repository().unwrap().join("examples/flumen.service")).unwrap();
    let config = scene.config().display().to_string();
    let command = |name: &str| -> Vec<String> {
        let mut words = value(&unit, name).split(' ');
        assert_eq!(words.next(), Some("/usr/bin/flumen"));
        words.map(|word| word.replace("/etc/flumen/flumen.toml", &config)).collect()
    };
    let systemd = Systemd::of(&mut scene);
    let mut run = Command::new(locate::flumen().unwrap());
    run.args(command("ExecStart")).current_dir(scene.root()).env("NO_COLOR", "1");
    run.envs(scene.env.iter().map(|(name, value)| (name, value)));
    let agent = Agent::spawn(run, &scene.log()).unwrap();
    systemd.find("READY=1");
    let reloaded = scene.flumen(&command("ExecReload")).unwrap();
    assert!(reloaded.status.success(), "{}", reloaded.stderr);

    let last_codes: Vec<&str> = value(&unit, "RestartPreventExitStatus").split(' ').collect();
    let is_final = |code: i32| last_codes.contains(&code.to_string().as_str());
    let mut second = scene.start().unwrap();
    let locked = second.wait_exit(limits::READY).unwrap().code().unwrap();
    assert!(!is_final(locked), "{locked}: the other agent may end");
    assert!(!is_final(1), "most failures pass");
    agent.stop().unwrap();
    scene.pipeline(&PIPELINE.replace("tail", "tale")).unwrap();
    let wrong = scene.start().unwrap().wait_exit(limits::READY).unwrap().code().unwrap();
    assert!(is_final(wrong), "{wrong}: the next start would find the same configuration");
    let usage = scene.flumen(&["run", "--no-such-option"]).unwrap().status.code().unwrap();
    assert!(is_final(usage), "{usage}: the next start would have the same arguments");
}
