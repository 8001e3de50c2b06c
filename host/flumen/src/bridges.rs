//! The bridges that an agent runs beside its pipelines: each topic in a thread of its own.
//!
//! What a person mends elsewhere (brokers, rights, a lock that another bridge holds, a full disk) is tried again with a growing
//! pause, and so is a panic. What was written and cannot be trusted, or records that are gone, end that topic for good:
//! the state is `failed`, and everything else goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flumen_builtin::bridge::{Bridge, BridgeError, Done, Pauses, Watch};
use flumen_config::{Diagnostic, Sources as ConfigFiles};
use flumen_pipeline::limits::RETRY_MAX;
use flumen_pipeline::plan::{AgentPlan, BridgePlan};
use flumen_pipeline::status::ComponentStatus;
use flumen_pipeline::{BuildError, Options};
use serde::Serialize;

use crate::exit::Failure;
use crate::registry;

/// How often a stop looks whether the threads have ended: short beside the answer that one may wait for.
const LOOK: Duration = Duration::from_millis(10);

/// A bridge under way.
pub struct RunningBridge {
    name: String,
    file: PathBuf,
    stop: Arc<AtomicBool>,
    topics: Vec<(Arc<Watch>, JoinHandle<()>)>,
}

/// A bridge in `flumen status`: a pipeline whose sources are topics, and whose sinks are their buckets.
#[derive(Debug, Serialize)]
pub struct BridgeView {
    kind: &'static str,
    name: String,
    file: String,
    failure: Option<String>,
    sources: Vec<ComponentStatus>,
    sinks: Vec<BucketsView>,
    /// It has none of these; who reads pipelines finds the lists.
    interceptors: [(); 0],
    channels: [(); 0],
    plugins: [(); 0],
}

#[derive(Debug, Serialize)]
struct BucketsView {
    #[serde(flatten)]
    component: ComponentStatus,
    open_bucket: Option<String>,
    interceptors: [(); 0],
}

/// Builds a bridge of the plan; an error names its table.
pub fn build(plan: &BridgePlan) -> Result<Bridge, (&'static str, BuildError)> {
    let options = plan.tables.get("bridge").cloned().unwrap_or_else(Options::default);
    Bridge::build(&options, plan.tables.get("kafka"), plan.tables.get("tree"))
}

/// What is wrong with the options of bridges.
pub fn errors(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let found = plan.bridges.iter().filter_map(|bridge| build(bridge).err().map(|error| (bridge, error)));
    found.map(|(plan, (table, error))| files.bridge_diagnostic_for(&plan.name, table, &error)).collect()
}

/// Files that options of bridges name and that are not there, or not what they should be.
pub fn file_errors(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
    for bridge in &plan.bridges {
        for (table, options) in &bridge.tables {
            if let Err(error) = registry::check_files(options) {
                wrong.push(files.bridge_diagnostic_for(&bridge.name, table, &error));
            }
        }
    }
    wrong
}

impl RunningBridge {
    /// Starts its threads.
    pub fn start(plan: &BridgePlan, files: &ConfigFiles) -> Result<RunningBridge, Failure> {
        let bridge = build(plan).map_err(|(table, error)| {
            Failure::Config(vec![files.bridge_diagnostic_for(&plan.name, table, &error)])
        })?;
        let bridge = Arc::new(bridge);
        let (name, file, stop) = (plan.name.clone(), plan.file.clone(), Arc::new(AtomicBool::new(false)));
        let mut running = RunningBridge { name, file, stop, topics: Vec::new() };
        for topic in bridge.names() {
            let watch = Arc::new(Watch::new(&topic));
            let follower = Follower {
                bridge: bridge.clone(),
                name: plan.name.clone(),
                topic,
                watch: watch.clone(),
                stop: running.stop.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("bridge-{}", plan.name));
            match thread.spawn(move || follower.run()) {
                Ok(thread) => running.topics.push((watch, thread)),
                Err(error) => {
                    running.ask_to_stop();
                    return Err(anyhow::anyhow!("cannot start a thread: {error}").into());
                }
            }
        }
        Ok(running)
    }

    /// The bridge's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why none of its topics gets on, if none does.
    pub fn failure(&self) -> Option<String> {
        let failures: Vec<String> = self.failures().collect();
        (failures.len() == self.topics.len()).then(|| failures.join("; "))
    }

    fn failures(&self) -> impl Iterator<Item = String> {
        self.topics.iter().filter_map(|(watch, _)| watch.failure())
    }

    /// Its threads begin to end.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for them. True if no topic had failed. A thread that still waits for an answer at the deadline ends with
    /// the process, which is no harm: a bucket counts when its `_SUCCESS` stands there, and not before.
    pub fn wait(&self, deadline: Instant) -> bool {
        let ended = || self.topics.iter().all(|(_, thread)| thread.is_finished());
        while !ended() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        let failures: Vec<String> = self.failures().collect();
        if !failures.is_empty() {
            tracing::error!(bridge = self.name, reason = failures.join("; "), "stopped after a failure");
        } else if ended() {
            tracing::info!(bridge = self.name, "stopped; the next start goes on with the open bucket");
        } else {
            tracing::warn!(
                bridge = self.name,
                "did not stop in time; the next start makes the open bucket anew"
            );
        }
        failures.is_empty()
    }

    /// Figures.
    pub fn status(&self) -> BridgeView {
        let (mut sources, mut sinks) = (Vec::new(), Vec::new());
        for (watch, _) in &self.topics {
            let status = watch.status();
            sources.push(status.source);
            sinks.push(BucketsView {
                component: status.sink,
                open_bucket: status.open_bucket,
                interceptors: [],
            });
        }
        let failures: Vec<String> = self.failures().collect();
        BridgeView {
            kind: "bridge",
            name: self.name.clone(),
            file: self.file.display().to_string(),
            failure: (!failures.is_empty()).then(|| failures.join("; ")),
            sources,
            sinks,
            interceptors: [],
            channels: [],
            plugins: [],
        }
    }
}

/// The thread of one topic.
struct Follower {
    bridge: Arc<Bridge>,
    name: String,
    topic: String,
    watch: Arc<Watch>,
    stop: Arc<AtomicBool>,
}

impl Follower {
    fn run(&self) {
        let mut pauses = Pauses::default();
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| self.follow()));
            let error = match outcome {
                Ok(Ok(()) | Err(BridgeError::Stopped)) => break,
                Ok(Err(error)) if is_for_good(&error) => {
                    tracing::error!(bridge = self.name, topic = self.topic, "{error}");
                    return self.watch.fails(error.to_string());
                }
                Ok(Err(error)) => error,
                Err(_) => BridgeError::Kafka("the bridge panicked (a bug of Flumen); it begins anew".into()),
            };
            tracing::warn!(bridge = self.name, topic = self.topic, "{error}; trying again");
            self.watch.retries(&error);
            if begun.elapsed() > RETRY_MAX {
                pauses = Pauses::default();
            }
            pauses.pause(&self.stop);
        }
        self.watch.ends();
    }

    fn follow(&self) -> Result<(), BridgeError> {
        let held = self.bridge.hold(&self.topic)?;
        self.bridge.follow(&held, None, &self.stop, &self.watch, &|done| self.tell(done))
    }

    fn tell(&self, done: &Done) {
        let Done { dir, manifest, made } = done;
        let (bucket, directory) = (manifest.start.as_str(), dir.display().to_string());
        let records = manifest.records;
        tracing::info!(
            bridge = self.name,
            topic = self.topic,
            bucket,
            records,
            made,
            directory,
            "bucket closed"
        );
    }
}

/// Nobody but a person can mend it, here.
fn is_for_good(error: &BridgeError) -> bool {
    matches!(
        error,
        BridgeError::Gap(_) | BridgeError::Broken { .. } | BridgeError::Differs(_) | BridgeError::NoBegin
    )
}
