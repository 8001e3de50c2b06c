//! The examples with Kafka, each run as its README says, against a real broker and through a SIGKILL.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use flumen_tests::agent::Agent;
use flumen_tests::kafka::{Broker, ConsumeOptions, Record, client};
use flumen_tests::{limits, locate, poll, scene};

/// Starts an example, with its variables below a directory.
fn start(example: &str, dir: &Path, variables: &[(&str, String)]) -> Agent {
    let mut command = Command::new(locate::flumen().unwrap());
    command.arg("run").arg(config(example)).env("NO_COLOR", "1");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut agent = Agent::spawn(command, &dir.join("agent.log")).unwrap();
    agent.wait_ready().unwrap();
    agent
}

fn config(example: &str) -> std::path::PathBuf {
    locate::repository().unwrap().join("examples").join(example).join("flumen.toml")
}

/// A command of the README.
fn flumen(line: &str, variables: &[(&str, String)]) {
    let mut is_again = false;
    let answer = poll::until_some(line, limits::CONDITION, || {
        let mut command = Command::new(locate::flumen().unwrap());
        command.args(line.split_whitespace()).envs(variables.iter().map(|(name, value)| (name, value)));
        let answer = scene::run(command, limits::COMMAND)?;
        // It waits for some seconds, and a new broker on a busy machine may take longer to make its topic of transactions, or this one:
        // then it is made all the same, which is said to who asks again.
        let said = format!("{}{}", answer.stdout, answer.stderr);
        let is_made =
            is_again && line.starts_with("kafka topics create") && said.contains("it exists already");
        let is_silent = said.contains("no answer");
        is_again |= is_silent;
        Ok((!is_silent).then_some((is_made || answer.status.success(), said)))
    });
    let (is_well, said) = answer.unwrap();
    assert!(is_well, "{line}: {said}");
}

fn records(broker: &Broker, topic: &str) -> Vec<Record> {
    client::consume(&ConsumeOptions::new(&broker.client(), topic)).unwrap()
}

/// Waits until a topic has so many records that are committed, and gives them.
fn wait_for(broker: &Broker, topic: &str, count: usize) -> Vec<Record> {
    let mut found = Vec::new();
    poll::until_counted(&format!("{count} records in {topic}"), limits::COMMAND, count as u64, || {
        found = records(broker, topic);
        Ok(found.len() as u64)
    })
    .unwrap();
    found
}

#[test]
fn one_busy_file_reaches_72_partitions_line_by_line() {
    const LINES: usize = 20_000;
    let broker = Broker::shared().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let variables =
        [("SOHU_DIR", at("")), ("COUNTSLOG_DIR", at("countslog")), ("KAFKA_BROKER", broker.bootstrap())];
    fs::create_dir(dir.path().join("countslog")).unwrap();
    let lines: String = (0..LINES).map(|number| format!("count {number} of something\n")).collect();
    fs::write(dir.path().join("countslog/countinfo.log"), &lines).unwrap();
    flumen(&format!("kafka topics create countinfo --partitions 72 --brokers {}", broker.bootstrap()), &[]);
    flumen(&format!("kafka check --config {}", config("sohu-kafka").display()), &variables);
    let agent = start("sohu-kafka", dir.path(), &variables);
    agent.kill().unwrap();
    let agent = start("sohu-kafka", dir.path(), &variables);
    let records = wait_for(broker, "countinfo", LINES);
    agent.stop().unwrap();
    let values: BTreeSet<String> = records.iter().map(Record::text).collect();
    assert_eq!((records.len(), values.len()), (LINES, LINES), "each line once");
    assert!(values.contains("count 19999 of something"), "raw values");
    let mut each: BTreeMap<i32, usize> = BTreeMap::new();
    for record in &records {
        *each.entry(record.partition).or_default() += 1;
    }
    assert_eq!(each.len(), 72, "{each:?}");
    let (least, most) = (each.values().min().unwrap(), each.values().max().unwrap());
    assert!(*most < *least * 2, "round robin loads all alike: {each:?}");
}

const TRACE: &str = "10-Oct-2026 13:55:37.002 SEVERE [exec-1] org.shop.Cart.pay payment failed\n\
    java.lang.IllegalStateException: no card\n\
    \tat org.shop.Cart.pay(Cart.java:42)\n\
    Caused by: java.io.IOException: closed\n\
    \t... 17 more";

#[test]
fn a_shop_keeps_everything_and_sends_requests_and_errors_at_once() {
    const ROUNDS: usize = 200;
    let broker = Broker::shared().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let variables =
        [("SHOP_DIR", at("shop")), ("CATALINA_DIR", at("logs")), ("KAFKA_BROKER", broker.bootstrap())];
    fs::create_dir_all(dir.path().join("shop/plugins")).unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    fs::copy(locate::plugin("filter").unwrap(), dir.path().join("shop/plugins/filter.wasm")).unwrap();
    let (mut catalina, mut access) = (String::new(), String::new());
    for number in 0..ROUNDS {
        writeln!(catalina, "10-Oct-2026 13:55:36.001 INFO [main] org.shop.Start.step step {number}").unwrap();
        writeln!(catalina, "{}", TRACE.replace("payment", &format!("payment {number}"))).unwrap();
        writeln!(access, "10.0.0.1 - - [10/Oct/2026:13:55:36 +0000] \"GET /item/{number} HTTP/1.1\" 200 5")
            .unwrap();
    }
    fs::write(dir.path().join("logs/catalina.out"), &catalina).unwrap();
    fs::write(dir.path().join("logs/localhost_access_log.2026-10-10.txt"), &access).unwrap();
    flumen(&format!("kafka topics create shop-live --partitions 6 --brokers {}", broker.bootstrap()), &[]);
    flumen(&format!("kafka check --config {}", config("shop-kafka").display()), &variables);
    let agent = start("shop-kafka", dir.path(), &variables);
    agent.kill().unwrap();
    let agent = start("shop-kafka", dir.path(), &variables);
    let records = wait_for(broker, "shop-live", 2 * ROUNDS);
    agent.stop().unwrap();
    let values: BTreeSet<String> = records.iter().map(Record::text).collect();
    assert_eq!((records.len(), values.len()), (2 * ROUNDS, 2 * ROUNDS), "each once");
    for number in 0..ROUNDS {
        let trace = TRACE.replace("payment", &format!("payment {number}"));
        assert!(values.contains(&trace), "the whole stack trace is one record: {trace}");
    }
    assert!(records.iter().all(|record| record.header("file").is_some()));
    let mut history = 0;
    for day in fs::read_dir(dir.path().join("shop/history")).unwrap() {
        for file in fs::read_dir(day.unwrap().path()).unwrap() {
            history += fs::read_to_string(file.unwrap().path()).unwrap().lines().count();
        }
    }
    assert_eq!(history, 3 * ROUNDS, "the history has everything, each event once");
}
