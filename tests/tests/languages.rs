//! Plugins in Python, JavaScript and Go on the real binary, one after the other in one flow: what is written in these languages
//! keeps the promise too. Their cases are `cargo xtask test`'s; components are built by `cargo xtask plugins`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::http::{Appender, Faults};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Lives of the agent that end with SIGKILL.
const KILLS: usize = 4;
/// Events that are written in each life.
const EVENTS: u64 = 4_000;

/// Four bytes with the length, and a body.
fn frame(body: &str) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body.as_bytes()].concat()
}

/// An agent that is ready. The first one compiles three large components: 15 s of a processor that others may use too.
fn ready(scene: &Scene) -> Agent {
    let mut agent = scene.start().unwrap();
    agent.wait_log(" ready ", limits::READY * 5).unwrap();
    agent
}

fn counted(appender: &Appender) -> u64 {
    appender.lines().iter().map(|line| line.parse::<u64>().unwrap()).sum()
}

/// The same plugin as another version: a custom section is all that differs.
fn swap(scene: &Scene, agent: &mut Agent, plugin: &str, version: u8) {
    let path = scene.plugin_dir().join(format!("{plugin}.wasm"));
    let mut component = std::fs::read(&path).unwrap();
    component.extend([0, 3, 1, b'v', version]);
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, component).unwrap();
    std::fs::rename(&fresh, &path).unwrap();
    // It is compiled before.
    agent.wait_log("plugin swapped", limits::READY * 5).unwrap();
}

#[test]
fn each_event_counts_once_through_a_codec_an_aggregator_and_a_sink_whatever_dies() {
    each_event_counts_once(5_005, ["frames-js", "count-js", "append-python"], false);
}

/// Their runtime was started when they were built: what every instance begins with is the same, and that is all that is.
#[test]
fn each_event_counts_once_through_plugins_in_go_whatever_dies_and_is_swapped() {
    each_event_counts_once(5_006, ["frames-go", "count-go", "append-go"], true);
}

/// The plugins are a codec, an aggregator and a sink.
fn each_event_counts_once(seed: u64, plugins: [&str; 3], has_swaps: bool) {
    let [codec, aggregator, sink] = plugins;
    let mut random = StdRng::seed_from_u64(seed);
    let appender = Appender::start(seed).unwrap();
    appender.faults(Faults { cut: 5, lose_answer: 15, busy: 5, late: None });
    let (url, address) = (appender.server.url(), appender.server.address);
    let scene = Scene::new().unwrap();
    for plugin in plugins {
        scene.install(plugin, plugin).unwrap();
    }
    scene
        .pipeline(&format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/in.frames\"]\n\
             [source.in.codec]\nplugin = \"{codec}\"\n\n\
             [[interceptor]]\nplugin = \"{aggregator}\"\ngrant = [\"state\"]\nconfig = {{ by = \"host\", window_s = 1 }}\n\n\
             [sink.out]\nplugin = \"{sink}\"\ngrant = [\"http\"]\nlinger = \"20ms\"\n\
             config = {{ url = \"{url}/counts\" }}\negress = {{ allow = [\"{address}\"], timeout = \"2s\" }}\n"
        ))
        .unwrap();
    let mut input = File::create(scene.input().join("in.frames")).unwrap();
    for life in 0..KILLS as u64 {
        let mut agent = ready(&scene);
        let before = appender.len();
        let bytes: Vec<u8> =
            (0..EVENTS).flat_map(|event| frame(&format!("event {}", life * EVENTS + event))).collect();
        let mut rest = bytes.as_slice();
        // In pieces that end anywhere, over more than one window.
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(random.random_range(1..3_000).min(rest.len()));
            input.write_all(piece).unwrap();
            rest = behind;
            std::thread::sleep(Duration::from_millis(20));
        }
        if has_swaps {
            swap(&scene, &mut agent, aggregator, life as u8);
        }
        poll::until("new counts", limits::CONDITION, || {
            agent.expect_running()?;
            Ok(appender.len() > before)
        })
        .unwrap();
        let until = Instant::now() + Duration::from_millis(random.random_range(0..1_500));
        poll::until("a moment to die", limits::CONDITION, || Ok(Instant::now() >= until)).unwrap();
        agent.kill().unwrap();
    }
    let agent = ready(&scene);
    let total = KILLS as u64 * EVENTS;
    let all = poll::until_counted("all counts", limits::CONDITION, total, || Ok(counted(&appender)));
    agent.stop().unwrap();
    let (requests, conflicts) = appender.counted();
    eprintln!("seed {seed}: {} counts in {requests} requests, {conflicts} refused", appender.len());
    assert_eq!(counted(&appender), total, "{all:?}");
    assert_eq!(scene.quarantine().unwrap(), Vec::<serde_json::Value>::new());
}
