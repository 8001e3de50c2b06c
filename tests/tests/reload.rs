//! Edits of a running agent's configuration: by command, by signal, by the watch; taken over in place, or not at all.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::path::PathBuf;

use flumen_tests::agent::Agent;
use flumen_tests::generator::{Generator, Load, Rotation};
use flumen_tests::output::{self, LineCounter};
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{limits, locate, oracle, poll};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;
use serde_json::Value;

const SOURCE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n";

/// A pipeline that writes to `{out}/NAME`.
fn flow(name: &str) -> String {
    format!(
        "{SOURCE}\n[sink.out]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n"
    )
}

/// A scene whose agent runs all files of a directory.
struct Stage {
    scene: Scene,
}

impl Stage {
    fn new(more: &str) -> Stage {
        let stage = Stage { scene: Scene::new().unwrap() };
        fs::create_dir(stage.scene.root().join("pipelines")).unwrap();
        let (data, plugins) = (stage.scene.data.display(), stage.scene.plugin_dir());
        let text = format!(
            "[agent]\ndata_dir = \"{data}\"\nplugin_dir = \"{}\"\ndrain_timeout = \"40s\"\n{more}\n",
            plugins.display()
        );
        fs::write(stage.scene.config(), text).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.root().join("pipelines").join(format!("{name}.toml"))
    }

    fn write(&self, name: &str, text: &str) {
        let (input, out) = (self.scene.input(), &self.scene.output);
        let text = text.replace("{in}", &input.display().to_string());
        fs::write(self.path(name), text.replace("{out}", &out.display().to_string())).unwrap();
    }

    fn ask(&self, words: &[&str]) -> Answer {
        let config = self.scene.config().display().to_string();
        let words: Vec<&str> = words.iter().copied().chain([config.as_str()]).collect();
        self.scene.flumen(&words).unwrap()
    }

    /// `flumen reload`, which has to succeed.
    fn reload(&self) -> Answer {
        let answer = self.ask(&["reload"]);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        answer
    }

    /// The same where a sink goes: it has a second to deliver what it has. On a busy machine that may be too short; then the reload is
    /// refused, and asked for again.
    fn reload_without_a_sink(&self) -> Answer {
        let answer = poll::until_some("a sink that delivers within a second", limits::CONDITION, || {
            let answer = self.ask(&["reload"]);
            let is_late = answer.status.code() == Some(1) && answer.stderr.contains("has not delivered");
            Ok((!is_late).then_some(answer))
        })
        .unwrap();
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        answer
    }

    fn status(&self) -> Value {
        self.scene.answered().unwrap().0
    }

    fn pipeline(&self, name: &str) -> Option<Value> {
        let status = self.status();
        status["pipelines"].as_array().unwrap().iter().find(|it| it["name"] == name).cloned()
    }

    fn wait(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) {
        poll::until(what, limits::CONDITION, || Ok(condition(&self.status()))).unwrap();
    }

    fn generator(&self, bytes_per_s: u64) -> Generator {
        Generator::start(self.load(bytes_per_s)).unwrap()
    }

    fn load(&self, bytes_per_s: u64) -> Load {
        Load {
            dir: self.scene.input(),
            files: 2,
            bytes_per_s,
            rotate_bytes: 1_000_000,
            rotation: Rotation::Rename,
            lines: None,
            has_malformed: false,
            has_doubles: false,
            seed: 9,
        }
    }

    /// Everything that was written stands in the outputs below a directory, each line once, in order.
    fn judge(&self, agent: Agent, generator: Generator, dir: &str) {
        let written = generator.stop().unwrap();
        let total: u64 = written.iter().sum();
        assert!(total > 1_000, "{total} lines are not much of a load");
        let (out, mut counter) = (self.scene.output.join(dir), LineCounter::default());
        poll::until_counted("everything", limits::CONDITION, total, || counter.count(&out)).unwrap();
        agent.stop().unwrap();
        let verdict = oracle::judge(&output::sequences(&out).unwrap(), &written, |_| true).unwrap();
        assert!(verdict.holds(), "{verdict:#?}");
    }
}

/// Threads of an agent by the begin of their names.
fn look(agent: &Agent, prefix: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.id())).unwrap();
    let mut found: Vec<String> = tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            name.starts_with(prefix).then(|| format!("{} {}", task.file_name().display(), name.trim()))
        })
        .collect();
    found.sort();
    found
}

/// Of so many threads, which do not change. A new one has its parent's name until it runs, one that has ended is there until the kernel
/// has let go of it, and a busy machine lets both wait.
fn threads(agent: &Agent, prefix: &str, count: usize) -> Vec<String> {
    let (mut last, mut times) = (look(agent, prefix), 0);
    poll::until(&format!("{count} threads {prefix}… that stay"), limits::CONDITION, || {
        let now = look(agent, prefix);
        times = if now == last { times + 1 } else { 0 };
        last = now;
        Ok(times >= 10 && last.len() == count)
    })
    .unwrap();
    last
}

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

/// The kinds of channels and the journal's settings restart the pipeline, exactly-once as any restart.
#[test]
fn a_pipeline_restarts_under_load_and_others_do_not() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    stage.write("other", &flow("other"));
    let generator = stage.generator(2_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let kind = |kind: &str| format!("[channel.main]\nkind = \"{kind}\"\n");
    let segment = "[journal]\nsegment = \"1 MiB\"\n".to_owned();
    let plans = [kind("spillable"), kind("memory"), segment, kind("source-backed"), String::new()];
    for (turn, more) in plans.iter().enumerate() {
        stage.write("web", &format!("{}\n{more}", flow("web")));
        let answer = stage.ask(&["reload", "--drain"]);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        assert!(answer.stdout.contains("restarts as a whole"), "{}", answer.stdout);
        assert_eq!(stage.pipeline("web").unwrap()["generation"], turn + 2);
        assert_eq!(stage.pipeline("other").unwrap()["generation"], 1);
    }
    stage.judge(agent, generator, "web");
}

#[test]
fn pipelines_start_and_stop_with_their_files() {
    let stage = Stage::new("");
    stage.write("one", &flow("one"));
    let generator = stage.generator(500_000);
    let agent = stage.scene.start_ready().unwrap();
    // No command: the watch sees it.
    stage.write("two", &flow("two"));
    stage.wait("the second pipeline", |status| status["pipelines"].as_array().unwrap().len() == 2);
    stage.wait("its events", |_| {
        stage.pipeline("two").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap() > 100
    });
    fs::remove_file(stage.path("two")).unwrap();
    stage.wait("its end", |status| status["pipelines"].as_array().unwrap().len() == 1);
    let lines = LineCounter::default().count(&stage.scene.output.join("two")).unwrap();
    // It goes on where it ended.
    stage.write("two", &flow("two"));
    stage.wait("the second pipeline again", |status| status["pipelines"].as_array().unwrap().len() == 2);
    poll::until("more of it", limits::CONDITION, || {
        Ok(LineCounter::default().count(&stage.scene.output.join("two"))? > lines)
    })
    .unwrap();
    assert_eq!(stage.pipeline("one").unwrap()["generation"], 1);
    stage
        .wait("the generation", |status| status["generation"] == 4 && status["last_reload"]["by"] == "watch");
    stage.judge(agent, generator, "two");
}

/// A broken edit changes nothing, whatever part of it is broken, and says why in the answer, the status and the log.
#[test]
fn a_broken_edit_changes_nothing() {
    let stage = Stage::new("watch = false");
    stage.scene.install("swap-a", "one").unwrap();
    // Small files, so that the sink soon has to open one.
    let out = flow("web").replace("encoding", "roll_size = \"128 KiB\"\nencoding");
    let good = format!("{out}\n[[interceptor]]\nplugin = \"one\"\n");
    stage.write("web", &good);
    stage.write("other", &flow("other"));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let before = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
    let edits: [(&str, String, i32, &str); 5] = [
        ("text", format!("{good}\n[["), 78, "syntax"),
        ("option", good.replace("flush_interval", "flush_intervall"), 78, "did you mean"),
        ("plugin", good.replace("plugin = \"one\"", "plugin = \"nowhere\""), 78, "nowhere"),
        ("source", good.replace("paths = [", "multiline_start = '('\npaths = ["), 78, "multiline_start"),
        ("channel", good.replace("[sink.out]", "[channel.new]\n[sink.out]\nchannel = \"new\""), 1, "--drain"),
    ];
    for (what, text, code, reason) in edits {
        // Another pipeline's good edit in the same reload must not be taken over either.
        stage.write("other", &format!("{}\n[batch]\nrows = 100\n", flow("other")));
        stage.write("web", &text);
        if code == 1 {
            // There has to be something to leave behind.
            stop_output(&stage);
        }
        let answer = stage.ask(&["reload"]);
        assert_eq!(answer.status.code(), Some(code), "{what}: {}{}", answer.stdout, answer.stderr);
        assert!(answer.stderr.contains(reason), "{what}: {}", answer.stderr);
        let status = stage.status();
        assert_eq!(status["generation"], 1, "{what}");
        assert_eq!(status["last_reload"]["ok"], false, "{what}");
        assert!(status["last_reload"]["text"].as_str().unwrap().contains(reason), "{what}: {status}");
        agent.wait_log("not reloaded", limits::CONDITION).unwrap();
        let after = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
        assert_eq!(after, before, "{what}: something was touched");
        assert_eq!(stage.ask(&["plan"]).status.code(), Some(if code == 1 { 0 } else { code }), "{what}");
    }
    start_output(&stage);
    stage.write("web", &good);
    stage.write("other", &flow("other"));
    assert!(stage.reload().stdout.contains("still generation 1"));
    assert_eq!(stage.status()["last_reload"]["ok"], true);
    stage.judge(agent, generator, "web");
}

/// The sink can no longer write: its directory is a file.
fn stop_output(stage: &Stage) {
    // The sink makes it with its first events, which may be late.
    let web = stage.scene.output.join("web");
    poll::until("the sink's directory", limits::CONDITION, || Ok(web.is_dir())).unwrap();
    fs::write(stage.scene.output.join("moved"), "in the way").unwrap();
    exchange_output(stage);
    stage.wait("events that wait", |status| {
        let flows = status["pipelines"].as_array().unwrap();
        let web = flows.iter().find(|it| it["sinks"][0]["name"] == "out" && it["name"] != "other").unwrap();
        web["channels"][0]["events"].as_u64().unwrap() > 0 && web["sinks"][0]["state"] == "retrying"
    });
}

fn start_output(stage: &Stage) {
    exchange_output(stage);
    fs::remove_file(stage.scene.output.join("moved")).unwrap();
}

/// At once: a sink that finds nothing there makes the directory anew.
fn exchange_output(stage: &Stage) {
    let [web, moved] = ["web", "moved"].map(|name| stage.scene.output.join(name));
    renameat_with(CWD, web, CWD, moved, RenameFlags::EXCHANGE).unwrap();
}

/// Whatever fails after parts were taken over brings the old ones back: here the journal of a new pipeline.
#[test]
fn a_reload_that_fails_half_way_is_taken_back() {
    let stage = Stage::new("watch = false");
    stage.write("gone", &flow("gone"));
    stage.write("web", &flow("web"));
    stage.write("whole", &flow("whole"));
    let generator = stage.generator(1_000_000);
    let agent = stage.scene.start_ready().unwrap();
    // A file where the new pipeline's directory would be made.
    fs::write(stage.scene.data.join("pipelines/new"), "in the way").unwrap();
    fs::remove_file(stage.path("gone")).unwrap();
    stage.write("new", &flow("new"));
    stage.scene.install("swap-a", "one").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"one\"\n[batch]\nrows = 10\n", flow("web")));
    stage.write("whole", &format!("{}\n[journal]\nsegment = \"1 MiB\"\n", flow("whole")));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("pipelines/new"), "{}", answer.stderr);
    let status = stage.status();
    assert_eq!(status["generation"], 1);
    let mut names: Vec<_> =
        status["pipelines"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["gone", "web", "whole"]);
    assert!(stage.pipeline("web").unwrap()["interceptors"].as_array().unwrap().is_empty());
    assert!(status["pipelines"].as_array().unwrap().iter().all(|it| it["failure"].is_null()), "{status:#}");
    let delivered =
        |name: &str| stage.pipeline(name).unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64();
    let before: Vec<_> = names.iter().map(|name| delivered(name)).collect();
    stage.wait("all of them go on", |_| {
        names.iter().zip(&before).all(|(name, before)| delivered(name) > *before)
    });
    fs::remove_file(stage.scene.data.join("pipelines/new")).unwrap();
    stage.reload();
    assert_eq!(stage.status()["generation"], 2);
    stage.judge(agent, generator, "web");
}

/// SIGHUP takes the same way; many of them together are one reload, and none is lost.
#[test]
fn sighup_reloads() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    let mut agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[batch]\nrows = 100\n", flow("web")));
    (0..20).for_each(|_| agent.signal(Signal::HUP).unwrap());
    stage.wait("the new generation", |status| {
        status["generation"] == 2 && status["last_reload"]["by"] == "signal"
    });
    stage.write("web", "nonsense");
    agent.signal(Signal::HUP).unwrap();
    stage.wait("the error", |status| status["last_reload"]["ok"] == false);
    agent.expect_running().unwrap();
    let shown = stage.scene.shown().unwrap();
    assert!(shown.contains("FAILED and changed nothing"), "{shown}");
    agent.stop().unwrap();
}

/// Without the watch an edit waits to be asked for.
#[test]
fn the_watch_can_be_turned_off() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    let agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[batch]\nrows = 100\n", flow("web")));
    let plan = stage.ask(&["plan", "--exit-code"]);
    assert_eq!(plan.status.code(), Some(3), "{}{}", plan.stdout, plan.stderr);
    assert!(plan.stdout.contains("~ source in (batch)"), "{}", plan.stdout);
    // The look at the files is a second apart, a reload would have come long ago.
    assert_eq!(stage.status()["last_reload"], Value::Null);
    stage.reload();
    assert_eq!(stage.ask(&["plan", "--exit-code"]).status.code(), Some(0));
    // It can be turned on and off while the agent runs.
    let config = fs::read_to_string(stage.scene.config()).unwrap();
    fs::write(stage.scene.config(), config.replace("watch = false", "watch = true")).unwrap();
    stage.reload();
    stage.write("web", &flow("web"));
    stage.wait("the edit", |status| status["generation"] == 4);
    // What the process holds cannot change.
    fs::write(stage.scene.config(), config.replace("data_dir = \"", "data_dir = \"/elsewhere")).unwrap();
    let data = stage.scene.data.display().to_string();
    let answer = stage.scene.flumen(&["reload", "--data-dir", &data]).unwrap();
    assert_eq!(answer.status.code(), Some(1));
    assert!(answer.stderr.contains("`data_dir` of the agent cannot change"), "{}", answer.stderr);
    agent.stop().unwrap();
}

/// An edit whose plugin is missing is taken over when the plugin comes; a broken file of a plugin is part of the answer.
#[test]
fn plugins_are_part_of_the_answer() {
    let stage = Stage::new("");
    stage.write("web", &flow("web"));
    let agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"late\"\n", flow("web")));
    stage.wait("the error", |status| status["last_reload"]["ok"] == false);
    stage.scene.install("swap-a", "late").unwrap();
    stage.wait("the new generation", |status| status["generation"] == 2);
    fs::write(stage.scene.plugin_dir().join("late.wasm"), "no plugin").unwrap();
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(78), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("late.wasm"), "{}", answer.stderr);
    stage.scene.install("swap-b", "late").unwrap();
    stage.reload();
    // The watch over plugin files may have been quicker, and says a moment later that all is well.
    stage.wait("one swap, and no error", |_| {
        let plugin = &stage.pipeline("web").unwrap()["plugins"][0];
        (&plugin["swaps"], &plugin["last_swap_error"]) == (&Value::from(1), &Value::Null)
    });
    agent.stop().unwrap();
}

/// A plugin's file whose schema refuses the options that run keeps out an edit of the same reload.
#[test]
fn options_that_a_new_file_refuses_change_nothing() {
    let stage = Stage::new("watch = false");
    let scene = &stage.scene;
    let chain = "\n[[interceptor]]\nplugin = \"filter\"\nconfig = { keep = { contains = \"e\" } }\n";
    scene.install("filter", "filter").unwrap();
    stage.write("web", &format!("{}{chain}", flow("web")));
    stage.write("other", &flow("other"));
    let agent = scene.start_ready().unwrap();
    // It opens as before; but its schema has another name for the option.
    let mut bytes = fs::read(locate::plugin("filter").unwrap()).unwrap();
    let at = bytes.windows(10).position(|part| part == b"\"contains\"").unwrap();
    bytes[at + 1] = b'k';
    fs::write(scene.plugin_dir().join("filter.wasm"), bytes).unwrap();
    stage.write("other", &format!("{}\n[batch]\nrows = 100\n", flow("other")));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(78), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("the plugin has no option `contains`"), "{}", answer.stderr);
    let status = stage.status();
    assert_eq!((&status["generation"], &status["last_reload"]["ok"]), (&Value::from(1), &Value::from(false)));
    assert_eq!(stage.pipeline("web").unwrap()["plugins"][0]["swaps"], 0);
    scene.install("filter", "filter").unwrap();
    stage.reload();
    assert_eq!(stage.status()["generation"], 2);
    agent.stop().unwrap();
}

/// `flumen plan` without an agent.
#[test]
fn without_an_agent_everything_starts() {
    let stage = Stage::new("");
    stage.write("web", &flow("web"));
    let plan = stage.ask(&["plan"]);
    assert_eq!(plan.status.code(), Some(0), "{}", plan.stderr);
    assert!(
        plan.stdout.contains("no agent runs") && plan.stdout.contains("+ pipeline web"),
        "{}",
        plan.stdout
    );
    assert_eq!(stage.ask(&["plan", "--exit-code"]).status.code(), Some(3));
    assert_eq!(stage.ask(&["reload"]).status.code(), Some(1));
    stage.write("web", "nonsense");
    assert_eq!(stage.ask(&["plan"]).status.code(), Some(78));
}

/// Components of a directory are interceptors in the order of their names: dropped in, taken out, replaced, broken.
#[test]
fn a_directory_of_interceptors() {
    let stage = Stage::new("");
    let dir = stage.scene.root().join("pipelines/web.d");
    fs::create_dir(&dir).unwrap();
    stage.write("web", &format!("interceptors_from = \"web.d\"\n{}", flow("web")));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let put = |plugin: &str, name: &str| {
        fs::copy(locate::plugin(plugin).unwrap(), dir.join(name)).unwrap();
    };
    let chain = || -> Vec<String> {
        let web = stage.pipeline("web").unwrap();
        let plugins = web["plugins"].as_array().unwrap();
        plugins.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut names: Vec<&str> = Vec::new();
    for (plugin, name) in [("swap-a", "20-a"), ("swap-b", "10-b"), ("noop", "30-noop")] {
        put(plugin, &format!("{name}.wasm"));
        names.push(name);
        names.sort();
        stage.wait("the interceptor in the flow", |_| chain() == names);
    }
    let source = threads(&agent, "source-in", 1);
    // An error may be there already: of a file that was seen half-copied.
    let told = |part: &str| {
        stage.wait(&format!("the error about {part}"), |status| {
            let last = &status["last_reload"];
            last["ok"] == false && last["text"].as_str().is_some_and(|text| text.contains(part))
        });
        stage.status()["last_reload"]["text"].as_str().unwrap().to_owned()
    };
    // A bad one changes nothing and is told.
    fs::write(dir.join("15-bad.wasm"), "no plugin").unwrap();
    let text = told("15-bad.wasm");
    assert!(text.contains("15-bad.wasm") && text.contains("interceptors_from"), "{text}");
    agent.wait_log("15-bad.wasm", limits::CONDITION).unwrap();
    assert_eq!(chain(), names);
    // Mended, it joins; taken out, they leave.
    put("noop", "15-bad.wasm");
    stage.wait("the mended one", |_| chain() == ["10-b", "15-bad", "20-a", "30-noop"]);
    for name in ["15-bad", "20-a", "10-b", "30-noop"] {
        fs::remove_file(dir.join(format!("{name}.wasm"))).unwrap();
        stage.wait("one that left", |_| !chain().contains(&name.to_owned()));
    }
    stage.wait("the good state", |status| status["last_reload"]["ok"] == true);
    assert_eq!(source, threads(&agent, "source-in", 1));
    // With settings beside it, which are watched, too; an error is told at its place in that file. They come at once: an empty file is
    // good settings.
    let settings = |text: &str| {
        fs::write(dir.join(".40-f"), text).unwrap();
        fs::rename(dir.join(".40-f"), dir.join("40-f.toml")).unwrap();
    };
    settings("config = { drop = { contains = \"nobody writes this\" } }\n");
    put("filter", "40-f.wasm");
    stage.wait("the one with settings", |_| chain() == ["40-f"]);
    // The generation is counted at the end of a reload, for which a plan waits.
    stage.ask(&["plan"]);
    let generation = stage.status()["generation"].as_u64().unwrap();
    settings("config = { drop = { containz = \"x\" } }\n");
    let text = told("containz");
    assert!(text.contains("40-f.toml:1:") && text.contains("containz"), "{text}");
    settings("config = { drop = { contains = \"nor this\" } }\non_reject = \"drop\"\n");
    stage.wait("the edit", |status| status["generation"] == generation + 1);
    assert_eq!((chain(), source), (vec!["40-f".to_owned()], threads(&agent, "source-in", 1)));
    stage.judge(agent, generator, "web");
}

/// A new version with a bug is rolled back under load: nothing is lost, doubled, or put into quarantine.
#[test]
fn a_buggy_version_is_rolled_back() {
    let stage = Stage::new("");
    stage.scene.install("swap-a", "swap").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"swap\"\n", flow("web")));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let plugin = || stage.pipeline("web").unwrap()["plugins"][0].clone();
    for turn in 1..=2 {
        stage.scene.install("swap-trap", "swap").unwrap();
        stage.wait("the rollback", |_| plugin()["rollbacks"] == turn);
        let error = plugin()["last_swap_error"].as_str().unwrap().to_owned();
        assert!(error.contains("rolled back"), "{error}");
        agent.wait_log("plugin rolled back", limits::CONDITION).unwrap();
        // Another good one, so that the bad one is new again.
        stage.scene.install(if turn == 1 { "swap-b" } else { "swap-a" }, "swap").unwrap();
        stage.wait("the next version", |_| plugin()["last_swap_error"].is_null());
    }
    assert_eq!(stage.pipeline("web").unwrap()["quarantine"]["events"], 0);
    stage.judge(agent, generator, "web");
}

/// The same of a version that keeps state, with lines that come twice: each comes out once, so what the buggy version wrote for
/// the batches that it failed on is undone, and what was remembered before is still there. Kills come in between.
#[test]
fn a_buggy_version_with_state_is_rolled_back() {
    let stage = Stage::new("");
    stage.scene.install("remembers", "once").unwrap();
    stage
        .write("web", &format!("{}\n[[interceptor]]\nplugin = \"once\"\ngrant = [\"state\"]\n", flow("web")));
    let generator = Generator::start(Load { has_doubles: true, ..stage.load(1_000_000) }).unwrap();
    let plugin = || stage.pipeline("web").unwrap()["plugins"][0].clone();
    for _ in 0..2 {
        let agent = stage.scene.start_ready().unwrap();
        stage.wait("a flow", |_| {
            stage.pipeline("web").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap()
                > 1_000
        });
        stage.scene.install("remembers-trap", "once").unwrap();
        stage.wait("the rollback", |_| plugin()["rollbacks"] == 1);
        assert!(plugin()["last_swap_error"].as_str().unwrap().contains("rolled back"), "{}", plugin());
        stage.scene.install("remembers", "once").unwrap();
        stage.wait("the good file", |_| plugin()["last_swap_error"].is_null());
        agent.kill().unwrap();
    }
    let agent = stage.scene.start_ready().unwrap();
    assert_eq!(stage.pipeline("web").unwrap()["quarantine"]["events"], 0);
    stage.judge(agent, generator, "web");
}

#[test]
fn a_new_version_runs_beside_the_flow() {
    let stage = Stage::new("");
    stage.scene.install("swap-a", "swap").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"swap\"\n", flow("web")));
    let generator = stage.generator(1_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let data = stage.scene.data.display().to_string();
    let shadow = |plugin: &str, on: &str, json: bool| {
        let file = locate::plugin(plugin).unwrap().display().to_string();
        let output = if json { "json" } else { "human" };
        let words = [
            "plugin",
            "shadow",
            &file,
            "--on",
            on,
            "--data-dir",
            &data,
            "--rows",
            "2000",
            "--output",
            output,
        ];
        stage.scene.flumen(&words).unwrap()
    };
    let answer = shadow("swap-b", "web", true);
    assert!(answer.status.success(), "{}", answer.stderr);
    let report: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((&report["same"], &report["changed"]), (&Value::from(0), &report["events"]));
    assert_eq!(report["differences"][0]["new"][0]["headers"]["version"], "b");
    let answer = shadow("swap-trap", "web/swap", false);
    assert!(
        answer.stdout.contains("only the running one") && answer.stdout.contains("ns per event"),
        "{}",
        answer.stdout
    );
    let answer = shadow("swap-b", "web/none", false);
    assert_eq!(answer.status.code(), Some(1));
    assert!(answer.stderr.contains("it has swap"), "{}", answer.stderr);
    let web = stage.pipeline("web").unwrap();
    assert_eq!(
        (&web["plugins"][0]["swaps"], &web["quarantine"]["events"]),
        (&Value::from(0), &Value::from(0))
    );
    stage.judge(agent, generator, "web");
}
