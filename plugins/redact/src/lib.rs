//! Masks e-mail addresses, card numbers, tokens and what the user's patterns match. See README.md.
//!
//! Each kind of secret has a file that finds spans in a column; the spans of all kinds are merged, and the column is
//! written anew only if there are any.

mod card;
mod email;
mod rows;
mod secret;

use flumen_sdk::prelude::*;
use regex::bytes::{Regex, RegexBuilder};
use rows::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    email: bool,
    card: bool,
    bearer: bool,
    keys: Vec<String>,
    patterns: Vec<String>,
    mask: String,
    body: bool,
    headers: Vec<String>,
}

/// Names whose values nobody wants to find in a log.
const KEYS: [&str; 7] = ["password", "passwd", "secret", "token", "api_key", "apikey", "access_token"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            email: true,
            card: true,
            bearer: true,
            keys: KEYS.map(str::to_owned).to_vec(),
            patterns: Vec::new(),
            mask: "***".to_owned(),
            body: true,
            headers: Vec::new(),
        }
    }
}

/// The plugin.
pub struct Redact {
    email: Option<email::Emails>,
    card: bool,
    bearer: Option<secret::Bearer>,
    keys: Option<secret::Keys>,
    patterns: Vec<Regex>,
    mask: String,
    spans: Vec<Span>,
}

/// A compiled pattern may take this much memory: far more than a sane one does.
const PATTERN_BYTES_MAX: usize = 4 << 20;

impl BatchInterceptor for Redact {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        if let Some(place) = settings.keys.iter().position(|key| key.is_empty()) {
            return Err(format!("config.keys[{place}]: an empty name; remove it"));
        }
        let mut reads = if settings.body { Reads::body() } else { Reads::nothing() };
        for (place, name) in settings.headers.iter().enumerate() {
            if name.is_empty() {
                return Err(format!("config.headers[{place}]: an empty name; name a header"));
            }
            reads = reads.and_header(name);
        }
        if reads == Reads::nothing() {
            return Err("config.headers: nothing to look at; name a header or set `body = true`".to_owned());
        }
        let patterns = settings.patterns.iter().enumerate().map(|(place, pattern)| compile(place, pattern));
        let plugin = Self {
            email: settings.email.then(email::Emails::default),
            card: settings.card,
            bearer: settings.bearer.then(secret::Bearer::default),
            keys: (!settings.keys.is_empty()).then(|| secret::Keys::new(&settings.keys)),
            patterns: patterns.collect::<Result<_, _>>()?,
            mask: settings.mask,
            spans: Vec::new(),
        };
        Ok((plugin, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut difference = Difference::unchanged();
        if let Some(body) = batch.body()
            && self.find(body)
        {
            let mut column = ColumnBuilder::with_capacity(body.rows(), body.data().len());
            self.masked(body, |_, parts| {
                parts.iter().for_each(|part| column.add(part));
                column.end_row();
            });
            difference.set_body(column);
        }
        for header in batch.headers() {
            let values = header.values();
            if self.find(values) {
                let mut column =
                    HeaderBuilder::with_capacity(header.name(), values.rows(), values.data().len());
                self.masked(values, |row, parts| match header.is_present(row) {
                    true => column.push_utf8(&parts.concat()),
                    false => column.push_absent(),
                });
                difference.set_header(column);
            }
        }
        Ok(difference)
    }
}

fn compile(place: usize, pattern: &str) -> Result<Regex, String> {
    // Bytes, not characters: bodies need not be UTF-8, and Unicode's tables would make the plugin three times as big.
    let compiled = RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_BYTES_MAX).build();
    compiled.map_err(|error| format!("config.patterns[{place}]: {error}"))
}

impl Redact {
    /// Finds what is to be masked in a column: afterwards `spans` is sorted and free of overlaps.
    fn find(&mut self, column: Column<'_>) -> bool {
        let spans = &mut self.spans;
        spans.clear();
        if let Some(emails) = &self.email {
            emails.find(column, spans);
        }
        if self.card {
            card::find(column, spans);
        }
        if let Some(bearer) = &self.bearer {
            bearer.find(column, spans);
        }
        if let Some(keys) = &self.keys {
            keys.find(column, spans);
        }
        if !self.patterns.is_empty() {
            let mut start = 0;
            for row in column.iter() {
                for pattern in &self.patterns {
                    let hits = pattern.find_iter(row).filter(|hit| !hit.is_empty());
                    spans.extend(hits.map(|hit| Span { start: start + hit.start(), end: start + hit.end() }));
                }
                start += row.len();
            }
        }
        // What is masked already is no change.
        spans.retain(|span| column.data().get(span.start..span.end) != Some(self.mask.as_bytes()));
        spans.sort_unstable_by_key(|span| span.start);
        spans.dedup_by(|next, kept| {
            let is_joined = next.start < kept.end;
            if is_joined {
                kept.end = kept.end.max(next.end);
            }
            is_joined
        });
        !spans.is_empty()
    }

    /// Passes each row as the parts that its masked value consists of.
    fn masked<'a>(&'a self, column: Column<'a>, mut write: impl FnMut(usize, &[&'a [u8]])) {
        let data = column.data();
        let mut spans = self.spans.iter().peekable();
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut start = 0;
        for (row, end) in column.offsets().iter().skip(1).enumerate() {
            let end = end as usize;
            parts.clear();
            while let Some(span) = spans.next_if(|span| span.end <= end) {
                parts.push(data.get(start..span.start).unwrap_or_default());
                parts.push(self.mask.as_bytes());
                start = span.end;
            }
            parts.push(data.get(start..end).unwrap_or_default());
            start = end;
            write(row, &parts);
        }
    }
}

flumen_sdk::batch_interceptor!(Redact);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, bodies: &[&str]) -> Vec<String> {
        let (mut plugin, _) = Redact::open(Config::new(config)).unwrap();
        let answer = Answer::new(plugin.process(&testing::bodies(bodies)).unwrap(), bodies.len());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        bodies
            .iter()
            .enumerate()
            .map(|(row, body)| answer.body(row).map_or((*body).to_owned(), text))
            .collect()
    }

    fn check(body: &str, expected: &str) {
        assert_eq!(run("{}", &[body]), [expected]);
        // Neighbours change nothing.
        assert_eq!(run("{}", &["a@b.c.de", body, "4", body]), ["***", expected, "4", expected]);
    }

    #[test]
    fn emails() {
        check("to jane.doe+x@mail.example.org now", "to *** now");
        check("<a@b.io>,c@d.io.", "<***>,***.");
        check("q=joe%40example.com&x=1", "q=***&x=1");
        check("müller@bücher.example", "***");
        check(
            "user@localhost pkg@1.2.3 @x.com a@ @ x@.com x@y",
            "user@localhost pkg@1.2.3 @x.com a@ @ x@.com x@y",
        );
    }

    #[test]
    fn cards() {
        check("card 4111111111111111 ok", "card *** ok");
        check("4111 1111 1111 1111", "***");
        check("n=4111-1111-1111-1111.", "n=***.");
        check("3782 822463 10005 amex", "*** amex");
        check("200 4111111111111111 12", "200 *** 12");
        check("4222222222222", "***");
        check("5105105105105100,378282246310005", "***,***");
        // Wrong check digit, too long, not a card's first digit, two spaces.
        let kept = "4111111111111112 41111111111111110000 1697040000000 4111  1111 1111 1111";
        check(kept, kept);
        check("a4111111111111111b", "a***b");
        check("2023-10-10 13 4111 1111 1111 1111 9", "2023-10-10 13 *** 9");
    }

    #[test]
    fn secrets() {
        check("Authorization: Bearer abc.def-ghi_j/k+l=", "Authorization: Bearer ***");
        check("BEARER abc bearer x", "BEARER *** bearer ***");
        check("bearers of news; Bearer", "bearers of news; Bearer");
        check("/login?user=a&password=hunter2&x=1", "/login?user=a&password=***&x=1");
        check("Password: hunter2, next", "Password: ***, next");
        check(r#"{"token":"a\"b","x":1}"#, r#"{"token":"***","x":1}"#);
        check(r#"{\"token\":\"ab\",\"x\":1}"#, r#"{\"token\":\"***\",\"x\":1}"#);
        check("api_key = 'a b c' d", "api_key = '***' d");
        check("user_password=x my-token=y", "user_password=*** my-token=***");
        check("mypassword=x tokens=3 token=&x token", "mypassword=x tokens=3 token=&x token");
        check(r#"{"accessToken":"x","APITOKEN":"y"}"#, r#"{"accessToken":"***","APITOKEN":"y"}"#);
        check(r#"{"token":null,"secret":false}"#, r#"{"token":null,"secret":false}"#);
        check("token=Bearer abc x", "token=*** x");
        check("password=a@b.com", "password=***");
    }

    #[test]
    fn patterns_and_settings() {
        let config = r#"{"email":false,"card":false,"keys":[],"patterns":["id-\\d+","^x"],"mask":"[id]"}"#;
        let bodies = ["id-12 a@b.com xx", "x id-7id-8", "password=x"];
        assert_eq!(run(config, &bodies), ["[id] a@b.com xx", "[id] [id][id]", "password=x"]);
        let error = Redact::open(Config::new(r#"{"patterns":["a","("]}"#)).map(|_| ()).unwrap_err();
        assert!(error.starts_with("config.patterns[1]: regex parse error"), "{error}");
        let error = Redact::open(Config::new(r#"{"body":false}"#)).map(|_| ()).unwrap_err();
        assert!(error.starts_with("config.headers: nothing to look at"), "{error}");
    }

    #[test]
    fn what_holds_no_secret_is_unchanged() {
        let (mut plugin, _) = Redact::open(Config::new("{}")).unwrap();
        let batch = testing::bodies(&["", "fine", "password=***"]);
        assert!(Answer::new(plugin.process(&batch).unwrap(), 3).is_unchanged());
    }

    #[test]
    fn headers_keep_their_presence() {
        let (mut plugin, reads) =
            Redact::open(Config::new(r#"{"body":false,"headers":["referer","other"]}"#)).unwrap();
        let event = |referer: Option<&str>| TestEvent {
            body: b"a@b.com".to_vec(),
            time: 0,
            headers: referer.map(|value| ("referer".to_owned(), value.to_owned())).into_iter().collect(),
        };
        let events = [event(None), event(Some("/?token=x")), event(Some("")), event(Some("/"))];
        let answer = Answer::new(plugin.process(&testing::batch(&reads, &events)).unwrap(), 4);
        assert_eq!(answer.headers(), ["referer"]);
        let values: Vec<_> = (0..4).map(|row| answer.header("referer", row)).collect();
        assert_eq!(values, [None, Some("/?token=***"), Some(""), Some("/")]);
        assert_eq!(answer.body(0), None);
    }

    #[test]
    fn a_secret_never_spans_rows() {
        let kept = ["a@", "b.com", "4111111", "111111111", "password=", "x", "Bearer ", "y"];
        assert_eq!(run("{}", &kept), kept);
    }

    #[test]
    fn an_event_is_masked_as_if_it_were_alone() {
        let pieces = [
            "4111 1111 1111 1111",
            "a@b.cd",
            "%40",
            "@",
            "token=",
            "Bearer ",
            "\"",
            " ",
            "x",
            ":",
            "\\",
            "secret",
            "id-1",
        ];
        let mut seed = 3_u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let config = r#"{"patterns":["id-\\d"]}"#;
        for _ in 0..500 {
            let bodies: Vec<String> =
                (0..6).map(|_| (0..next(6)).map(|_| pieces[next(13) as usize]).collect()).collect();
            let texts: Vec<&str> = bodies.iter().map(String::as_str).collect();
            let alone: Vec<String> = texts.iter().flat_map(|body| run(config, &[body])).collect();
            assert_eq!(run(config, &texts), alone, "{texts:?}");
        }
    }
}
