//! What the server says of each document.

use std::collections::BTreeMap;

use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{self, Value};

/// What became of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    There,
    /// The server cannot take it now.
    Later(String),
    /// It never will.
    Never(String),
}

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde")]
struct Answer {
    #[serde(default)]
    errors: bool,
    /// One entry each, named by its action.
    #[serde(default)]
    items: Vec<BTreeMap<String, Item>>,
}

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde")]
struct Item {
    #[serde(default)]
    status: u16,
    error: Option<Value>,
}

/// The verdicts in the order of the documents.
pub fn verdicts(body: &[u8], documents: usize) -> Result<Vec<Verdict>, String> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is not that of a bulk API: {error}"))?;
    if !answer.errors {
        return Ok((0..documents).map(|_| Verdict::There).collect());
    }
    if answer.items.len() != documents {
        return Err(format!("the answer has {} items for {documents} documents", answer.items.len()));
    }
    let verdict = |item: &BTreeMap<String, Item>| item.values().next().map_or(Verdict::There, judge);
    Ok(answer.items.iter().map(verdict).collect())
}

fn judge(item: &Item) -> Verdict {
    match item.status {
        // A document of this id was there: it came before.
        200..300 | 409 => Verdict::There,
        429 | 500..600 => Verdict::Later(reason(item)),
        _ => Verdict::Never(reason(item)),
    }
}

/// `mapper_parsing_exception: failed to parse field [x] (400)`.
fn reason(item: &Item) -> String {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let error = match &item.error {
        Some(Value::String(text)) => text.clone(),
        Some(error) => {
            let parts = [
                text(error, "type"),
                text(error, "reason"),
                error.get("caused_by").and_then(|by| text(by, "reason")),
            ];
            parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
        }
        None => "no reason given".to_owned(),
    };
    format!("{error} ({})", item.status)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_document_has_its_verdict() {
        let answer = br#"{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":409,"error":{"type":"version_conflict"}}},
            {"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue"}}},
            {"index":{"status":400,"error":{"type":"mapper","reason":"field [x]","caused_by":{"reason":"not a date"}}}}]}"#;
        let later = Verdict::Later("es_rejected_execution_exception: queue (429)".into());
        let never = Verdict::Never("mapper: field [x]: not a date (400)".into());
        assert_eq!(verdicts(answer, 4).unwrap(), [Verdict::There, Verdict::There, later, never]);
        assert_eq!(verdicts(br#"{"errors":false}"#, 2).unwrap(), [Verdict::There, Verdict::There]);
        assert!(verdicts(answer, 3).unwrap_err().contains("4 items for 3"));
        assert!(verdicts(b"<html>", 3).unwrap_err().contains("bulk API"));
    }
}
