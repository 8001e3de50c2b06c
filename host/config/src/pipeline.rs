//! A pipeline file: what each table means, and whether they fit together.

use flumen_pipeline::ComponentKind;
use flumen_pipeline::plan::{BatchPlan, InterceptorPlan, PLUGIN_SINK, PipelinePlan, SinkPlan, SourcePlan};

use crate::channels::{Channel, check_read, read_channels};
use crate::code::Code;
use crate::env::Env;
use crate::groups::read_groups;
use crate::interceptor::{read_chain, read_codec, read_directory};
use crate::journal::read_journal;
use crate::memory_channels::read_reliability;
use crate::named::{Named, Names, find_spec, is_type, named};
use crate::plugin_sink::{is_plugin, read_plugin_sink};
use crate::registry::Registry;
use crate::report::Report;
use crate::selector::{check_fed, read_selector};
use crate::sources::{ComponentSpans, PipelineSpans};
use crate::specs;
use crate::suggest;
use crate::table::{Checked, TableReader, check_name};
use crate::tree::{Entry, Item, Node, Span};

/// Reads a pipeline. If the report has errors afterwards, the plan is not to be used.
pub(crate) fn read_pipeline(
    root: &Node,
    registry: &Registry,
    env: &dyn Env,
    report: &mut Report<'_>,
) -> Option<(PipelinePlan, PipelineSpans)> {
    let mut spans = PipelineSpans::new(report.file.clone());
    let mut names = Names::default();
    let mut table = TableReader::new("a pipeline", root, report)?;
    let top = table.options(specs::PIPELINE, report);
    let reliability = read_reliability(&mut table, report);
    let sources = table.get("source");
    let chain = table.get("interceptor");
    let channels = table.get("channel");
    let sinks = table.get("sink");
    let groups = table.get("group");
    let batch = table.get("batch");
    let journal = table.get("journal");
    table.finish(report);

    let name = pipeline_name(&top, report);
    let batch = read_batch(batch, report);
    let channels = read_channels(channels, &batch, reliability.as_ref(), registry, &mut spans, report);
    // Around a shared channel one side may be elsewhere; not both.
    let is_shared = channels.iter().any(|channel| channel.plan.is_shared());
    if !(is_shared && (is_empty(sources) != is_empty(sinks))) {
        check_sides(sources, sinks, report);
    }
    let sources = read_sources(sources, registry, &channels, &mut names, &mut spans, report);
    let mut interceptors = read_chain(chain, &mut names, &mut spans, report);
    if let Some(dir) = top.options.text_opt("interceptors_from") {
        let span = top.spans.get("interceptors_from").cloned().unwrap_or(0..0);
        interceptors.extend(read_directory(dir, &span, &mut names, &mut spans, env, report));
    }
    let errors = report.diagnostics.len();
    let sinks = read_sinks(sinks, registry, &channels, &mut names, &mut spans, report);
    let right_sinks = (report.diagnostics.len() == errors).then_some(sinks.as_slice());
    let groups = read_groups(groups, right_sinks, &channels, &mut names, report);
    let threads = top.options.integer_opt("interceptor_threads").and_then(|n| usize::try_from(n).ok());
    spans.secrets.clone_from(&report.secrets);
    let plan = PipelinePlan {
        name,
        file: report.file.path.clone(),
        sources,
        interceptors,
        interceptor_threads: threads.unwrap_or(1),
        channels: channels.into_iter().map(|channel| channel.plan).collect(),
        sinks,
        groups,
        batch,
        journal: read_journal(journal, report),
    };
    check_state(&plan, &spans, report);
    Some((plan, spans))
}

/// What plugins remember is in the commits of their events: between sources and channels.
fn check_state(plan: &PipelinePlan, spans: &PipelineSpans, report: &mut Report<'_>) {
    let span = |plugin: &InterceptorPlan| spans.option(ComponentKind::Interceptor, &plugin.name, "grant");
    for sink in &plan.sinks {
        for plugin in sink.interceptors.iter().filter(|plugin| plugin.keeps_state()) {
            let reason = format!("plugin `{}` keeps state, which a sink's interceptors cannot", plugin.name);
            let fix = "move it to the pipeline's own [[interceptor]] list, before the channels";
            report.error(Code::StateOnSink, &span(plugin), reason, fix);
        }
    }
}

fn pipeline_name(top: &Checked, report: &mut Report<'_>) -> String {
    let (name, span) = match top.options.text_opt("name") {
        Some(name) => (name.to_owned(), top.spans.get("name").cloned().unwrap_or(0..0)),
        None => (report.file.stem(), 0..0),
    };
    check_name("pipeline", &name, &span, report);
    name
}

fn is_empty(entry: Option<&Entry>) -> bool {
    entry.is_none_or(|entry| matches!(&entry.value.item, Item::Table(entries) if entries.is_empty()))
}

fn check_sides(sources: Option<&Entry>, sinks: Option<&Entry>, report: &mut Report<'_>) {
    let span = |entry: Option<&Entry>| entry.map_or(0..0, |entry| entry.value.span.clone());
    if is_empty(sources) {
        let fix = "add [source] with type = \"…\" and its options";
        report.error(Code::NoSource, &span(sources), "the pipeline has no source", fix);
    }
    if is_empty(sinks) {
        let fix = "add [sink] with type = \"…\" and its options";
        report.error(Code::NoSink, &span(sinks), "the pipeline has no sink", fix);
    }
}

fn read_sources(
    entry: Option<&Entry>,
    registry: &Registry,
    channels: &[Channel],
    names: &mut Names,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Vec<SourcePlan> {
    let errors = report.diagnostics.len();
    let found = named("source", entry, is_type, report);
    let mut plans = Vec::new();
    for Named { name, node, span } in found {
        let what = format!("source `{name}`");
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        names.claim(ComponentKind::Source, name, span, report);
        let Some(spec) = find_spec(&what, &mut table, &registry.sources, report) else { continue };
        let checked = table.options(spec.options, report);
        let used = registry.decoders.iter().find(|used| used.kind == spec.kind);
        let codec = read_codec(&mut table, used, &checked, names, spans, report);
        let selector = read_selector(name, table.get("selector"), channels, report);
        let header = table.span().clone();
        table.finish(report);
        spans.add(ComponentKind::Source, name, ComponentSpans { header, options: checked.spans });
        let (name, kind, options) = (name.into(), spec.kind.into(), checked.options);
        plans.push(SourcePlan { name, kind, codec, options, selector });
    }
    // After an error in a source it is not known what it puts to.
    if !plans.is_empty() && report.diagnostics.len() == errors {
        let selectors: Vec<_> = plans.iter().map(|plan| &plan.selector).collect();
        check_fed(channels, &selectors, report);
    }
    plans
}

fn read_sinks(
    entry: Option<&Entry>,
    registry: &Registry,
    channels: &[Channel],
    names: &mut Names,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Vec<SinkPlan> {
    let errors = report.diagnostics.len();
    let found = named("sink", entry, |entry| is_type(entry) || is_plugin(entry), report);
    let mut plans = Vec::new();
    let mut read: Vec<String> = Vec::new();
    for Named { name, node, span } in found {
        let what = format!("sink `{name}`");
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        names.claim(ComponentKind::Sink, name, span, report);
        let own = table.options(specs::SINK, report);
        let chain = table.get("interceptor");
        let header = table.span().clone();
        let channel = sink_channel(&what, &own, &header, channels, report);
        read.extend(channel.clone());
        let interceptors = read_chain(chain, names, spans, report);
        let (kind, plugin, mut checked) = if table.get("plugin").is_some_and(is_plugin) {
            let (plugin, checked) = read_plugin_sink(name, &mut table, report);
            (PLUGIN_SINK, plugin, checked)
        } else {
            let Some(spec) = find_spec(&what, &mut table, &registry.sinks, report) else { continue };
            (spec.kind, None, table.options(spec.options, report))
        };
        let used = registry.encoders.iter().find(|used| used.kind == kind);
        let codec = read_codec(&mut table, used, &checked, names, spans, report);
        table.finish(report);
        checked.spans.extend(own.spans);
        spans.add(ComponentKind::Sink, name, ComponentSpans { header, options: checked.spans });
        let channel = channel.unwrap_or_default();
        let (name, kind, options) = (name.into(), kind.into(), checked.options);
        plans.push(SinkPlan { name, kind, channel, interceptors, codec, options, plugin });
    }
    // After an error in a sink it is not known which channel it reads.
    if !is_empty(entry) && report.diagnostics.len() == errors {
        check_read(channels, &read, report);
    }
    plans
}

fn sink_channel(
    what: &str,
    own: &Checked,
    header: &Span,
    channels: &[Channel],
    report: &mut Report<'_>,
) -> Option<String> {
    let known: Vec<&str> = channels.iter().map(|channel| channel.plan.name.as_str()).collect();
    match (own.options.text_opt("channel"), known.as_slice()) {
        (Some(channel), known) if known.contains(&channel) => Some(channel.to_owned()),
        (Some(channel), known) => {
            let span = own.spans.get("channel").unwrap_or(header);
            let reason = format!("{what}: there is no channel `{}`", report.quote(channel));
            report.error(Code::UnknownChannel, span, reason, suggest::fix(channel, known));
            None
        }
        // `channel` stands there with a wrong value, or the channels are wrong: reported.
        (None, _) if own.spans.contains_key("channel") => None,
        (None, []) => None,
        (None, [only]) => Some((*only).to_owned()),
        (None, several) => {
            let reason = format!("{what} needs `channel`, because there are several");
            let fix = format!("add channel = \"…\": one of {}", suggest::listed(several));
            report.error(Code::MissingChannel, header, reason, fix);
            None
        }
    }
}

fn read_batch(entry: Option<&Entry>, report: &mut Report<'_>) -> BatchPlan {
    let default = BatchPlan::default();
    let Some(mut table) = entry.and_then(|entry| TableReader::new("`batch`", &entry.value, report)) else {
        return default;
    };
    let options = table.options(specs::BATCH, report).options;
    table.finish(report);
    let rows = options.integer_opt("rows").and_then(|rows| usize::try_from(rows).ok());
    let bytes = options.size_opt("bytes").and_then(|bytes| usize::try_from(bytes).ok());
    BatchPlan {
        rows: rows.unwrap_or(default.rows),
        bytes: bytes.unwrap_or(default.bytes),
        linger: options.duration_opt("linger").unwrap_or(default.linger),
    }
}
