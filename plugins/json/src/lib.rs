//! Bodies that are JSON objects: fields to headers. See README.md.

mod object;

use flumen_sdk::prelude::*;
use object::{Problem, Wanted};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    fields: Vec<String>,
    prefix: String,
    nested: bool,
    body: Option<String>,
    keep_body: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { fields: Vec::new(), prefix: String::new(), nested: true, body: None, keep_body: true }
    }
}

/// The plugin.
pub struct Json {
    wanted: Wanted,
    body: Option<String>,
    keep_body: bool,
}

impl BatchInterceptor for Json {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { fields, prefix, nested, body, keep_body } = config.parse()?;
        if let Some(place) = fields.iter().position(String::is_empty) {
            return Err(format!("config.fields[{place}]: an empty name; remove it"));
        }
        if body.as_deref() == Some("") {
            return Err("config.body: an empty name; name a field, or leave the key out".to_owned());
        }
        let wanted = Wanted::new(fields, prefix, nested, body.clone());
        Ok((Self { wanted, body, keep_body }, Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let Some(bodies) = batch.body() else { return Err("the host did not pass the bodies".to_owned()) };
        let mut difference = Difference::unchanged();
        let mut table = HeaderTable::new();
        let changes_body = self.body.is_some() || !self.keep_body;
        let mut new_bodies = ColumnBuilder::with_capacity(if changes_body { batch.rows() } else { 0 }, 0);
        for (row, body) in bodies.iter().enumerate() {
            match self.wanted.read(body, &mut table) {
                Ok(new_body) => {
                    table.end_row();
                    if changes_body {
                        let old = if self.keep_body { body } else { b"" };
                        new_bodies.push(new_body.as_deref().map_or(old, str::as_bytes));
                    }
                }
                Err(problem) => {
                    table.drop_row();
                    difference.reject(row, reason(body, &problem));
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

fn reason(body: &[u8], problem: &Problem) -> String {
    match problem {
        Problem::NotUtf8(at) => format!("not JSON: bytes that are not UTF-8 at byte {at}"),
        Problem::Syntax(text) if body.is_empty() => format!("not JSON: the body is empty ({text})"),
        Problem::Syntax(text) => format!("not JSON: {text}"),
        Problem::NotAnObject => "JSON, but not an object: it has no fields".to_owned(),
        Problem::TooManyNames(max) => {
            format!("more than {max} different fields in one batch; name those that you want in `fields`")
        }
        Problem::LongName(max) => {
            format!("a field whose name has more than {max} bytes; name the wanted ones in `fields`")
        }
        Problem::TooDeep(max) => format!("objects in objects, more than {max} deep; set `nested = false`"),
    }
}

flumen_sdk::batch_interceptor!(Json);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer};

    fn run(config: &str, bodies: &[&str]) -> Answer {
        let (mut plugin, _) = Json::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::bodies(bodies)).unwrap(), bodies.len())
    }

    #[test]
    fn scalars_nested_objects_and_lists() {
        let body = r#"{"a":"x\n\u00e9","n":1.50e3,"t":true,"z":null,"o":{"p":{"q":"deep"},"r":[1,{"s":2}]},"":"empty"}"#;
        let answer = run("{}", &[body]);
        let check = |name, expected| assert_eq!(answer.header(name, 0), expected, "{name}");
        check("a", Some("x\né"));
        check("n", Some("1.50e3"));
        check("t", Some("true"));
        check("z", None);
        check("o.p.q", Some("deep"));
        check("o.r", Some(r#"[1,{"s":2}]"#));
        assert_eq!(answer.headers().len(), 5);
        let answer = run(r#"{"nested":false,"prefix":"j."}"#, &[body]);
        assert_eq!(answer.header("j.o", 0), Some(r#"{"p":{"q":"deep"},"r":[1,{"s":2}]}"#));
    }

    #[test]
    fn only_what_is_wanted_and_a_new_body() {
        let bodies = [r#"{"a":1,"b":{"c":2,"d":3},"msg":"hello"}"#, r#"{"a":4}"#];
        let answer = run(r#"{"fields":["a","b.d"],"body":"msg"}"#, &bodies);
        let mut names = answer.headers();
        names.sort();
        assert_eq!(names, ["a", "b.d"]);
        assert_eq!([answer.body(0), answer.body(1)], [Some(&b"hello"[..]), Some(bodies[1].as_bytes())]);
        let answer = run(r#"{"fields":["b"],"keep_body":false}"#, &bodies);
        assert_eq!(answer.header("b", 0), Some(r#"{"c":2,"d":3}"#));
        assert_eq!(answer.body(1), Some(&b""[..]));
    }

    #[test]
    fn bad_bodies_are_rejected_alone() {
        let answer =
            run("{}", &[r#"{"a":1}"#, "", "[1]", "{", r#"{"a":1} x"#, r#"{"a":"\ud800"}"#, r#"{"a":2}"#]);
        assert_eq!(answer.rows(), [0, 6]);
        assert_eq!([answer.header("a", 0), answer.header("a", 1)], [Some("1"), Some("2")]);
        let reasons: Vec<_> = answer.rejected().map(|(_, reason)| reason.to_owned()).collect();
        assert!(reasons[0].starts_with("not JSON: the body is empty"), "{reasons:?}");
        assert!(reasons[1].starts_with("JSON, but not an object"), "{reasons:?}");
        assert!(reasons[2..].iter().all(|reason| reason.starts_with("not JSON")), "{reasons:?}");
    }

    #[test]
    fn a_flood_of_names_and_a_tower_of_objects_have_an_end() {
        let many: Vec<String> = (0..2_000).map(|name| format!(r#""f{name}":1"#)).collect();
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        let deeper = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        let bodies = [format!("{{{}}}", many.join(",")), deep, deeper, "{\"a\":1}".to_owned()];
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let answer = run("{}", &bodies);
        assert_eq!(answer.rows(), [3]);
        let reasons: Vec<_> = answer.rejected().map(|(_, reason)| reason.to_owned()).collect();
        assert!(reasons[0].contains("different fields"), "{reasons:?}");
        assert!(reasons[1].contains("deep"), "{reasons:?}");
    }

    #[test]
    fn random_bytes_never_panic() {
        let pieces = ["{", "}", "\"", ":", ",", "a", "1", "[", "]", "\\", "\\u12", "null", "tru", " ", "é"];
        let mut seed = 5_u32;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % below
        };
        for _ in 0..2_000 {
            let body: String = (0..next(12)).map(|_| pieces[next(pieces.len())]).collect();
            run("{}", &[&body, "{}"]);
        }
    }
}
