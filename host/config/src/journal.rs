//! `[journal]`: how the pipeline's journal is written, and its keys.

use flumen_pipeline::plan::{Compression, JournalPlan, Key, KeyId, Keys};

use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::table::TableReader;
use crate::tree::{Entry, Item, Node};

/// Reads the table; what is not given is as by default.
pub(crate) fn read_journal(entry: Option<&Entry>, report: &mut Report<'_>) -> JournalPlan {
    let default = JournalPlan::default();
    let Some(mut table) = entry.and_then(|entry| TableReader::new("`journal`", &entry.value, report)) else {
        return default;
    };
    let options = table.options(specs::JOURNAL, report).options;
    let keys = table.get("key").map(|entry| read_keys(&entry.value, report));
    table.finish(report);
    JournalPlan {
        durable: options.text_opt("durability") != Some("os"),
        segment_bytes: options.size_opt("segment").unwrap_or(default.segment_bytes),
        window_bytes: options.size_opt("memory").unwrap_or(default.window_bytes),
        compression: match options.text_opt("compression") {
            Some("lz4") => Compression::Lz4,
            Some("zstd") => Compression::Zstd,
            _ => default.compression,
        },
        keys: keys.unwrap_or(default.keys),
    }
}

fn read_keys(node: &Node, report: &mut Report<'_>) -> Keys {
    let Item::List(nodes) = &node.item else {
        if !matches!(node.item, Item::Broken) {
            let reason = format!("`key` is a list of tables, but this is {}", node.type_word());
            let fix = "write [[journal.key]] and below it id = \"…\" and secret = \"${file:path}\"";
            report.error(Code::WrongType, &node.span, reason, fix);
        }
        return Keys::default();
    };
    if nodes.is_empty() {
        let fix = "remove it, or name a key: the first writes, the others read";
        report.error(Code::EmptyValue, &node.span, "`key` of `journal` is empty", fix);
    }
    let mut ids: Vec<KeyId> = Vec::new();
    nodes.iter().filter_map(|node| read_key(node, &mut ids, report)).collect()
}

fn read_key(node: &Node, ids: &mut Vec<KeyId>, report: &mut Report<'_>) -> Option<Key> {
    let mut table = TableReader::new("a key of `journal`", node, report)?;
    let checked = table.options(specs::JOURNAL_KEY, report);
    let secret = table.get("secret").map(|entry| &entry.value);
    table.finish(report);
    let (id, secret) = (checked.options.text_opt("id")?, secret?);
    let span = checked.spans.get("id").cloned().unwrap_or(0..0);
    let Some(id) = KeyId::new(id) else {
        let reason = format!("`{}` cannot be the id of a key", report.quote(id));
        report.error(Code::BadName, &span, reason, "use 1 to 16 letters, digits, `.`, `_` and `-`");
        return None;
    };
    if ids.contains(&id) {
        let fix = "give each key an id of its own; a new key is a new id";
        report.error(Code::DuplicateName, &span, format!("two keys of the journal have the id `{id}`"), fix);
    }
    ids.push(id);
    let text = checked.options.text_opt("secret")?;
    if !secret.secret {
        let reason = format!("the secret of the key `{id}` stands in this file as it is");
        let fix = "name where it is kept: \"${file:/etc/flumen/journal.key}\" or \"${env:JOURNAL_KEY}\"";
        report.error(Code::BadSubstitution, &secret.span, reason, fix);
        return None;
    }
    let key = Key::from_hex(id, text);
    if key.is_none() {
        let reason = format!("the secret of the key `{id}` is not a key: not 64 hexadecimal digits");
        let fix = "make one with `openssl rand -hex 32`";
        report.error(Code::BadKey, &secret.span, reason, fix);
    }
    key
}
