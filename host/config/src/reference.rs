//! The option tables of the documentation, from the specs.

use flumen_pipeline::{ComponentSpec, OptionKind, OptionSpec};

use crate::code::Code;
use crate::duration::format_duration;
use crate::registry::Registry;
use crate::size::format_size;
use crate::specs;

/// The reference of all options as Markdown.
pub fn reference_markdown(registry: &Registry) -> String {
    let mut text = String::from("# Configuration reference\n\nGenerated from the code: do not edit.\n\n");
    text.push_str("## Agent file\n\n");
    own(&mut text, "[agent]", specs::AGENT);
    text.push_str("## Pipeline file\n\n");
    own(&mut text, "Top of the file", &[specs::PIPELINE, specs::RELIABILITY].concat());
    own(&mut text, "[batch]", specs::BATCH);
    own(&mut text, "[journal]", specs::JOURNAL);
    own(&mut text, "[[journal.key]], of which the first encrypts and all decrypt", specs::JOURNAL_KEY);
    own(&mut text, "selector of a source", specs::SELECTOR);
    text.push_str(&format!("Also `mapping = {{ VALUE = \"CHANNEL\" }}`, {}\n\n", specs::MAPPING_ABOUT));
    own(&mut text, "[channel.NAME]", specs::CHANNEL);
    own(&mut text, "capacity of a channel of kind `file` or `spillable`", specs::CAPACITY);
    own(&mut text, "[channel.NAME] of kind `memory`", specs::MEMORY_CHANNEL);
    let memory = "capacity of a channel of kind `memory` or `source-backed`, and memory of a channel or failover of kind `spillable`";
    own(&mut text, memory, specs::MEMORY_CAPACITY);
    registry.channels.iter().for_each(|spec| component(&mut text, "channel of kind", spec));
    own(&mut text, "failover of a channel", specs::FAILOVER);
    text.push_str("Of kind `spillable` also `memory = { … }`, as of a channel of that kind.\n\n");
    registry.failovers.iter().for_each(|spec| component(&mut text, "failover of kind", spec));
    own(
        &mut text,
        "[[interceptor]], [[sink.NAME.interceptor]], [source.NAME.codec] and [sink.NAME.codec]",
        specs::INTERCEPTOR,
    );
    text.push_str("Also `config = { … }`: the plugin's own configuration.\n\n");
    own(&mut text, "error_budget of an interceptor", specs::ERROR_BUDGET);
    codecs(&mut text, registry);
    own(&mut text, "limits of an interceptor", specs::LIMITS);
    own(&mut text, "egress of a plugin", specs::EGRESS);
    own(&mut text, "a secret of egress, if it is a table", specs::SECRET);
    own(&mut text, "[sink.NAME], every type", specs::SINK);
    own(&mut text, "[sink.NAME] with a plugin", specs::PLUGIN_SINK);
    text.push_str("Also `config = { … }`, `egress = { … }`, and `limits` as above with a time of 30s.\n\n");
    own(&mut text, "[group.NAME]", specs::GROUP);
    text.push_str("## Sources\n\n");
    registry.sources.iter().for_each(|spec| component(&mut text, "source", spec));
    text.push_str("## Sinks\n\n");
    registry.sinks.iter().for_each(|spec| component(&mut text, "sink", spec));
    text.push_str("## Bridge file\n\nFor `flumen bridge`: `[bridge]`, and `[kafka]` or `[tree]`.\n\n");
    registry.bridge.iter().for_each(|spec| component(&mut text, "table", spec));
    text.push_str("## Errors\n\n| code | meaning |\n|---|---|\n");
    for code in Code::ALL {
        text.push_str(&format!("| `{}` | {} |\n", code.as_str(), cell(code.about())));
    }
    text
}

/// Which types take a codec, and what it takes the place of.
fn codecs(text: &mut String, registry: &Registry) {
    for (what, uses) in [("source", &registry.decoders), ("sink", &registry.encoders)] {
        for used in uses {
            text.push_str(&format!("A {what} of type `{}` takes a `codec`", used.kind));
            let options: Vec<String> = used.instead_of.iter().map(|option| format!("`{option}`")).collect();
            let instead = if options.is_empty() {
                String::new()
            } else {
                format!(", in place of {}", options.join(", "))
            };
            text.push_str(&format!("{instead}.\n"));
        }
    }
    text.push('\n');
}

fn own(text: &mut String, title: &str, options: &[OptionSpec]) {
    text.push_str(&format!("### {title}\n\n"));
    table(text, options);
}

fn component(text: &mut String, what: &str, spec: &ComponentSpec) {
    text.push_str(&format!("### {what} `{}`\n\n{}\n\n", spec.kind, spec.about));
    if spec.options.is_empty() {
        text.push_str("No options.\n\n");
    } else {
        table(text, spec.options);
    }
}

fn table(text: &mut String, options: &[OptionSpec]) {
    text.push_str("| option | type | default | |\n|---|---|---|---|\n");
    for option in options {
        let default = match option.default {
            Some(default) => format!("`{}`", cell(default)),
            None if option.required => "required".into(),
            None => String::new(),
        };
        let kind = cell(&kind_text(&option.kind));
        text.push_str(&format!("| `{}` | {kind} | {default} | {} |\n", option.name, cell(option.about)));
    }
    text.push('\n');
}

fn kind_text(kind: &OptionKind) -> String {
    match kind {
        OptionKind::Text => "string".into(),
        OptionKind::Choice(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(" or ")
        }
        OptionKind::Bool => "boolean".into(),
        OptionKind::Integer { min, max: i64::MAX } => format!("integer from {min}"),
        OptionKind::Integer { min, max } => format!("integer, {min} to {max}"),
        OptionKind::Size { min, max: u64::MAX } => format!("size from {}", format_size(*min)),
        OptionKind::Size { min, max } => format!("size, {} to {}", format_size(*min), format_size(*max)),
        OptionKind::Duration { min, max } if *max == std::time::Duration::MAX => {
            format!("duration from {}", format_duration(*min))
        }
        OptionKind::Duration { min, max } => {
            format!("duration, {} to {}", format_duration(*min), format_duration(*max))
        }
        OptionKind::TextList => "list of strings".into(),
        OptionKind::TextMap => "table of strings".into(),
    }
}

/// Text that stays inside its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
