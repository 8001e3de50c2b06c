//! `[[interceptor]]` and `[[sink.NAME.interceptor]]`: a chain of plugins; `[source.NAME.codec]` and `[sink.NAME.codec]`: one.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use flumen_pipeline::plan::{
    CodecPlan, EgressPlan, ErrorPlan, InterceptorPlan, OnError, OnReject, PluginLimits, Probation,
};
use flumen_pipeline::{ComponentKind, OptionSpec, Options};

use crate::code::Code;
use crate::egress::read_egress;
use crate::env::Env;
use crate::json;
use crate::named::Names;
use crate::registry::CodecUse;
use crate::report::{Report, UserFile};
use crate::sources::{ComponentSpans, OwnFile, PipelineSpans};
use crate::specs;
use crate::suggest;
use crate::table::{Checked, TableReader, check_name};
use crate::tree::{Entry, Item, Node, Span};

/// Reads a chain. What is wrong is reported and left out.
pub(crate) fn read_chain(
    entry: Option<&Entry>,
    names: &mut Names,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Vec<InterceptorPlan> {
    let Some(entry) = entry else { return Vec::new() };
    let Item::List(nodes) = &entry.value.item else {
        if !matches!(entry.value.item, Item::Broken) {
            let reason =
                format!("`interceptor` is a list of tables, but this is {}", entry.value.type_word());
            report.error(
                Code::WrongType,
                &entry.value.span,
                reason,
                "write the header with two brackets: [[interceptor]]",
            );
        }
        return Vec::new();
    };
    nodes.iter().filter_map(|node| read_one("an interceptor", node, names, spans, report)).collect()
}

/// Reads the codec of a source or sink, if its type takes one. `options`: what else was given for it.
pub(crate) fn read_codec<'a>(
    table: &mut TableReader<'a>,
    used: Option<&CodecUse>,
    options: &Checked,
    names: &mut Names,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Option<CodecPlan> {
    let used = used?;
    let entry = table.get("codec")?;
    for option in used.instead_of.iter().filter(|option| options.spans.contains_key(**option)) {
        let span = options.spans.get(*option).cloned().unwrap_or(0..0);
        let reason = format!("`{option}` means nothing beside `codec`, which takes its place");
        report.error(Code::BadOption, &span, reason, format!("remove `{option}`, or `codec`"));
    }
    if let Item::Table(entries) = &entry.value.item {
        for entry in entries.iter().filter(|entry| ["on_error", "error_budget"].contains(&entry.key.as_str()))
        {
            let reason = format!("`{}` is not for a codec: what it fails on goes to quarantine", entry.key);
            report.error(Code::BadOption, &entry.key_span, reason, format!("remove `{}`", entry.key));
        }
    }
    read_one("a codec", &entry.value, names, spans, report)
}

fn read_one(
    what: &str,
    node: &Node,
    names: &mut Names,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Option<InterceptorPlan> {
    let table = TableReader::new(what, node, report)?;
    let header = table.span().clone();
    let settings = read_settings(what, specs::INTERCEPTOR, table, report);
    let checked = &settings.checked;
    let plugin = checked.options.text_opt("plugin")?.to_owned();
    let plugin_span = checked.spans.get("plugin").unwrap_or(&header);
    let stem = plugin_name(&plugin, plugin_span, report)?;
    let (name, name_span) = match checked.options.text_opt("name") {
        Some(name) => (name.to_owned(), checked.spans.get("name").unwrap_or(&header)),
        None => (stem, plugin_span),
    };
    if checked.options.text_opt("name").is_some() && !check_name("interceptor", &name, name_span, report) {
        return None;
    }
    names.claim(ComponentKind::Interceptor, &name, name_span, report);
    let options = checked.spans.clone();
    spans.add(ComponentKind::Interceptor, &name, ComponentSpans { header, options });
    settings.plan(name, plugin)
}

/// What can be said of an interceptor, its name and its plugin aside.
struct Settings {
    checked: Checked,
    /// `None`: it has an error.
    config: Option<String>,
    grants: Vec<String>,
    on_reject: OnReject,
    errors: ErrorPlan,
    limits: PluginLimits,
    egress: Option<EgressPlan>,
}

impl Settings {
    fn plan(self, name: String, plugin: String) -> Option<InterceptorPlan> {
        let Settings { config, grants, on_reject, errors, limits, egress, .. } = self;
        Some(InterceptorPlan { name, plugin, config: config?, grants, on_reject, errors, limits, egress })
    }
}

/// Reads a whole table. `options`: those that it takes beside its own tables.
fn read_settings(
    what: &str,
    options: &'static [OptionSpec],
    mut table: TableReader<'_>,
    report: &mut Report<'_>,
) -> Settings {
    let mut checked = table.options(options, report);
    let config = table.get("config");
    let limits = table.get("limits");
    let egress = table.get("egress");
    let budget = table.get("error_budget");
    table.finish(report);
    let config_json = json::config_text(what, config.map(|entry| &entry.value), report);
    if let Some(config) = config {
        checked.spans.insert("config".into(), config.key_span.clone());
        json::config_spans("config", &config.value, &mut checked.spans);
    }
    let limits = read_limits(limits, specs::LIMITS, PluginLimits::default(), report);
    let errors = read_errors(&checked, budget, report);
    let grants = grants(&checked, report);
    let egress = read_egress(egress, &grants, &mut checked, report);
    let on_reject = match checked.options.text_opt("on_reject") {
        Some("drop") => OnReject::Drop,
        _ => OnReject::Quarantine,
    };
    Settings { checked, config: config_json, grants, on_reject, errors, limits, egress }
}

/// Checks what `plugin = "…"` says; gives the name that follows from it.
pub(crate) fn plugin_name(plugin: &str, span: &Span, report: &mut Report<'_>) -> Option<String> {
    let path = Path::new(plugin);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        let reason = format!("the plugin `{}` is outside of the plugin directory", report.quote(plugin));
        let fix = "put the file into the plugin directory and give its name without .wasm";
        report.error(Code::PluginOutside, span, reason, fix);
        return None;
    }
    let stem = match plugin.strip_suffix(".wasm") {
        Some(_) => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        None => plugin.to_owned(),
    };
    check_name("plugin", &stem, span, report).then_some(stem)
}

pub(crate) fn grants(checked: &Checked, report: &mut Report<'_>) -> Vec<String> {
    let granted = checked.options.list_opt("grant").unwrap_or_default();
    let span = checked.spans.get("grant").cloned().unwrap_or(0..0);
    for grant in granted {
        if !specs::GRANTS.contains(&grant.as_str()) {
            let reason = format!("the host has nothing named `{}` to grant", report.quote(grant));
            report.error(Code::UnknownGrant, &span, reason, suggest::fix(grant, specs::GRANTS));
        }
    }
    let mut granted = granted.to_vec();
    granted.sort();
    granted.dedup();
    granted
}

fn read_errors(checked: &Checked, entry: Option<&Entry>, report: &mut Report<'_>) -> ErrorPlan {
    let action = match checked.options.text_opt("on_error") {
        Some("stop") => OnError::Stop,
        Some("bypass") => OnError::Bypass,
        _ => OnError::Quarantine,
    };
    let default = ErrorPlan { action, ..ErrorPlan::default() };
    let table = entry.and_then(|entry| TableReader::new("`error_budget`", &entry.value, report));
    let Some(mut table) = table else { return default };
    let options = table.options(specs::ERROR_BUDGET, report).options;
    table.finish(report);
    let percent = |option: &str| options.integer_opt(option).and_then(|percent| u8::try_from(percent).ok());
    let events_min = options.integer_opt("events_min").and_then(|events| u64::try_from(events).ok());
    ErrorPlan {
        action,
        events_percent: percent("events_percent").unwrap_or(default.events_percent),
        batches_percent: percent("batches_percent").unwrap_or(default.batches_percent),
        window: options.duration_opt("window").unwrap_or(default.window),
        events_min: events_min.unwrap_or(default.events_min),
    }
}

/// `default`: the limits without a table.
pub(crate) fn read_limits(
    entry: Option<&Entry>,
    specs: &[OptionSpec],
    default: PluginLimits,
    report: &mut Report<'_>,
) -> PluginLimits {
    let Some(mut table) = entry.and_then(|entry| TableReader::new("`limits`", &entry.value, report)) else {
        return default;
    };
    let options = table.options(specs, report).options;
    table.finish(report);
    let rate = |option: &str| options.integer_opt(option).and_then(|rate| u32::try_from(rate).ok());
    let batches = options.integer_opt("recycle_batches").and_then(|batches| u64::try_from(batches).ok());
    let percent =
        options.integer_opt("recycle_memory_percent").and_then(|percent| u8::try_from(percent).ok());
    PluginLimits {
        time: options.duration_opt("time").unwrap_or(default.time),
        memory_bytes: options.size_opt("memory").unwrap_or(default.memory_bytes),
        answer_bytes: options.size_opt("answer").unwrap_or(default.answer_bytes),
        log_lines_per_s: rate("log_lines_per_s").unwrap_or(default.log_lines_per_s),
        metric_calls_per_s: rate("metric_calls_per_s").unwrap_or(default.metric_calls_per_s),
        host_call_bytes: options.size_opt("host_call_bytes").unwrap_or(default.host_call_bytes),
        state_bytes: options.size_opt("state").unwrap_or(default.state_bytes),
        recycle_batches: batches.unwrap_or(default.recycle_batches),
        probation: read_probation(&options),
        recycle_memory_percent: percent.unwrap_or(default.recycle_memory_percent),
    }
}

fn read_probation(options: &Options) -> Probation {
    let default = Probation::DEFAULT;
    let number = |option: &str| options.integer_opt(option).and_then(|number| u64::try_from(number).ok());
    Probation {
        batches: number("probation_batches").unwrap_or(default.batches),
        time: options.duration_opt("probation_time").unwrap_or(default.time),
        failures: number("probation_failures").unwrap_or(default.failures),
        slowdown: number("probation_slowdown").unwrap_or(default.slowdown),
    }
}

/// The interceptors of a directory: its components NAME.wasm, in the order of their file names. Beside one, NAME.toml may have
/// what else can be said of an interceptor.
pub(crate) fn read_directory(
    dir: &str,
    span: &Span,
    names: &mut Names,
    spans: &mut PipelineSpans,
    env: &dyn Env,
    report: &mut Report<'_>,
) -> Vec<InterceptorPlan> {
    let path = report.file.dir().join(dir);
    if !env.is_dir(&path) {
        let reason = format!("there is no directory `{}`", report.quote(dir));
        report.error(Code::FileNotFound, span, reason, "make it; it may be empty");
        return Vec::new();
    }
    // Seen from the plugin directory, too.
    let path = std::path::absolute(&path).unwrap_or(path);
    let mut files = match env.list(&path) {
        Ok(files) => files,
        Err(error) => {
            let reason = format!("the directory cannot be listed: {error}");
            report.error(Code::FileUnreadable, span, reason, "check who may read it");
            return Vec::new();
        }
    };
    let settings: Vec<_> =
        files.iter().filter(|file| file.extension().is_some_and(|it| it == "toml")).cloned().collect();
    files.retain(|file| {
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        name.ends_with(".wasm") && !name.starts_with('.')
    });
    files.sort();
    report.listed.push(path);
    let mut plans = Vec::new();
    for file in files {
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if !check_name("interceptor", &name, span, report) {
            continue;
        }
        names.claim(ComponentKind::Interceptor, &name, span, report);
        let plugin = file.display().to_string();
        let own = file.with_extension("toml");
        if settings.contains(&own) {
            plans.extend(read_own_file(&own, span, (name, plugin), spans, env, report));
            continue;
        }
        let place = ComponentSpans { header: span.clone(), options: BTreeMap::new() };
        spans.add(ComponentKind::Interceptor, &name, place);
        plans.push(InterceptorPlan {
            name,
            plugin,
            config: "{}".into(),
            grants: Vec::new(),
            on_reject: OnReject::Quarantine,
            errors: ErrorPlan::default(),
            limits: PluginLimits::default(),
            egress: None,
        });
    }
    plans
}

/// An interceptor of a directory (its name and its plugin), as the file beside it says.
fn read_own_file(
    path: &Path,
    from: &Span,
    (name, plugin): (String, String),
    spans: &mut PipelineSpans,
    env: &dyn Env,
    report: &mut Report<'_>,
) -> Option<InterceptorPlan> {
    let file = match UserFile::read(env, path) {
        Ok(file) => file,
        Err(error) => {
            report.unreadable(*error);
            return None;
        }
    };
    let mut own = Report::new(&file);
    let root = own.parse(Some(env));
    let table = root.as_ref().and_then(|root| TableReader::new("an interceptor", root, &mut own));
    let settings =
        table.map(|table| read_settings("an interceptor", specs::INTERCEPTOR_FILE, table, &mut own));
    let secrets = own.secrets.clone();
    report.take_in(own);
    let settings = settings?;
    let options = settings.checked.spans.clone();
    spans.add(ComponentKind::Interceptor, &name, ComponentSpans { header: 0..0, options });
    spans.add_own_file(&name, OwnFile { file, secrets, from: from.clone() });
    settings.plan(name, plugin)
}
