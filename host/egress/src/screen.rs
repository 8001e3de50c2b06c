//! Secrets that come back over a connection are taken out of what is read, also where they come in pieces.
//!
//! What may be the beginning of a secret is held back until the next bytes tell. It is given out when they do not come
//! ([`crate::limits::HELD_MAX`]): the other side may be waiting for an answer to it.

use std::fmt;

use crate::secret::{MASKED_BYTES_MIN, mask};

/// Between a connection and its reader.
#[derive(Default)]
pub(crate) struct Screen {
    /// Secrets that were written to the connection.
    sent: Vec<String>,
    /// The longest end of what was read that a secret may begin with.
    held: Vec<u8>,
    /// Without secrets, and not yet given out.
    ready: Vec<u8>,
}

impl fmt::Debug for Screen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(screen)")
    }
}

impl Screen {
    pub(crate) fn sent(&mut self, secret: &str) {
        if !self.sent.iter().any(|sent| sent == secret) {
            self.sent.push(secret.to_owned());
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let sent: Vec<&str> = self.sent.iter().map(String::as_str).collect();
        let mut all = mask(all, &sent);
        self.held = all.split_off(all.len() - open_end(&all, &sent));
        self.ready.append(&mut all);
    }

    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// What is held was no secret: nothing more comes, or not soon.
    pub(crate) fn release(&mut self) {
        self.ready.append(&mut self.held);
    }

    /// At most so many bytes of what may be given out.
    pub(crate) fn take(&mut self, max: usize) -> Vec<u8> {
        let rest = self.ready.split_off(max.min(self.ready.len()));
        std::mem::replace(&mut self.ready, rest)
    }
}

/// The length of the longest end that is the beginning of a secret, and not the whole of it.
fn open_end(bytes: &[u8], secrets: &[&str]) -> usize {
    let masked = secrets.iter().map(|secret| secret.as_bytes()).filter(|s| s.len() >= MASKED_BYTES_MIN);
    let longest = |secret: &[u8]| {
        let most = bytes.len().min(secret.len() - 1);
        let is_open = |length: &usize| secret.get(..*length).is_some_and(|begin| bytes.ends_with(begin));
        (1..=most).rev().find(is_open).unwrap_or(0)
    };
    masked.map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a reader gets of a text that comes in pieces.
    fn screened(text: &[u8], piece_bytes: &[usize], secrets: &[&str]) -> Vec<u8> {
        let mut screen = Screen::default();
        secrets.iter().for_each(|secret| screen.sent(secret));
        let (mut rest, mut seen) = (text, Vec::new());
        for bytes in piece_bytes.iter().cycle() {
            let (piece, behind) = rest.split_at(rest.len().min(*bytes));
            screen.push(piece);
            seen.extend(screen.take(3));
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        screen.release();
        seen.extend(screen.take(usize::MAX));
        seen
    }

    #[test]
    fn a_secret_in_pieces_is_taken_out_and_nothing_else_is_lost() {
        for bytes in 1..20 {
            let seen = screened(b"you sent hunter22, hunter22! hunt", &[bytes], &["hunter22", "abc"]);
            assert_eq!(seen, b"you sent (secret), (secret)! hunt", "{bytes}");
        }
        let mut screen = Screen::default();
        screen.sent("hunter22");
        assert!(!format!("{screen:?}").contains("hunter22"));
    }

    #[test]
    fn only_what_may_be_a_secret_is_held() {
        let mut screen = Screen::default();
        ["hunter22", "abc"].iter().for_each(|secret| screen.sent(secret));
        screen.push(b"ab hun");
        assert_eq!((screen.take(99), screen.is_holding()), (b"ab ".to_vec(), true));
        screen.push(b"gry ab");
        assert_eq!((screen.take(99), screen.is_holding()), (b"hungry ab".to_vec(), false));
    }

    proptest! {
        /// With a secret that overlaps itself.
        #[test]
        fn pieces_change_nothing(
            text in proptest::collection::vec(prop_oneof![3 => Just(b'a'), 2 => Just(b'b')], 0..60),
            pieces in proptest::collection::vec(1..9_usize, 1..6),
        ) {
            let whole = mask(text.clone(), &["aabaab"]);
            prop_assert_eq!(screened(&text, &pieces, &["aabaab"]), whole);
        }
    }
}
