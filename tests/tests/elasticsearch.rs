//! The plugin `elasticsearch-bulk` against a real OpenSearch: what arrives how often, what is refused and why, and what waits.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use flumen_tests::opensearch::OpenSearch;
use flumen_tests::scene::Scene;
use flumen_tests::{limits, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// One line in so many has a text where the index has numbers.
const CONFLICT_EVERY: usize = 500;

fn scene(server: &OpenSearch, options: &str) -> Scene {
    let scene = Scene::new().unwrap();
    scene.install("elasticsearch-bulk", "elasticsearch-bulk").unwrap();
    let address = server.address();
    let text = format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[batch]\nrows = 300\nlinger = \"5ms\"\n\n\
         [sink.out]\nplugin = \"elasticsearch-bulk\"\ngrant = [\"http\"]\nbatch_events = 200\nlinger = \"20ms\"\n\
         config = {{ url = \"http://{address}\", {options} }}\negress = {{ allow = [\"{address}\"] }}\n"
    );
    scene.pipeline(&text).unwrap();
    scene
}

fn is_conflict(number: usize) -> bool {
    number % CONFLICT_EVERY == 7
}

/// Documents of one field, a number.
fn write(scene: &Scene, numbers: Range<usize>) {
    let line = |number: usize| match is_conflict(number) {
        true => format!("{{\"n\":\"none {number}\"}}\n"),
        false => format!("{{\"n\":{number}}}\n"),
    };
    let mut file = File::options().create(true).append(true).open(scene.input().join("a.log")).unwrap();
    file.write_all(numbers.map(line).collect::<String>().as_bytes()).unwrap();
}

/// Everything that an index holds.
fn documents(server: &OpenSearch, indices: &str) -> Vec<Value> {
    found(server, indices, "")
}

/// Those that a query finds, 10,000 at most.
fn found(server: &OpenSearch, indices: &str, query: &str) -> Vec<Value> {
    server.count(indices).unwrap();
    let answer = server.asked("GET", &format!("/{indices}/_search?size=10000{query}"), "").unwrap();
    answer["hits"]["hits"].as_array().unwrap().clone()
}

/// Documents that came again and were there, since the server's start. What does not fit the index is not counted.
fn conflicts(server: &OpenSearch) -> u64 {
    let stats = server.asked("GET", "/logs/_stats/indexing", "").unwrap();
    stats["_all"]["total"]["indexing"]["index_failed"].as_u64().unwrap()
}

#[test]
fn a_real_server_has_each_document_once() {
    // So little memory for what is being written that nothing fits.
    let mut server = OpenSearch::start("indexing_pressure.memory.limit: 1kb").unwrap();
    is_busy_or_away(&mut server);
    dies(&mut server);
}

/// A server that takes nothing for want of memory, then none at all.
fn is_busy_or_away(server: &mut OpenSearch) {
    let scene = scene(server, "index = \"web-%Y\", headers = [\"file\"]");
    write(&scene, 0..1_000);
    let mut agent = scene.start_ready().unwrap();
    let mut wait_status = |text: &str| {
        poll::until(&format!("the status to say {text:?}"), limits::CONDITION, || {
            agent.expect_running()?;
            Ok(scene.status()?.is_some_and(|status| status.mentions(text)))
        })
        .unwrap();
    };
    wait_status("the server says 429");
    server.kill().unwrap();
    wait_status("refused");
    server.restart("").unwrap();
    poll::until("every document", limits::CONDITION * 2, || Ok(server.count("web-*")? >= 1_000)).unwrap();
    agent.stop().unwrap();
    assert!(scene.quarantine().unwrap().is_empty());
    let documents = documents(server, "web-*");
    let messages: BTreeSet<&str> =
        documents.iter().map(|document| document["_source"]["message"].as_str().unwrap()).collect();
    assert_eq!((documents.len(), messages.len()), (1_000, 1_000), "documents, and different ones");
    let first = &documents[0];
    assert!(first["_index"].as_str().unwrap().starts_with("web-20"), "{first}");
    assert!(first["_source"]["file"].as_str().unwrap().ends_with("a.log"), "{first}");
    let mapping = server.asked("GET", "/web-*/_mapping/field/@timestamp", "").unwrap().to_string();
    assert!(mapping.contains("\"type\":\"date\""), "{mapping}");
}

/// Kills of the agent, and one of the server.
fn dies(server: &mut OpenSearch) {
    const ROUNDS: usize = 5;
    /// A kill bites only between the server's answer and the acknowledgement's commit: they go on until one has.
    const ROUNDS_MAX: usize = 40;
    const ROUND_EVENTS: usize = 1_200;
    let seed = 9_200;
    let mut random = StdRng::seed_from_u64(seed);
    let mapping =
        "{\"settings\":{\"number_of_replicas\":0},\"mappings\":{\"properties\":{\"n\":{\"type\":\"long\"}}}}";
    server.asked("PUT", "/logs", mapping).unwrap();
    let scene = scene(server, "index = \"logs\", document = \"json\"");
    let (mut came_again, mut rounds) = (0, 0);
    while rounds < ROUNDS || (rounds < ROUNDS_MAX && came_again + conflicts(server) == 0) {
        let round = rounds;
        rounds += 1;
        let before = server.count("logs").unwrap();
        write(&scene, round * ROUND_EVENTS..(round + 1) * ROUND_EVENTS);
        let mut agent = scene.start_ready().unwrap();
        poll::until("documents", limits::CONDITION, || {
            agent.expect_running()?;
            Ok(server.count("logs")? > before)
        })
        .unwrap();
        let until = Instant::now() + Duration::from_millis(random.random_range(0..100));
        poll::until("a moment to die", limits::CONDITION, || Ok(Instant::now() >= until)).unwrap();
        if round == 2 {
            // The agent goes on alone when the server is back.
            came_again += conflicts(server);
            server.restart("").unwrap();
        }
        agent.kill().unwrap();
    }
    let events = rounds * ROUND_EVENTS;
    let bad = (0..events).filter(|number| is_conflict(*number)).count();
    let mut agent = scene.start_ready().unwrap();
    poll::until_counted("every document", limits::CONDITION * 2, (events - bad) as u64, || {
        agent.expect_running()?;
        server.count("logs")
    })
    .unwrap();
    poll::until("every refused one", limits::CONDITION, || Ok(scene.quarantine()?.len() >= bad)).unwrap();
    agent.stop().unwrap();
    came_again += conflicts(server);
    eprintln!("seed {seed}: {events} events, {bad} refused, {came_again} came again");
    assert!(came_again > 0, "nothing came twice: the test shows nothing");
    // A search gives 10,000 at most.
    let part = |first: usize| found(server, "logs", &format!("&q=n:%5B{first}%20TO%20{}%5D", first + 4_999));
    let documents: Vec<Value> = (0..events).step_by(5_000).flat_map(part).collect();
    let numbers: BTreeSet<u64> =
        documents.iter().map(|document| document["_source"]["n"].as_u64().unwrap()).collect();
    assert_eq!(
        (documents.len(), numbers.len()),
        (events - bad, events - bad),
        "documents, and different ones"
    );
    let mut quarantine = scene.quarantine().unwrap();
    quarantine.sort_by_key(|event| event["body"].to_string());
    assert_eq!(quarantine.len(), bad, "{quarantine:?}");
    for event in quarantine {
        let (body, text) = (event["body"].as_str().unwrap(), event.to_string());
        assert!(body.contains("none ") && text.contains("mapper_parsing_exception: "), "{text}");
        assert!(
            text.contains("failed to parse field [n] of type [long]") && text.contains("(400)"),
            "{text}"
        );
    }
}
