//! An error in user text: code, place, the line with a caret, reason and fix. For people (`Display`) and as JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::code::Code;
use crate::limits;
use crate::tree::Span;

/// One error in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// What kind of error.
    pub code: Code,
    /// The file (or directory) as it was named.
    pub file: PathBuf,
    /// Where in the file; `None` if the file as a whole is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What is wrong. Never contains a substituted value.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// First byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line as it stands in the file (before substitution), cut if very long.
    pub text: String,
    /// Characters in `text` before the caret.
    pub caret: usize,
    /// Carets, at least 1.
    pub width: usize,
}

impl Place {
    /// The place of `span` in `text`. Spans outside of the text are moved inside.
    pub fn new(text: &str, span: &Span) -> Place {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = text.get(line_start..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        // Between \r and \n is the end of the line.
        let column = text.get(line_start..start.min(line_start + line.len())).unwrap_or_default();
        let column = column.chars().count();
        let line_end = line_start + line.len();
        let width = text.get(start..end.min(line_end)).unwrap_or_default().chars().count().max(1);
        let skipped = column.saturating_sub(limits::SHOWN_LINE_CHARS_MAX / 2);
        let (shown, caret) = if line.chars().count() <= limits::SHOWN_LINE_CHARS_MAX {
            (line.to_owned(), column)
        } else {
            (line.chars().skip(skipped).take(limits::SHOWN_LINE_CHARS_MAX).collect(), column - skipped)
        };
        let width = width.min(shown.chars().count().saturating_sub(caret)).max(1);
        let line_number = before.matches('\n').count() + 1;
        Place { start, end, line: line_number, column: column + 1, text: shown, caret, width }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at.min(text.len()))
}

impl Diagnostic {
    /// An error at a place.
    pub(crate) fn at(
        code: Code,
        file: &Path,
        text: &str,
        span: &Span,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let place = Some(Place::new(text, span));
        Diagnostic { code, file: file.into(), place, reason: reason.into(), fix: fix.into() }
    }

    /// An error of a file as a whole.
    pub(crate) fn whole(code: Code, file: &Path, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Diagnostic { code, file: file.into(), place: None, reason: reason.into(), fix: fix.into() }
    }
}

impl std::error::Error for Diagnostic {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[{}]: {}", self.code.as_str(), printable(&self.reason))?;
        let Some(place) = &self.place else {
            writeln!(f, " --> {}", self.file.display())?;
            return write!(f, "  = fix: {}", printable(&self.fix));
        };
        let number = place.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, "{gutter}--> {}:{}:{}", self.file.display(), place.line, place.column)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{}", format!("{number} | {}", printable(&place.text)).trim_end())?;
        // A tab before the caret stays a tab, so that the caret stands below its place at any tab width.
        let indent: String =
            place.text.chars().take(place.caret).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let missing = place.caret.saturating_sub(indent.chars().count());
        writeln!(f, "{gutter} | {indent}{}{}", " ".repeat(missing), "^".repeat(place.width))?;
        write!(f, "{gutter} = fix: {}", printable(&self.fix))
    }
}

/// Control characters could hide text or change the terminal: each is shown as U+FFFD.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// All diagnostics as the lines for a terminal, and how many there are.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    let mut text: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n\n")).collect();
    text.push_str(&match diagnostics.len() {
        1 => "1 error\n".to_owned(),
        count => format!("{count} errors\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_below_its_place() {
        let text = "a = 1\n\tbé = \"x\"\nlast";
        let at = text.find('é').unwrap();
        let place = Place::new(text, &(at..at + 2));
        assert_eq!((place.line, place.column, place.width), (2, 3, 1));
        let shown = Diagnostic::at(Code::Syntax, Path::new("f"), text, &(at..at + 2), "r", "f").to_string();
        assert_eq!(shown, "error[syntax]: r\n --> f:2:3\n  |\n2 | \tbé = \"x\"\n  | \t ^\n  = fix: f");
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let text = format!("k = \"{}\"", "x".repeat(5_000));
        let place = Place::new(&text, &(4_000..4_003));
        assert_eq!((place.column, place.caret, place.width), (4_001, 80, 3));
        assert_eq!(place.text.chars().count(), limits::SHOWN_LINE_CHARS_MAX);
    }

    #[test]
    fn spans_outside_are_moved_inside() {
        for text in ["", "é", "a\n", "a\r\nb"] {
            for start in 0..8 {
                for end in 0..8 {
                    let place = Place::new(text, &(start..end));
                    assert!(place.end <= text.len() && place.start <= place.end);
                }
            }
        }
    }

    #[test]
    fn control_characters_are_not_printed() {
        let shown = Diagnostic::at(Code::Syntax, Path::new("f"), "\x1b[2J", &(0..1), "r", "f").to_string();
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }
}
