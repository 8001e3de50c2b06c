//! One run of flumen over an input, measured from the outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::output;
use flumen_tests::poll;
use flumen_tests::scene::Scene;
use flumen_tests::status::Status;
use serde::Serialize;

use super::input::{DROPPED, Input};

/// The interceptor in the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Source to sink.
    NoPlugin,
    /// `filter`, which drops one line in a hundred.
    Filter,
    /// `access-log`: ten headers and the event time from each line.
    AccessLog,
    /// `dedup`, which remembers every line of the input: some three million keys.
    Dedup,
    /// `filter`, and a source-backed channel: bodies are written once.
    SourceBacked,
}

impl Variant {
    /// For tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Variant::NoPlugin => "flumen, no plugin",
            Variant::Filter => "flumen, filter (Wasm)",
            Variant::AccessLog => "flumen, access-log (Wasm)",
            Variant::Dedup => "flumen, dedup of every line (Wasm)",
            Variant::SourceBacked => "flumen, filter, source-backed",
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// From the start of the process until all was delivered and acknowledged.
    pub seconds: f64,
    /// Input bytes by that.
    pub mb_s: f64,
    /// Processor time, user and system, of the whole process.
    pub cpu_ns_per_event: f64,
    /// The most resident memory.
    pub peak_rss_mb: f64,
    /// The most resident memory of its own is not known afterwards; what it had at the end.
    pub anonymous_rss_mb: f64,
    /// Nanoseconds per event of each step, by its own clock (steps run side by side).
    pub ns_per_event: BTreeMap<&'static str, f64>,
}

/// Longest run: ten times what a slow disk needs.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// Runs it once.
///
/// # Errors
/// If it does not deliver everything.
pub fn run(binary: &Path, input: &Input, variant: Variant, dir: &Path) -> Result<Run> {
    let mut scene = Scene::below(dir)?;
    scene.binary = Some(binary.to_owned());
    let (plugin, lines, bytes) = match variant {
        Variant::NoPlugin => (None, input.lines, input.bytes),
        Variant::Filter | Variant::SourceBacked => (Some("filter"), input.kept_lines, input.kept_bytes),
        Variant::AccessLog => (Some("access-log"), input.lines, input.bytes),
        Variant::Dedup => (Some("dedup"), input.lines, input.bytes),
    };
    if let Some(plugin) = plugin {
        scene.install(plugin, plugin)?;
    }
    scene.pipeline(&pipeline(&input.path, variant))?;
    let mut agent = scene.start()?;
    poll::until("all bytes in the output", RUN_LIMIT, || {
        agent.expect_running()?;
        Ok(output::bytes(&scene.output)? >= bytes)
    })
    .with_context(|| {
        format!("{} of {bytes} bytes; {}", output::bytes(&scene.output).unwrap_or(0), agent.log_tail())
    })?;
    let status = poll::until_some("all acknowledged", RUN_LIMIT, || {
        agent.expect_running()?;
        Ok(scene.status()?.filter(|status| status.metric("sink", "events_delivered") >= lines))
    })?;
    let elapsed = agent.started().elapsed();
    let (cpu_ns, memory) = (agent.cpu_ns()?, agent.memory()?);
    agent.stop()?;
    if output::bytes(&scene.output)? != bytes {
        bail!("{} bytes came out instead of {bytes}", output::bytes(&scene.output)?);
    }
    let events = input.lines as f64;
    Ok(Run {
        seconds: elapsed.as_secs_f64(),
        mb_s: input.bytes as f64 / 1e6 / elapsed.as_secs_f64(),
        cpu_ns_per_event: cpu_ns as f64 / events,
        peak_rss_mb: memory.peak as f64 / 1e6,
        anonymous_rss_mb: memory.anonymous as f64 / 1e6,
        ns_per_event: steps(&status, events),
    })
}

fn steps(status: &Status, events: f64) -> BTreeMap<&'static str, f64> {
    let figures = [
        ("read", status.metric("source", "read_ns")),
        ("split", status.metric("source", "split_ns")),
        ("interceptor", status.metric("interceptor", "busy_ns")),
        ("commit_encode", status.journal("encode_ns")),
        ("commit_write", status.journal("write_ns")),
        ("commit_sync", status.journal("sync_ns")),
        ("deliver", status.metric("sink", "deliver_ns")),
        ("flush", status.metric("sink", "flush_ns")),
    ];
    figures.into_iter().map(|(name, ns)| (name, ns as f64 / events)).collect()
}

fn pipeline(input: &Path, variant: Variant) -> String {
    let input: PathBuf = input.to_owned();
    let interceptor = match variant {
        Variant::NoPlugin => String::new(),
        Variant::Filter | Variant::SourceBacked => {
            format!(
                "[[interceptor]]\nplugin = \"filter\"\nconfig = {{ drop = {{ contains = '{DROPPED}' }} }}\n"
            )
        }
        Variant::AccessLog => "[[interceptor]]\nplugin = \"access-log\"\n".to_owned(),
        Variant::Dedup => "[[interceptor]]\nplugin = \"dedup\"\ngrant = [\"state\"]\nconfig = { by = \"body\", window = \"1h\" }\nlimits = { state = \"1 GiB\" }\n"
            .to_owned(),
    };
    let channel = match variant {
        Variant::SourceBacked => "[channel]\nkind = \"source-backed\"\n",
        _ => "",
    };
    format!(
        "[source.access]\ntype = \"tail\"\npaths = [\"{}\"]\n{interceptor}{channel}[sink.out]\ntype = \"file\"\npath = \"{{out}}/all.log\"\n",
        input.display()
    )
}
