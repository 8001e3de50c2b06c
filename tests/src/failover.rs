//! A channel that fails over: what its pipeline file has, where its events go, and a disk that is full again and again.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::disk::Mount;
use crate::flow::{DELIVERED, judge, load, wait_lines, wait_progress};
use crate::generator::{Generator, Load};
use crate::oracle::Verdict;
use crate::poll;
use crate::scene::Scene;

/// Room on a channel's disk without the ballast: for all that is read and remembered while the machine is busy with other things.
pub const ROOM: u64 = 160 << 20;

/// What the log says when events go elsewhere.
pub const LEFT: &str = "takes nothing: events go to the";

/// What the log says when they are about to come back.
pub const RETURNS: &str = "the disk of the channel is well";

/// What the log says when they have.
pub const HOME: &str = "events go to the channel's disk again";

/// The drain limit, in seconds.
pub const DRAIN_S: u64 = 2;

const PACE: &str = "check_interval = \"200ms\", fail_after = 2, return_after = 2";

/// A failover in a directory of the scene.
#[must_use]
pub fn to_dir(scene: &Scene, kind: &str, dir: &str) -> String {
    let dir = scene.root().join(dir).display().to_string();
    format!("failover = {{ kind = \"{kind}\", dir = \"{dir}\", {PACE} }}\n")
}

/// A failover in a topic.
#[must_use]
pub fn to_kafka(brokers: &str, topic: &str) -> String {
    format!("failover = {{ kind = \"kafka\", brokers = [\"{brokers}\"], topic = \"{topic}\", {PACE} }}\n")
}

/// Tails into one file. `channel`: what the channel's table has.
#[must_use]
pub fn pipeline(channel: &str) -> String {
    format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n[journal]\nsegment = \"1 MiB\"\n[channel]\n{channel}\
         [sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n"
    )
}

/// The journal's directory, where a test mounts a disk.
#[must_use]
pub fn journal(scene: &Scene) -> PathBuf {
    scene.data.join("pipelines/main/journal")
}

/// The source goes on by so many events.
///
/// # Errors
/// If it does not.
pub fn wait_taken(scene: &Scene, more: u64) -> Result<()> {
    let events = || Ok::<u64, anyhow::Error>(scene.answered()?.metric("source", "events_out"));
    let before = events()?;
    poll::until("events of the source", DELIVERED, || Ok(events()? > before + more))
}

/// Waits until events go there, as `status` says.
///
/// # Errors
/// If they do not, with what it says.
pub fn wait_place(scene: &Scene, agent: &Agent, place: &str) -> Result<()> {
    wait_place_while(scene, agent, place, || Ok(()))
}

fn wait_place_while(
    scene: &Scene,
    agent: &Agent,
    place: &str,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<()> {
    let word = format!("\"failover\":\"{place}\"");
    let is_there = || {
        meanwhile()?;
        Ok(scene.status()?.is_some_and(|status| status.mentions(&word)))
    };
    poll::until(&word, DELIVERED, is_there)
        .with_context(|| format!("{:?}\n{}", scene.status(), agent.log_tail()))
}

/// Takes all room on a disk.
///
/// # Errors
/// If the file that takes it cannot be made.
pub fn fill(mount: &Mount) -> Result<()> {
    let ballast = mount.dir().join("ballast");
    let mut file = fs::File::options().create(true).append(true).open(ballast)?;
    while file.write_all(&[1; 4 << 10]).is_ok() {}
    Ok(())
}

/// Gives the room back that [`fill`] took.
///
/// # Errors
/// If the disk refuses.
pub fn make_room(mount: &Mount) -> Result<()> {
    fs::remove_file(mount.dir().join("ballast"))?;
    Ok(())
}

/// Takes all room until events go elsewhere: sinks that go on make room, which is taken, too.
///
/// # Errors
/// If they do not go there, with what `status` says.
pub fn fill_until(scene: &Scene, agent: &Agent, mount: &Mount, place: &str) -> Result<()> {
    wait_place_while(scene, agent, place, || fill(mount))
}

/// The channel's disk is filled by something else, again and again; the agent is killed before, while it is away, and on its way back.
/// What a plugin remembers goes along: of lines that are written twice one comes out. `place`: the kind of the failover.
///
/// # Errors
/// If something does not come to pass in time.
pub fn full_again_and_again(scene: &Scene, place: &str, seed: u64) -> Result<Verdict> {
    let mount = Mount::tmpfs(&journal(scene), ROOM)?;
    let mut agent = scene.start_ready()?;
    let generator = Generator::start(Load { has_doubles: true, ..load(scene, seed) })?;
    for round in 0..4 {
        wait_progress(&[scene], 1_500)?;
        let log_begin = fs::read_to_string(scene.log())?.len();
        fill(&mount)?;
        if round == 1 {
            agent.kill()?;
            agent = scene.start_ready()?;
        }
        fill_until(scene, &agent, &mount, place)?;
        // Whoever left: a machine that stands still between the disk's filling and the kill gives the one before the time.
        let has_left = || {
            let log = fs::read_to_string(scene.log())?;
            Ok(log.get(log_begin..).is_some_and(|log| log.contains(LEFT)))
        };
        poll::until(LEFT, DELIVERED, has_left)?;
        wait_taken(scene, 3_000)?;
        if round >= 2 {
            agent.kill()?;
            agent = scene.start_ready()?;
            fill_until(scene, &agent, &mount, place)?;
            wait_taken(scene, 1_000)?;
        }
        make_room(&mount)?;
        if round == 3 {
            // The way back may be over before a status tells of it.
            agent.wait_log(RETURNS, DELIVERED)?;
            agent.kill()?;
            agent = scene.start_ready()?;
        }
        wait_place(scene, &agent, "primary")?;
    }
    // By whichever of them: the last one killed may have been at home already.
    anyhow::ensure!(fs::read_to_string(scene.log())?.contains(HOME), "nobody says that events came back");
    let written = generator.stop()?;
    wait_lines(&[scene], &mut [&mut agent], written.iter().sum())?;
    agent.stop()?;
    judge(&[scene], &written, |_| true)
}
