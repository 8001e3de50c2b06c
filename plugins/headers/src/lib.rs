//! Sets, removes and renames headers; gives each event an identifier. See README.md.

use std::collections::{BTreeMap, BTreeSet};

use flumen_sdk::prelude::*;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    set: BTreeMap<String, String>,
    uuid: Option<String>,
    rename: BTreeMap<String, String>,
    remove: Vec<String>,
    overwrite: bool,
}

/// The plugin.
pub struct Headers {
    settings: Settings,
}

impl BatchInterceptor for Headers {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        check(&settings)?;
        let mut reads = Reads::nothing();
        for old in settings.rename.keys() {
            reads = reads.and_header(old);
        }
        for new in settings.rename.values() {
            reads = reads.and_header(new);
        }
        if !settings.overwrite {
            for name in settings.set.keys().chain(&settings.uuid) {
                reads = reads.and_header(name);
            }
        }
        if settings.uuid.is_some() {
            reads = reads.and_identity();
        }
        Ok((Self { settings }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut difference = Difference::unchanged();
        let rows = batch.rows();
        let find = |name: &str| batch.headers().find(|header| header.name() == name);
        for name in self.settings.remove.iter().chain(self.settings.rename.keys()) {
            difference.remove_header(name);
        }
        for (old, new) in &self.settings.rename {
            let (old, there) = (find(old), find(new));
            let bytes = old.map_or(0, |old| old.values().data().len());
            let mut column = HeaderBuilder::with_capacity(new, rows, bytes);
            for row in 0..rows {
                let moved = old.and_then(|old| old.get_str(row));
                column.push_option(moved.or_else(|| there.and_then(|there| there.get_str(row))));
            }
            difference.set_header(column);
        }
        let kept = |name: &str| if self.settings.overwrite { None } else { find(name) };
        for (name, value) in &self.settings.set {
            let there = kept(name);
            let mut column = HeaderBuilder::with_capacity(name, rows, rows * value.len());
            (0..rows)
                .for_each(|row| column.push(there.and_then(|there| there.get_str(row)).unwrap_or(value)));
            difference.set_header(column);
        }
        if let (Some(name), Some((streams, positions))) = (&self.settings.uuid, batch.identity()) {
            let there = kept(name);
            let mut column = HeaderBuilder::with_capacity(name, rows, rows * UUID_BYTES);
            for (row, (stream, position)) in streams.iter().zip(positions.iter()).enumerate() {
                match there.and_then(|there| there.get_str(row)) {
                    Some(there) => column.push(there),
                    None => column.push_utf8(&uuid(stream, position)),
                }
            }
            difference.set_header(column);
        }
        Ok(difference)
    }
}

fn check(settings: &Settings) -> Result<(), String> {
    let Settings { set, uuid, rename, remove, .. } = settings;
    if set.is_empty() && uuid.is_none() && rename.is_empty() && remove.is_empty() {
        return Err(
            "config: nothing to do; add `set = { name = \"value\" }`, `uuid`, `rename` or `remove`".into()
        );
    }
    let written = set.keys().map(|name| ("set", name));
    let written = written.chain(uuid.iter().map(|name| ("uuid", name)));
    let written = written.chain(rename.values().map(|name| ("rename", name)));
    let removed = remove.iter().chain(rename.keys());
    let mut names = BTreeSet::new();
    for (key, name) in written {
        if name.is_empty() {
            return Err(format!("config.{key}: an empty name; name a header"));
        }
        if !names.insert(name) {
            return Err(format!("config.{key}: the header `{name}` is written twice; remove one of them"));
        }
    }
    for name in removed {
        if name.is_empty() {
            return Err("config: an empty name under `remove` or `rename`; name a header".to_owned());
        }
        if names.contains(name) {
            return Err(format!("config: the header `{name}` is both written and removed; decide for one"));
        }
    }
    Ok(())
}

const UUID_BYTES: usize = 36;

/// An identifier made from where the event was read: the same after every restart and redelivery, another for every
/// event. The form is RFC 9562's version 8 (custom): 122 bits of a mixed stream and position.
fn uuid(stream: u64, position: u64) -> [u8; UUID_BYTES] {
    // Two rounds of a bijection (splitmix64's finisher) over both halves: different identities stay different in
    // 128 bits; the version and the variant take 6 of them.
    let low = mix(stream ^ mix(position.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    let high = mix(position ^ low);
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes())) {
        *to = from;
    }
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = 0x80 | (*version & 0x0f);
    *variant = 0x80 | (*variant & 0x3f);
    let mut text = [b'-'; UUID_BYTES];
    let places = (0..UUID_BYTES).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
    for (place, digit) in places.zip(digits) {
        if let (Some(to), Some(digit)) = (text.get_mut(place), b"0123456789abcdef".get(usize::from(digit))) {
            *to = *digit;
        }
    }
    text
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

flumen_sdk::batch_interceptor!(Headers);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, events: &[TestEvent]) -> Answer {
        let (mut plugin, reads) = Headers::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::batch(&reads, events)).unwrap(), events.len())
    }

    fn event(headers: &[(&str, &str)]) -> TestEvent {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TestEvent { headers, ..TestEvent::default() }
    }

    #[test]
    fn what_is_there_is_kept_unless_told_otherwise() {
        let events = [event(&[("env", "old")]), event(&[])];
        let answer = run(r#"{"set":{"env":"new"}}"#, &events);
        assert_eq!([answer.header("env", 0), answer.header("env", 1)], [Some("old"), Some("new")]);
        let answer = run(r#"{"set":{"env":"new"},"overwrite":true}"#, &events);
        assert_eq!([answer.header("env", 0), answer.header("env", 1)], [Some("new"), Some("new")]);
    }

    #[test]
    fn renaming_moves_values_over_what_is_there() {
        let events = [event(&[("a", "1"), ("b", "2")]), event(&[("b", "3")]), event(&[])];
        let answer = run(r#"{"rename":{"a":"b"},"remove":["c"]}"#, &events);
        let b: Vec<_> = (0..3).map(|row| answer.header("b", row)).collect();
        assert_eq!(b, [Some("1"), Some("3"), None]);
        assert_eq!(answer.removed(), ["c", "a"]);
    }

    #[test]
    fn an_identifier_is_stable_and_different_for_each_event() {
        let events = vec![event(&[]); 1000];
        let first = run(r#"{"uuid":"id"}"#, &events);
        let again = run(r#"{"uuid":"id"}"#, &events);
        let mut seen = BTreeSet::new();
        for row in 0..events.len() {
            let id = first.header("id", row).unwrap();
            assert_eq!(Some(id), again.header("id", row));
            assert!(seen.insert(id.to_owned()));
            assert_eq!((id.len(), &id[14..15]), (36, "8"), "{id}");
            assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        }
        assert_ne!(uuid(1, 2), uuid(2, 1));
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Headers::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").starts_with("config: nothing to do"));
        assert!(error(r#"{"set":{"a":"1"},"uuid":"a"}"#).contains("`a` is written twice"));
        assert!(error(r#"{"set":{"a":"1"},"remove":["a"]}"#).contains("both written and removed"));
        assert!(error(r#"{"set":{"":"1"}}"#).contains("an empty name"));
        assert!(error(r#"{"sets":{}}"#).contains("unknown key `sets`"));
    }
}
