//! Sinks that are plugins, against real HTTP servers: what arrives how often, what is refused, and what is never shown.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::http::{Appender, Faults, Reply, Request, Server};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// A pipeline from `in/*.log` to a plugin. An event begins with `e`, so `+` continues it.
fn pipeline(plugin: &str, server: &Server, more: &str) -> String {
    let (url, address) = (server.url(), server.address);
    let egress = match more.contains("egress") {
        true => String::new(),
        false => format!("egress = {{ allow = [\"{address}\"], timeout = \"2s\" }}\n"),
    };
    let config = match more.contains("config") {
        true => String::new(),
        false => format!("config = {{ url = \"{url}/lines\" }}\n"),
    };
    format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\nmultiline_start = \"^[e{{]|^[A-Z]+$\"\nmultiline_timeout = \"100ms\"\n\n\
         [batch]\nrows = 300\nlinger = \"5ms\"\n\n\
         [sink.out]\nplugin = \"{plugin}\"\ngrant = [\"http\"]\nbatch_events = 200\nlinger = \"20ms\"\n{config}{egress}{more}"
    )
}

fn scene(plugin: &str, server: &Server, more: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    // Some of these sinks never deliver.
    scene.drain_timeout = "2s".to_owned();
    scene.install(plugin, plugin).unwrap();
    scene.pipeline(&pipeline(plugin, server, more)).unwrap();
    scene
}

fn write(scene: &Scene, lines: &[&str]) {
    let mut file = File::options().create(true).append(true).open(scene.input().join("a.log")).unwrap();
    file.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
}

fn ended(agent: &mut Agent, what: &str, condition: impl Fn() -> bool) {
    poll::until(what, limits::CONDITION, || {
        agent.expect_running()?;
        Ok(condition())
    })
    .unwrap();
}

/// Waits until a text stands in the status.
fn wait_status(scene: &Scene, agent: &mut Agent, text: &str) {
    poll::until(&format!("the status to say {text:?}"), limits::CONDITION, || {
        agent.expect_running()?;
        Ok(scene.status()?.is_some_and(|status| status.mentions(text)))
    })
    .unwrap();
}

fn check(scene: &Scene) -> (bool, String) {
    let answer = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap();
    (answer.status.success(), answer.stdout + &answer.stderr)
}

/// How often each line is there.
fn counts(lines: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line.clone()).or_default() += 1);
    counts
}

/// The same plugin with other bytes: a section that nobody reads.
fn variant(plugin: &str, number: u8) -> Vec<u8> {
    let mut bytes = fs::read(locate::plugin(plugin).unwrap()).unwrap();
    bytes.extend([0, 3, 1, b'v', number]);
    bytes
}

#[test]
fn exactly_once_whatever_dies() {
    const EVENTS: usize = 30_000;
    const KILLS: usize = 12;
    let seed = 7_001;
    let mut random = StdRng::seed_from_u64(seed);
    let appender = Arc::new(Appender::start(seed).unwrap());
    let scene = scene("http-append", &appender.server, "");
    assert!(check(&scene).1.contains("exactly-once"), "{}", check(&scene).1);
    let late = Some((3, Duration::from_millis(2_500)));
    appender.faults(Faults { cut: 4, lose_answer: 8, busy: 4, late });
    let mut file = File::create(scene.input().join("a.log")).unwrap();
    let mut events = 0..EVENTS;
    let mut write = |count: usize| {
        for event in events.by_ref().take(count) {
            // One of 97 has a line end in it, which the plugin rejects.
            let more = if event % 97 == 5 { "\n+more" } else { "" };
            file.write_all(format!("event {event:06}{more}\n").as_bytes()).unwrap();
        }
    };
    for round in 0..KILLS {
        // Each round has events of its own: a fast machine delivers all there is before the kill.
        let before = appender.counted().0;
        write(EVENTS / (KILLS + 1) / 2);
        let mut agent = scene.start_ready().unwrap();
        ended(&mut agent, "requests", || appender.counted().0 >= before + 3);
        write(EVENTS / (KILLS + 1) / 2);
        match round % 4 {
            0 => appender.server.down(true),
            1 => fs::write(scene.plugin_dir().join("http-append.wasm"), variant("http-append", round as u8))
                .unwrap(),
            _ => {}
        }
        let until = Instant::now() + Duration::from_millis(random.random_range(0..900));
        ended(&mut agent, "a moment to die", || Instant::now() >= until);
        agent.kill().unwrap();
        appender.server.down(false);
    }
    write(EVENTS);
    let agent = scene.start_ready().unwrap();
    let rejected = (0..EVENTS).filter(|event| event % 97 == 5).count();
    appender.faults(Faults { lose_answer: 20, ..Faults::default() });
    let expected = (EVENTS - rejected) as u64;
    poll::until_counted("everything", limits::CONDITION, expected, || Ok(appender.len() as u64)).unwrap();
    appender.faults(Faults::default());
    poll::until("the quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() >= rejected)).unwrap();
    let status = scene.answered().unwrap();
    assert!(status.mentions("\"out\":\"exactly-once\""), "{}", status.0);
    agent.stop().unwrap();
    let lines = appender.lines();
    let wanted: Vec<String> =
        (0..EVENTS).filter(|event| event % 97 != 5).map(|event| format!("event {event:06}")).collect();
    let (requests, conflicts) = appender.counted();
    eprintln!(
        "seed {seed}: {} lines in {requests} requests, {conflicts} of them refused as late or repeated",
        lines.len()
    );
    if lines != wanted {
        let doubled: Vec<_> = counts(&lines).into_iter().filter(|(_, times)| *times > 1).take(5).collect();
        let first = lines.iter().zip(&wanted).position(|(is, wanted)| is != wanted);
        panic!("{} lines of {}, doubled {doubled:?}, first other at {first:?}", lines.len(), wanted.len());
    }
    let mut bodies: Vec<String> = scene.quarantine().unwrap().iter().map(body).collect();
    bodies.sort();
    let wanted: Vec<String> =
        (0..EVENTS).filter(|event| event % 97 == 5).map(|event| format!("event {event:06}\n+more")).collect();
    assert_eq!(bodies, wanted, "{} in quarantine", bodies.len());
}

fn body(event: &Value) -> String {
    event["body"].as_str().unwrap_or_else(|| panic!("{event}")).to_owned()
}

#[test]
fn at_least_once_is_said_and_kept() {
    let appender = Appender::start(1).unwrap();
    let scene = scene("bad-sink", &appender.server, "");
    let (fine, text) = check(&scene);
    assert!(fine && text.contains("at-least-once") && text.contains("plugin bad-sink"), "{text}");
    appender.faults(Faults { lose_answer: 30, busy: 20, ..Faults::default() });
    let lines: Vec<String> = (0..2_400).map(|event| format!("event {event:04}")).collect();
    // Each round has lines of its own: a fast machine delivers all there is before the kill.
    let mut rounds = lines.chunks(600);
    let mut some_more =
        || write(&scene, &rounds.next().unwrap().iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..3 {
        let before = appender.counted().0;
        some_more();
        let mut agent = scene.start_ready().unwrap();
        ended(&mut agent, "requests", || appender.counted().0 > before + 1);
        agent.kill().unwrap();
    }
    some_more();
    let mut agent = scene.start_ready().unwrap();
    appender.faults(Faults::default());
    ended(&mut agent, "each line", || counts(&appender.lines()).len() == lines.len());
    let shown = scene.shown().unwrap();
    assert!(shown.contains("at-least-once") && shown.contains("egress:"), "{shown}");
    agent.stop().unwrap();
}

/// Runtimes of some languages hold most of what the plugin may have as soon as it is open.
#[test]
fn an_instance_that_is_worn_from_the_start_delivers() {
    for plugin in ["bad-sink", "http-append"] {
        let appender = Appender::start(3).unwrap();
        // 671 kB, where a Rust plugin begins with 1.1 MB.
        let scene = scene(plugin, &appender.server, "limits = { recycle_memory_percent = 1 }\n");
        let lines: Vec<String> = (0..1_000).map(|event| format!("event {event:04}")).collect();
        write(&scene, &lines.iter().map(String::as_str).collect::<Vec<_>>());
        let mut agent = scene.start_ready().unwrap();
        ended(&mut agent, "each line", || counts(&appender.lines()).len() == lines.len());
        agent.stop().unwrap();
        // The other one keeps no cursor.
        if plugin == "http-append" {
            assert_eq!(appender.lines(), lines);
        }
        assert!(scene.quarantine().unwrap().is_empty());
    }
}

#[test]
fn only_the_guilty_events_leave() {
    let appender = Appender::start(2).unwrap();
    let scene = scene("bad-sink", &appender.server, "limits = { time = \"1s\" }\n");
    let mut lines: Vec<String> = (0..1_000).map(|event| format!("event {event:04}")).collect();
    for (at, what) in
        [(900, "REJECT"), (700, "LIE"), (500, "MEMORY"), (300, "LOOP"), (100, "TRAP"), (100, "TRAP")]
    {
        lines.insert(at, what.to_owned());
    }
    write(&scene, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    let mut agent = scene.start_ready().unwrap();
    ended(&mut agent, "the good ones", || counts(&appender.lines()).len() == 1_000);
    poll::until("the guilty ones", limits::CONDITION, || Ok(scene.quarantine()?.len() >= 6)).unwrap();
    agent.stop().unwrap();
    let mut found: Vec<(String, String)> =
        (scene.quarantine().unwrap().iter()).map(|event| (body(event), event.to_string())).collect();
    found.sort();
    let bodies: Vec<&str> = found.iter().map(|(body, _)| body.as_str()).collect();
    assert_eq!(bodies, ["LIE", "LOOP", "MEMORY", "REJECT", "TRAP", "TRAP"]);
    for ((body, event), reason) in
        found.iter().zip(["lies", "longer than 1000 ms", "memory", "says so", "trapped", "trapped"])
    {
        assert!(event.contains(reason), "{body}: {event}");
    }
}

#[test]
fn what_is_not_allowed_is_said_and_not_done() {
    let server = Server::start(|_| panic!("somebody asked")).unwrap();
    let port = server.address.port();
    for (host, allow, reason) in [
        ("127.0.0.1", "other.example.com:80".to_owned(), "not in the list of what is allowed"),
        (
            "127.0.0.1",
            format!("127.0.0.1:{}", port.wrapping_add(1).max(1)),
            "not in the list of what is allowed",
        ),
        // A name that leads to loopback, whatever list of names it is in.
        ("127.1", format!("*.1:{port}"), "loopback"),
    ] {
        let config =
            format!("config = {{ url = \"http://{host}:{port}/\" }}\negress = {{ allow = [\"{allow}\"] }}\n");
        let scene = scene("bad-sink", &server, &config);
        write(&scene, &["event 1"]);
        let mut agent = scene.start_ready().unwrap();
        wait_status(&scene, &mut agent, reason);
        let status = scene.answered().unwrap();
        assert!(status.mentions("\"connections\":0") && !status.mentions("\"denied\":0"), "{}", status.0);
        agent.stop().unwrap();
    }
}

#[test]
fn a_grant_or_its_egress_that_is_missing_or_wrong_is_an_error_before_anything_runs() {
    let server = Server::start(|_| panic!("somebody asked")).unwrap();
    let scene = Scene::new().unwrap();
    scene.install("bad-sink", "bad-sink").unwrap();
    let base = "[source.in]\ntype = \"stdin\"\n\n[sink.out]\nplugin = \"bad-sink\"\nconfig = { url = \"http://x/\" }\n";
    for (more, parts) in [
        ("", vec!["http", "grant"]),
        ("grant = [\"http\"]\n", vec!["nothing says where they may lead", "add egress"]),
        ("egress = { allow = [\"a:1\"] }\n", vec!["is for a plugin that is granted http or tcp"]),
        ("grant = [\"http\"]\negress = { allow = [\"http://a\"] }\n", vec!["`egress.allow`", "host:port"]),
        (
            "grant = [\"http\"]\negress = { allow = [\"a:1\"], ca = \"none.pem\" }\n",
            vec!["`egress.ca`", "none.pem"],
        ),
        (
            "grant = [\"http\"]\negress = { allow = [\"a:1\"], secrets = { t = \"plain\" } }\n",
            vec!["stands in this file", "${file:"],
        ),
        (
            "grant = [\"http\"]\negress = { allow = [\"a:1\"], alow = [] }\n",
            vec!["alow", "did you mean `allow`"],
        ),
        (
            "grant = [\"http\", \"state\"]\negress = { allow = [\"a:1\"] }\n",
            vec!["cannot be granted `state`"],
        ),
        ("grant = [\"htp\"]\n", vec!["htp", "did you mean `http`"]),
        ("type = \"file\"\n", vec!["no key `type`"]),
    ] {
        scene.pipeline(&format!("{base}{more}")).unwrap();
        let (fine, text) = check(&scene);
        assert!(!fine && text.contains('^'), "{more}: {text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{more}: {parts:?} in {text}");
    }
    scene.install("filter", "bad-sink").unwrap();
    scene.pipeline(&format!("{base}grant = [\"http\"]\negress = {{ allow = [\"a:1\"] }}\n")).unwrap();
    let (fine, text) = check(&scene);
    assert!(!fine && text.contains("a sink"), "{text}");
    drop(server);
}

#[test]
fn options_are_held_against_the_schema_of_the_plugin_before_anything_runs() {
    let scene = Scene::new().unwrap();
    scene.install("elasticsearch-bulk", "elasticsearch-bulk").unwrap();
    let text = "[source.in]\ntype = \"stdin\"\n\n[sink]\nplugin = \"elasticsearch-bulk\"\ngrant = [\"http\"]\negress = { allow = [\"a:1\"] }\n\n\
                [sink.config]\nurl = \"http://a:1\"\nidx = \"logs\"\naction = \"update\"\nheaders = [\"host\", \"\"]\n\n\
                [sink.config.authorization]\nsecrets = \"key\"\n";
    scene.pipeline(text).unwrap();
    let (fine, text) = check(&scene);
    assert!(!fine, "{text}");
    for (line, caret, reason) in [
        ("11 | idx = \"logs\"", "   | ^^^", "the plugin has no option `idx`"),
        ("12 | action = \"update\"", "   | ^^^^^^", "none of the values"),
        ("13 | headers = [\"host\", \"\"]", "   |                    ^^", "fewer than 1 characters"),
        ("16 | secrets = \"key\"", "   | ^^^^^^^", "the plugin has no option `secrets`"),
    ] {
        let at = text.find(line).unwrap_or_else(|| panic!("{line} is not in\n{text}"));
        assert!(
            text[at..].lines().nth(1) == Some(caret) && text.contains(reason),
            "{line}, {reason}:\n{text}"
        );
    }
    for reason in ["the plugin needs `index`", "the plugin needs `secret`", "6 errors"] {
        assert!(text.contains(reason), "{reason}:\n{text}");
    }
}

#[test]
fn a_secret_is_sent_and_never_shown() {
    const SECRET: &str = "open-sesame-4711";
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let sink = seen.clone();
    let server = Server::start(move |request| {
        let echo = format!("I got {:?} and {}", request.headers, String::from_utf8_lossy(&request.body));
        sink.lock().unwrap().push(request);
        Reply::new(500, echo)
    })
    .unwrap();
    let address = server.address;
    let more = format!(
        "config = {{ url = \"{}/\", secret = \"token\" }}\n\
         egress = {{ allow = [\"{address}\"], secrets = {{ token = \"${{file:token}}\", other = {{ value = \"${{file:token}}\", hosts = [\"x:1\"] }} }} }}\n",
        server.url()
    );
    let scene = scene("bad-sink", &server, &more);
    fs::write(scene.root().join("token"), format!("{SECRET}\n")).unwrap();
    write(&scene, &["event 1"]);
    let (fine, text) = check(&scene);
    assert!(fine && !text.contains(SECRET), "{text}");
    let mut agent = scene.start_ready().unwrap();
    wait_status(&scene, &mut agent, "I got");
    let status = scene.answered().unwrap();
    assert!(status.mentions("(secret)") && !status.mentions(SECRET), "{}", status.0);
    agent.stop().unwrap();
    let request = seen.lock().unwrap().first().unwrap().clone();
    assert_eq!(request.header("x-key"), Some(SECRET));
    assert_eq!(request.body, format!("{SECRET}event 1\n").as_bytes());
    assert_nowhere(scene.root(), SECRET);
    // To another host than its own it does not go. Under a path of its own: a request of the agent before may still be on its way.
    let other = more.replace("/\", secret = \"token\"", "/other\", secret = \"other\"");
    assert!(other.contains("/other\", secret = \"other\""), "{other}");
    scene.pipeline(&pipeline("bad-sink", &server, &other)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    wait_status(&scene, &mut agent, "is not for");
    agent.stop().unwrap();
    assert!(seen.lock().unwrap().iter().all(|request| request.path == "/"));
    assert_nowhere(scene.root(), SECRET);
}

/// In no file below a directory but the one that keeps it.
fn assert_nowhere(dir: &Path, secret: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_nowhere(&path, secret);
        } else if path.is_file() && path.file_name().unwrap() != "token" {
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} has the secret", path.display());
        }
    }
}

#[test]
fn a_server_that_hangs_or_answers_without_end_is_named_and_survived() {
    let mode = Arc::new(Mutex::new("hang"));
    let (asked, lines) = (mode.clone(), Arc::new(Mutex::new(Vec::new())));
    let taken = lines.clone();
    let server = Server::start(move |request| match *asked.lock().unwrap() {
        "hang" => Reply::new(200, "").after(Duration::from_secs(3)),
        "huge" => Reply::new(200, vec![b'x'; 3 << 20]),
        _ => {
            taken.lock().unwrap().extend(String::from_utf8_lossy(&request.body).lines().map(str::to_owned));
            Reply::new(200, "")
        }
    })
    .unwrap();
    let egress = format!(
        "egress = {{ allow = [\"{}\"], timeout = \"200ms\", response = \"1 MiB\" }}\n",
        server.address
    );
    let scene = scene("bad-sink", &server, &egress);
    write(&scene, &["event 1"]);
    let mut agent = scene.start_ready().unwrap();
    wait_status(&scene, &mut agent, "no answer in time");
    *mode.lock().unwrap() = "huge";
    wait_status(&scene, &mut agent, "the answer has more than 1048576 bytes");
    assert!(lines.lock().unwrap().is_empty());
    *mode.lock().unwrap() = "well";
    ended(&mut agent, "the event", || lines.lock().unwrap().contains(&"event 1".to_owned()));
    agent.stop().unwrap();
    assert!(scene.quarantine().unwrap().is_empty());
}

/// A bulk API: documents by id, as the real one keeps them.
#[derive(Default)]
struct Bulk {
    documents: BTreeMap<String, (String, Value)>,
    requests: usize,
    /// Of them, those whose documents were looked at.
    bulks: usize,
    doubles: usize,
}

fn bulk(state: &Mutex<Bulk>, request: &Request) -> Reply {
    let mut state = state.lock().unwrap();
    state.requests += 1;
    assert_eq!(request.header("authorization"), Some("ApiKey k-4711-xyz"));
    assert!(request.path.starts_with("/_bulk?"), "{}", request.path);
    let text = String::from_utf8(request.body.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > 2 * 150 {
        return Reply::new(413, "too large");
    }
    if state.requests.is_multiple_of(5) {
        return Reply::new(429, "slow down").header("retry-after", "0");
    }
    let mut items = Vec::new();
    for pair in lines.chunks(2) {
        let action: Value = serde_json::from_str(pair[0]).unwrap();
        let document: Value = serde_json::from_str(pair[1]).unwrap();
        let (index, id) =
            (action["create"]["_index"].as_str().unwrap(), action["create"]["_id"].as_str().unwrap());
        let message = document["message"].as_str().unwrap();
        let (status, error) = if message.contains("bad") {
            (400, serde_json::json!({"type": "mapper_parsing_exception", "reason": "failed to parse"}))
        } else if state.documents.contains_key(id) {
            state.doubles += 1;
            (409, serde_json::json!({"type": "version_conflict_engine_exception"}))
        } else {
            state.documents.insert(id.to_owned(), (index.to_owned(), document.clone()));
            (201, Value::Null)
        };
        items.push(serde_json::json!({"create": {"status": status, "error": error}}));
    }
    // Every seventh answer is lost after everything is stored: of those alone that store something, or none might be lost.
    state.bulks += 1;
    if state.bulks.is_multiple_of(7) {
        return Reply::cut();
    }
    Reply::new(200, serde_json::json!({"errors": true, "items": items}).to_string())
}

#[test]
fn a_bulk_api_gets_each_document_once() {
    let state: Arc<Mutex<Bulk>> = Arc::default();
    let shared = state.clone();
    let server = Server::start(move |request| bulk(&shared, &request)).unwrap();
    let more = format!(
        "config = {{ url = \"{}\", index = \"logs-{{service:-none}}-%Y\", headers = [\"file\"], authorization = {{ secret = \"key\" }} }}\n\
         egress = {{ allow = [\"{}\"], secrets = {{ key = \"${{file:token}}\" }} }}\n",
        server.url(),
        server.address
    );
    let scene = scene("elasticsearch-bulk", &server, &more);
    fs::write(scene.root().join("token"), "k-4711-xyz\n").unwrap();
    let lines: Vec<String> = (0..3_000)
        .map(|event| if event % 500 == 7 { format!("event {event} bad") } else { format!("event {event}") })
        .collect();
    // Each life has events of its own: a fast machine stores all there is before the kill.
    let mut lives = lines.chunks(1_000);
    let mut some_more =
        || write(&scene, &lives.next().unwrap().iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..2 {
        let before = state.lock().unwrap().requests;
        some_more();
        let mut agent = scene.start_ready().unwrap();
        ended(&mut agent, "requests", || state.lock().unwrap().requests > before + 3);
        agent.kill().unwrap();
    }
    some_more();
    let mut agent = scene.start_ready().unwrap();
    ended(&mut agent, "every document", || state.lock().unwrap().documents.len() == 2_994);
    poll::until("the rejected ones", limits::CONDITION, || Ok(scene.quarantine()?.len() >= 6)).unwrap();
    agent.stop().unwrap();
    let quarantine = scene.quarantine().unwrap();
    assert_eq!(quarantine.len(), 6);
    assert!(
        quarantine
            .iter()
            .all(|event| event.to_string().contains("mapper_parsing_exception: failed to parse (400)"))
    );
    let state = state.lock().unwrap();
    assert!(state.doubles > 0, "nothing came twice: the test shows nothing");
    let messages: Vec<String> = state
        .documents
        .values()
        .map(|(_, document)| document["message"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(counts(&messages).len(), 2_994, "the same event under two ids");
    assert!(state.documents.values().all(|(index, _)| index.starts_with("logs-none-20")));
    assert_nowhere(scene.root(), "k-4711-xyz");
}
