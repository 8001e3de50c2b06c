//! Changes WebAssembly files so that they are nearly right: sections are taken apart and put together again, with their
//! sizes, also those of the modules inside of a component.

use super::{leb, section};

/// Numbers that only depend on a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let a = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        b ^ (b >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Sections: id and content.
type Sections = Vec<(u8, Vec<u8>)>;

/// Numbers at which programs err.
pub const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    63,
    64,
    127,
    128,
    255,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
];

/// A file that differs in one to four places.
pub fn mutate(file: &[u8], others: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut file = file.to_vec();
    let places = if dice.below(2) == 0 { 1 } else { 1 + dice.below(4) };
    for _ in 0..places {
        file = once(&file, others, dice);
    }
    if dice.below(20) == 0 {
        file.truncate(dice.below(file.len() + 1));
    }
    file
}

fn once(file: &[u8], others: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let Some((header, mut sections)) = take_apart(file) else { return bytes(file, dice) };
    if sections.is_empty() {
        return bytes(file, dice);
    }
    let at = dice.below(sections.len());
    match dice.below(24) {
        0 => _ = sections.remove(at),
        1 => {
            let copy = sections[at].clone();
            sections.insert(dice.below(sections.len() + 1), copy);
        }
        2 => {
            let other = dice.below(sections.len());
            sections.swap(at, other);
        }
        3 => {
            let other = dice.of(others).clone();
            if let Some((_, foreign)) = take_apart(&other)
                && !foreign.is_empty()
            {
                let part = dice.of(&foreign).clone();
                sections.insert(at, part);
            }
        }
        4 => sections[at].0 = dice.below(14) as u8,
        _ => {
            // Core modules (1) and components (4) in a component; the magic says which are.
            let (_, content) = &sections[at];
            sections[at].1 = match content.starts_with(b"\0asm") && dice.below(8) > 0 {
                true => once(content, others, dice),
                false => bytes(content, dice),
            };
        }
    }
    let mut out = header;
    sections.iter().for_each(|(id, content)| out.extend(section(*id, content)));
    out
}

/// Changes bytes, or a number as it is encoded in the format.
fn bytes(content: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = content.to_vec();
    if out.is_empty() {
        return vec![dice.next() as u8];
    }
    let at = dice.below(out.len());
    match dice.below(7) {
        0 => out[at] ^= 1 << dice.below(8),
        1 => out[at] = *dice.of(&EDGES) as u8,
        2 => out[at] = dice.next() as u8,
        3 => _ = out.drain(at..(at + 1 + dice.below(8)).min(content.len())),
        4 => {
            let from = dice.below(out.len());
            let piece = out[from..(from + 1 + dice.below(16)).min(content.len())].to_vec();
            out.splice(at..at, piece);
        }
        _ => {
            // The number that begins here, if it is one.
            let end =
                out[at..].iter().position(|byte| byte & 0x80 == 0).map_or(out.len(), |len| at + len + 1);
            let old =
                out[at..end].iter().rev().fold(0_u64, |number, byte| number << 7 | u64::from(byte & 0x7f));
            let new = match dice.below(3) {
                0 => old.wrapping_add(1),
                1 => old.wrapping_sub(1),
                _ => *dice.of(&EDGES),
            };
            out.splice(at..end, leb(new));
        }
    }
    out
}

/// The 8 bytes of the header, and the sections. `None`: they do not fit.
fn take_apart(file: &[u8]) -> Option<(Vec<u8>, Sections)> {
    let (header, mut rest) = file.split_at_checked(8)?;
    let mut sections = Vec::new();
    while let Some((&id, after)) = rest.split_first() {
        let len = after.iter().take(5).position(|byte| byte & 0x80 == 0)? + 1;
        let (size, after) = after.split_at_checked(len)?;
        let size = size.iter().rev().fold(0_u64, |number, byte| number << 7 | u64::from(byte & 0x7f));
        let (content, after) = after.split_at_checked(usize::try_from(size).ok()?)?;
        sections.push((id, content.to_vec()));
        rest = after;
    }
    Some((header.to_vec(), sections))
}
