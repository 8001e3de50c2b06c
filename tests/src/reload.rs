//! A running agent whose configuration is edited: a directory of pipelines, `flumen reload` and `flumen plan`, and the threads that an edit
//! is to leave alone.
//!
//! For tests alone: what does not come to pass is a panic.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::path::PathBuf;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use crate::agent::Agent;
use crate::generator::{Generator, Load, Rotation};
use crate::output::LineCounter;
use crate::scene::{Answer, Scene};
use crate::{limits, oracle, output, poll};

/// A source that tails the input of the scene.
pub const SOURCE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n";

/// A pipeline that writes to `{out}/NAME`.
#[must_use]
pub fn flow(name: &str) -> String {
    format!(
        "{SOURCE}\n[sink.out]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n"
    )
}

/// A scene whose agent runs all files of a directory.
#[derive(Debug)]
pub struct Stage {
    /// Where it runs.
    pub scene: Scene,
}

impl Stage {
    /// A stage. `more`: for the table of the agent.
    #[must_use]
    pub fn new(more: &str) -> Self {
        let stage = Self { scene: Scene::new().unwrap() };
        fs::create_dir(stage.scene.root().join("pipelines")).unwrap();
        let (data, plugins) = (stage.scene.data.display(), stage.scene.plugin_dir());
        let text = format!(
            "[agent]\ndata_dir = \"{data}\"\nplugin_dir = \"{}\"\ndrain_timeout = \"40s\"\n{more}\n",
            plugins.display()
        );
        fs::write(stage.scene.config(), text).unwrap();
        stage
    }

    /// The file of a pipeline.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scene.root().join("pipelines").join(format!("{name}.toml"))
    }

    /// Writes the file of a pipeline. In the text, `{in}` and `{out}` stand for the directories.
    pub fn write(&self, name: &str, text: &str) {
        let (input, out) = (self.scene.input(), &self.scene.output);
        let text = text.replace("{in}", &input.display().to_string());
        fs::write(self.path(name), text.replace("{out}", &out.display().to_string())).unwrap();
    }

    /// A command of `flumen` about this configuration.
    pub fn ask(&self, words: &[&str]) -> Answer {
        let config = self.scene.config().display().to_string();
        let words: Vec<&str> = words.iter().copied().chain([config.as_str()]).collect();
        self.scene.flumen(&words).unwrap()
    }

    /// `flumen reload`, which has to succeed.
    pub fn reload(&self) -> Answer {
        let answer = self.ask(&["reload"]);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        answer
    }

    /// The same where a sink goes: it has a second to deliver what it has. On a busy machine that may be too short; then the reload is
    /// refused, and asked for again.
    pub fn reload_without_a_sink(&self) -> Answer {
        let answer = poll::until_some("a sink that delivers within a second", limits::CONDITION, || {
            let answer = self.ask(&["reload"]);
            let is_late = answer.status.code() == Some(1) && answer.stderr.contains("has not delivered");
            Ok((!is_late).then_some(answer))
        })
        .unwrap();
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        answer
    }

    /// `flumen status`.
    #[must_use]
    pub fn status(&self) -> Value {
        self.scene.answered().unwrap().0
    }

    /// Its part about a pipeline; `None`: there is none of that name.
    #[must_use]
    pub fn pipeline(&self, name: &str) -> Option<Value> {
        let status = self.status();
        status["pipelines"].as_array().unwrap().iter().find(|it| it["name"] == name).cloned()
    }

    /// Waits until `flumen status` says so.
    pub fn wait(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) {
        poll::until(what, limits::CONDITION, || Ok(condition(&self.status()))).unwrap();
    }

    /// Writes two files into the input of the scene, rotated by rename.
    #[must_use]
    pub fn generator(&self, bytes_per_s: u64) -> Generator {
        Generator::start(self.load(bytes_per_s)).unwrap()
    }

    /// What [`Stage::generator`] writes.
    #[must_use]
    pub fn load(&self, bytes_per_s: u64) -> Load {
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
    pub fn judge(&self, agent: Agent, generator: Generator, dir: &str) {
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
#[must_use]
pub fn look(agent: &Agent, prefix: &str) -> Vec<String> {
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
#[must_use]
pub fn threads(agent: &Agent, prefix: &str, count: usize) -> Vec<String> {
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

/// The sink can no longer write: its directory is a file.
pub fn stop_output(stage: &Stage) {
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

/// It can again.
pub fn start_output(stage: &Stage) {
    exchange_output(stage);
    fs::remove_file(stage.scene.output.join("moved")).unwrap();
}

/// At once: a sink that finds nothing there makes the directory anew.
fn exchange_output(stage: &Stage) {
    let [web, moved] = ["web", "moved"].map(|name| stage.scene.output.join(name));
    renameat_with(CWD, web, CWD, moved, RenameFlags::EXCHANGE).unwrap();
}
