//! Channel, sink and source that log in over TLS, each in its own way, in one flow; and what they say if they cannot.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::flow::{DELIVERED, judge, load, wait_lines};
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::kafka::properties::USER;
use flumen_tests::kafka::security::token;
use flumen_tests::kafka::{Broker, Listener};
use flumen_tests::poll;
use flumen_tests::scene::Scene;

/// Options of one way to log in.
struct Logins {
    files: tempfile::TempDir,
    base: String,
}

impl Logins {
    fn new(broker: &Broker) -> Logins {
        let files = tempfile::tempdir().unwrap();
        let now = jiff::Timestamp::now().as_second();
        for (name, expires) in [("token", now + 3_600), ("expired", now - 100)] {
            fs::write(files.path().join(name), token(USER.0, now - 1_000, expires)).unwrap();
        }
        let ca = broker.tls().ca.display().to_string();
        let base = format!("brokers = [\"{}\"]\ntls_ca = \"{ca}\"", broker.bootstrap_on(Listener::SaslSsl));
        Logins { files, base }
    }

    fn scram(&self, bits: u32, password: &str) -> String {
        format!(
            "{}\nsasl = \"scram-sha-{bits}\"\nusername = \"{}\"\npassword = \"{password}\"\n",
            self.base, USER.0
        )
    }

    fn oauth(&self, file: &str) -> String {
        let file = self.files.path().join(file).display().to_string();
        format!("{}\nsasl = \"oauthbearer\"\ntoken_file = \"{file}\"\n", self.base)
    }
}

fn scene(name: &str, text: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.pipeline(text).unwrap();
    scene
}

fn carrier(name: &str, channel: &str, sink: &str, topic: &str) -> Scene {
    let text = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n[channel]\nkind = \"kafka\"\n{channel}\
         [sink]\ntype = \"kafka\"\ntopic = \"{topic}\"\ntransaction_interval = \"100ms\"\n{sink}"
    );
    scene(name, &text)
}

fn receiver(name: &str, source: &str, topic: &str) -> Scene {
    let text = format!(
        "[source]\ntype = \"kafka\"\ntopics = [\"{topic}\"]\nstart = \"earliest\"\n{source}\
         [sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nflush_interval = \"50ms\"\n"
    );
    scene(name, &text)
}

/// The channel by SCRAM, the sink (whose transaction has the channel's acknowledgement) by a token, the source by a token
/// and by SCRAM; then the same the other way round.
#[test]
fn channel_sink_and_source_log_in_over_tls() {
    let broker = Broker::shared().unwrap();
    let logins = Logins::new(broker);
    let ways = [logins.scram(512, USER.1), logins.oauth("token"), logins.scram(256, USER.1)];
    for (round, (channel, sink, source)) in [(0, 1, 2), (1, 2, 1)].into_iter().enumerate() {
        let topic = format!("logins-{round}");
        broker.client().create_topic(&topic, 1, &[]).unwrap();
        let a = carrier(&format!("la{round}"), &ways[channel], &ways[sink], &topic);
        // A topic of its own: rounds share a broker.
        let own = format!("kind = \"kafka\"\ntopic = \"between-{round}\"\ngroup = \"logins-{round}\"\n");
        let file = a.root().join("main.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("kind = \"kafka\"\n", &own, 1)).unwrap();
        let b = receiver(&format!("lb{round}"), &ways[source], &topic);
        let (mut agent_a, mut agent_b) = (a.start_ready().unwrap(), b.start_ready().unwrap());
        let once = Load { bytes_per_s: 0, rotation: Rotation::None, lines: Some(2_000), ..load(&a, 9) };
        let written = generator::write_now(once).unwrap();
        wait_lines(&[&b], &mut [&mut agent_a, &mut agent_b], 2_000).unwrap();
        agent_a.stop().unwrap();
        agent_b.stop().unwrap();
        let verdict = judge(&[&b], &written, |_| true).unwrap();
        assert!(verdict.holds() && verdict.events == 2_000, "{verdict}");
        for scene in [&a, &b] {
            let log = fs::read_to_string(scene.log()).unwrap();
            assert!(!log.contains(USER.1), "a secret is in the log");
        }
    }
}

/// A wrong password and an expired token, at channel and source: each is told by its cause in `status`.
#[test]
fn what_is_wrong_with_a_login_is_said_of_channel_and_source() {
    let broker = Broker::shared().unwrap();
    let logins = Logins::new(broker);
    let good = logins.scram(512, USER.1);
    let (password, expired) = (logins.scram(512, "not-the-secret"), logins.oauth("expired"));
    for (number, (login, cause)) in [
        (password, "refuses the login of `alice`"),
        (expired, "s ago: whatever writes that file does not keep it fresh"),
    ]
    .into_iter()
    .enumerate()
    {
        let scenes = [
            (carrier(&format!("lc{number}"), &login, &good, "logins"), "/pipelines/0/journal/waiting_for"),
            (receiver(&format!("ld{number}"), &login, "logins"), "/pipelines/0/sources/0/error"),
        ];
        for (scene, place) in &scenes {
            let agent = scene.start_ready().unwrap();
            let mut said = String::new();
            let told = poll::until("the cause in status", DELIVERED, || {
                let Some(status) = scene.status()? else { return Ok(false) };
                said = status.0.pointer(place).map(ToString::to_string).unwrap_or_default();
                Ok(said.contains(cause))
            });
            told.unwrap_or_else(|error| panic!("{error}: {place} says {said}\n{}", agent.log_tail()));
            assert!(!agent.log().unwrap().contains("not-the-secret"), "a secret is in the log");
            agent.kill().unwrap();
        }
    }
}
