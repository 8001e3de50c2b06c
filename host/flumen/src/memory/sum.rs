//! What the pipelines of a plan can take of memory, by the limits that their files set.
//!
//! Counted is what grows until a limit of the configuration: channels in memory, windows of journals, batches under way, records that wait
//! for brokers, linear memories of plugins and what they remember. Not counted: the program itself and its threads (some ten to thirty
//! MiB), what the limits of each crate keep small (`limits.rs`: a file sink's text, a journal's group, the reads of a source), a second
//! version of a plugin while it is on probation, and bridges.

use flumen_builtin::sinks::limits::KAFKA_QUEUE_BYTES;
use flumen_config::{Diagnostic, Sources as ConfigFiles, format_size};
use flumen_journal::limits::LOG_QUEUE_BYTES;
use flumen_kafka::limits::{QUEUE_BYTES, READ_AHEAD_BYTES};
use flumen_pipeline::limits::QUEUE_BATCHES;
use flumen_pipeline::plan::{
    AgentPlan, ChannelKind, ChannelPlan, InterceptorPlan, PipelinePlan, SecondaryKind, SinkPlan, SourcePlan,
};
use serde::Serialize;

use crate::agent::QUARANTINE_WINDOW_BYTES;
use crate::cmd::status::size;

/// What a plan can take.
#[derive(Debug, Clone, Serialize)]
pub struct MemorySum {
    /// All of it.
    pub bytes: u64,
    /// Of each pipeline.
    pub pipelines: Vec<PipelineMemory>,
}

/// What a pipeline can take.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineMemory {
    /// Its name.
    pub pipeline: String,
    /// All of it.
    pub bytes: u64,
    /// Its parts, the largest first.
    pub parts: Vec<Part>,
}

/// One thing that takes memory, up to a limit.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// What it is, in words.
    pub what: String,
    /// At most.
    pub bytes: u64,
    /// What sets the limit, and how often that is taken.
    #[serde(skip)]
    setting: Option<(String, u64)>,
}

impl Part {
    fn set_by(what: impl Into<String>, setting: impl Into<String>, each: u64, times: u64) -> Part {
        let bytes = each.saturating_mul(times);
        Part { what: what.into(), bytes, setting: Some((setting.into(), times)) }
    }

    fn fixed(what: impl Into<String>, bytes: u64) -> Part {
        Part { what: what.into(), bytes, setting: None }
    }
}

impl MemorySum {
    /// Adds up a plan.
    pub fn of(plan: &AgentPlan) -> MemorySum {
        let pipelines: Vec<PipelineMemory> = plan.pipelines.iter().map(of_pipeline).collect();
        MemorySum { bytes: total(pipelines.iter().map(|pipeline| pipeline.bytes)), pipelines }
    }

    /// Why it is too much, and what to do; `None`: it is not.
    pub fn too_much(&self, max_bytes: u64, max: &str) -> Option<(String, String)> {
        let over = self.bytes.checked_sub(max_bytes).filter(|over| *over > 0)?;
        let each: Vec<String> = self.pipelines.iter().map(PipelineMemory::in_words).collect();
        let reason = format!(
            "pipelines may take {} of memory, which is more than {max} ({}): {}",
            size(self.bytes),
            size(max_bytes),
            each.join("; ")
        );
        let raise = format!("`memory_max` of {} or more holds all of it", rounded(self.bytes, true));
        let fix = match self.largest_that_can(over) {
            Some((pipeline, part, setting, fits)) => format!(
                "lower {setting} of pipeline `{pipeline}` to {fits} or less (it is the largest part: {part}); {raise}"
            ),
            None => format!("lower several of these; {raise}"),
        };
        Some((reason, fix))
    }

    /// The largest part that makes so much room by itself, what sets it, and to what.
    fn largest_that_can(&self, over: u64) -> Option<(&str, &str, &str, String)> {
        let parts = self.pipelines.iter().flat_map(|it| it.parts.iter().map(move |part| (it, part)));
        let able = parts.filter_map(|(pipeline, part)| {
            let (setting, times) = part.setting.as_ref()?;
            let fits = part.bytes.checked_sub(over)?.checked_div(*times)?;
            // Less than this is no value for any of them.
            (fits >= 1 << 20).then(|| (pipeline, part, setting.as_str(), rounded(fits, false)))
        });
        let (pipeline, part, setting, fits) = able.max_by_key(|(_, part, ..)| part.bytes)?;
        Some((&pipeline.pipeline, &part.what, setting, fits))
    }

    /// The largest parts of all, in words.
    pub fn largest(&self, parts: usize) -> String {
        let all = self.pipelines.iter().flat_map(|it| it.parts.iter().map(move |part| (it, part)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(_, part)| std::cmp::Reverse(part.bytes));
        let word = |(pipeline, part): &(&PipelineMemory, &Part)| {
            format!("{} of pipeline {} up to {}", part.what, pipeline.pipeline, size(part.bytes))
        };
        all.iter().take(parts).map(word).collect::<Vec<_>>().join(", ")
    }
}

impl PipelineMemory {
    /// Its name, its sum, and what most of that is.
    fn in_words(&self) -> String {
        format!("`{}` {} ({})", self.pipeline, size(self.bytes), self.largest())
    }

    /// Its largest parts, in words.
    pub fn largest(&self) -> String {
        let mut words: Vec<String> =
            self.parts.iter().take(3).map(|part| format!("{} {}", part.what, size(part.bytes))).collect();
        if self.parts.len() > 3 {
            words.push("…".to_owned());
        }
        words.join(", ")
    }
}

/// The plan may take more than its own `memory_max`.
pub fn error(plan: &AgentPlan, files: &ConfigFiles) -> Option<Diagnostic> {
    let (reason, fix) = MemorySum::of(plan).too_much(plan.memory_max_bytes?, "`memory_max`")?;
    Some(files.memory_max_diagnostic(&reason, &fix))
}

/// A size that somebody may write: whole MiB.
fn rounded(bytes: u64, up: bool) -> String {
    let mib = if up { bytes.div_ceil(1 << 20) } else { bytes >> 20 };
    format!("\"{}\"", format_size(mib.saturating_mul(1 << 20)))
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

fn of_pipeline(plan: &PipelinePlan) -> PipelineMemory {
    let mut parts: Vec<Part> = plan.channels.iter().flat_map(|channel| of_channel(plan, channel)).collect();
    parts.push(Part::set_by(
        "recent batches of the journal",
        "`memory` in [journal]",
        plan.journal.window_bytes,
        1,
    ));
    parts.push(Part::fixed("recent batches of the quarantine", QUARANTINE_WINDOW_BYTES));
    // One topic for all channels.
    let to_kafka = |channel: &ChannelPlan| {
        channel.failover.as_ref().is_some_and(|failover| failover.kind == SecondaryKind::Kafka)
    };
    if plan.channels.iter().any(to_kafka) {
        parts.push(Part::fixed("commits that wait for the failover's broker", LOG_QUEUE_BYTES as u64));
    }
    let under_way = plan.sources.len().saturating_mul(QUEUE_BATCHES.saturating_add(plan.interceptor_threads));
    parts.push(Part::set_by(
        "batches on their way to the journal",
        "`bytes` in [batch]",
        plan.batch.bytes as u64,
        under_way as u64,
    ));
    parts.extend(plan.sources.iter().flat_map(of_source));
    parts.extend(plan.sinks.iter().flat_map(of_sink));
    // Each thread of each source has an instance; batches that meet state go one at a time.
    let threads = plan.sources.len().saturating_mul(plan.interceptor_threads) as u64;
    for plugin in &plan.interceptors {
        parts.extend(of_plugin(plugin, if plugin.keeps_state() { 1 } else { threads }));
    }
    parts.retain(|part| part.bytes > 0);
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    PipelineMemory { pipeline: plan.name.clone(), bytes: total(parts.iter().map(|part| part.bytes)), parts }
}

fn of_channel(plan: &PipelinePlan, channel: &ChannelPlan) -> Vec<Part> {
    let name = &channel.name;
    let what = format!("channel `{name}`");
    let mut parts = match &channel.kind {
        ChannelKind::File => Vec::new(),
        ChannelKind::Memory { .. } | ChannelKind::SourceBacked => {
            let setting = format!("`bytes` in the `capacity` of channel `{name}`");
            vec![Part::set_by(what, setting, channel.capacity_bytes, 1)]
        }
        ChannelKind::Spillable { memory_bytes, .. } => {
            let setting = format!("`bytes` in the `memory` of channel `{name}`");
            vec![Part::set_by(what, setting, *memory_bytes, 1)]
        }
        ChannelKind::Shared { .. } => {
            let readers = plan.sinks.iter().filter(|sink| sink.channel == *name).count() as u64;
            vec![
                Part::fixed(format!("commits of {what} on their way"), QUEUE_BYTES as u64),
                Part::fixed(format!("records of {what} read ahead"), readers * READ_AHEAD_BYTES as u64),
            ]
        }
    };
    parts.extend(channel.failover.as_ref().and_then(|failover| {
        let what = format!("failover of channel `{name}`");
        match failover.kind {
            SecondaryKind::File => None,
            SecondaryKind::Kafka => {
                Some(Part::fixed(format!("records of the {what} read ahead"), READ_AHEAD_BYTES as u64))
            }
            SecondaryKind::Memory => {
                let setting = format!("`bytes` in the `failover` of channel `{name}`");
                Some(Part::set_by(what, setting, failover.capacity_bytes, 1))
            }
            SecondaryKind::Spillable => {
                let setting = format!("`bytes` in the `memory` of the `failover` of channel `{name}`");
                Some(Part::set_by(what, setting, failover.memory_bytes, 1))
            }
        }
    }));
    parts
}

fn of_source(source: &SourcePlan) -> Vec<Part> {
    let name = &source.name;
    let mut parts: Vec<Part> = source.codec.iter().flat_map(|plugin| of_plugin(plugin, 1)).collect();
    // Of a Kafka source; no other has this option.
    if let Some(read_ahead) = source.options.size_opt("read_ahead") {
        let (what, setting) =
            (format!("records of source `{name}` read ahead"), format!("`read_ahead` of source `{name}`"));
        parts.push(Part::set_by(what, setting, read_ahead, 1));
    }
    parts
}

fn of_sink(sink: &SinkPlan) -> Vec<Part> {
    let name = &sink.name;
    let mut parts = Vec::new();
    if sink.kind == "kafka" {
        let lanes = sink.options.integer_opt("lanes").and_then(|lanes| u64::try_from(lanes).ok());
        let bytes = lanes.unwrap_or(1).saturating_mul(KAFKA_QUEUE_BYTES as u64);
        parts.push(Part::fixed(format!("records of sink `{name}` that wait for the broker"), bytes));
    }
    let own = sink.interceptors.iter().chain(&sink.codec).chain(&sink.plugin);
    parts.extend(own.flat_map(|plugin| of_plugin(plugin, 1)));
    parts
}

fn of_plugin(plugin: &InterceptorPlan, instances: u64) -> Vec<Part> {
    let (name, limits) = (&plugin.name, &plugin.limits);
    let what = format!("plugin `{name}`");
    let setting = format!("`memory` in the `limits` of plugin `{name}`");
    let mut parts = vec![Part::set_by(what, setting, limits.memory_bytes, instances)];
    if plugin.keeps_state() {
        let (what, setting) = (
            format!("what plugin `{name}` remembers"),
            format!("`state` in the `limits` of plugin `{name}`"),
        );
        parts.push(Part::set_by(what, setting, limits.state_bytes, 1));
    }
    parts
}

#[cfg(test)]
mod tests {
    use flumen_config::{Code, MemoryEnv, load_agent};

    use super::*;
    use crate::registry::registry;

    const MIB: u64 = 1 << 20;

    fn load(agent: &str, pipeline: &str) -> (AgentPlan, ConfigFiles) {
        let mut env = MemoryEnv::default();
        env.files.insert("flumen.toml".into(), format!("[agent]\n{agent}pipelines = [\"p.toml\"]\n").into());
        env.files.insert("p.toml".into(), pipeline.into());
        load_agent(&["flumen.toml".into()], &registry(), &env).unwrap()
    }

    /// What is more than a MiB of a pipeline.
    fn parts(pipeline: &str) -> Vec<(String, u64)> {
        let sum = MemorySum::of(&load("", pipeline).0);
        assert_eq!(sum.bytes, sum.pipelines[0].parts.iter().map(|part| part.bytes).sum::<u64>());
        let parts = sum.pipelines[0].parts.iter().filter(|part| part.bytes > MIB);
        parts.map(|part| (part.what.clone(), part.bytes / MIB)).collect()
    }

    const SMALL: &str = "[batch]\nbytes = \"64 KiB\"\n[journal]\nmemory = \"2 MiB\"\n";
    const TAIL: &str = "[source.in]\ntype = \"tail\"\npaths = [\"/a\"]\n";
    const NULL: &str = "[sink.out]\ntype = \"null\"\n";

    #[test]
    fn everything_with_a_limit_of_the_configuration_is_counted() {
        let journal = ("recent batches of the journal".to_owned(), 2_u64);
        let one = |what: &str, mib: u64| vec![(what.to_owned(), mib), journal.clone()];
        let with = |more: &str| parts(&format!("{SMALL}{TAIL}{NULL}{more}"));
        assert_eq!(with(""), std::slice::from_ref(&journal));
        let memory = "[channel]\nkind = \"memory\"\ncapacity = { bytes = \"100 MiB\" }\n";
        assert_eq!(with(memory), one("channel `main`", 100));
        assert_eq!(with(&memory.replace("\"memory\"", "\"source-backed\"")), one("channel `main`", 100));
        let spillable = "[channel]\nkind = \"spillable\"\nmemory = { bytes = \"50 MiB\" }\n";
        assert_eq!(with(spillable), one("channel `main`", 50));
        let failover = "[channel]\nfailover = { kind = \"memory\", dir = \"/b\", bytes = \"30 MiB\" }\n";
        assert_eq!(with(failover), one("failover of channel `main`", 30));
        let spills =
            "[channel]\nfailover = { kind = \"spillable\", dir = \"/b\", memory = { bytes = \"20 MiB\" } }\n";
        assert_eq!(with(spills), one("failover of channel `main`", 20));
        let to_kafka = "failover = { kind = \"kafka\", brokers = [\"k:9092\"] }\n";
        let ahead = ("records of the failover of channel `main` read ahead".to_owned(), 16);
        let commits = ("commits that wait for the failover's broker".to_owned(), 32);
        let topic = vec![commits, ahead, journal.clone()];
        assert_eq!(with(&format!("[channel]\n{to_kafka}")), topic);
        let late =
            format!("[channel]\nkind = \"source-backed\"\ncapacity = {{ bytes = \"100 MiB\" }}\n{to_kafka}");
        assert_eq!(with(&late), [one("channel `main`", 100)[..1].to_vec(), topic].concat());
        let plugin = "[[interceptor]]\nplugin = \"p\"\n";
        assert_eq!(with(plugin), one("plugin `p`", 64));
        let threads = format!("interceptor_threads = 3\n{SMALL}{TAIL}{NULL}{plugin}");
        assert_eq!(parts(&threads), one("plugin `p`", 3 * 64));
        let decoder = format!("{SMALL}{TAIL}codec = {{ plugin = \"d\" }}\n{NULL}");
        assert_eq!(parts(&decoder), one("plugin `d`", 64));
        let remembers = format!("{plugin}grant = [\"state\"]\n");
        let state = ("what plugin `p` remembers".to_owned(), 256);
        assert_eq!(with(&remembers), [state, ("plugin `p`".to_owned(), 64), journal.clone()]);
        let kafka = "brokers = [\"k:9092\"]\n";
        let source = format!("[source.in]\ntype = \"kafka\"\n{kafka}topics = [\"t\"]\ngroup = \"g\"\n");
        assert_eq!(parts(&format!("{SMALL}{source}{NULL}")), one("records of source `in` read ahead", 32));
        let sink = format!("[sink.out]\ntype = \"kafka\"\n{kafka}topic = \"t\"\nlanes = 2\n");
        let waits = "records of sink `out` that wait for the broker";
        assert_eq!(parts(&format!("{SMALL}{TAIL}{sink}")), one(waits, 64));
    }

    #[test]
    fn too_much_is_refused_with_what_would_fit() {
        let pipeline = format!(
            "{SMALL}{TAIL}{NULL}[channel]\nkind = \"memory\"\ncapacity = {{ bytes = \"100 MiB\" }}\n"
        );
        let (plan, files) = load("name = \"a\"\nmemory_max = \"64 MiB\"\n", &pipeline);
        let wrong = error(&plan, &files).unwrap();
        assert_eq!((wrong.code, wrong.file.to_str()), (Code::MemoryMax, Some("flumen.toml")));
        assert_eq!(wrong.place.map(|place| place.line), Some(3));
        // With 2 MiB of the journal, one of the quarantine, and three batches of 64 KiB.
        let reason = "pipelines may take 103.2 MiB of memory, which is more than `memory_max` (64.0 MiB): `p` 103.2 MiB \
                      (channel `main` 100.0 MiB, recent batches of the journal 2.0 MiB, recent batches of the quarantine 1.0 MiB, …)";
        assert_eq!(wrong.reason, reason);
        assert_eq!(
            wrong.fix,
            "lower `bytes` in the `capacity` of channel `main` of pipeline `p` to \"60 MiB\" or less (it is the largest part: channel \
             `main`); `memory_max` of \"104 MiB\" or more holds all of it"
        );

        let (plan, files) = load("memory_max = \"104 MiB\"\n", &pipeline);
        assert_eq!(error(&plan, &files), None);
        let fits = pipeline.replace("100 MiB", "60 MiB");
        let (plan, files) = load("memory_max = \"64 MiB\"\n", &fits);
        assert_eq!(error(&plan, &files), None);
        // Nobody asked for a budget.
        let (plan, files) = load("", &pipeline);
        assert_eq!(error(&plan, &files), None);
        let warned = MemorySum::of(&plan).too_much(64 << 20, "the machine's");
        assert!(warned.is_some_and(|(reason, _)| reason.contains("more than the machine's (64.0 MiB)")));
    }

    #[test]
    fn where_no_part_alone_makes_room_the_fix_is_the_budget() {
        let plugins: String =
            (0..4).map(|n| format!("[[interceptor]]\nplugin = \"p\"\nname = \"p{n}\"\n")).collect();
        let (plan, files) = load("memory_max = \"64 MiB\"\n", &format!("{SMALL}{TAIL}{NULL}{plugins}"));
        let fix = error(&plan, &files).unwrap().fix;
        assert_eq!(fix, "lower several of these; `memory_max` of \"260 MiB\" or more holds all of it");
    }
}
