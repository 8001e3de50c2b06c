//! E-mail addresses: `name@host.tld`, also with the `@` as `%40`, as it stands in the URLs of access logs.

use crate::rows::{RowCursor, Span};
use flumen_sdk::prelude::*;
use memchr::memchr_iter;
use memchr::memmem::Finder;

pub struct Emails {
    encoded_at: Finder<'static>,
}

impl Default for Emails {
    fn default() -> Self {
        Self { encoded_at: Finder::new(b"%40") }
    }
}

impl Emails {
    pub fn find(&self, column: Column<'_>, spans: &mut Vec<Span>) {
        let mut rows = RowCursor::new(column);
        spans.extend(memchr_iter(b'@', column.data()).filter_map(|at| address(&mut rows, at, 1)));
        let mut rows = RowCursor::new(column);
        spans.extend(self.encoded_at.find_iter(column.data()).filter_map(|at| address(&mut rows, at, 3)));
    }
}

fn address(rows: &mut RowCursor<'_>, at: usize, at_len: usize) -> Option<Span> {
    let (before, from) = rows.around(at);
    let name_len = before.iter().rev().take_while(|byte| is_name(**byte)).count();
    let host = host(from.get(at_len..)?)?;
    (name_len > 0).then_some(Span { start: at - name_len, end: at + at_len + host })
}

/// Bytes beyond ASCII belong to international names and hosts.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-') || byte >= 128
}

/// The length of the host at the start of `text`: labels with dots between, the last of two letters or more.
fn host(text: &[u8]) -> Option<usize> {
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-') || *byte >= 128;
    let len = text.iter().take_while(|byte| is_host(byte)).count();
    let mut host = text.get(..len)?;
    while let [rest @ .., b'.' | b'-'] = host {
        host = rest;
    }
    let dot = host.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    let top = host.get(dot + 1..)?;
    let is_top =
        top.len() >= 2 && top.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'-' || *byte >= 128);
    is_top.then_some(host.len())
}
