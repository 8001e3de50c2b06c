//! `[sink.NAME]` with `plugin = "NAME"`: a plugin that delivers.

use flumen_pipeline::Options;
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnReject, PluginLimits};

use crate::code::Code;
use crate::egress::read_egress;
use crate::interceptor::{grants, plugin_name, read_limits};
use crate::json;
use crate::report::Report;
use crate::specs;
use crate::table::{Checked, TableReader};
use crate::tree::{Entry, Item};

/// `plugin = …` tells the table of a plugin's sink from a table of sinks.
pub(crate) fn is_plugin(entry: &Entry) -> bool {
    entry.key == "plugin" && !matches!(entry.value.item, Item::Table(_))
}

/// Reads what is the plugin's; `checked` gets the sink's options and all spans.
pub(crate) fn read_plugin_sink(
    name: &str,
    table: &mut TableReader<'_>,
    report: &mut Report<'_>,
) -> (Option<InterceptorPlan>, Checked) {
    let what = format!("sink `{name}`");
    let mut checked = table.options(specs::PLUGIN_SINK, report);
    let (config, limits, egress) = (table.get("config"), table.get("limits"), table.get("egress"));
    let config_json = json::config_text(&what, config.map(|entry| &entry.value), report);
    if let Some(config) = config {
        checked.spans.insert("config".into(), config.key_span.clone());
        json::config_spans("config", &config.value, &mut checked.spans);
    }
    let default = PluginLimits { time: specs::SINK_TIME, ..PluginLimits::default() };
    let limits = read_limits(limits, specs::SINK_LIMITS, default, report);
    let grants = grants(&checked, report);
    if grants.iter().any(|grant| grant == "state") {
        let span = checked.spans.get("grant").cloned().unwrap_or(0..0);
        let reason =
            "a sink cannot be granted `state`: what it remembered would be lost with an acknowledgement";
        let fix = "let a plugin between a source and its channels remember it";
        report.error(Code::UnknownGrant, &span, reason, fix);
    }
    let egress = read_egress(egress, &grants, &mut checked, report);
    let header = table.span().clone();
    let plugin = checked.options.text_opt("plugin").map(str::to_owned);
    let plan = plugin.and_then(|plugin| {
        let span = checked.spans.get("plugin").unwrap_or(&header).clone();
        plugin_name(&plugin, &span, report)?;
        let on_reject = OnReject::Quarantine;
        let (name, errors) = (name.to_owned(), ErrorPlan::default());
        Some(InterceptorPlan {
            name,
            plugin,
            config: config_json?,
            grants,
            on_reject,
            errors,
            limits,
            egress,
        })
    });
    // What is the plugin's is in its plan.
    let Checked { options, spans } = checked;
    let own = options.0.into_iter().filter(|(key, _)| !["plugin", "grant"].contains(&key.as_str()));
    (plan, Checked { options: Options(own.collect()), spans })
}
