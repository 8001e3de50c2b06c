//! `egress` of a plugin: where it may connect to, within which limits, and what it may send without seeing it.

use std::collections::BTreeMap;

use flumen_pipeline::plan::{EgressPlan, Secret, SecretPlan};

use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::table::{Checked, TableReader};
use crate::tree::{Entry, Item, Node};

/// The powers that lead out of the host.
const POWERS: [&str; 2] = ["http", "tcp"];

/// Reads the table and holds it against what is granted. `owner`: the plugin's own options, whose spans grow.
pub(crate) fn read_egress(
    entry: Option<&Entry>,
    grants: &[String],
    owner: &mut Checked,
    report: &mut Report<'_>,
) -> Option<EgressPlan> {
    let is_granted = grants.iter().any(|grant| POWERS.contains(&grant.as_str()));
    let Some(entry) = entry else {
        if is_granted {
            let span = owner.spans.get("grant").cloned().unwrap_or(0..0);
            let reason = "`grant` has http or tcp, but nothing says where they may lead";
            let fix = "add egress = { allow = [\"host:port\"] }";
            report.error(Code::MissingKey, &span, reason, fix);
        }
        return None;
    };
    if !is_granted && !matches!(entry.value.item, Item::Broken) {
        let reason = "`egress` is for a plugin that is granted http or tcp, and this one is not";
        let fix = "add \"http\" or \"tcp\" to `grant`, or remove it";
        report.error(Code::UnknownKey, &entry.key_span, reason, fix);
    }
    let mut table = TableReader::new("`egress`", &entry.value, report)?;
    let checked = table.options(specs::EGRESS, report);
    let secrets = table.get("secrets");
    table.finish(report);
    owner.spans.insert("egress".into(), entry.key_span.clone());
    for (key, span) in &checked.spans {
        owner.spans.insert(format!("egress.{key}"), span.clone());
    }
    if let Some(secrets) = secrets {
        owner.spans.insert("egress.secrets".into(), secrets.key_span.clone());
    }
    let secrets = read_secrets(secrets.map(|entry| &entry.value), report);
    let Checked { options, .. } = checked;
    let number = |name: &str| options.integer_opt(name).and_then(|value| u32::try_from(value).ok());
    Some(EgressPlan {
        allow: options.list_opt("allow")?.to_vec(),
        secrets,
        ca: options.text_opt("ca").map(|ca| report.file.dir().join(ca)),
        timeout: options.duration_opt("timeout")?,
        request_bytes: options.size_opt("request")?,
        response_bytes: options.size_opt("response")?,
        connections: number("connections")?,
        calls_per_batch: number("calls_per_batch")?,
    })
}

/// `name = "${…}"`, or `name = { value = "${…}", hosts = ["host:port"] }`.
fn read_secrets(node: Option<&Node>, report: &mut Report<'_>) -> BTreeMap<String, SecretPlan> {
    let mut secrets = BTreeMap::new();
    let Some(node) = node else { return secrets };
    let Item::Table(entries) = &node.item else {
        if !matches!(node.item, Item::Broken) {
            let reason = format!("`secrets` is a table, but this is {}", node.type_word());
            let fix = "write secrets = { name = \"${file:path}\" }";
            report.error(Code::WrongType, &node.span, reason, fix);
        }
        return secrets;
    };
    for entry in entries {
        let read = match &entry.value.item {
            Item::Text(value) => Some((value.clone(), &entry.value, None)),
            _ => read_secret(entry, report),
        };
        let Some((value, place, hosts)) = read else { continue };
        if value.is_empty() {
            let reason = format!("the secret `{}` is empty", report.quote(&entry.key));
            let fix = "put a value into the variable or file that it names";
            report.error(Code::EmptyValue, &place.span, reason, fix);
        }
        if !place.secret {
            let reason = format!("the secret `{}` stands in this file as it is", report.quote(&entry.key));
            let fix = "name where it is kept: \"${file:/run/secrets/token}\" or \"${env:TOKEN}\"";
            report.error(Code::BadSubstitution, &place.span, reason, fix);
        }
        secrets.insert(entry.key.clone(), SecretPlan { value: Secret(value), hosts });
    }
    secrets
}

fn read_secret<'a>(
    entry: &'a Entry,
    report: &mut Report<'_>,
) -> Option<(String, &'a Node, Option<Vec<String>>)> {
    let mut table = TableReader::new(format!("secret `{}`", entry.key), &entry.value, report)?;
    let checked = table.options(specs::SECRET, report);
    let place = table.get("value").map(|entry| &entry.value);
    table.finish(report);
    let value = checked.options.text_opt("value")?.to_owned();
    Some((value, place?, checked.options.list_opt("hosts").map(<[String]>::to_vec)))
}
