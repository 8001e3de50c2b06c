//! JSON Schema of the pipeline file and the agent file, from the specs: for editors.
//!
//! The order of everything is fixed, so the checked-in files change only when the specs do.

use flumen_pipeline::{ComponentSpec, OptionKind, OptionSpec, Value as Checked};
use serde_json::{Value, json};

use crate::json::sorted;
use crate::limits;
use crate::registry::{CodecUse, Registry};
use crate::specs;
use crate::table::default_value;

/// The schema files by name, as they are checked in below `config/schema/`.
pub fn schema_files(registry: &Registry) -> [(&'static str, String); 2] {
    [
        ("pipeline.schema.json", format!("{:#}\n", pipeline_schema(registry))),
        ("agent.schema.json", format!("{:#}\n", agent_schema())),
    ]
}

/// Both schemas in one value: `{"agent": …, "pipeline": …}`.
pub fn json_schema(registry: &Registry) -> Value {
    object([("agent", agent_schema()), ("pipeline", pipeline_schema(registry))])
}

/// The schema of an agent file.
pub fn agent_schema() -> Value {
    let agent = closed_table("The settings that all pipelines share.", specs::AGENT, []);
    object([
        ("$schema", DRAFT.into()),
        ("title", "Flumen agent".into()),
        ("type", "object".into()),
        ("properties", object([("agent", agent)])),
        ("additionalProperties", false.into()),
    ])
}

/// The schema of a pipeline file.
pub fn pipeline_schema(registry: &Registry) -> Value {
    let capacity = closed_table("A put waits when one of these is reached.", specs::CAPACITY, []);
    let channel = channel_kinds(registry, capacity);
    let plugin_limits = closed_table("Limits of one instance.", specs::LIMITS, []);
    let error_budget =
        closed_table("How much the plugin may fail before `on_error` says.", specs::ERROR_BUDGET, []);
    let config = json!({"type": "object", "description": "The plugin's own configuration."});
    let interceptor = closed_table(
        "A plugin that changes batches.",
        specs::INTERCEPTOR,
        [
            ("config", config.clone()),
            ("limits", plugin_limits),
            ("error_budget", error_budget),
            ("egress", egress()),
        ],
    );
    let sink_chain = chain("Interceptors of this sink alone, in order.");
    let channel_option = specs::SINK.iter().map(|spec| (spec.name, option_schema(spec)));
    let sink_own: Vec<_> = channel_option.chain([("interceptor", sink_chain)]).collect();
    let defs = object([
        ("source", components(&registry.sources, &[("selector", selector())], &registry.decoders)),
        ("sink", sinks(&registry.sinks, &sink_own, config, &registry.encoders)),
        ("channel", channel),
        ("failover", failover(registry, false)),
        ("group", closed_table("Each event goes to one of these sinks.", specs::GROUP, [])),
        ("codec", described(interceptor.clone(), CODEC)),
        ("interceptor", interceptor),
    ]);
    let mut properties = vec![
        ("source", one_or_named("Where events come from.", "source")),
        ("channel", one_or_named("Queues; without one there is a channel `main`.", "channel")),
        ("sink", one_or_named("Where events go.", "sink")),
        ("group", one_or_named("Sinks that read a channel as one.", "group")),
        ("interceptor", chain("The chain between sources and channels, in order.")),
        (
            "batch",
            closed_table("How batches grow: one goes on when any of these is reached.", specs::BATCH, []),
        ),
        ("journal", closed_table("The pipeline's journal.", specs::JOURNAL, [("key", journal_keys())])),
    ];
    properties.extend(
        specs::PIPELINE.iter().chain(specs::RELIABILITY).map(|spec| (spec.name, option_schema(spec))),
    );
    object([
        ("$schema", DRAFT.into()),
        ("title", "Flumen pipeline".into()),
        ("type", "object".into()),
        ("properties", object(properties)),
        ("required", json!(["source", "sink"])),
        ("additionalProperties", false.into()),
        ("$defs", defs),
    ])
}

/// A channel of kind `file`, `memory`, `source-backed` or `spillable`, or of one of the registry.
fn channel_kinds(registry: &Registry, capacity: Value) -> Value {
    let about = "A queue of events in the journal.";
    let kind = specs::CHANNEL.iter().filter(|spec| spec.name != "kind");
    let file: Vec<OptionSpec> = kind.copied().collect();
    let file_kind = object([("const", "file".into()), ("default", "file".into())]);
    let in_memory = closed_table("A put waits when one of these is reached.", specs::MEMORY_CAPACITY, []);
    let named = |kind: &str, about: &str| object([("const", kind.into()), ("description", about.into())]);
    let own = [("capacity", capacity.clone()), ("kind", file_kind), ("failover", reference("failover"))];
    let mut kinds = vec![closed_table(about, &file, own)];
    let memory: Vec<OptionSpec> = [file.as_slice(), specs::MEMORY_CHANNEL].concat();
    let memory_kind = named("memory", "In memory: lost if the agent dies.");
    let in_memory_alone =
        |kind: Value| [("capacity", in_memory.clone()), ("kind", kind), ("failover", reference("failover"))];
    kinds.push(closed_table(about, &memory, in_memory_alone(memory_kind)));
    let late = named("source-backed", "In memory, and read again from its source after a crash.");
    kinds.push(closed_table(about, &file, in_memory_alone(late)));
    let spillable_kind =
        named("spillable", "In memory while that has room, then on disk until that is drained.");
    kinds.push(closed_table(
        about,
        &file,
        [
            ("capacity", capacity),
            ("memory", in_memory.clone()),
            ("kind", spillable_kind),
            ("failover", reference("failover")),
        ],
    ));
    for kind in kinds.iter_mut().skip(1) {
        if let Value::Object(map) = kind {
            map.insert("required".into(), json!(["kind"]));
        }
    }
    for spec in &registry.channels {
        let kind = object([("const", spec.kind.into()), ("description", spec.about.into())]);
        let own = file.iter().map(|spec| (spec.name, option_schema(spec)));
        let extra = own.chain([("kind", kind), ("failover", failover(registry, true))]);
        let mut schema = closed_table(spec.about, spec.options, extra);
        if let Value::Object(map) = &mut schema {
            let required = std::iter::once("kind").chain(required(spec.options));
            map.insert("required".into(), required.collect());
        }
        kinds.push(match schema {
            Value::Object(map) => sorted(map.into_iter().collect()),
            other => other,
        });
    }
    object([("oneOf", kinds.into())])
}

/// `failover` of a channel: of kind `file`, `memory` or `spillable`, or of one of the registry. `is_shared`: the channel is of a kind of the
/// registry itself, so its failover is on this machine, in the data directory.
fn failover(registry: &Registry, is_shared: bool) -> Value {
    let about = "What takes events meanwhile.";
    let general = |has_dir: bool| -> Vec<OptionSpec> {
        let fits = |spec: &&OptionSpec| spec.name != "kind" && (has_dir || spec.name != "dir");
        specs::FAILOVER.iter().filter(fits).copied().collect()
    };
    let here = general(!is_shared);
    let needed = |own: &[&'static str]| -> Vec<&'static str> {
        own.iter().copied().chain((!is_shared).then_some("dir")).collect()
    };
    let named = |kind: &str| object([("const", kind.into())]);
    let file = object([("const", "file".into()), ("default", "file".into())]);
    let memory = closed_table("What it holds in memory.", specs::MEMORY_CAPACITY, []);
    let mut kinds = vec![
        with_required(closed_table(about, &here, [("kind", file)]), &needed(&[])),
        with_required(closed_table(about, &here, [("kind", named("memory"))]), &needed(&["kind"])),
        with_required(
            closed_table(about, &here, [("kind", named("spillable")), ("memory", memory)]),
            &needed(&["kind"]),
        ),
    ];
    for spec in registry.failovers.iter().filter(|_| !is_shared) {
        let options = [general(false).as_slice(), spec.options].concat();
        let needed: Vec<&str> = std::iter::once("kind").chain(required(spec.options)).collect();
        kinds.push(with_required(closed_table(spec.about, &options, [("kind", named(spec.kind))]), &needed));
    }
    object([("oneOf", kinds.into())])
}

/// A table in which these keys have to be.
fn with_required(schema: Value, keys: &[&str]) -> Value {
    match schema {
        Value::Object(mut map) if !keys.is_empty() => {
            map.insert("required".into(), json!(keys));
            // Again sorted, in case the map keeps the order of insertion.
            sorted(map.into_iter().collect())
        }
        other => other,
    }
}

/// The schema of a file of flat tables, which are named by the specs' `kind`.
pub fn tables_schema(title: &str, specs: &[ComponentSpec], needed: &str) -> Value {
    let tables = specs.iter().map(|spec| (spec.kind, closed_table(spec.about, spec.options, [])));
    object([
        ("$schema", DRAFT.into()),
        ("title", title.into()),
        ("type", "object".into()),
        ("properties", object(tables)),
        ("required", json!([needed])),
        ("additionalProperties", false.into()),
    ])
}

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

fn object<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    sorted(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn reference(def: &str) -> Value {
    json!({"$ref": format!("#/$defs/{def}")})
}

fn chain(about: &str) -> Value {
    object([("type", "array".into()), ("description", about.into()), ("items", reference("interceptor"))])
}

/// `[what]` itself, or `[what.NAME]`.
fn one_or_named(about: &str, def: &str) -> Value {
    let name = format!("^[a-z0-9][a-z0-9_-]{{0,{}}}$", limits::NAME_CHARS_MAX - 1);
    let named = object([
        ("type", "object".into()),
        ("minProperties", 1.into()),
        ("propertyNames", json!({"pattern": name})),
        ("additionalProperties", reference(def)),
    ]);
    object([("description", about.into()), ("anyOf", json!([reference(def), named]))])
}

const CODEC: &str = "A plugin that decodes or encodes in place of what is built in.";

fn described(mut schema: Value, about: &str) -> Value {
    if let Value::Object(map) = &mut schema {
        map.insert("description".into(), about.into());
    }
    schema
}

fn components(kinds: &[ComponentSpec], own: &[(&str, Value)], codecs: &[CodecUse]) -> Value {
    let one = |spec: &ComponentSpec| {
        let kind = object([("const", spec.kind.into()), ("description", spec.about.into())]);
        let takes_codec = codecs.iter().any(|used| used.kind == spec.kind);
        let codec = takes_codec.then(|| ("codec", reference("codec")));
        let extra = own.iter().cloned().chain([("type", kind)]).chain(codec);
        let mut schema = closed_table(spec.about, spec.options, extra);
        let required = std::iter::once("type").chain(required(spec.options));
        if let Value::Object(map) = &mut schema {
            map.remove("required");
            map.insert("required".into(), required.collect());
        }
        // Again sorted, in case the map keeps the order of insertion.
        match schema {
            Value::Object(map) => sorted(map.into_iter().collect()),
            other => other,
        }
    };
    object([("oneOf", kinds.iter().map(one).collect())])
}

/// Those of the registry, and plugins.
fn sinks(kinds: &[ComponentSpec], own: &[(&str, Value)], config: Value, codecs: &[CodecUse]) -> Value {
    let about = "A plugin that delivers.";
    let limits = closed_table("Limits of one instance.", specs::SINK_LIMITS, []);
    let extra = [("config", config), ("limits", limits), ("egress", egress())];
    let plugin = closed_table(about, specs::PLUGIN_SINK, own.iter().cloned().chain(extra));
    let mut all = components(kinds, own, codecs);
    if let Some(Value::Array(kinds)) = all.get_mut("oneOf") {
        kinds.push(plugin);
    }
    all
}

fn selector() -> Value {
    let names = json!({"type": "array", "items": {"type": "string"}});
    let mapping = object([
        ("type", "object".into()),
        ("description", specs::MAPPING_ABOUT.into()),
        ("additionalProperties", json!({"anyOf": [{"type": "string"}, names]})),
    ]);
    closed_table("Which channels get the events.", specs::SELECTOR, [("mapping", mapping)])
}

fn journal_keys() -> Value {
    object([
        ("type", "array".into()),
        (
            "description",
            "Keys that the journal is encrypted with: the first writes, all of them read.".into(),
        ),
        ("minItems", 1.into()),
        ("items", closed_table("A key.", specs::JOURNAL_KEY, [])),
    ])
}

fn egress() -> Value {
    let secret = closed_table("A secret, and where it may go.", specs::SECRET, []);
    let secrets = object([
        ("type", "object".into()),
        ("description", "What the host puts in where the plugin names it.".into()),
        ("additionalProperties", json!({"anyOf": [substituted(), secret]})),
    ]);
    closed_table("Where the plugin may connect to.", specs::EGRESS, [("secrets", secrets)])
}

fn required(options: &[OptionSpec]) -> impl Iterator<Item = &'static str> {
    options.iter().filter(|option| option.required).map(|option| option.name)
}

fn closed_table<'a>(
    about: &str,
    options: &[OptionSpec],
    extra: impl IntoIterator<Item = (&'a str, Value)>,
) -> Value {
    let properties = options.iter().map(|option| (option.name, option_schema(option)));
    let mut entries = vec![
        ("type", "object".into()),
        ("description", about.into()),
        ("properties", object(properties.chain(extra))),
        ("additionalProperties", false.into()),
    ];
    let required: Vec<Value> = required(options).map(Value::from).collect();
    if !required.is_empty() {
        entries.push(("required", required.into()));
    }
    object(entries)
}

fn option_schema(option: &OptionSpec) -> Value {
    let mut entries = match option.kind {
        OptionKind::Text => vec![("type", json!("string"))],
        OptionKind::Choice(words) => {
            vec![("anyOf", json!([{"enum": words}, substituted()]))]
        }
        OptionKind::Bool => vec![("anyOf", json!([{"type": "boolean"}, substituted()]))],
        OptionKind::Integer { min, max } => {
            let integer =
                object([("type", "integer".into()), ("minimum", min.into()), ("maximum", max.into())]);
            vec![("anyOf", json!([integer, substituted()]))]
        }
        OptionKind::Size { min, max } => {
            let integer =
                object([("type", "integer".into()), ("minimum", min.into()), ("maximum", max.into())]);
            let text = json!({"type": "string", "pattern": SIZE});
            vec![("anyOf", json!([integer, text, substituted()]))]
        }
        OptionKind::Duration { .. } => {
            vec![("anyOf", json!([{"type": "string", "pattern": DURATION}, substituted()]))]
        }
        OptionKind::TextList => {
            let mut entries = vec![("type", json!("array")), ("items", json!({"type": "string"}))];
            if option.required {
                entries.push(("minItems", 1.into()));
            }
            entries
        }
        OptionKind::TextMap => {
            vec![("type", json!("object")), ("additionalProperties", json!({"type": "string"}))]
        }
    };
    entries.push(("description", option.about.into()));
    if let Some(default) = option.default {
        entries.push(("default", default_json(option, default)));
    }
    object(entries)
}

const SIZE: &str =
    "^\\s*[0-9]+\\s*([Kk][Ii]?[Bb]|[Mm][Ii]?[Bb]|[Gg][Ii]?[Bb]|[Tt][Ii]?[Bb]|[Pp][Ii]?[Bb]|[Bb])?\\s*$";
const DURATION: &str = "^\\s*([0-9]+\\s*(d|h|m|s|ms|us|ns)\\s*)+$";

/// A string with `${…}` stands for a value of any type.
fn substituted() -> Value {
    json!({"type": "string", "pattern": "\\$\\{"})
}

/// A default as it is written in a file: sizes and durations stay text.
fn default_json(option: &OptionSpec, text: &str) -> Value {
    match default_value(option, text) {
        Some(Checked::Bool(value)) => value.into(),
        Some(Checked::Integer(value)) => value.into(),
        Some(Checked::Text(value)) => value.into(),
        Some(Checked::TextList(value)) => value.into(),
        Some(Checked::TextMap(value)) => json!(value),
        Some(Checked::Size(_) | Checked::Duration(_)) | None => match text.trim_matches('"').parse::<u64>() {
            Ok(value) if !text.starts_with('"') => value.into(),
            _ => text.trim_matches('"').into(),
        },
    }
}
