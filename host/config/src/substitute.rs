//! `${env:X}`, `${env:X:-default}` and `${file:path}` in string values, after parsing.
//!
//! After parsing, so that no value can change the shape of the file. A default holds if the variable
//! is not set or empty, as in a shell. A file's trailing newline is cut. `$${` is a literal `${`.
//! What was put in is not looked at again, and is never printed.

use std::path::Path;

use crate::code::Code;
use crate::env::Env;
use crate::limits;
use crate::report::Report;
use crate::tree::{Item, Node, Span};

/// Replaces in every string below `node`. A string with an error becomes [`Item::Broken`].
pub(crate) fn substitute(node: &mut Node, env: &dyn Env, report: &mut Report<'_>) {
    match &mut node.item {
        Item::Text(text) if text.contains("${") => {
            let replaced = Replacer { env, span: &node.span, report, secret: false }.replace(text);
            match replaced {
                Some((text, secret)) => {
                    node.item = Item::Text(text);
                    node.substituted = true;
                    node.secret = secret;
                }
                None => node.item = Item::Broken,
            }
        }
        Item::List(nodes) => nodes.iter_mut().for_each(|node| substitute(node, env, report)),
        Item::Table(entries) => {
            entries.iter_mut().for_each(|entry| substitute(&mut entry.value, env, report));
        }
        _ => {}
    }
}

struct Replacer<'a, 'r> {
    env: &'a dyn Env,
    span: &'a Span,
    report: &'a mut Report<'r>,
    secret: bool,
}

impl Replacer<'_, '_> {
    /// The new text, and whether it contains a secret. `None`: reported.
    fn replace(mut self, text: &str) -> Option<(String, bool)> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut right = true;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = from.get(2..).unwrap_or_default();
                continue;
            }
            out.push_str(before);
            let Some(end) = from.find('}') else {
                self.error(
                    from,
                    Code::BadSubstitution,
                    "`${` without `}`",
                    "close it, or write `$${` for `${`",
                );
                return None;
            };
            let (whole, after) = from.split_at(end + 1);
            match self.value(whole) {
                Some(value) => out.push_str(&value),
                None => right = false,
            }
            rest = after;
        }
        out.push_str(rest);
        right.then_some((out, self.secret))
    }

    /// The value of one `${…}`.
    fn value(&mut self, whole: &str) -> Option<String> {
        let inner = whole.strip_prefix("${").and_then(|inner| inner.strip_suffix('}')).unwrap_or_default();
        if let Some(variable) = inner.strip_prefix("env:") {
            return self.variable(whole, variable);
        }
        if let Some(path) = inner.strip_prefix("file:") {
            return self.file(whole, path);
        }
        let reason = format!("`{}` is not a substitution", quote(whole));
        let fix =
            "write `${env:NAME}`, `${env:NAME:-default}` or `${file:path}`; for a literal `${` write `$${`";
        self.error(whole, Code::BadSubstitution, &reason, fix);
        None
    }

    fn variable(&mut self, whole: &str, variable: &str) -> Option<String> {
        let (name, default) = match variable.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (variable, None),
        };
        let head = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !head || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let reason = format!("`{}` is not the name of a variable", quote(name));
            self.error(whole, Code::BadSubstitution, &reason, "names are letters, digits and `_`");
            return None;
        }
        match (self.env.var(name), default) {
            (Some(value), Some(default)) if value.is_empty() => Some(default.to_owned()),
            (Some(value), _) => Some(self.keep_secret(value)),
            (None, Some(default)) => Some(default.to_owned()),
            (None, None) => {
                let reason = format!("the environment variable `{name}` is not set");
                let fix = format!("set it, or give a default: `${{env:{name}:-default}}`");
                self.error(whole, Code::UnsetVariable, &reason, &fix);
                None
            }
        }
    }

    fn file(&mut self, whole: &str, path: &str) -> Option<String> {
        let path = self.report.file.dir().join(Path::new(path));
        let read = self.env.read(&path, limits::VALUE_FILE_BYTES_MAX);
        self.report.value_files.push(path.clone());
        let shown = path.display();
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                let reason = match error.kind() {
                    std::io::ErrorKind::NotFound => format!("the file `{shown}` does not exist"),
                    _ => format!("the file `{shown}` cannot be read: {error}"),
                };
                let fix = "check the path: it is relative to this file";
                self.error(whole, Code::MissingFile, &reason, fix);
                return None;
            }
        };
        if bytes.len() as u64 > limits::VALUE_FILE_BYTES_MAX {
            let reason = format!("the file `{shown}` has more than {} bytes", limits::VALUE_FILE_BYTES_MAX);
            self.error(whole, Code::FileTooLarge, &reason, "name a file with one value");
            return None;
        }
        let Ok(text) = String::from_utf8(bytes) else {
            self.error(whole, Code::NotUtf8, &format!("the file `{shown}` is not UTF-8"), "save it as UTF-8");
            return None;
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
        Some(self.keep_secret(text))
    }

    fn keep_secret(&mut self, value: String) -> String {
        self.secret = true;
        self.report.secrets.push(value.clone());
        value
    }

    /// The caret stands below the `${…}` if the file has it letter by letter, else below the string.
    fn error(&mut self, part: &str, code: Code, reason: &str, fix: &str) {
        let raw = self.report.file.text.get(self.span.clone()).unwrap_or_default();
        let span = match raw.find(part) {
            Some(at) => self.span.start + at..self.span.start + at + part.len(),
            None => self.span.clone(),
        };
        self.report.error(code, &span, reason, fix);
    }
}

/// Text without the secrets that are in it.
pub(crate) fn redact(text: &str, secrets: &[String]) -> String {
    let long = |secret: &&String| secret.chars().count() >= limits::REDACTED_CHARS_MIN;
    let mut secrets: Vec<&String> = secrets.iter().filter(long).collect();
    // Longest first: one secret may contain another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "(secret)"))
}

/// A piece of user text in an error: cut if long.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(limits::QUOTED_CHARS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}
