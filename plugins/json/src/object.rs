//! One JSON object, taken apart without building a tree.

use std::borrow::Cow;
use std::fmt;

use flumen_sdk::prelude::HeaderTable;
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Objects in objects that are followed.
const DEPTH_MAX: usize = 32;
/// Different names in one batch, of the 1,024 that a batch may have in all.
const NAMES_MAX: usize = 512;
/// Bytes of a name: a header's limit.
const NAME_BYTES_MAX: usize = 255;

/// Why a body is rejected.
pub enum Problem {
    NotUtf8(usize),
    Syntax(String),
    NotAnObject,
    TooManyNames(usize),
    LongName(usize),
    TooDeep(usize),
}

/// Which fields become headers.
pub struct Wanted {
    /// Paths (`a.b`); empty: all.
    fields: Vec<String>,
    prefix: String,
    nested: bool,
    /// The path whose value becomes the body.
    body: Option<String>,
}

/// What is written while one body is read.
struct Reading<'a> {
    wanted: &'a Wanted,
    table: &'a mut HeaderTable,
    body: Option<String>,
    /// The prefix and the names above.
    path: String,
    problem: Option<Problem>,
}

impl Wanted {
    pub fn new(fields: Vec<String>, prefix: String, nested: bool, body: Option<String>) -> Self {
        Self { fields, prefix, nested, body }
    }

    /// Reads a body into the table's present row. Returns the new body if the object has its field.
    pub fn read(&self, body: &[u8], table: &mut HeaderTable) -> Result<Option<String>, Problem> {
        let text = str::from_utf8(body).map_err(|error| Problem::NotUtf8(error.valid_up_to()))?;
        let mut reading =
            Reading { wanted: self, table, body: None, path: self.prefix.clone(), problem: None };
        match reading.object(text, 0) {
            Ok(()) => Ok(reading.body),
            Err(error) => Err(reading.problem.take().unwrap_or_else(|| {
                match text.trim_start().starts_with('{') || text.trim().is_empty() {
                    false if serde_json::from_str::<&RawValue>(text).is_ok() => Problem::NotAnObject,
                    _ => Problem::Syntax(error.to_string()),
                }
            })),
        }
    }

    /// What is below the prefix is a wanted path, or leads to one.
    fn wants(&self, path: &str) -> Want {
        let path = path.get(self.prefix.len()..).unwrap_or_default();
        let is_body = self.body.as_deref() == Some(path);
        if is_body {
            return Want::Body;
        }
        if self.fields.is_empty() || self.fields.iter().any(|field| field == path) {
            return Want::Value;
        }
        let leads = |field: &String| field.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        if self.fields.iter().chain(&self.body).any(leads) { Want::Below } else { Want::Nothing }
    }
}

enum Want {
    Value,
    Body,
    Below,
    Nothing,
}

impl Reading<'_> {
    fn object(&mut self, text: &str, depth: usize) -> serde_json::Result<()> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let seed = Fields { reading: self, depth };
        seed.deserialize(&mut deserializer)?;
        deserializer.end()
    }

    fn field(&mut self, name: &str, value: &str, depth: usize) -> Result<(), Problem> {
        let above = self.path.len();
        if depth > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let outcome = match name.is_empty() {
            true => Ok(()),
            false => self.value(value, depth),
        };
        self.path.truncate(above);
        outcome
    }

    fn value(&mut self, value: &str, depth: usize) -> Result<(), Problem> {
        let want = self.wanted.wants(&self.path);
        let is_object = value.starts_with('{');
        let goes_down = match want {
            Want::Nothing => false,
            Want::Below => true,
            // A named object is wanted as it is; without names everything is taken apart.
            Want::Value => self.wanted.nested && self.wanted.fields.is_empty(),
            Want::Body => false,
        };
        if is_object && goes_down {
            if depth + 1 >= DEPTH_MAX {
                return Err(Problem::TooDeep(DEPTH_MAX));
            }
            return self
                .object(value, depth + 1)
                .map_err(|error| self.problem.take().unwrap_or_else(|| Problem::Syntax(error.to_string())));
        }
        let text: Cow<'_, str> = match value.as_bytes().first() {
            Some(b'n') => return Ok(()),
            Some(b'"') => unquoted(value)?,
            _ => Cow::Borrowed(value),
        };
        match want {
            Want::Body => self.body = Some(text.into_owned()),
            Want::Value => self.set(&text)?,
            Want::Below | Want::Nothing => {}
        }
        Ok(())
    }

    fn set(&mut self, text: &str) -> Result<(), Problem> {
        if self.table.columns() >= NAMES_MAX && !self.table.has(&self.path) {
            return Err(Problem::TooManyNames(NAMES_MAX));
        }
        if self.path.len() > NAME_BYTES_MAX {
            return Err(Problem::LongName(NAME_BYTES_MAX));
        }
        self.table.set(&self.path, text);
        Ok(())
    }
}

/// A JSON string as the text that it means.
fn unquoted(value: &str) -> Result<Cow<'_, str>, Problem> {
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) if !text.contains('\\') => Ok(Cow::Borrowed(text)),
        _ => serde_json::from_str::<String>(value)
            .map(Cow::Owned)
            .map_err(|error| Problem::Syntax(error.to_string())),
    }
}

struct Fields<'a, 'b> {
    reading: &'a mut Reading<'b>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Fields<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let value = map.next_value::<&'de RawValue>()?.get();
            if let Err(problem) = self.reading.field(&name.0, value, self.depth) {
                self.reading.problem = Some(problem);
                return Err(A::Error::custom("a field that does not fit"));
            }
        }
        Ok(())
    }
}

/// A name, borrowed where it holds no escape.
struct Name<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
