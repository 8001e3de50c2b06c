//! What `flumen status --output json` says, read by name wherever it stands.
//!
//! Tests and benchmarks ask for a figure by kind of component and name; the shape around it may grow.

use serde_json::Value;

/// The answer of a running agent.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// Sum of a metric over all components of a kind (`source`, `interceptor`, `sink`).
    #[must_use]
    pub fn metric(&self, kind: &str, name: &str) -> u64 {
        let mut sum = 0;
        walk(&self.0, &format!("{kind}s"), &mut |component| {
            let figure =
                component.get("metrics").and_then(|metrics| metrics.get(name)).and_then(Value::as_u64);
            sum += figure.unwrap_or(0);
        });
        sum
    }

    /// A figure of the journal (`encode_ns`, `syncs`, …), summed over the pipelines.
    #[must_use]
    pub fn journal(&self, name: &str) -> u64 {
        let mut sum = 0;
        walk(&self.0, "journal", &mut |journal| {
            sum += journal.get(name).and_then(Value::as_u64).unwrap_or(0)
        });
        sum
    }

    /// True if a text stands anywhere in it.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.to_string().contains(text)
    }
}

/// Visits what stands under a key, wherever it is; the items if it is a list.
fn walk(value: &Value, key: &str, visit: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Array(items) if name == key => items.iter().for_each(&mut *visit),
                    _ if name == key => visit(field),
                    _ => {}
                }
                walk(field, key, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, key, visit)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_name() {
        let text = r#"{"pipelines":[{"sources":[{"name":"a","metrics":{"x":1}},{"name":"b","metrics":{"x":2}}],
            "sinks":[{"metrics":{"x":4},"interceptors":[{"metrics":{"y":8}}]}],"interceptors":[{"metrics":{"y":16}}],
            "journal":{"syncs":32}}]}"#;
        let status = Status(serde_json::from_str(text).unwrap());
        let found =
            [status.metric("source", "x"), status.metric("sink", "x"), status.metric("interceptor", "y")];
        assert_eq!(found, [3, 4, 24]);
        assert_eq!(status.journal("syncs"), 32);
    }
}
