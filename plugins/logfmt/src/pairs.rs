//! A line as pairs: words that are separated by blanks, `key`, `key=`, `key=value` or `key="value"`.

use std::borrow::Cow;

pub struct Pair<'a> {
    pub key: &'a str,
    /// `None`: a key alone.
    pub value: Option<Cow<'a, str>>,
}

pub struct Pairs<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Pairs<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// What follows, up to the first byte that `is_end` is true for.
    fn take(&mut self, is_end: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        // Ends are ASCII, so a cut before one is a cut between characters.
        let end = rest.bytes().position(is_end).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn next_byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Behind an opening quote; the value up to the closing one. An error is where the quote was opened.
    fn quoted(&mut self) -> Result<Cow<'a, str>, usize> {
        let opened = self.at;
        self.at += 1;
        let plain = self.take(|byte| byte == b'"' || byte == b'\\');
        match self.next_byte() {
            Some(b'"') => {
                self.at += 1;
                return Ok(Cow::Borrowed(plain));
            }
            None => return Err(opened),
            Some(_) => {}
        }
        let mut out = plain.to_owned();
        loop {
            match self.next_byte() {
                None => return Err(opened),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(out));
                }
                Some(_) => self.escape(&mut out),
            }
            out.push_str(self.take(|byte| byte == b'"' || byte == b'\\'));
        }
    }

    /// At a backslash. What is no known escape stays as it is.
    fn escape(&mut self, out: &mut String) {
        self.at += 1;
        let Some(character) = self.text.get(self.at..).and_then(|rest| rest.chars().next()) else { return };
        self.at += character.len_utf8();
        match character {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '"' | '\\' => out.push(character),
            'u' => {
                let digits = self.text.get(self.at..self.at + 4);
                let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                match code.and_then(char::from_u32) {
                    Some(code) => {
                        out.push(code);
                        self.at += 4;
                    }
                    None => out.push_str("\\u"),
                }
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
}

fn is_blank(byte: u8) -> bool {
    byte <= b' '
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<Pair<'a>, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.take(|byte| !is_blank(byte));
            self.next_byte()?;
            let key = self.take(|byte| is_blank(byte) || byte == b'=' || byte == b'"');
            if self.next_byte() != Some(b'=') {
                if key.is_empty() {
                    // A quote where a key should be: text of no pair.
                    self.at += 1;
                    continue;
                }
                return Some(Ok(Pair { key, value: None }));
            }
            self.at += 1;
            let value = match self.next_byte() {
                Some(b'"') => match self.quoted() {
                    Ok(value) => value,
                    Err(opened) => {
                        self.at = self.text.len();
                        return Some(Err(opened));
                    }
                },
                _ => Cow::Borrowed(self.take(is_blank)),
            };
            if !key.is_empty() {
                return Some(Ok(Pair { key, value: Some(value) }));
            }
        }
    }
}
