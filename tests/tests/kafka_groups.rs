//! Sink groups whose members are Kafka sinks on different clusters: each event is in one of the clusters, once, whoever is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;

use flumen_tests::agent::Agent;
use flumen_tests::flow::DELIVERED;
use flumen_tests::kafka::{Broker, BrokerOptions, ConsumeOptions, client};
use flumen_tests::poll;
use flumen_tests::scene::Scene;

const TOPIC: &str = "grouped";

/// Both sinks in a group that fails over. The timeout is how long a sink waits for a broker before it gives up: longer than a busy
/// machine lets a broker that is well stand still, or the second one rightly gets what the test expects at the first.
fn pipeline(near: &Broker, far: &Broker) -> String {
    let sink = |name: &str, broker: &Broker| {
        format!(
            "[sink.{name}]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"{TOPIC}\"\ntransaction_interval = \"100ms\"\n\
             transaction_timeout = \"20s\"\n",
            broker.bootstrap()
        )
    };
    format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n{}{}[group.both]\nkind = \"failover\"\nsinks = [\"near\", \"far\"]\n\
         penalty = \"100ms\"\npenalty_max = \"1s\"\n[batch]\nrows = 100\n",
        sink("near", near),
        sink("far", far)
    )
}

fn write(scene: &Scene, range: Range<usize>) {
    let mut file = OpenOptions::new().create(true).append(true).open(scene.input().join("a.log")).unwrap();
    file.write_all(range.map(|at| format!("line {at}\n")).collect::<String>().as_bytes()).unwrap();
}

/// The numbers of the lines that are committed at a broker.
fn delivered(broker: &Broker) -> Vec<usize> {
    let records = client::consume(&ConsumeOptions::new(&broker.client(), TOPIC)).unwrap();
    records.iter().map(|record| record.text().strip_prefix("line ").unwrap().parse().unwrap()).collect()
}

fn wait_delivered(broker: &Broker, agent: &mut Agent, range: Range<usize>) {
    let has_all = || {
        agent.expect_running()?;
        let there: BTreeSet<usize> = delivered(broker).into_iter().collect();
        Ok(range.clone().all(|at| there.contains(&at)))
    };
    poll::until(&format!("{range:?} at a broker"), DELIVERED, has_all)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log_tail()));
}

/// Waits until the first member is well or not, and says how many events it has in doubt.
fn wait_near(scene: &Scene, agent: &Agent, is_ready: bool) -> u64 {
    let mut said = String::new();
    let looked = poll::until_some(&format!("near to be ready: {is_ready}"), DELIVERED, || {
        let Some(status) = scene.status()? else { return Ok(None) };
        let near = &status.0["pipelines"][0]["groups"][0]["members"][0];
        said = near.to_string();
        Ok((is_ready == (near["state"] == "ready")).then(|| near["in_doubt"].as_u64().unwrap()))
    });
    looked.unwrap_or_else(|error| panic!("{error:#}: {said}\n{}", agent.log_tail()))
}

/// The first cluster's broker is killed: events go to the second, what the first had in doubt waits for it, over a SIGKILL of the
/// agent too; it comes back, gets that, and everything from then on.
#[test]
fn the_second_cluster_takes_over_and_gives_back() {
    let mut near = Broker::start(&BrokerOptions::default()).unwrap();
    let far = Broker::start(&BrokerOptions::default()).unwrap();
    for broker in [&near, &far] {
        broker.client().create_topic(TOPIC, 2, &[]).unwrap();
    }
    let scene = Scene::new().unwrap();
    scene.pipeline(&pipeline(&near, &far)).unwrap();
    let check = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap().stdout;
    assert!(check.contains("group        both             exactly-once (failover of near, far)"), "{check}");

    let mut agent = scene.start_ready().unwrap();
    // A best member that takes longer than a moment to begin is not waited for.
    wait_near(&scene, &agent, true);
    write(&scene, 0..1_000);
    wait_delivered(&near, &mut agent, 0..1_000);
    assert_eq!(delivered(&far), [0; 0]);

    near.kill().unwrap();
    write(&scene, 1_000..1_500);
    let in_doubt = wait_near(&scene, &agent, false);
    assert!(in_doubt > 0, "near was well when these came: it has some of them");
    write(&scene, 1_500..2_500);
    wait_delivered(&far, &mut agent, 1_500..2_500);

    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    write(&scene, 2_500..3_500);
    wait_delivered(&far, &mut agent, 2_500..3_500);
    assert_eq!(wait_near(&scene, &agent, false), in_doubt, "nobody else got what it has");

    near.restart().unwrap();
    assert_eq!(wait_near(&scene, &agent, true), 0);
    write(&scene, 3_500..4_500);
    wait_delivered(&near, &mut agent, 3_500..4_500);
    agent.stop().unwrap();
    let (at_near, at_far) = (delivered(&near), delivered(&far));
    assert!(at_far.iter().all(|at| (1_000..3_500).contains(at)), "far got what near was there for");
    let mut all = [at_near, at_far].concat();
    all.sort_unstable();
    assert!(all == (0..4_500).collect::<Vec<_>>(), "{} lines, not each once", all.len());
}
