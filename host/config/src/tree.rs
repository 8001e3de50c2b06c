//! TOML text as a tree of values, each with its place. Nothing is interpreted yet.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes in the file.
pub type Span = Range<usize>;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where; of a table: its header.
    pub span: Span,
    /// What.
    pub item: Item,
    /// It was put together from `${…}`.
    pub substituted: bool,
    /// It contains a value from the environment or a file, which is not to be printed.
    pub secret: bool,
}

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// Wrong in a way that was reported: whoever wants a value of any type takes it in silence.
    Broken,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

/// An error of the text: where, what.
pub(crate) struct SyntaxError {
    pub span: Span,
    pub message: String,
}

impl SyntaxError {
    /// What to do: the parser's words are about tokens, so the common mistakes get a sentence of their own.
    pub fn fix(&self) -> &'static str {
        match self.message.as_str() {
            "duplicate key" => "remove one of them, or give one another name",
            BEYOND_64_BITS => "write a smaller number",
            message if message.contains("array") => {
                "check that the list before this place is closed with `]`"
            }
            message if message.contains("string") => "check the quotes",
            message if message.contains("table") => "check the brackets of the header",
            _ => "write it as in https://toml.io",
        }
    }
}

const BEYOND_64_BITS: &str = "an integer beyond 64 bits";

impl Node {
    fn new(span: Span, item: Item) -> Node {
        Node { span, item, substituted: false, secret: false }
    }

    /// The type as a word with its article.
    pub fn type_word(&self) -> &'static str {
        match &self.item {
            Item::Text(_) => "a string",
            Item::Integer(_) => "an integer",
            Item::Float(_) => "a float",
            Item::Bool(_) => "a boolean",
            Item::Datetime(_) => "a date",
            Item::List(_) => "a list",
            Item::Table(_) => "a table",
            Item::Broken => "a wrong value",
        }
    }
}

/// Reads TOML. Every syntax error is reported, in the order of the text.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<SyntaxError>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<SyntaxError> = errors
        .into_iter()
        .map(|error| SyntaxError { span: error.span().unwrap_or(0..0), message: error.message().to_owned() })
        .collect();
    // The value of an unfinished line is reported again where the line ends: once per line is enough.
    errors.sort_by_key(|error| error.span.start);
    one_per_line(text, &mut errors);
    // A list that is not closed swallows all lines that follow.
    errors.dedup_by(|later, first| later.message == first.message && first.message.contains("array"));
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = Vec::new();
    let entries = table(root.get_ref(), &mut errors);
    if errors.is_empty() { Ok(Node::new(0..0, Item::Table(entries))) } else { Err(errors) }
}

/// Keeps the first error of each line. One walk over the text, for a file that is all errors.
fn one_per_line(text: &str, errors: &mut Vec<SyntaxError>) {
    let (mut at, mut line, mut last) = (0, 0, None);
    errors.retain(|error| {
        let between = text.as_bytes().get(at..error.span.start).unwrap_or_default();
        line += between.iter().filter(|byte| **byte == b'\n').count();
        at = at.max(error.span.start);
        last.replace(line) != Some(line)
    });
}

fn table(table: &DeTable<'_>, errors: &mut Vec<SyntaxError>) -> Vec<Entry> {
    table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_span: key.span(),
            value: node(value, errors),
        })
        .collect()
}

fn node(value: &Spanned<DeValue<'_>>, errors: &mut Vec<SyntaxError>) -> Node {
    let span = value.span();
    let item = match value.get_ref() {
        DeValue::String(text) => Item::Text(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Item::Integer(integer),
            Err(_) => {
                let message = BEYOND_64_BITS.to_owned();
                errors.push(SyntaxError { span: span.clone(), message });
                Item::Broken
            }
        },
        DeValue::Float(float) => Item::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(bool) => Item::Bool(*bool),
        DeValue::Datetime(datetime) => Item::Datetime(datetime.to_string()),
        DeValue::Array(array) => Item::List(array.iter().map(|value| node(value, errors)).collect()),
        DeValue::Table(entries) => Item::Table(table(entries, errors)),
    };
    Node::new(span, item)
}
