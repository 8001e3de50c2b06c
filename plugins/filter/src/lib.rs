//! Keeps or drops events by a rule: `{ "keep": RULE }` or `{ "drop": RULE }`. See README.md for the rules.
//!
//! Only the columns that the rule names are read. A rule that is one substring of the body, the usual case, is one
//! search over the bodies of the whole batch.

use flumen_rules::{Rule, check_keys};
use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{Map, Value};

/// The plugin.
pub struct RuleFilter {
    rule: Rule,
    /// What happens to the events that the rule is true for.
    keep: bool,
}

impl BatchInterceptor for RuleFilter {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let (keep, rule, reads) = parse(&config)?;
        Ok((Self { rule, keep }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let kept = match (&self.rule, batch.body()) {
            (Rule::BodyContains(finder), Some(body)) => rows_of_hits(body, finder, self.keep),
            _ => {
                let verdicts = self.rule.verdicts(batch);
                verdicts
                    .iter()
                    .enumerate()
                    .filter(|(_, verdict)| **verdict == self.keep)
                    .map(|(row, _)| row)
                    .collect()
            }
        };
        let mut difference = Difference::unchanged();
        if kept.len() < batch.rows() {
            difference.keep_rows(kept);
        }
        Ok(difference)
    }
}

/// Whether true means keep, the rule, and the columns it reads.
fn parse(config: &Config) -> Result<(bool, Rule, Reads), String> {
    let settings: Map<String, Value> = config.parse()?;
    check_keys("config", &settings, &["keep", "drop"])?;
    let (keep, key, rule) = match (settings.get("keep"), settings.get("drop")) {
        (Some(rule), None) => (true, "config.keep", rule),
        (None, Some(rule)) => (false, "config.drop", rule),
        (Some(_), Some(_)) => return Err("config: both `keep` and `drop`; give one of them".to_owned()),
        (None, None) => {
            return Err(
                "config: no rule; give `keep = { contains = \"...\" }` or `drop = { ... }`".to_owned()
            );
        }
    };
    let mut reads = Reads::nothing();
    let rule = flumen_rules::parse(key, rule, &mut reads)?;
    Ok((keep, rule, reads))
}

/// The rows that hold the needle (`keep`), or all others.
fn rows_of_hits(body: Column<'_>, finder: &Finder, keep: bool) -> KeptRows {
    let hits = find_rows(body, finder);
    if keep {
        return hits.collect();
    }
    let mut kept = KeptRows::with_capacity(body.rows());
    let mut next = 0;
    for hit in hits {
        (next..hit).for_each(|row| kept.push(row));
        next = hit + 1;
    }
    (next..body.rows()).for_each(|row| kept.push(row));
    kept
}

flumen_sdk::batch_interceptor!(RuleFilter);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn rows(config: &str, events: &[TestEvent]) -> Vec<usize> {
        let (mut plugin, reads) = RuleFilter::open(Config::new(config)).unwrap();
        let difference = plugin.process(&testing::batch(&reads, events)).unwrap();
        Answer::new(difference, events.len()).rows()
    }

    fn event(body: &str, headers: &[(&str, &str)]) -> TestEvent {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TestEvent { body: body.into(), time: 0, headers }
    }

    #[test]
    fn rules() {
        let events = [
            event("error one", &[("status", "503"), ("host", "a.example")]),
            event("fine", &[("status", "200")]),
            event("", &[("host", "")]),
            event("error two", &[]),
        ];
        let check = |rule: &str, expected: &[usize]| {
            assert_eq!(rows(&format!(r#"{{"keep":{rule}}}"#), &events), expected, "{rule}");
            let others: Vec<usize> = (0..events.len()).filter(|row| !expected.contains(row)).collect();
            assert_eq!(rows(&format!(r#"{{"drop":{rule}}}"#), &events), others, "{rule}");
        };
        check(r#"{"contains":"error"}"#, &[0, 3]);
        check(r#"{"contains":""}"#, &[0, 1, 2, 3]);
        check(r#"{"contains":"absent"}"#, &[]);
        check(r#"{"equals":"fine"}"#, &[1]);
        check(r#"{"equals":""}"#, &[2]);
        check(r#"{"header":"status","equals":"503"}"#, &[0]);
        check(r#"{"header":"host","contains":"example"}"#, &[0]);
        check(r#"{"header":"host","contains":""}"#, &[0, 2]);
        check(r#"{"header":"host","equals":""}"#, &[2]);
        check(r#"{"header":"host","present":true}"#, &[0, 2]);
        check(r#"{"header":"host","present":false}"#, &[1, 3]);
        check(r#"{"any":[{"contains":"one"},{"header":"status","equals":"200"}]}"#, &[0, 1]);
        check(r#"{"all":[{"contains":"error"},{"header":"status","present":true}]}"#, &[0]);
        check(r#"{"all":[{"any":[{"contains":"one"},{"contains":"two"}]},{"contains":"e"}]}"#, &[0, 3]);
    }

    #[test]
    fn only_what_the_rule_names_is_read() {
        let reads = |config: &str| RuleFilter::open(Config::new(config)).unwrap().1;
        assert_eq!(reads(r#"{"keep":{"header":"a","equals":"x"}}"#), Reads::nothing().and_header("a"));
        let both = r#"{"drop":{"any":[{"contains":"x"},{"header":"a","present":true},{"header":"a","equals":"y"}]}}"#;
        assert_eq!(reads(both), Reads::body().and_header("a"));
    }

    #[test]
    fn errors_name_the_key_and_the_fix() {
        let check = |config: &str, expected: &str| {
            let error = RuleFilter::open(Config::new(config)).map(|_| ()).unwrap_err();
            assert_eq!(error, expected);
        };
        check("{}", "config: no rule; give `keep = { contains = \"...\" }` or `drop = { ... }`");
        check(r#"{"keep":{},"drop":{}}"#, "config: both `keep` and `drop`; give one of them");
        check(r#"{"kep":{}}"#, "config: unknown key `kep`; the keys are `keep`, `drop`");
        check(
            r#"{"keep":{"contain":"x"}}"#,
            "config.keep: unknown key `contain`; the keys are `contains`, `equals`, `header`, `present`, `any`, `all`",
        );
        check(
            r#"{"keep":{"header":"x"}}"#,
            "config.keep: what is asked of header `x`? add `equals`, `contains` or `present`",
        );
        check(r#"{"keep":{"any":[]}}"#, "config.keep.any: an empty list; put at least one rule in it");
        check(
            r#"{"keep":{"any":[{"contains":3}]}}"#,
            "config.keep.any[0].contains: `3` is not text; put it in quotes",
        );
        check(
            r#"{"keep":{"contains":"a","equals":"b"}}"#,
            "config.keep: both `contains` and `equals`; give one of them, or a list `all = [...]`",
        );
    }
}
