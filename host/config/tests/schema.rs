//! The JSON Schema and the reference, of the registry of these tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use flumen_config::{Code, json_schema, reference_markdown, schema_files};
use serde_json::{Value, json};

#[test]
fn the_schema_has_every_option() {
    let registry = common::registry();
    let schema = json_schema(&registry);
    let pipeline = &schema["pipeline"];
    assert_eq!(pipeline["additionalProperties"], false);
    assert_eq!(pipeline["required"], json!(["source", "sink"]));
    for (what, specs) in [("source", &registry.sources), ("sink", &registry.sinks)] {
        let kinds = pipeline["$defs"][what]["oneOf"].as_array().unwrap();
        // A sink may also be a plugin.
        assert_eq!(kinds.len(), specs.len() + usize::from(what == "sink"));
        for (kind, spec) in kinds.iter().zip(specs) {
            assert_eq!(kind["properties"]["type"]["const"], spec.kind);
            assert_eq!(kind["additionalProperties"], false);
            for option in spec.options {
                assert_eq!(kind["properties"][option.name]["description"], option.about, "{}", option.name);
                let required = kind["required"].as_array().unwrap().contains(&option.name.into());
                assert_eq!(required, option.required);
            }
        }
    }
    let file = &pipeline["$defs"]["sink"]["oneOf"][0];
    assert_eq!(file["properties"]["compression"]["anyOf"][0]["enum"], json!(["none", "gzip", "zstd"]));
    assert_eq!(file["properties"]["roll_size"]["default"], "256 MiB");
    assert_eq!(file["properties"]["interceptor"]["items"]["$ref"], "#/$defs/interceptor");
    assert_eq!(schema["agent"]["properties"]["agent"]["properties"]["name"]["type"], "string");
    assert_eq!(pipeline["properties"]["batch"]["properties"]["rows"]["default"], 8192);
}

#[test]
fn the_schema_of_a_failover_follows_its_kind_and_its_channel() {
    let registry = common::registry();
    let schema = json_schema(&registry);
    let defs = &schema["pipeline"]["$defs"];
    let kinds = |failover: &Value| -> Vec<(String, Vec<String>)> {
        let each = failover["oneOf"].as_array().unwrap().iter().map(|kind| {
            let required = kind["required"].as_array().into_iter().flatten();
            let required = required.map(|key| key.as_str().unwrap().to_owned()).collect();
            (kind["properties"]["kind"]["const"].as_str().unwrap().to_owned(), required)
        });
        each.collect()
    };
    let of = |kind: &str, required: &[&str]| {
        (kind.to_owned(), required.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
    };
    let all = [
        of("file", &["dir"]),
        of("memory", &["kind", "dir"]),
        of("spillable", &["kind", "dir"]),
        of("kafka", &["kind", "brokers"]),
    ];
    assert_eq!(kinds(&defs["failover"]), all);
    let channels = defs["channel"]["oneOf"].as_array().unwrap();
    let shared = channels.iter().find(|channel| channel["properties"]["kind"]["const"] == "kafka").unwrap();
    let beside = [of("file", &[]), of("memory", &["kind"]), of("spillable", &["kind"])];
    assert_eq!(kinds(&shared["properties"]["failover"]), beside);
    for channel in channels.iter().filter(|channel| *channel != shared) {
        assert_eq!(channel["properties"]["failover"]["$ref"], "#/$defs/failover");
    }
    let has = |place: &Value, key: &str| !place["properties"][key].is_null();
    let [file, _, spillable, kafka] = [0_usize, 1, 2, 3].map(|at| &defs["failover"]["oneOf"][at]);
    assert!(has(file, "dir") && has(spillable, "memory") && !has(file, "memory") && !has(file, "brokers"));
    assert!(has(kafka, "topic") && has(kafka, "fail_after") && !has(kafka, "dir") && !has(kafka, "memory"));
    assert!(!has(&shared["properties"]["failover"]["oneOf"][0], "dir"));
}

#[test]
fn the_schema_is_the_same_each_time_and_sorted() {
    let files = schema_files(&common::registry());
    assert_eq!(files, schema_files(&common::registry()));
    for (name, text) in files {
        let value: Value = serde_json::from_str(&text).unwrap();
        sorted(&value, name);
    }
}

fn sorted(value: &Value, path: &str) {
    match value {
        Value::Object(map) => {
            assert!(map.keys().is_sorted(), "{path}");
            map.iter().for_each(|(key, value)| sorted(value, &format!("{path}.{key}")));
        }
        Value::Array(values) => values.iter().for_each(|value| sorted(value, path)),
        _ => {}
    }
}

#[test]
fn the_reference() {
    let text = reference_markdown(&common::registry());
    for code in Code::ALL {
        assert!(text.contains(&format!("| `{}` |", code.as_str())));
    }
    insta::assert_snapshot!("reference", text);
}

#[test]
fn mistakes_in_specs_are_found() {
    use flumen_pipeline::{ComponentSpec, OptionKind, OptionSpec};
    const fn option(name: &'static str, required: bool, default: Option<&'static str>) -> OptionSpec {
        OptionSpec { name, kind: OptionKind::Integer { min: 1, max: 9 }, required, default, about: "" }
    }
    assert_eq!(common::registry().mistakes(), Vec::<String>::new());
    let mut registry = common::registry();
    const OPTIONS: &[OptionSpec] = &[
        option("type", false, None),
        option("channel", false, None),
        option("a", true, Some("1")),
        option("b", false, Some("10")),
        option("b", false, Some("x y")),
    ];
    registry.sinks.push(ComponentSpec { kind: "null", about: "", options: OPTIONS });
    insta::assert_snapshot!("mistakes", registry.mistakes().join("\n"));
}
