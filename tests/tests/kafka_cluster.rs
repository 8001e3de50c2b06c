//! Sink and source on three brokers whose leaders move, by death, by a clean stop and by election.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use flumen_tests::agent::Agent;
use flumen_tests::flow::{DELIVERED, judge, wait_lines, wait_progress, writer};
use flumen_tests::kafka::{Client, Cluster};
use flumen_tests::poll;
use flumen_tests::scene::Scene;

/// Two partitions begin at node 2, one at node 3.
const PLACES: [&[u16]; 3] = [&[2, 3, 1], &[3, 1, 2], &[2, 1, 3]];

fn scene(name: &str, text: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.pipeline(text).unwrap();
    scene
}

/// Waits until no partition is led by a node.
fn wait_moved(client: &Client, topic: &str, from: u16) {
    let moved = || {
        let leaders = client.leaders(topic)?;
        Ok(leaders.iter().all(|one| one.leader >= 0 && one.leader != i32::from(from)))
    };
    poll::until("other leaders", DELIVERED, moved).unwrap();
}

/// Waits until the sink is in a state and says why in `status`; with no words: until it says nothing.
fn wait_state(scene: &Scene, state: &str, words: &str) {
    let mut said = String::new();
    // A take-over that is in vain takes half a minute, and the one before may fail for another reason.
    poll::until(&format!("{state} with {words:?} in status"), DELIVERED * 2, || {
        let Some(status) = scene.status()? else { return Ok(false) };
        let sink = status.0.pointer("/pipelines/0/sinks/0").unwrap();
        said = format!("{} {}", sink["state"], sink["error"]);
        Ok(sink["state"] == state
            && sink["error"].as_str().unwrap_or_default().contains(words)
            && sink["error"].is_null() == words.is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}: {said}"));
}

/// Lets the leaders of `topic` move in every way, with work under way each time.
fn move_leaders(cluster: &mut Cluster, topic: &str, out: &Scene) {
    // One call waits until all replicas are in sync again.
    let client = cluster.client().within(DELIVERED);
    // By death, of the leader of two and of the leader of one; then back by election, with nobody dead.
    for node in [2, 3] {
        wait_progress(&[out], 1_000).unwrap();
        cluster.node(node).unwrap().kill().unwrap();
        wait_moved(&client, topic, node);
        wait_progress(&[out], 1_000).unwrap();
        cluster.node(node).unwrap().restart().unwrap();
        client.elect_leaders(topic).unwrap();
        wait_progress(&[out], 1_000).unwrap();
    }
    // By a clean stop, which hands them over, as in a rolling restart.
    cluster.node(2).unwrap().stop().unwrap();
    wait_moved(&client, topic, 2);
    wait_progress(&[out], 1_000).unwrap();
    cluster.node(2).unwrap().restart().unwrap();
    client.elect_leaders(topic).unwrap();
    wait_progress(&[out], 1_000).unwrap();
}

/// Files to Kafka by the exactly-once sink of one agent, Kafka to files by the source of another.
#[test]
fn leaders_that_move_lose_and_double_nothing() {
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.client();
    client.place_topic("moved", &PLACES, &[]).unwrap();
    let brokers = format!("brokers = {:?}", cluster.brokers());
    let a = scene(
        "a",
        &format!(
            "[source]\ntype = \"tail\"\npaths = [\"{{in}}/web-*.log*\"]\nfile_header = true\n[sink]\ntype = \"kafka\"\n{brokers}\n\
             topic = \"moved\"\nkey = \"header.file\"\ntransaction_interval = \"100ms\"\ntransaction_timeout = \"15s\"\n"
        ),
    );
    let b = scene(
        "b",
        &format!(
            "[source]\ntype = \"kafka\"\n{brokers}\ntopics = [\"moved\"]\nstart = \"earliest\"\n\
             [sink]\ntype = \"file\"\npath = \"{{out}}/{{header.partition}}.log\"\nflush_interval = \"100ms\"\n"
        ),
    );
    let (mut agent_a, mut agent_b): (Agent, Agent) = (a.start_ready().unwrap(), b.start_ready().unwrap());
    let generator = writer(&a, 11).unwrap();
    move_leaders(&mut cluster, "moved", &b);

    // One of three is left: nothing counts that only it has, and status says so.
    wait_progress(&[&b], 1_000).unwrap();
    cluster.node(2).unwrap().kill().unwrap();
    cluster.node(3).unwrap().kill().unwrap();
    wait_state(&a, "retrying", "__transaction_state are in sync, 1 of 3 where 2 are needed");
    cluster.node(2).unwrap().launch().unwrap();
    cluster.node(3).unwrap().restart().unwrap();
    cluster.node(2).unwrap().wait_ready().unwrap();
    wait_progress(&[&b], 1_000).unwrap();

    let written = generator.stop().unwrap();
    wait_lines(&[&b], &mut [&mut agent_a, &mut agent_b], written.iter().sum()).unwrap();
    wait_state(&a, "running", "");
    agent_a.stop().unwrap();
    agent_b.stop().unwrap();
    let verdict = judge(&[&b], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
}
