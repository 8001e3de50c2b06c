//! Fields by a regular expression, and search and replace. See README.md.

use flumen_sdk::prelude::*;
use re::bytes::{CaptureLocations, Regex, RegexBuilder};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    from: Option<String>,
    extract: Option<String>,
    on_mismatch: OnMismatch,
    replace: Vec<Replacement>,
    unicode: bool,
}

/// What becomes of an event that the expression does not match.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum OnMismatch {
    #[default]
    Reject,
    Keep,
    Drop,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    pattern: String,
    with: String,
}

/// A compiled pattern may take this much memory: far more than a sane one does.
const PATTERN_BYTES_MAX: usize = 4 << 20;

/// The plugin.
pub struct Fields {
    /// The header that is looked at; `None`: the body.
    from: Option<String>,
    extract: Option<Extract>,
    on_mismatch: OnMismatch,
    replace: Vec<(Regex, Vec<u8>)>,
}

struct Extract {
    regex: Regex,
    /// Number and name of each named group.
    groups: Vec<(usize, String)>,
    places: CaptureLocations,
}

impl BatchInterceptor for Fields {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { from, extract, on_mismatch, replace, unicode } = config.parse()?;
        if extract.is_none() && replace.is_empty() {
            return Err("config: nothing to do; add `extract = '(?<name>...)'` or `replace = [{ pattern = '...', with = '...' }]`".to_owned());
        }
        let extract = extract.map(|pattern| Extract::new(&pattern, unicode)).transpose()?;
        let replace = replace.into_iter().enumerate().map(|(place, Replacement { pattern, with })| {
            Ok((compile(&format!("config.replace[{place}].pattern"), &pattern, unicode)?, with.into_bytes()))
        });
        let replace = replace.collect::<Result<Vec<_>, String>>()?;
        let reads = match from.as_deref() {
            None => Reads::body(),
            Some("") => {
                return Err(
                    "config.from: an empty name; name a header, or leave the key out for the body".to_owned()
                );
            }
            Some(name) => Reads::nothing().and_header(name),
        };
        Ok((Self { from, extract, on_mismatch, replace }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut difference = Difference::unchanged();
        let header = batch.header(0);
        let texts = match &self.from {
            None => batch.body(),
            Some(_) => header.map(HeaderColumn::values),
        };
        let Some(texts) = texts else { return Err("the host did not pass what is to be matched".to_owned()) };
        let is_there = |row: usize| header.is_none_or(|header| header.is_present(row));
        let kept = self.extract(texts, is_there, &mut difference);
        let left_out = batch.rows() - kept.len();
        if left_out > difference.rejected() {
            let mut rows = KeptRows::with_capacity(kept.len());
            kept.iter().for_each(|row| rows.push(*row));
            difference.keep_rows(rows);
        }
        if !self.replace.is_empty() && !kept.is_empty() {
            self.replace(texts, &kept, is_there, &mut difference);
        }
        Ok(difference)
    }
}

impl Fields {
    /// Sets the headers, and returns the rows that go on.
    fn extract(
        &mut self,
        texts: Column<'_>,
        is_there: impl Fn(usize) -> bool,
        difference: &mut Difference,
    ) -> Vec<usize> {
        let mut kept = Vec::with_capacity(texts.rows());
        let Some(extract) = &mut self.extract else {
            kept.extend(0..texts.rows());
            return kept;
        };
        let rows = texts.rows();
        let mut columns: Vec<HeaderBuilder> = extract
            .groups
            .iter()
            .map(|(_, name)| HeaderBuilder::with_capacity(name, rows, rows * 8))
            .collect();
        let mut start = 0;
        for (row, text) in texts.iter().enumerate() {
            let is_hit = is_there(row) && extract.regex.captures_read(&mut extract.places, text).is_some();
            match (is_hit, self.on_mismatch) {
                (true, _) => {
                    for (column, (group, _)) in columns.iter_mut().zip(&extract.groups) {
                        match extract.places.get(*group) {
                            None => column.push_absent(),
                            Some((begin, end)) => push(column, texts.data(), start, begin, end),
                        }
                    }
                    kept.push(row);
                }
                (false, OnMismatch::Keep) => {
                    columns.iter_mut().for_each(HeaderBuilder::push_absent);
                    kept.push(row);
                }
                (false, OnMismatch::Drop) => {}
                (false, OnMismatch::Reject) => {
                    difference.reject(row, "the expression `extract` does not match");
                }
            }
            start += text.len();
        }
        if !kept.is_empty() {
            for column in columns {
                difference.set_header(column);
            }
        }
        kept
    }

    fn replace(
        &self,
        texts: Column<'_>,
        kept: &[usize],
        is_there: impl Fn(usize) -> bool,
        difference: &mut Difference,
    ) {
        let mut column = ColumnBuilder::with_capacity(kept.len(), texts.data().len());
        let mut header = self.from.as_ref().map(|name| HeaderBuilder::with_capacity(name, kept.len(), 0));
        let mut is_changed = false;
        for row in kept {
            let text = texts.get(*row);
            let mut new = std::borrow::Cow::Borrowed(text);
            for (regex, with) in &self.replace {
                if let std::borrow::Cow::Owned(replaced) = regex.replace_all(&new, with.as_slice()) {
                    is_changed |= replaced != *new;
                    new = replaced.into();
                }
            }
            match &mut header {
                None => column.push(&new),
                Some(header) if is_there(*row) => header.push(&String::from_utf8_lossy(&new)),
                Some(header) => header.push_absent(),
            }
        }
        match header {
            _ if !is_changed => {}
            None => {
                difference.set_body(column);
            }
            Some(header) => {
                difference.set_header(header);
            }
        }
    }
}

/// A header is UTF-8: what is not becomes the replacement character.
#[inline]
fn push(column: &mut HeaderBuilder, data: &[u8], start: usize, begin: usize, end: usize) {
    let value = data.get(start + begin..start + end).unwrap_or_default();
    match str::from_utf8(value) {
        Ok(_) => column.push_range(data, start + begin, start + end),
        Err(_) => column.push(&String::from_utf8_lossy(value)),
    }
}

impl Extract {
    fn new(pattern: &str, unicode: bool) -> Result<Self, String> {
        let regex = compile("config.extract", pattern, unicode)?;
        let groups: Vec<(usize, String)> = regex
            .capture_names()
            .enumerate()
            .filter_map(|(number, name)| Some((number, name?.to_owned())))
            .collect();
        if groups.is_empty() {
            return Err("config.extract: it names no group; write `(?<name>...)` around what shall become the header `name`".to_owned());
        }
        let places = regex.capture_locations();
        Ok(Self { regex, groups, places })
    }
}

fn compile(at: &str, pattern: &str, unicode: bool) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(pattern).unicode(unicode).size_limit(PATTERN_BYTES_MAX).build();
    compiled.map_err(|error| format!("{at}: {error}"))
}

flumen_sdk::batch_interceptor!(Fields);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, bodies: &[&str]) -> Answer {
        let (mut plugin, _) = Fields::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::bodies(bodies)).unwrap(), bodies.len())
    }

    #[test]
    fn named_groups_become_headers() {
        let config = r#"{"extract":"^(?<level>[A-Z]+) \\[(?<thread>[^\\]]*)\\](?: id=(?<id>\\d+))?"}"#;
        let answer = run(config, &["INFO [main] id=7 x", "no", "WARN [é] y"]);
        assert_eq!(answer.rows(), [0, 2]);
        let column = |name| [answer.header(name, 0), answer.header(name, 1)];
        assert_eq!(column("level"), [Some("INFO"), Some("WARN")]);
        assert_eq!(column("thread"), [Some("main"), Some("é")]);
        assert_eq!(column("id"), [Some("7"), None]);
        assert_eq!(answer.rejected().next(), Some((1, "the expression `extract` does not match")));
    }

    #[test]
    fn what_does_not_match_is_kept_or_dropped() {
        let bodies = ["a=1", "b", "a=2"];
        let with =
            |what: &str| run(&format!(r#"{{"extract":"a=(?<a>\\d)","on_mismatch":"{what}"}}"#), &bodies);
        let kept = with("keep");
        assert_eq!(kept.rows(), [0, 1, 2]);
        assert_eq!(
            [kept.header("a", 0), kept.header("a", 1), kept.header("a", 2)],
            [Some("1"), None, Some("2")]
        );
        let dropped = with("drop");
        assert_eq!((dropped.rows(), dropped.rejected().count()), (vec![0, 2], 0));
        assert_eq!(dropped.header("a", 1), Some("2"));
        assert_eq!(with("reject").rows(), [0, 2]);
    }

    #[test]
    fn search_and_replace() {
        let config =
            r#"{"replace":[{"pattern":"(\\d+)\\.(\\d+)","with":"$2.$1"},{"pattern":"x","with":""}]}"#;
        let answer = run(config, &["1.2 x", "none", "33.44x"]);
        assert_eq!(
            [answer.body(0), answer.body(1), answer.body(2)].map(Option::unwrap),
            [&b"2.1 "[..], b"none", b"44.33"]
        );
        assert!(run(config, &["none"]).is_unchanged());
    }

    #[test]
    fn a_header_is_looked_at_and_changed() {
        let config = r#"{"from":"path","extract":"^/(?<top>[^/]*)","replace":[{"pattern":"\\?.*","with":""}],"on_mismatch":"keep"}"#;
        let (mut plugin, reads) = Fields::open(Config::new(config)).unwrap();
        let event = |path: Option<&str>| TestEvent {
            headers: path.map(|path| ("path".to_owned(), path.to_owned())).into_iter().collect(),
            ..TestEvent::default()
        };
        let events = [event(Some("/a/b?c=d")), event(None)];
        let answer = Answer::new(plugin.process(&testing::batch(&reads, &events)).unwrap(), 2);
        assert_eq!([answer.header("path", 0), answer.header("path", 1)], [Some("/a/b"), None]);
        assert_eq!([answer.header("top", 0), answer.header("top", 1)], [Some("a"), None]);
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Fields::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").starts_with("config: nothing to do"));
        assert!(error(r#"{"extract":"(a)"}"#).starts_with("config.extract: it names no group"));
        assert!(error(r#"{"extract":"("}"#).starts_with("config.extract: regex parse error"));
        assert!(
            error(r#"{"replace":[{"pattern":"[","with":""}]}"#).starts_with("config.replace[0].pattern: ")
        );
    }
}
