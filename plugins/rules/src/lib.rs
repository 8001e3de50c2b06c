//! Rules: how they are written, which columns they need and for which rows they are true.

use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{Map, Value};

/// What an event must be like. Header numbers are those of the reads that [`parse`] returns.
pub enum Rule {
    /// The body holds the text.
    BodyContains(Finder),
    /// The body is the text.
    BodyEquals(Vec<u8>),
    /// The header is there and holds the text.
    HeaderContains(usize, Finder),
    /// The header is there and is the text.
    HeaderEquals(usize, Vec<u8>),
    /// The header is there, or is not.
    HeaderPresent(usize, bool),
    /// At least one is true.
    Any(Vec<Rule>),
    /// All are true.
    All(Vec<Rule>),
}

impl Rule {
    /// Whether the rule is true, row by row.
    pub fn verdicts(&self, batch: &BatchView) -> Vec<bool> {
        match self {
            Rule::BodyContains(finder) => hits(batch.rows(), batch.body(), finder),
            Rule::BodyEquals(text) => match batch.body() {
                Some(body) => body.iter().map(|row| row == text).collect(),
                None => vec![false; batch.rows()],
            },
            Rule::HeaderContains(index, finder) => {
                let header = batch.header(*index);
                let mut verdicts = hits(batch.rows(), header.map(HeaderColumn::values), finder);
                // An empty needle is also in the empty values of the rows that are not present.
                for (row, verdict) in verdicts.iter_mut().enumerate() {
                    *verdict = *verdict && header.is_some_and(|header| header.is_present(row));
                }
                verdicts
            }
            Rule::HeaderEquals(index, text) => match batch.header(*index) {
                Some(header) => {
                    let values = header.values().iter().enumerate();
                    values.map(|(row, value)| value == text && header.is_present(row)).collect()
                }
                None => vec![false; batch.rows()],
            },
            Rule::HeaderPresent(index, wanted) => {
                let header = batch.header(*index);
                let is_present = |row| header.is_some_and(|header| header.is_present(row));
                (0..batch.rows()).map(|row| is_present(row) == *wanted).collect()
            }
            Rule::Any(rules) => combined(rules, batch, |any, one| any | one),
            Rule::All(rules) => combined(rules, batch, |all, one| all & one),
        }
    }
}

fn hits(rows: usize, column: Option<Column<'_>>, finder: &Finder) -> Vec<bool> {
    let mut verdicts = vec![false; rows];
    for row in column.into_iter().flat_map(|column| find_rows(column, finder)) {
        if let Some(verdict) = verdicts.get_mut(row) {
            *verdict = true;
        }
    }
    verdicts
}

fn combined(rules: &[Rule], batch: &BatchView, combine: impl Fn(bool, bool) -> bool) -> Vec<bool> {
    let each = rules.iter().map(|rule| rule.verdicts(batch));
    let joined = each.reduce(|mut sum, one| {
        sum.iter_mut().zip(one).for_each(|(sum, one)| *sum = combine(*sum, one));
        sum
    });
    joined.unwrap_or_else(|| vec![false; batch.rows()])
}

const RULE_KEYS: [&str; 6] = ["contains", "equals", "header", "present", "any", "all"];
/// Rules in rules in rules: more than anyone writes, and less than the guest's stack.
const DEPTH_MAX: usize = 32;

/// A rule as it is written in the configuration at `at` (`config.keep`, say); the columns that it needs are added to
/// `reads`. The error names the key and the fix.
pub fn parse(at: &str, value: &Value, reads: &mut Reads) -> Result<Rule, String> {
    parse_rule(at, value, reads, DEPTH_MAX)
}

fn parse_rule(at: &str, value: &Value, reads: &mut Reads, depth: usize) -> Result<Rule, String> {
    let Some(rule) = value.as_object() else {
        return Err(format!(
            "{at}: `{value}` is not a rule; write a table such as `{{ contains = \"...\" }}`"
        ));
    };
    check_keys(at, rule, &RULE_KEYS)?;
    let questions: Vec<&str> =
        RULE_KEYS.into_iter().filter(|key| *key != "header" && rule.contains_key(*key)).collect();
    if let [first, second, ..] = questions.as_slice() {
        return Err(format!(
            "{at}: both `{first}` and `{second}`; give one of them, or a list `all = [...]`"
        ));
    }
    let header = match rule.get("header") {
        None => None,
        Some(name) => match text(&format!("{at}.header"), name)? {
            "" => return Err(format!("{at}.header: an empty name; name a header")),
            name => Some(name),
        },
    };
    let Some((key, asked)) = questions.first().and_then(|key| Some((*key, rule.get(*key)?))) else {
        return Err(match header {
            Some(name) => {
                format!("{at}: what is asked of header `{name}`? add `equals`, `contains` or `present`")
            }
            None => format!("{at}: an empty rule; add `contains = \"...\"`"),
        });
    };
    let here = format!("{at}.{key}");
    match (key, header) {
        ("any" | "all", None) => {
            let rules = parse_rules(&here, asked, reads, depth)?;
            Ok(if key == "any" { Rule::Any(rules) } else { Rule::All(rules) })
        }
        ("any" | "all", Some(_)) => {
            Err(format!("{at}: `header` beside `{key}`; put it into the rules of the list"))
        }
        ("present", None) => Err(format!("{here}: of which header? add `header = \"...\"`")),
        ("present", Some(name)) => match asked.as_bool() {
            Some(wanted) => Ok(Rule::HeaderPresent(header_index(reads, name), wanted)),
            None => Err(format!("{here}: `{asked}` is not true or false")),
        },
        ("equals", None) => {
            *reads = std::mem::take(reads).and_body();
            Ok(Rule::BodyEquals(text(&here, asked)?.into()))
        }
        ("equals", Some(name)) => {
            Ok(Rule::HeaderEquals(header_index(reads, name), text(&here, asked)?.into()))
        }
        (_, None) => {
            *reads = std::mem::take(reads).and_body();
            Ok(Rule::BodyContains(Finder::new(text(&here, asked)?)))
        }
        (_, Some(name)) => {
            Ok(Rule::HeaderContains(header_index(reads, name), Finder::new(text(&here, asked)?)))
        }
    }
}

fn parse_rules(at: &str, value: &Value, reads: &mut Reads, depth: usize) -> Result<Vec<Rule>, String> {
    let Some(rules) = value.as_array() else {
        return Err(format!("{at}: not a list; write `[{{ contains = \"...\" }}, ...]`"));
    };
    if rules.is_empty() {
        return Err(format!("{at}: an empty list; put at least one rule in it"));
    }
    if depth == 0 {
        return Err(format!("{at}: more than {DEPTH_MAX} lists in lists; make the rule flatter"));
    }
    let numbered = rules.iter().enumerate();
    numbered.map(|(number, rule)| parse_rule(&format!("{at}[{number}]"), rule, reads, depth - 1)).collect()
}

fn header_index(reads: &mut Reads, name: &str) -> usize {
    *reads = std::mem::take(reads).and_header(name);
    reads.header_index(name).unwrap_or(0)
}

fn text<'a>(at: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("{at}: `{value}` is not text; put it in quotes"))
}

/// That a table of the configuration has no other keys.
pub fn check_keys(at: &str, table: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let known: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
            Err(format!("{at}: unknown key `{key}`; the keys are {}", known.join(", ")))
        }
    }
}
