//! The harness's Kafka: the broker, the proxy, the ways to log in, and the oracle agree with each other.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use flumen_tests::kafka::client::{self, TxnEnd};
use flumen_tests::kafka::{
    Broker, BrokerOptions, Bytes, Client, ConsumeOptions, Listener, Mechanism, Message, security,
};
use flumen_tests::{limits, poll};

/// Long enough for a call that answers, short enough to wait for one that must not.
const NO_ANSWER: Duration = Duration::from_secs(2);

fn broker(options: &BrokerOptions) -> Broker {
    Broker::start(options).unwrap()
}

fn messages(prefix: &str, count: usize) -> Vec<Message> {
    (0..count).map(|number| Message::value(format!("{prefix} {number}"))).collect()
}

fn texts(client: &Client, topic: &str) -> Vec<String> {
    let records = client::consume(&ConsumeOptions::new(client, topic)).unwrap();
    records.iter().map(flumen_tests::kafka::Record::text).collect()
}

#[test]
fn committed_records_alone_are_read_and_survive_a_sigkill() {
    let mut broker = broker(&BrokerOptions::default());
    let client = broker.client();
    client.create_topic("t", 1, &[]).unwrap();
    client.produce_txn("t", "writer-1", &messages("kept", 3), TxnEnd::Commit).unwrap();
    client.produce_txn("t", "writer-1", &messages("undone", 3), TxnEnd::Abort).unwrap();
    assert_eq!(texts(&client, "t"), ["kept 0", "kept 1", "kept 2"]);
    let mut all = ConsumeOptions::new(&client, "t");
    all.is_uncommitted = true;
    assert_eq!(client::consume(&all).unwrap().len(), 6);

    // It answers before the ends of both stand in the partition: six records and two markers. Killed in between, it may
    // forget one (KAFKA-20734).
    poll::until("both ends", limits::CONDITION, || Ok(client.offsets("t")?[0].end >= 8)).unwrap();
    broker.kill().unwrap();
    let gone = client.clone().within(NO_ANSWER).offsets("t").unwrap_err().to_string();
    assert!(gone.contains("TIMEOUT"), "{gone}");
    broker.restart().unwrap();
    assert_eq!(texts(&client, "t"), ["kept 0", "kept 1", "kept 2"]);

    // A transaction that was left open holds up readers until it is ended; nothing of it is read. The broker is not to end it
    // meanwhile, however slow the machine is.
    let patient = client.clone().with(pair("transaction.timeout.ms", "900000"));
    patient.produce_txn("t", "writer-2", &messages("open", 2), TxnEnd::Open).unwrap();
    client.produce_txn("t", "writer-3", &messages("behind", 1), TxnEnd::Commit).unwrap();
    assert_eq!(texts(&client, "t"), ["kept 0", "kept 1", "kept 2"]);
    client.produce_txn("t", "writer-2", &messages("again", 1), TxnEnd::Commit).unwrap();
    let all = ["kept 0", "kept 1", "kept 2", "behind 0", "again 0"];
    poll::until("all of it", limits::CONDITION, || Ok(texts(&client, "t").len() >= all.len())).unwrap();
    assert_eq!(texts(&client, "t"), all);
}

#[test]
fn a_paused_proxy_holds_bytes_and_a_cut_one_refuses() {
    let broker = Broker::shared().unwrap();
    let proxy = broker.proxy().unwrap();
    broker.client().create_topic("proxied", 1, &[]).unwrap();
    let client = Client::new(&broker.bootstrap_proxied());
    client.produce("proxied", &messages("before", 1)).unwrap();

    proxy.pause().unwrap();
    let held = thread::spawn({
        let client = client.clone();
        move || client.produce("proxied", &messages("held", 1))
    });
    poll::until("a connection", limits::CONDITION, || Ok(proxy.connections() > 0)).unwrap();
    let silent = client.clone().within(NO_ANSWER).offsets("proxied").unwrap_err().to_string();
    assert!(silent.contains("TIMEOUT"), "{silent}");
    assert_eq!(texts(&broker.client(), "proxied"), ["before 0"]);
    proxy.resume().unwrap();
    held.join().unwrap().unwrap();
    assert_eq!(texts(&client, "proxied"), ["before 0", "held 0"]);

    proxy.cut().unwrap();
    assert_eq!(proxy.connections(), 0);
    let refused = std::net::TcpStream::connect(broker.bootstrap_proxied()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    proxy.mend().unwrap();
    client.produce("proxied", &messages("after", 1)).unwrap();
    assert_eq!(texts(&client, "proxied"), ["before 0", "held 0", "after 0"]);
}

#[test]
fn a_paused_broker_answers_when_it_goes_on() {
    let broker = broker(&BrokerOptions::default());
    let client = broker.client();
    client.create_topic("t", 1, &[]).unwrap();
    broker.pause().unwrap();
    let silent = client.clone().within(NO_ANSWER).offsets("t").unwrap_err().to_string();
    assert!(silent.contains("TIMEOUT"), "{silent}");
    broker.resume().unwrap();
    client.produce("t", &messages("late", 1)).unwrap();
    assert_eq!(texts(&client, "t"), ["late 0"]);
}

#[test]
fn every_login_works_and_a_wrong_one_is_refused() {
    let broker = Broker::shared().unwrap();
    broker.client().create_topic("logins", 1, &[]).unwrap();
    let mut expected = Vec::new();
    for listener in [Listener::SaslPlaintext, Listener::SaslSsl] {
        for mechanism in Mechanism::ALL {
            let client = broker.client_sasl(listener, mechanism);
            let text = format!("{listener:?} {mechanism:?}");
            client.produce("logins", &[Message::value(text.clone())]).unwrap();
            expected.push(text);
            assert_eq!(texts(&client, "logins"), expected);
        }
    }
    let tls = broker.tls();
    let mutual = |identity| {
        Client::new(&broker.bootstrap_on(Listener::MutualTls)).with(security::mutual_tls(identity, tls))
    };
    assert_eq!(texts(&mutual(&tls.client), "logins"), expected);

    let scram = broker.client_sasl(Listener::SaslSsl, Mechanism::ScramSha512);
    let other_ca = tls.other_ca.display().to_string();
    let only_ca = security::server_tls(tls);
    let refused = [
        ("wrong password", scram.clone().with(pair("sasl.password", "guess")), "_AUTHENTICATION"),
        ("unknown user", scram.clone().with(pair("sasl.username", "mallory")), "_AUTHENTICATION"),
        ("untrusted CA", scram.with(pair("ssl.ca.location", &other_ca)), "certificate"),
        ("expired client", mutual(&tls.expired_client), "certificate"),
        ("client of another CA", mutual(&tls.stranger), "certificate"),
        (
            "no client certificate",
            Client::new(&broker.bootstrap_on(Listener::MutualTls)).with(only_ca.clone()),
            "certificate",
        ),
        ("expired broker", Client::new(&broker.bootstrap_on(Listener::Expired)).with(only_ca), "certificate"),
    ];
    for (case, client, code) in refused {
        let error = client.offsets("logins").unwrap_err().to_string();
        assert!(error.contains(code), "{case}: {error}");
    }
}

fn pair(name: &str, value: &str) -> [(String, String); 1] {
    [(name.to_owned(), value.to_owned())]
}

#[test]
fn the_oracle_sees_what_was_written() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    let refused = client.produce("absent", &messages("x", 1)).unwrap_err().to_string();
    assert!(refused.contains("UNKNOWN_TOPIC"), "{refused}");

    client.create_topic("seen", 2, &[("retention.ms", "-1")]).unwrap();
    let written = Message {
        key: Some(Bytes(vec![0xff, 0x00])),
        value: Some("with \"quotes\" and ü".into()),
        headers: vec![
            ("a".to_owned(), Some("1".into())),
            ("a".to_owned(), None),
            ("b".to_owned(), Some(Bytes(vec![0x80]))),
        ],
        partition: Some(1),
        timestamp_ms: Some(1_700_000_000_123),
    };
    let tombstone = Message { key: Some("k".into()), partition: Some(1), ..Message::default() };
    client.produce("seen", &[written.clone(), tombstone]).unwrap();
    let records = client::consume(&ConsumeOptions::new(&client, "seen")).unwrap();
    let [first, second] = &records[..] else { panic!("{records:?}") };
    assert_eq!((first.partition, first.offset), (1, 0));
    assert_eq!((&first.key, &first.value, &first.headers), (&written.key, &written.value, &written.headers));
    assert_eq!((first.timestamp_ms, first.timestamp_type.as_deref()), (written.timestamp_ms, Some("create")));
    assert_eq!((&second.value, second.text()), (&None, String::new()));

    let dir = tempfile::tempdir().unwrap();
    let (lines, output) = (dir.path().join("lines"), dir.path().join("values"));
    fs::write(&lines, "one\ntwo\n").unwrap();
    client.produce_lines("seen", &lines, Some(0)).unwrap();
    assert_eq!(client::values_to_file(&ConsumeOptions::new(&client, "seen"), &output).unwrap(), 4);
    assert_eq!(fs::read_to_string(&output).unwrap(), "one\ntwo\nwith \"quotes\" and ü\n\n");

    client.delete_records("seen", 0, 1).unwrap();
    client.add_partitions("seen", 3).unwrap();
    let ends: Vec<_> = client.offsets("seen").unwrap().iter().map(|part| (part.begin, part.end)).collect();
    assert_eq!(ends, [(1, 2), (0, 2), (0, 0)]);
    client.create_topic("narrow", 1, &[]).unwrap();
    client.alter_config("narrow", &[("max.message.bytes", "100000")]).unwrap();
    // A broker takes a configuration over some moments after it was made.
    let big = poll::until_some("the limit to count", limits::CONDITION, || {
        Ok(client.produce("narrow", &[Message::value("x".repeat(200_000))]).err())
    });
    let big = big.unwrap().to_string();
    assert!(big.contains("MSG_SIZE_TOO_LARGE"), "{big}");

    assert_eq!(client.group_offsets("nobody").unwrap(), []);
    assert_eq!(client.members("nobody").map(|group| group.members).unwrap_or_default(), []);

    // With a count it waits for more than is there, for as long as it may; how much of it was read by then is the machine's.
    let mut more = ConsumeOptions::new(&client.clone().within(NO_ANSWER), "seen");
    more.count = Some(4);
    let start = Instant::now();
    assert!(client::consume(&more).unwrap_or_default().len() <= 3);
    assert!(start.elapsed() >= NO_ANSWER);
    more.client = client.clone();
    let waits = thread::spawn({
        let more = more.clone();
        move || client::consume(&more).unwrap()
    });
    client.produce("seen", &[Message { partition: Some(2), ..Message::value("the fourth") }]).unwrap();
    assert_eq!(waits.join().unwrap().len(), 4);
    more.count = Some(1);
    assert!(!client::consume(&more).unwrap().is_empty());
    client.delete_topic("seen").unwrap();
    assert!(client.offsets("seen").unwrap_err().to_string().contains("UNKNOWN_TOPIC_OR_PART"));
}

#[test]
fn a_rule_of_access_counts_and_old_records_go() {
    let mut options = BrokerOptions { has_authorizer: true, ..BrokerOptions::default() };
    options.properties.push(("message.max.bytes".to_owned(), "50000".to_owned()));
    let broker = broker(&options);
    let client = broker.client();
    client.create_topic("closed", 1, &[]).unwrap();
    client.acl(["deny", "alice", "write", "topic", "closed"]).unwrap();
    let alice = broker.client_sasl(Listener::SaslSsl, Mechanism::ScramSha256);
    // A rule reaches the authorizer some moments after it was made.
    let denied = poll::until_some("the rule to count", limits::CONDITION, || {
        Ok(alice.produce("closed", &messages("x", 1)).err())
    });
    let denied = denied.unwrap().to_string();
    assert!(denied.contains("TOPIC_AUTHORIZATION_FAILED"), "{denied}");
    client.produce("closed", &messages("x", 1)).unwrap();
    assert!(client.produce("closed", &[Message::value("x".repeat(60_000))]).is_err());

    client.create_topic("short", 1, &[("retention.ms", "1"), ("segment.ms", "100")]).unwrap();
    client.produce("short", &messages("old", 1)).unwrap();
    poll::until("the record to go", limits::CONDITION, || {
        let parts = client.offsets("short")?;
        Ok(parts.iter().all(|part| part.begin == part.end && part.end > 0))
    })
    .unwrap();
}
