//! Bodies in logfmt (`level=info msg="a text" took=3ms`): pairs to headers. See README.md.

mod pairs;

use flumen_sdk::prelude::*;
use pairs::{Pair, Pairs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    fields: Vec<String>,
    prefix: String,
    flags: bool,
    strict: bool,
    body: Option<String>,
    keep_body: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            prefix: String::new(),
            flags: true,
            strict: false,
            body: None,
            keep_body: true,
        }
    }
}

/// Different names in one batch, of the 1,024 that a batch may have in all.
const NAMES_MAX: usize = 512;
/// Bytes of a name: a header's limit.
const NAME_BYTES_MAX: usize = 255;

/// The plugin.
pub struct Logfmt {
    settings: Settings,
    name: String,
}

impl BatchInterceptor for Logfmt {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        if let Some(place) = settings.fields.iter().position(String::is_empty) {
            return Err(format!("config.fields[{place}]: an empty name; remove it"));
        }
        if settings.body.as_deref() == Some("") {
            return Err("config.body: an empty name; name a field, or leave the key out".to_owned());
        }
        Ok((Self { settings, name: String::new() }, Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let Some(bodies) = batch.body() else { return Err("the host did not pass the bodies".to_owned()) };
        let mut difference = Difference::unchanged();
        let mut table = HeaderTable::new();
        let changes_body = self.settings.body.is_some() || !self.settings.keep_body;
        let mut new_bodies = ColumnBuilder::with_capacity(if changes_body { batch.rows() } else { 0 }, 0);
        for (row, body) in bodies.iter().enumerate() {
            match self.read(body, &mut table) {
                Ok(new_body) => {
                    table.end_row();
                    if changes_body {
                        let old = if self.settings.keep_body { body } else { b"" };
                        new_bodies.push(new_body.as_deref().map_or(old, str::as_bytes));
                    }
                }
                Err(reason) => {
                    table.drop_row();
                    difference.reject(row, reason);
                }
            }
        }
        table.finish(&mut difference);
        if changes_body && difference.rejected() < batch.rows() {
            difference.set_body(new_bodies);
        }
        Ok(difference)
    }
}

impl Logfmt {
    fn read(&mut self, body: &[u8], table: &mut HeaderTable) -> Result<Option<String>, String> {
        let text = str::from_utf8(body)
            .map_err(|error| format!("bytes that are not UTF-8 at byte {}", error.valid_up_to()))?;
        let mut new_body = None;
        let mut pairs = 0;
        for pair in Pairs::new(text) {
            let Pair { key, value } =
                pair.map_err(|at| format!("a quote at byte {at} that is never closed"))?;
            let Some(value) = value.or_else(|| self.settings.flags.then(|| "true".into())) else { continue };
            pairs += 1;
            if self.settings.body.as_deref() == Some(key) {
                new_body = Some(value.into_owned());
                continue;
            }
            let fields = &self.settings.fields;
            if !fields.is_empty() && !fields.iter().any(|field| field == key) {
                continue;
            }
            self.name.clear();
            self.name.push_str(&self.settings.prefix);
            self.name.push_str(key);
            if self.name.len() > NAME_BYTES_MAX {
                return Err(format!(
                    "a key with more than {NAME_BYTES_MAX} bytes; name the wanted ones in `fields`"
                ));
            }
            if table.columns() >= NAMES_MAX && !table.has(&self.name) {
                return Err(format!(
                    "more than {NAMES_MAX} different keys in one batch; name those that you want in `fields`"
                ));
            }
            table.set(&self.name, &value);
        }
        match pairs == 0 && self.settings.strict {
            true => Err("no `key=value` in it".to_owned()),
            false => Ok(new_body),
        }
    }
}

flumen_sdk::batch_interceptor!(Logfmt);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer};

    fn run(config: &str, bodies: &[&str]) -> Answer {
        let (mut plugin, _) = Logfmt::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::bodies(bodies)).unwrap(), bodies.len())
    }

    #[test]
    fn pairs_become_headers() {
        let answer = run("{}", &[r#"level=info msg="a \"b\"\n" took=3ms debug empty= x="""#, "level=warn"]);
        let check = |name, expected: [Option<&str>; 2]| {
            assert_eq!([answer.header(name, 0), answer.header(name, 1)], expected, "{name}");
        };
        check("level", [Some("info"), Some("warn")]);
        check("msg", [Some("a \"b\"\n"), None]);
        check("took", [Some("3ms"), None]);
        check("debug", [Some("true"), None]);
        check("empty", [Some(""), None]);
        check("x", [Some(""), None]);
    }

    #[test]
    fn settings() {
        let bodies = ["a=1 b=2 msg=hello flag", "nothing here"];
        let answer = run(r#"{"fields":["a"],"prefix":"l.","body":"msg","flags":false}"#, &bodies);
        assert_eq!(answer.headers(), ["l.a"]);
        assert_eq!([answer.body(0), answer.body(1)], [Some(&b"hello"[..]), Some(&b"nothing here"[..])]);
        let strict = run(r#"{"strict":true,"flags":false}"#, &bodies);
        let rejected: Vec<_> = strict.rejected().collect();
        assert_eq!(rejected, [(1, "no `key=value` in it")]);
    }

    #[test]
    fn bad_lines_are_rejected_alone() {
        let flood: String = (0..1_000).map(|key| format!("k{key}=1 ")).collect();
        let answer = run("{}", &["a=1", "a=\"open", &flood, "a=2"]);
        assert_eq!(answer.rows(), [0, 3]);
        assert_eq!([answer.header("a", 0), answer.header("a", 1)], [Some("1"), Some("2")]);
        let reasons: Vec<_> = answer.rejected().collect();
        assert_eq!(reasons[0], (1, "a quote at byte 2 that is never closed"));
        assert!(reasons[1].1.contains("different keys"), "{reasons:?}");
    }

    #[test]
    fn random_text_never_panics() {
        let pieces = ["a", "=", "\"", "\\", " ", "é", "\t", "b=", "\\n", "\\u00e9"];
        let mut seed = 7_u32;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % below
        };
        for _ in 0..3_000 {
            let body: String = (0..next(10)).map(|_| pieces[next(pieces.len())]).collect();
            run("{}", &[&body]);
        }
    }
}
