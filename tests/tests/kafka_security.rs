//! Every way to log in at a real broker, and every way in which it does not come about: told by its cause, with the
//! option to look at, and without a secret.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use flumen_tests::kafka::security::token;
use flumen_tests::kafka::{Broker, BrokerOptions, Listener, Mechanism, Message, process};
use flumen_tests::scene::{self, Answer};
use flumen_tests::{limits, locate};

const PASSWORD: &str = "alice-secret";
const WRONG_PASSWORD: &str = "not-the-secret";
/// A person who waits for an answer; with room for a machine that does much else, two dozen such commands at once
/// among it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One broker for all tests here, with rules of access; one of its listeners knows one mechanism alone.
fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| {
        let one =
            ("listener.name.sasl_plaintext.sasl.enabled.mechanisms".to_owned(), "SCRAM-SHA-512".to_owned());
        let options =
            BrokerOptions { has_authorizer: true, properties: vec![one], ..BrokerOptions::default() };
        let broker = Broker::start(&options).unwrap();
        process::remove_after_exit(broker.dir()).unwrap();
        // Where a rule names someone, all others need one: here, before any test asks.
        for user in ["alice", "CN=alice"] {
            broker.client().acl(["allow", user, "write", "transactional_id", "flumen/check"]).unwrap();
        }
        broker
    })
}

/// Files with secrets, beside which commands run.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("good", &format!("{PASSWORD}\n"));
    write("wrong", WRONG_PASSWORD);
    let now = jiff::Timestamp::now().as_second();
    write("token", &token("alice", now - 10, now + 3_600));
    write("token-bob", &token("bob", now - 10, now + 3_600));
    write("token-expired", &token("alice", now - 1_000, now - 100));
    write("token-early", &token("alice", now + 3_600, now + 7_200));
    dir
}

fn flumen(dir: &Path, arguments: &[String]) -> Answer {
    let mut command = Command::new(locate::flumen().unwrap());
    command.args(arguments).current_dir(dir).env("NO_COLOR", "1").env("SECRET", PASSWORD);
    scene::run(command, PATIENCE).unwrap()
}

/// `flumen kafka check` at a listener with options separated by spaces; `{tls}` is where the keys are.
fn check(dir: &Path, listener: Listener, options: &str) -> Answer {
    let tls = broker().tls().ca.parent().unwrap().display().to_string();
    let mut arguments: Vec<String> =
        ["kafka", "check", "-b", &broker().bootstrap_on(listener)].map(str::to_owned).to_vec();
    arguments.extend(options.replace("{tls}", &tls).split_whitespace().map(str::to_owned));
    // A port that says nothing while the broker stands still is taken for one that wants a login; one of them does.
    let wants_login = listener == Listener::SaslPlaintext && options.is_empty();
    let said = |answer: &Answer| match !wants_login && answer.stdout.contains("wants a login") {
        true => "no answer".to_owned(),
        false => answer.stdout.clone(),
    };
    until_seen(|| flumen(dir, &arguments), said)
}

/// What is said where machine or broker stood still for longer than a question lasts. That is right then, and is not what
/// these tests are about.
fn is_of_a_stall(said: &str) -> bool {
    // Of a bare reason of librdkafka nothing was found out: its first word is the address.
    let is_bare = |line: &str| {
        let about = line.strip_prefix("BAD   broker ").and_then(|rest| rest.split_once(": "));
        about.map_or(line, |(_, text)| text).starts_with("127.0.0.1:")
    };
    let words = [
        "no answer",
        "cannot be verified: it has expired, or none",
        "is this a port of Kafka, for clients?",
        "whether the port talks TLS",
        "does a firewall let this through",
        "brokers are down",
    ];
    words.iter().any(|words| said.contains(words)) || said.lines().any(is_bare)
}

/// Asks again while the answer is one of a stall, or of rules that the broker has not learned of yet.
fn until_seen<T>(ask: impl Fn() -> T, said: impl Fn(&T) -> String) -> T {
    let seen = flumen_tests::poll::until_some("an answer about the cluster", limits::COMMAND * 2, || {
        let answer = ask();
        let text = said(&answer);
        let is_early = is_of_a_stall(&text) || text.contains("not authorised for the transactional id");
        if is_early {
            eprintln!("asked again after: {text}");
        }
        Ok((!is_early).then_some(answer))
    });
    seen.unwrap()
}

/// Without what differs between machines and runs.
fn steady(text: &str) -> String {
    let tls = broker().tls().ca.parent().unwrap().display().to_string();
    let mut text = text.replace(&tls, "TLS");
    for listener in Listener::ALL {
        text = text.replace(&broker().bootstrap_on(listener), &format!("{listener:?}"));
    }
    // One trouble, and what librdkafka says of it depends on which of the two sides was faster.
    for end in [
        "SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener?",
        "Disconnected: SSL connection closed by peer",
        "Disconnected: connection closed by peer: receive 0 after POLLIN",
    ] {
        text = text.replace(end, "Disconnected");
    }
    // Said in two ways, one after the other: which is the newest when the question ends differs.
    const FAILED: &str = "error:0A000086:SSL routines::certificate verify failed";
    const AT_LENGTH: &str = ": broker certificate could not be verified, verify that ssl.ca.location is correctly configured or \
                             root CA certificates are installed (install ca-certificates package)";
    text = text.replace(&format!("SSL handshake failed: {FAILED}{AT_LENGTH}"), FAILED);
    let mut steady = String::new();
    for word in text.split_inclusive([' ', '\n']) {
        let bare = word.trim_end();
        let time = bare.trim_end_matches(':').parse::<jiff::Timestamp>().is_ok();
        let number = bare.len() > 1 && bare.bytes().all(|byte| byte.is_ascii_digit());
        steady += &if time {
            word.replace(bare.trim_end_matches(':'), "TIME")
        } else if number {
            word.replace(bare, "NUMBER")
        } else {
            word.to_owned()
        };
    }
    steady
}

fn hides_secrets(answer: &Answer) {
    for secret in [PASSWORD, WRONG_PASSWORD, &token("", 0, 1)[..12]] {
        assert!(!answer.stdout.contains(secret) && !answer.stderr.contains(secret), "{answer:?}");
    }
}

#[test]
fn every_way_to_log_in_works() {
    let dir = place();
    let cases = [
        (Listener::Plaintext, ""),
        (Listener::SaslSsl, "--tls-ca {tls}/ca.pem --sasl plain --username alice --password-file good"),
        (
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl scram-sha-256 --username alice --password-env SECRET",
        ),
        (
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl scram-sha-512 --username alice --password-file good",
        ),
        (Listener::SaslSsl, "--tls-ca {tls}/ca.pem --sasl oauthbearer --token-file token"),
        (Listener::SaslPlaintext, "--sasl scram-sha-512 --username alice --password-file good"),
        (
            Listener::MutualTls,
            "--tls-ca {tls}/ca.pem --tls-certificate {tls}/client.pem --tls-key {tls}/client.key",
        ),
    ];
    thread::scope(|scope| {
        for (listener, options) in cases {
            let dir = dir.path();
            scope.spawn(move || {
                let answer = check(dir, listener, options);
                assert!(answer.status.success(), "{listener:?} {options}: {answer:?}");
                assert!(answer.stdout.contains("\nok    transactions: possible"), "{}", answer.stdout);
                hides_secrets(&answer);
            });
        }
    });
}

#[test]
fn every_way_that_fails_says_which_it_is() {
    let dir = place();
    let cases = [
        (
            "wrong password, PLAIN",
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl plain --username alice --password-file wrong",
        ),
        (
            "wrong password, SCRAM",
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl scram-sha-256 --username alice --password-file wrong",
        ),
        (
            "unknown user",
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl scram-sha-512 --username nobody --password-file good",
        ),
        (
            "mechanism that the listener does not know",
            Listener::SaslPlaintext,
            "--sasl plain --username alice --password-file good",
        ),
        (
            "login at a port without",
            Listener::Plaintext,
            "--sasl plain --username alice --password-file good",
        ),
        ("no login at a port with", Listener::SaslPlaintext, ""),
        (
            "wrong CA",
            Listener::SaslSsl,
            "--tls-ca {tls}/other-ca.pem --sasl plain --username alice --password-file good",
        ),
        ("no CA", Listener::SaslSsl, "--tls --sasl plain --username alice --password-file good"),
        ("broker's certificate expired", Listener::Expired, "--tls-ca {tls}/ca.pem"),
        ("no certificate of ours", Listener::MutualTls, "--tls-ca {tls}/ca.pem"),
        (
            "our certificate from a stranger",
            Listener::MutualTls,
            "--tls-ca {tls}/ca.pem --tls-certificate {tls}/stranger.pem --tls-key {tls}/stranger.key",
        ),
        (
            "our certificate expired",
            Listener::MutualTls,
            "--tls-ca {tls}/ca.pem --tls-certificate {tls}/expired-client.pem --tls-key {tls}/expired-client.key",
        ),
        (
            "key of another certificate",
            Listener::MutualTls,
            "--tls-ca {tls}/ca.pem --tls-certificate {tls}/client.pem --tls-key {tls}/stranger.key",
        ),
        ("TLS at a plaintext port", Listener::Plaintext, "--tls-ca {tls}/ca.pem"),
        (
            "TLS with login at a plaintext port with login",
            Listener::SaslPlaintext,
            "--tls-ca {tls}/ca.pem --sasl plain --username alice --password-file good",
        ),
        ("plaintext at a TLS port", Listener::MutualTls, ""),
        (
            "plaintext with login at a TLS port",
            Listener::SaslSsl,
            "--sasl plain --username alice --password-file good",
        ),
        (
            "token expired",
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl oauthbearer --token-file token-expired",
        ),
        (
            "token not valid yet",
            Listener::SaslSsl,
            "--tls-ca {tls}/ca.pem --sasl oauthbearer --token-file token-early",
        ),
        ("no token", Listener::SaslSsl, "--tls-ca {tls}/ca.pem --sasl oauthbearer --token-file good"),
        ("no file of the token", Listener::SaslSsl, "--sasl oauthbearer --token-file no-such-file"),
        ("no file of the CA", Listener::SaslSsl, "--tls-ca no-such-file"),
        ("CA that is not PEM", Listener::SaslSsl, "--tls-ca good"),
        (
            "key that is a certificate",
            Listener::MutualTls,
            "--tls-certificate {tls}/client.pem --tls-key {tls}/client.pem",
        ),
    ];
    let answers: Vec<String> = thread::scope(|scope| {
        let asked: Vec<_> = cases
            .iter()
            .map(|(what, listener, options)| {
                let dir = dir.path();
                scope.spawn(move || {
                    let answer = check(dir, *listener, options);
                    assert_eq!(answer.status.code(), Some(1), "{what}: {answer:?}");
                    hides_secrets(&answer);
                    let (said, _) = answer.stdout.rsplit_once('\n').unwrap().0.rsplit_once('\n').unwrap();
                    format!("{what}\n{}\n", steady(said))
                })
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    insta::assert_snapshot!(answers.join("\n"));
}

#[test]
fn what_is_no_cluster_is_told_in_words() {
    let dir = place();
    let cases = [
        "kafka check -b no-such-host.invalid:9092",
        "kafka check -b 127.0.0.1:1",
        "kafka topics -b 127.0.0.1:1",
        "kafka lag group -b 127.0.0.1:1",
        "kafka produce topic -b 127.0.0.1:1",
        "kafka consume topic -b 127.0.0.1:1",
        "kafka topics create topic -b 127.0.0.1:1",
        "kafka check -b 127.0.0.1",
        "kafka check",
        "kafka check -b k:1 --sasl plain --username alice",
        "kafka check -b k:1 --password-file good",
        "kafka check -b k:1 --sasl gssapi",
        "kafka check -b k:1 --property acks=1",
        "kafka check -b k:1 --property no.such.property=1",
        "kafka check -b k:1 --config flumen.toml",
    ];
    let answers: Vec<String> = thread::scope(|scope| {
        let asked: Vec<_> = cases
            .iter()
            .map(|line| {
                let dir = dir.path();
                scope.spawn(move || {
                    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                    let said = |answer: &Answer| format!("{}{}", answer.stdout, answer.stderr);
                    // A command that got no time to hear that it was refused says that nobody answered.
                    let answer = until_seen(|| flumen(dir, &arguments), said);
                    let code = answer.status.code().unwrap();
                    format!("$ flumen {line}\n{}[{code}]\n", said(&answer))
                })
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    insta::assert_snapshot!(answers.join("\n"));
}

#[test]
fn a_refusal_of_access_names_what_to_ask_for() {
    let (dir, broker) = (place(), broker());
    let client = broker.client();
    client.create_topic("closed", 1, &[]).unwrap();
    client.create_topic("readable", 1, &[]).unwrap();
    client.acl(["deny", "bob", "describe", "topic", "closed"]).unwrap();
    client.acl(["deny", "bob", "write", "topic", "readable"]).unwrap();
    client.acl(["allow", "bob", "describe", "topic", "readable"]).unwrap();
    client.acl(["deny", "bob", "read", "group", "theirs"]).unwrap();
    client.acl(["deny", "bob", "describe", "group", "theirs"]).unwrap();
    let lines = ["topics describe closed", "topics create closed", "produce readable", "consume closed"];
    let ask = |line: &str| {
        let login = format!(
            "kafka {line} -b {} --tls-ca {} --sasl oauthbearer --token-file token-bob",
            broker.bootstrap_on(Listener::SaslSsl),
            broker.tls().ca.display()
        );
        let mut command = Command::new("sh");
        let words = format!("echo line | '{}' {login}", locate::flumen().unwrap().display());
        command.arg("-c").arg(words).current_dir(dir.path());
        let answer = scene::run(command, limits::COMMAND).unwrap();
        let code = answer.status.code().unwrap();
        format!("$ flumen kafka {line}\n{}[{code}]\n", answer.stderr)
    };
    // The broker follows its controller: rules count a moment after they were made, one after the other.
    flumen_tests::poll::until("the rules to count", limits::COMMAND, || {
        let is_refused = |(line, why): &(&str, &str)| ask(line).contains(why);
        let both = [("topics describe closed", "ask for DESCRIBE"), ("produce readable", "ask for WRITE")];
        Ok(both.iter().all(is_refused))
    })
    .unwrap();
    let seen = |line: &str| until_seen(|| ask(line), |said: &String| said.clone());
    assert!(ask("lag theirs").ends_with("[1]\n"));
    let said: Vec<String> = thread::scope(|scope| {
        let asked: Vec<_> = lines.iter().map(|line| scope.spawn(|| seen(line))).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    // Nobody named bob among those who may use the id.
    assert!(ask("check").ends_with("[1]\n"));
    let said = said.join("\n");
    insta::assert_snapshot!(steady(&said));
}

/// A pipeline whose one event goes to sinks that each fail in a way of their own, and to one that does not.
fn pipeline(sinks: &[(&str, String)]) -> String {
    let mut text = "[source.in]\ntype = \"generator\"\ncount = 1\n\n[channel.main]\n".to_owned();
    for (name, options) in sinks {
        writeln!(text, "[sink.{name}]\ntype = \"kafka\"\n{options}\n").unwrap();
    }
    text
}

#[test]
fn a_running_agent_says_in_status_what_is_wrong_and_no_secret() {
    let (dir, broker) = (place(), broker());
    let client = broker.client();
    for topic in ["taken", "forbidden"] {
        client.create_topic(topic, 1, &[]).unwrap();
    }
    // In this order: what is not allowed on a topic that has rules is denied.
    client.acl(["allow", "alice", "describe", "topic", "forbidden"]).unwrap();
    client.acl(["deny", "alice", "write", "topic", "forbidden"]).unwrap();
    // A rule counts some moments after it was made: the sink's only event would be there before.
    let alice = broker.client_sasl(Listener::SaslPlaintext, Mechanism::ScramSha512);
    flumen_tests::poll::until("the rules to count", limits::CONDITION, || {
        let refused = alice.produce("forbidden", &[Message::value("x")]).err();
        Ok(refused.is_some_and(|error| error.to_string().contains("TOPIC_AUTHORIZATION_FAILED")))
    })
    .unwrap();
    let tls = broker.tls().ca.parent().unwrap().display().to_string();
    let at = |listener, rest: &str| {
        let options = rest.replace("{tls}", &tls).replace("; ", "\n");
        let topic = if rest.contains("topic = ") { "" } else { "topic = \"taken\"\n" };
        format!("brokers = [\"{}\"]\n{topic}{options}", broker.bootstrap_on(listener))
    };
    let ssl = |rest: &str| at(Listener::SaslSsl, &format!("tls_ca = \"{{tls}}/ca.pem\"; {rest}"));
    let login = "sasl = \"scram-sha-512\"; username = \"alice\"";
    let files = dir.path().display().to_string();
    let sinks = [
        ("good", ssl(&format!("{login}; password = \"${{file:{files}/good}}\""))),
        ("wrong_password", ssl(&format!("{login}; password = \"${{file:{files}/wrong}}\""))),
        (
            "wrong_mechanism",
            at(
                Listener::SaslPlaintext,
                "sasl = \"plain\"; username = \"alice\"; password = \"${env:SECRET}\"",
            ),
        ),
        ("wrong_ca", at(Listener::SaslSsl, "tls_ca = \"{tls}/other-ca.pem\"")),
        ("expired_broker", at(Listener::Expired, "tls_ca = \"{tls}/ca.pem\"")),
        (
            "expired_certificate",
            at(
                Listener::MutualTls,
                "tls_ca = \"{tls}/ca.pem\"; tls_certificate = \"{tls}/expired-client.pem\"; tls_key = \"{tls}/expired-client.key\"",
            ),
        ),
        ("expired_token", ssl(&format!("sasl = \"oauthbearer\"; token_file = \"{files}/token-expired\""))),
        ("no_file", at(Listener::SaslSsl, "tls_ca = \"/no/such/file.pem\"")),
        ("tls_at_plaintext", at(Listener::Plaintext, "tls_ca = \"{tls}/ca.pem\"")),
        ("plaintext_at_tls", at(Listener::MutualTls, "")),
        ("no_such_host", "brokers = [\"no-such-host.invalid:9092\"]\ntopic = \"t\"".into()),
        ("nobody_there", "brokers = [\"127.0.0.1:1\"]\ntopic = \"t\"".into()),
        ("no_such_topic", at(Listener::Plaintext, "topic = \"no-such-topic\"")),
        (
            "forbidden",
            at(
                Listener::SaslPlaintext,
                &format!("topic = \"forbidden\"; {login}; password = \"${{env:SECRET}}\""),
            ),
        ),
    ];
    let mut scene = flumen_tests::scene::Scene::new().unwrap();
    scene.env = vec![("SECRET".into(), PASSWORD.into())];
    scene.pipeline(&pipeline(&sinks)).unwrap();
    let agent = scene.start_ready().unwrap();
    let ill = |name: &str| name != "good";
    // All of it at once: each sink has an error of its own, and the good one has delivered meanwhile.
    let status = flumen_tests::poll::until_some("an error of every ill sink", limits::COMMAND * 2, || {
        let Some(status) = scene.status()? else { return Ok(None) };
        let sinks = status.0["pipelines"][0]["sinks"].as_array().cloned().unwrap_or_default();
        let is_told = |sink: &serde_json::Value| {
            if ill(sink["name"].as_str().unwrap_or_default()) {
                // A port that says nothing while the broker stands still is taken for one that wants a login.
                let is_of_a_stall = |error: &str| is_of_a_stall(error) || error.contains("wants a login");
                sink["error"].as_str().is_some_and(|error| !is_of_a_stall(error))
            } else {
                sink["metrics"]["events_delivered"] == 1
            }
        };
        Ok((!sinks.is_empty() && sinks.iter().all(is_told)).then_some(sinks))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", agent.log_tail(), scene.answered().unwrap().0));
    let mut said = String::new();
    for sink in status.iter().filter(|sink| ill(sink["name"].as_str().unwrap())) {
        let (name, error) = (sink["name"].as_str().unwrap(), sink["error"].as_str().unwrap());
        writeln!(said, "{name}\n{error}\n").unwrap();
        assert!(sink["error_for_s"].as_f64().is_some());
    }
    let log = agent.log().unwrap();
    for secret in [PASSWORD, WRONG_PASSWORD] {
        assert!(!log.contains(secret) && !said.contains(secret), "a secret is shown");
    }
    agent.kill().unwrap();
    insta::assert_snapshot!(steady(&said).replace(&files, "FILES"));
}

#[test]
fn files_of_options_are_checked_before_anything_runs() {
    let dir = place();
    let scene = flumen_tests::scene::Scene::new().unwrap();
    let files = dir.path().display().to_string();
    let sinks = [
        ("no_file", "brokers = [\"k:1\"]\ntopic = \"t\"\ntls_ca = \"/no/such/file.pem\"".to_owned()),
        ("no_pem", format!("brokers = [\"k:1\"]\ntopic = \"t\"\ntls_ca = \"{files}/good\"")),
        ("illegal_topic", "brokers = [\"k:1\"]\ntopic = \"a topic\"".to_owned()),
        (
            "unknown_mechanism",
            "brokers = [\"k:1\"]\ntopic = \"t\"\nsasl = \"gssapi\"\nusername = \"u\"\npassword = \"p\""
                .to_owned(),
        ),
    ];
    let mut said = String::new();
    // The text first: what is wrong with it hides what only files and components show.
    for sinks in [&sinks[..3], &sinks[3..]] {
        scene.pipeline(&pipeline(sinks)).unwrap();
        let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
        assert_eq!(answer.status.code(), Some(78), "{answer:?}");
        said += &answer.stderr;
    }
    insta::assert_snapshot!(
        said.replace(&scene.root().display().to_string(), "SCENE").replace(&files, "FILES")
    );
}
