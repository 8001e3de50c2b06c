//! The name of an index: text with `{header}`, `{header:-default}` and `%Y %m %d %H` of the event's time.

use std::fmt::Write;

use flumen_sdk::prelude::*;

use crate::time::Civil;

/// A template, parsed.
pub struct Template(Vec<Piece>);

enum Piece {
    Text(String),
    Header { column: usize, name: String, default: Option<String> },
    Time(char),
}

impl Template {
    /// `headers` are the columns that are read; the template's own are added.
    pub fn parse(text: &str, headers: &mut Vec<String>) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            let piece = match character {
                '{' => {
                    let (inside, after) = rest.as_str().split_once('}').ok_or("`{` without `}`")?;
                    rest = after.chars();
                    header(inside, headers)?
                }
                '%' => match rest.next() {
                    Some('%') => {
                        plain.push('%');
                        continue;
                    }
                    Some(part @ ('Y' | 'm' | 'd' | 'H')) => Piece::Time(part),
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        return Err(format!("`%{other}` is none of %Y, %m, %d, %H and %%"));
                    }
                },
                character => {
                    plain.push(character);
                    continue;
                }
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(piece);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Template(pieces))
    }

    /// Whether it looks at the time.
    pub fn has_time(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Time(_)))
    }

    /// The name for a row; an error says which header it does not have.
    pub fn fill(&self, batch: &BatchView, row: usize, time: i64, into: &mut String) -> Result<(), String> {
        into.clear();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => into.push_str(text),
                Piece::Header { column, name, default } => {
                    let value = batch.header(*column).and_then(|column| column.get(row));
                    let value = value.and_then(|value| str::from_utf8(value).ok()).or(default.as_deref());
                    into.push_str(
                        value.ok_or_else(|| format!("it has no header {name:?}, which `index` names"))?,
                    );
                }
                Piece::Time(part) => {
                    let civil = Civil::of(time);
                    let written = match part {
                        'Y' => write!(into, "{:04}", civil.year),
                        'm' => write!(into, "{:02}", civil.month),
                        'd' => write!(into, "{:02}", civil.day),
                        _ => write!(into, "{:02}", civil.hour),
                    };
                    written.map_err(|error| error.to_string())?;
                }
            }
        }
        Ok(())
    }
}

fn header(inside: &str, headers: &mut Vec<String>) -> Result<Piece, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default.to_owned())),
        None => (inside, None),
    };
    if name.is_empty() {
        return Err("`{}` names no header".to_owned());
    }
    let name = name.to_owned();
    let column = headers.iter().position(|header| *header == name).unwrap_or_else(|| {
        headers.push(name.clone());
        headers.len() - 1
    });
    Ok(Piece::Header { column, name, default })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_template_is_said() {
        let mut headers = vec!["host".to_owned()];
        for (wrong, part) in [("a{b", "without"), ("%q", "%q"), ("%", "`%`"), ("{}", "no header")] {
            assert!(Template::parse(wrong, &mut headers).err().unwrap().contains(part), "{wrong}");
        }
        assert!(!Template::parse("100%%-{host}-{env:-prod}", &mut headers).unwrap().has_time());
        assert_eq!(headers, ["host", "env"]);
    }
}
