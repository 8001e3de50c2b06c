//! Guests made by hand, down to the byte: a well-behaved one of release 0.1.0 whose parts a test replaces.
//!
//! Memory of the guest: what `open` answers at [`OPEN_AT`], what `process` answers at [`ANSWER_AT`], data of the answer
//! at [`DATA_AT`], and from [`HEAP_AT`] on what the host passes in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, dead_code, reason = "tests")]

pub mod mutate;
pub mod set;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub const OPEN_AT: u32 = 1_024;
pub const ANSWER_AT: u32 = 2_048;
pub const DATA_AT: u32 = 4_096;
/// What `describe` answers, if there is one.
pub const DESCRIPTION_AT: u32 = 49_152;
pub const HEAP_AT: u32 = 65_536;

/// A guest as text.
#[derive(Clone)]
pub struct Forge {
    pub world: &'static str,
    pub imports: String,
    pub memory: &'static str,
    pub realloc: String,
    pub open: String,
    pub process: String,
    pub post: String,
    pub extra: String,
    pub open_data: Vec<u8>,
    pub answer: Answer,
}

/// What `process` answers: the canonical form of `result<difference, string>`, and data behind it.
#[derive(Clone)]
pub struct Answer {
    pub words: [u32; 18],
    pub data: Vec<u8>,
}

/// A header of an answer: name, offsets, data, presence.
pub type Header<'a> = (&'a [u8], &'a [u32], &'a [u8], Option<&'a [u8]>);

/// Places of [`Answer::words`].
pub mod word {
    pub const RESULT: usize = 0;
    pub const ROWS_FROM: usize = 1;
    pub const BODY: usize = 4;
    pub const TIME: usize = 9;
    pub const SET_HEADERS: usize = 12;
    pub const REMOVE_HEADERS: usize = 14;
    pub const REJECTED: usize = 16;
}

impl Answer {
    /// Nothing changes.
    pub fn unchanged() -> Answer {
        Answer { words: [0; 18], data: Vec::new() }
    }

    /// Puts bytes behind the answer and gives their place.
    pub fn store(&mut self, bytes: &[u8]) -> u32 {
        while !self.data.len().is_multiple_of(8) {
            self.data.push(0);
        }
        let at = DATA_AT + self.data.len() as u32;
        self.data.extend_from_slice(bytes);
        at
    }

    pub fn list(mut self, word: usize, bytes: &[u8], len: u32) -> Answer {
        let at = self.store(bytes);
        (self.words[word], self.words[word + 1]) = (at, len);
        self
    }

    /// A list that is present.
    pub fn some(mut self, word: usize, bytes: &[u8]) -> Answer {
        self.words[word] = 1;
        self.list(word + 1, bytes, bytes.len() as u32)
    }

    pub fn body(self, offsets: &[u32], data: &[u8]) -> Answer {
        let offsets = numbers(offsets);
        self.some(word::BODY, &offsets).list(word::BODY + 3, data, data.len() as u32)
    }

    pub fn headers(mut self, headers: &[Header<'_>]) -> Answer {
        let mut list = Vec::new();
        for (name, offsets, data, present) in headers {
            let offsets = numbers(offsets);
            for part in [*name, &offsets, *data] {
                let at = self.store(part);
                list.extend(numbers(&[at, part.len() as u32]));
            }
            let at = self.store(present.unwrap_or_default());
            list.extend(numbers(&[
                u32::from(present.is_some()),
                at,
                present.unwrap_or_default().len() as u32,
            ]));
        }
        self.list(word::SET_HEADERS, &list, headers.len() as u32)
    }

    pub fn rejected(mut self, rows: &[(u32, &[u8])]) -> Answer {
        let mut list = Vec::new();
        for (row, reason) in rows {
            let at = self.store(reason);
            list.extend(numbers(&[*row, at, reason.len() as u32]));
        }
        self.list(word::REJECTED, &list, rows.len() as u32)
    }
}

pub fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

impl Forge {
    /// Reads the body and changes nothing.
    pub fn good() -> Forge {
        let realloc = "(local $at i32)
            (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
            (global.set $free (i32.add (local.get $at) (local.get $size)))
            (block $fits (loop $more
              (br_if $fits (i32.le_u (global.get $free) (i32.shl (memory.size) (i32.const 16))))
              (br_if $fits (i32.eq (memory.grow (i32.const 16)) (i32.const -1)))
              (br $more)))
            (local.get $at)";
        Forge {
            world: "pure",
            imports: String::new(),
            memory: "2",
            realloc: realloc.into(),
            open: format!("(i32.const {OPEN_AT})"),
            process: format!("(i32.const {ANSWER_AT})"),
            post: format!("(global.set $free (i32.const {HEAP_AT}))"),
            extra: String::new(),
            // ok, the body, and an empty list of headers.
            open_data: numbers(&[0, 1, 0, 0]),
            answer: Answer::unchanged(),
        }
    }

    pub fn answering(answer: Answer) -> Forge {
        Forge { answer, ..Forge::good() }
    }

    pub fn text(&self) -> String {
        let Forge { imports, memory, realloc, open, process, post, extra, open_data, answer, .. } = self;
        let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
        let guest = "flumen:plugin/guest@0.1.0";
        let batch = "(param i32) ".repeat(16);
        format!(
            "(module {imports}
              (memory (export \"memory\") {memory})
              (global $free (mut i32) (i32.const {HEAP_AT}))
              (func $realloc (export \"cabi_realloc\")
                (param $old i32) (param $had i32) (param $align i32) (param $size i32) (result i32) {realloc})
              (func $open (export \"{guest}#open\") (param i32 i32) (result i32) {open})
              (func $process (export \"{guest}#process\") {batch} (result i32) {process})
              (func (export \"cabi_post_{guest}#process\") (param i32) {post})
              {extra}
              (data (i32.const {OPEN_AT}) \"{}\")
              (data (i32.const {ANSWER_AT}) \"{}\")
              (data (i32.const {DATA_AT}) \"{}\"))",
            escaped(open_data),
            escaped(&numbers(&answer.words)),
            escaped(&answer.data),
        )
    }

    /// A core module, as wit-bindgen makes it.
    pub fn module(&self) -> Vec<u8> {
        self.embedded(&self.text(), include_str!("../../../../wit/0.1.0/flumen.wit"))
    }

    /// The same for release 0.2.0, telling about itself: no version, no summary, and this schema of its options.
    pub fn described(&self, schema: &str) -> Vec<u8> {
        let words = numbers(&[0, 0, 0, 0, DESCRIPTION_AT + 24, schema.len() as u32]);
        let answer: String =
            words.iter().chain(schema.as_bytes()).map(|byte| format!("\\{byte:02x}")).collect();
        let about = format!(
            "(func (export \"flumen:plugin/about@0.2.0#describe\") (result i32) (i32.const {DESCRIPTION_AT}))
             (data (i32.const {DESCRIPTION_AT}) \"{answer}\")"
        );
        let text = Forge { extra: self.extra.clone() + &about, ..self.clone() }.text();
        let wit = include_str!("../../../../wit/0.2.0/flumen.wit");
        self.embedded(&text.replace("@0.1.0", "@0.2.0"), wit)
    }

    fn embedded(&self, text: &str, wit: &str) -> Vec<u8> {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("flumen.wit", wit).unwrap();
        let world = resolve.select_world(&[package], Some(self.world)).unwrap();
        let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
        module
    }

    pub fn component(&self) -> Vec<u8> {
        ComponentEncoder::default().module(&self.module()).unwrap().validate(true).encode().unwrap()
    }
}

/// An unsigned LEB128 number.
pub fn leb(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

/// A number that is not negative as signed LEB128.
pub fn sleb(number: u64) -> Vec<u8> {
    let mut out = leb(number);
    if let Some(last) = out.last_mut()
        && *last & 0x40 != 0
    {
        *last |= 0x80;
        out.push(0);
    }
    out
}

pub const CORE: &[u8] = b"\0asm\x01\0\0\0";
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A section with its size.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], leb(content.len() as u64).as_slice(), content].concat()
}
