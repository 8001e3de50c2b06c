//! Edits of parts of a pipeline under load: interceptors are exchanged, sources and sinks restart alone, come and go; the others do not
//! notice, and each line is there once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::agent::Agent;
use flumen_tests::output::{self, LineCounter};
use flumen_tests::reload::{SOURCE, Stage, flow, look, start_output, stop_output, threads};
use flumen_tests::{limits, oracle, poll};
use serde_json::Value;

/// Interceptors come and go in the flow: their neighbours, the source and the sink keep their threads and counters.
#[test]
fn interceptors_are_exchanged_under_load() {
    let stage = Stage::new("watch = false");
    let (scene, with) = (&stage.scene, |names: &[&str]| {
        let chain: String =
            names.iter().map(|name| format!("[[interceptor]]\nplugin = \"{name}\"\n")).collect();
        format!("{}\n{chain}", flow("web"))
    });
    scene.install("swap-a", "one").unwrap();
    scene.install("swap-b", "two").unwrap();
    stage.write("web", &with(&["one"]));
    stage.write("other", "[source]\ntype = \"tail\"\npaths = [\"{in}/none\"]\n[sink]\ntype = \"null\"\n");
    let generator = stage.generator(2_000_000);
    let agent = scene.start_ready().unwrap();
    let all =
        || (threads(&agent, "source-in", 1), threads(&agent, "sink-", 2), threads(&agent, "commit-", 2));
    let before = all();
    let mut generation = 1;
    for chain in [&["one", "two"][..], &["two"], &[], &["two", "one"], &["one"]] {
        let delivered =
            stage.pipeline("web").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap();
        stage.write("web", &with(chain));
        stage.reload();
        generation += 1;
        let web = stage.pipeline("web").unwrap();
        let names: Vec<&str> =
            web["interceptors"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, chain);
        let plugins: Vec<&str> =
            web["plugins"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(plugins, chain);
        assert_eq!(web["generation"], generation);
        stage.wait("more after the edit", |_| {
            stage.pipeline("web").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap()
                > delivered
        });
    }
    assert_eq!(stage.status()["generation"], generation);
    assert_eq!(stage.pipeline("other").unwrap()["generation"], 1, "what did not change was touched");
    assert_eq!(before, all(), "a thread was replaced");
    stage.judge(agent, generator, "web");
}

/// A sink restarts alone, and so does a source; nothing is lost or doubled, and the other parts keep their threads.
#[test]
fn sinks_and_sources_restart_alone_under_load() {
    let stage = Stage::new("watch = false");
    let two = format!(
        "{}\n[sink.side]\ntype = \"file\"\npath = \"{{out}}/side/all.log\"\nflush_interval = \"50ms\"\n",
        flow("web")
    );
    stage.write("web", &two);
    let generator = stage.generator(2_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let (source, side) = (threads(&agent, "source-in", 1), threads(&agent, "sink-side", 1));
    for roll in ["1 MiB", "2 MiB", "3 MiB"] {
        stage.write(
            "web",
            &two.replace("encoding = \"json\"", &format!("encoding = \"json\"\nroll_size = \"{roll}\"")),
        );
        let answer = stage.reload();
        assert!(answer.stdout.contains("~ sink out (roll_size)"), "{}", answer.stdout);
    }
    assert_eq!((&source, &side), (&threads(&agent, "source-in", 1), &threads(&agent, "sink-side", 1)));
    let sinks = threads(&agent, "sink-", 2);
    for linger in ["5ms", "40ms"] {
        let edited = two.replace("encoding = \"json\"", "encoding = \"json\"\nroll_size = \"3 MiB\"");
        stage.write("web", &format!("{edited}\n[batch]\nlinger = \"{linger}\"\n"));
        let answer = stage.reload();
        assert!(answer.stdout.contains("~ source in (batch)"), "{}", answer.stdout);
    }
    assert_eq!(sinks, threads(&agent, "sink-", 2));
    // The one before may be seen for a moment after its end, and the new one may not have its name yet.
    poll::until("the source's restart", limits::CONDITION, || Ok(look(&agent, "source-in") != source))
        .unwrap();
    stage.judge(agent, generator, "web");
}

/// A plugin with state comes into the flow, its neighbours change, its settings change, and it goes: nothing restarts, and lines that
/// come twice while it is there come out once.
#[test]
fn a_chain_that_keeps_state_is_exchanged_under_load() {
    let stage = Stage::new("watch = false");
    stage.scene.install("remembers", "once").unwrap();
    stage.scene.install("noop", "noop").unwrap();
    let once = "[[interceptor]]\nplugin = \"once\"\ngrant = [\"state\"]\n";
    let noop = "[[interceptor]]\nplugin = \"noop\"\n";
    stage.write("web", &flow("web"));
    let generator = stage.generator(1_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let delivered = || stage.pipeline("web").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64();
    stage.wait("a flow", |_| delivered() > Some(1_000));
    let all =
        || (threads(&agent, "source-in", 1), threads(&agent, "sink-", 1), threads(&agent, "commit-", 1));
    let before = all();
    let chains = [
        once.to_owned(),
        format!("{once}{noop}"),
        format!("{noop}{once}config = {{ mode = \"\" }}\n"),
        noop.to_owned(),
        format!("{noop}{once}"),
    ];
    for chain in &chains {
        stage.write("web", &format!("{}\n{chain}", flow("web")));
        let answer = stage.reload();
        assert!(!answer.stdout.contains("restarts as a whole"), "{}", answer.stdout);
        let now = delivered();
        stage.wait("more after the edit", |_| delivered() > now);
    }
    assert_eq!(before, all(), "a thread was replaced");
    let state = stage.pipeline("web").unwrap()["plugins"].as_array().unwrap().len();
    assert_eq!(state, 2);
    stage.judge(agent, generator, "web");
}

/// Sinks come and go under load: the source and the other sinks keep their threads, and a new sink survives a SIGKILL.
#[test]
fn sinks_come_and_go_under_load() {
    let stage = Stage::new("watch = false");
    stage.scene.install("json-lines", "json-lines").unwrap();
    let side = "\n[sink.side]\ntype = \"file\"\npath = \"{out}/side/all.log\"\nflush_interval = \"50ms\"\n";
    let coded = format!("{}codec = {{ plugin = \"json-lines\" }}\n", side.replace("side", "coded"));
    stage.write("web", &flow("web"));
    let generator = stage.generator(2_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let delivers = |sink: &str| {
        stage.wait("a sink that delivers", |_| {
            let web = stage.pipeline("web").unwrap();
            let sinks = web["sinks"].as_array().unwrap();
            let metrics = sinks.iter().find(|it| it["name"] == sink).map(|it| it["metrics"].clone());
            metrics.is_some_and(|metrics| metrics["events_delivered"].as_u64().unwrap() > 1_000)
        });
    };
    delivers("out");
    let all = |agent: &Agent| {
        (threads(agent, "source-in", 1), threads(agent, "sink-out", 1), threads(agent, "commit-", 1))
    };
    let before = all(&agent);
    for (more, signs) in [
        (side, &["+ sink side"][..]),
        (&*coded, &["- sink side", "+ sink coded"]),
        ("", &["- sink coded"]),
        (side, &["+ sink side"]),
    ] {
        stage.write("web", &format!("{}{more}", flow("web")));
        let plan = stage.ask(&["plan"]);
        let answer = stage.reload_without_a_sink();
        for sign in signs {
            assert!(answer.stdout.contains(sign) && plan.stdout.contains(sign), "{}", answer.stdout);
        }
        assert!(!answer.stdout.contains("restarts as a whole"), "{}", answer.stdout);
        let sinks = stage.pipeline("web").unwrap()["sinks"].as_array().unwrap().clone();
        assert_eq!(sinks.len(), 1 + usize::from(!more.is_empty()), "{sinks:?}");
        let name = if more == coded { "coded" } else { "side" };
        if !more.is_empty() {
            delivers(name);
        }
        assert_eq!(
            stage.pipeline("web").unwrap()["channels"][0]["readers"].as_object().unwrap().len(),
            sinks.len()
        );
    }
    assert_eq!(before, all(&agent), "a thread was replaced");
    agent.kill().unwrap();
    let agent = stage.scene.start_ready().unwrap();
    delivers("side");
    // Once more in this life, and the agent dies right behind the answer.
    stage.write("web", &flow("web"));
    stage.reload_without_a_sink();
    agent.kill().unwrap();
    let agent = stage.scene.start_ready().unwrap();
    let written = generator.stop().unwrap();
    let out = stage.scene.output.join("web");
    let (total, mut counter) = (written.iter().sum::<u64>(), LineCounter::default());
    poll::until_counted("everything", limits::CONDITION, total, || counter.count(&out)).unwrap();
    agent.stop().unwrap();
    let judge = |dir: &str| {
        let found = output::sequences(&stage.scene.output.join(dir)).unwrap();
        oracle::judge(&found, &written, |_| true).unwrap()
    };
    let verdict = judge("web");
    assert!(verdict.holds(), "{verdict:#?}");
    // Of what passed while it was not there nothing is missed, and nothing is there twice.
    let verdict = judge("side");
    assert_eq!((verdict.doubled, verdict.out_of_order, verdict.foreign), (0, 0, 0), "{verdict:#?}");
}

/// The sinks of a channel that keeps no events come, go and restart, and a plugin is swapped, under load: those that stay have each line
/// once, and one that comes and goes nothing twice, and keeps what it had when it went.
#[test]
fn sinks_of_a_source_backed_channel_come_and_go_under_load() {
    let stage = Stage::new("watch = false");
    stage.scene.install("swap-a", "swap").unwrap();
    stage.scene.install("noop", "noop").unwrap();
    stage.scene.install("swap-slow", "slow").unwrap();
    let file = |name: &str, more: &str| {
        format!(
            "\n[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"50ms\"\n{more}"
        )
    };
    // Those that are to go are behind the others: these have passed the place at which they are asked to end.
    let slow = |name: &str| file(name, &format!("[[sink.{name}.interceptor]]\nplugin = \"slow\"\n"));
    let chain = "[[interceptor]]\nplugin = \"swap\"\n";
    let base =
        format!("{SOURCE}[channel]\nkind = \"source-backed\"\n{chain}{}{}", file("one", ""), file("two", ""));
    let noop = format!("{base}[[interceptor]]\nplugin = \"noop\"\n");
    let (rolls, side, third) =
        (base.replace("[sink.two]\n", "[sink.two]\nroll_size = \"3 MiB\"\n"), slow("side"), slow("third"));
    stage.write("web", &base);
    let generator = stage.generator(400_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let delivered = || -> Vec<u64> {
        let sinks = stage.pipeline("web").unwrap()["sinks"].clone();
        let metric = |sink: &Value| sink["metrics"]["events_delivered"].as_u64().unwrap();
        sinks.as_array().unwrap().iter().map(metric).collect()
    };
    let get_on = || {
        let before = delivered();
        let all = |now: Vec<u64>| now.iter().zip(&before).all(|(now, before)| *now > before + 500);
        stage.wait("all sinks to get on", |_| all(delivered()));
    };
    let lines_of = |dir: &str| -> Vec<u8> {
        let found = output::sequences(&stage.scene.output.join(dir)).unwrap();
        found.values().flatten().flat_map(|path| fs::read(path).unwrap()).collect()
    };
    // What a sink had when it went.
    let mut kept: Vec<(&str, Vec<u8>)> = Vec::new();
    let edits: [(String, &[&str], bool); 8] = [
        (format!("{base}{side}"), &["+ sink side"], true),
        (format!("{rolls}{side}"), &["~ sink two (roll_size)"], false),
        (base.clone(), &["- sink side", "~ sink two"], false),
        (noop.clone(), &["+ interceptor noop"], false),
        (format!("{noop}{side}"), &["+ sink side"], true),
        (format!("{base}{side}"), &["- interceptor noop"], false),
        (format!("{base}{third}"), &["- sink side", "+ sink third"], true),
        (base.clone(), &["- sink third"], false),
    ];
    for (turn, (text, signs, restarts)) in edits.iter().enumerate() {
        stage.write("web", text);
        let answer = stage.ask(&["reload", "--drain"]);
        assert!(answer.status.success(), "edit {turn}: {}{}", answer.stdout, answer.stderr);
        for sign in *signs {
            assert!(answer.stdout.contains(sign), "edit {turn}: {}", answer.stdout);
        }
        // The journal of such a channel is opened with its readers.
        assert_eq!(
            answer.stdout.contains("restarted as a whole"),
            *restarts,
            "edit {turn}: {}",
            answer.stdout
        );
        let gone = signs.iter().filter_map(|sign| sign.strip_prefix("- sink "));
        kept.extend(gone.map(|name| (name, lines_of(name))));
        get_on();
        stage.scene.install(if turn % 2 == 0 { "swap-b" } else { "swap-a" }, "swap").unwrap();
        stage.reload();
        if turn == 4 {
            agent.kill().unwrap();
            agent = stage.scene.start_ready().unwrap();
        }
        get_on();
    }
    let written = generator.stop().unwrap();
    let total: u64 = written.iter().sum();
    for dir in ["one", "two"] {
        let (out, mut counter) = (stage.scene.output.join(dir), LineCounter::default());
        poll::until_counted("everything", limits::CONDITION, total, || counter.count(&out)).unwrap();
    }
    agent.stop().unwrap();
    let judge = |dir: &str| {
        let found = output::sequences(&stage.scene.output.join(dir)).unwrap();
        oracle::judge(&found, &written, |_| true).unwrap()
    };
    for dir in ["one", "two"] {
        let verdict = judge(dir);
        assert!(verdict.holds(), "{dir}: {verdict}");
    }
    for dir in ["side", "third"] {
        let verdict = judge(dir);
        assert_eq!((verdict.doubled, verdict.out_of_order, verdict.foreign), (0, 0, 0), "{dir}: {verdict}");
    }
    for (name, lines) in kept {
        assert!(!lines.is_empty() && lines_of(name).starts_with(&lines), "{name} lost what it had");
    }
}

/// What such a channel cannot hold is refused while the agent runs, with the reason and a way out; and so is taking a sink out that has
/// not delivered, although its events will be read again.
#[test]
fn what_a_source_backed_channel_cannot_hold_is_refused_by_a_reload() {
    let stage = Stage::new("watch = false");
    stage.scene.install("http-append", "http-append").unwrap();
    let side = "\n[sink.side]\ntype = \"file\"\npath = \"{out}/side/all.log\"\nflush_interval = \"50ms\"\n";
    // Small files, so that the sink soon has to open one.
    let out = flow("web").replace("encoding", "roll_size = \"128 KiB\"\nencoding");
    let good = format!("{out}{side}[channel.main]\nkind = \"source-backed\"\n");
    stage.write("web", &good);
    let generator = stage.generator(500_000);
    let agent = stage.scene.start_ready().unwrap();
    let kafka = |name: &str| {
        format!("\n[sink.{name}]\ntype = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n")
    };
    let plugin = "\n[sink.http]\nplugin = \"http-append\"\ngrant = [\"http\"]\n\
        config = { url = \"http://127.0.0.1:1/x\" }\negress = { allow = [\"127.0.0.1:1\"] }\n";
    for (more, reason, fix) in [
        (plugin.to_owned(), "a plugin that delivers takes a batch in parts", "kind = \"file\""),
        (
            format!("{}{}", kafka("k1"), kafka("k2")),
            "exactly-once to Kafka, each in a transaction of its own",
            "at-least-once",
        ),
        (
            format!("{}lanes = 2\n", kafka("k1")),
            "2 lanes end their transactions one after the other",
            "leave `lanes` out",
        ),
    ] {
        stage.write("web", &format!("{good}{more}"));
        let answer = stage.ask(&["reload"]);
        assert_eq!(answer.status.code(), Some(78), "{}{}", answer.stdout, answer.stderr);
        assert!(answer.stderr.contains(reason) && answer.stderr.contains(fix), "{}", answer.stderr);
        assert_eq!(stage.status()["generation"], 1);
    }
    stage.write("web", &good);
    stop_output(&stage);
    stage.write("web", &good.replace(&out, SOURCE));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    let said = "sink out has not delivered";
    assert!(
        answer.stderr.contains(said) && answer.stderr.contains("mend the sink first"),
        "{}",
        answer.stderr
    );
    start_output(&stage);
    let answer = stage.ask(&["reload", "--drain"]);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    stage.judge(agent, generator, "side");
}

/// A sink that cannot deliver what it still has to does not go: neither at once nor with --drain; the others go on.
#[test]
fn a_sink_that_holds_events_is_not_taken_out() {
    let stage = Stage::new("watch = false");
    let side = "\n[sink.side]\ntype = \"file\"\npath = \"{out}/side/all.log\"\nflush_interval = \"50ms\"\n";
    // Small files, so that the sink soon has to open one.
    let both = format!("{}{side}", flow("web").replace("encoding", "roll_size = \"128 KiB\"\nencoding"));
    stage.write("side", &both);
    let generator = stage.generator(500_000);
    let agent = stage.scene.start_ready().unwrap();
    stage.wait("events", |_| {
        stage.pipeline("side").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap() > 1_000
    });
    stop_output(&stage);
    let source = threads(&agent, "source-in", 1);
    // The sink `out` writes to `web`, which is in the way now.
    stage.write("side", &format!("{SOURCE}{side}"));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("sink out has not delivered"), "{}", answer.stderr);
    assert!(answer.stderr.contains("mend the sink first"), "{}", answer.stderr);
    assert_eq!((stage.status()["generation"].as_u64(), threads(&agent, "source-in", 1)), (Some(1), source));
    start_output(&stage);
    let answer = stage.ask(&["reload", "--drain"]);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    assert_eq!(stage.pipeline("side").unwrap()["sinks"].as_array().unwrap().len(), 1);
    stage.judge(agent, generator, "side");
}
