//! Any bytes give a plan or errors with places inside of the file; nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use flumen_config::{MemoryEnv, load_case};
use proptest::prelude::*;

const GOOD: &str = r#"
name = "web"
[source.access]
type = "tail"
paths = ["/var/${env:HOST}/*.log", '${file:secrets/password}']
max_line = "64 KiB"
headers = { team = "web" }
[[interceptor]]
plugin = "filter"
config = { keep = { contains = "é" }, n = [1, 2.5, true], at = 2026-01-01 }
grant = ["log"]
limits = { time = "1s", memory = "16 MiB" }
[channel.main]
kind = "file"
capacity = { events = 1_000_000, bytes = "1 GiB" }
[sink.archive]
type = "file"
channel = "main"
path = """/srv/{header.host}.log"""
roll_interval = "1h30m"
[[sink.archive.interceptor]]
plugin = "redact"
[sink.other]
type = "null"
[batch]
linger = "5ms"
[journal]
durability = "os"
"#;

const CASE: &str = r#"
config = { keep = { contains = "503" } }
[[input]]
body = "text"
time = "2026-01-01T00:00:00Z"
headers = { a = "b" }
[[input]]
body_base64 = "//4AgA=="
time = 2026-01-01T00:00:00Z
[[output]]
body = "text"
[[rejected]]
row = 1
reason = "why"
"#;

/// Pieces that mean something, put anywhere.
const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    "\"",
    "'",
    "\"\"\"",
    ",",
    ".",
    "\n",
    "\r\n",
    "#",
    "${env:",
    "${file:",
    "}",
    "$${",
    ":-",
    "-1",
    "9223372036854775808",
    "1e400",
    "nan",
    "\\u0000",
    "\\",
    "é",
    "\u{feff}",
    "\u{1b}",
    "type",
    "source",
    "sink",
    "channel",
    "interceptor",
    "[agent]",
    "\n[source]\n",
    "true",
    "0x",
    "1979-05-27",
    "_",
    " ",
];

/// What a test wants to know: no panic, and either a plan or errors that lie in their file.
fn check(bytes: &[u8]) {
    if let Err(diagnostics) = common::load_bytes(bytes) {
        assert!(!diagnostics.is_empty());
        // The places are of the text as it is shown: of wrong UTF-8, with replacement characters.
        let text = String::from_utf8_lossy(bytes);
        for diagnostic in diagnostics {
            if let Some(place) = &diagnostic.place {
                assert!(place.start <= place.end && place.end <= text.len(), "{diagnostic:?}");
                assert!(text.is_char_boundary(place.start) && text.is_char_boundary(place.end));
                assert!(place.line <= text.matches('\n').count() + 1);
                assert!(place.width >= 1 && place.caret <= place.text.chars().count());
            }
            assert!(!diagnostic.to_string().contains("hunter22") || text.contains("hunter22"));
        }
    }
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, &'static str),
    Remove(usize, usize),
    Replace(usize, u8),
    Copy(usize, usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0usize..1_000;
    let edit = prop_oneof![
        (at.clone(), 0..PIECES.len()).prop_map(|(at, piece)| Edit::Insert(at, PIECES[piece])),
        (at.clone(), 1usize..40).prop_map(|(at, length)| Edit::Remove(at, length)),
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (at.clone(), 1usize..100, at).prop_map(|(from, length, to)| Edit::Copy(from, length, to)),
    ];
    prop::collection::vec(edit, 1..6)
}

fn edited(text: &str, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for edit in edits {
        let length = bytes.len();
        match *edit {
            Edit::Insert(at, piece) => {
                drop(bytes.splice(at % (length + 1)..at % (length + 1), piece.bytes()))
            }
            Edit::Remove(at, count) => {
                drop(bytes.drain(at % (length + 1)..length.min(at % (length + 1) + count)));
            }
            Edit::Replace(at, byte) if length > 0 => bytes[at % length] = byte,
            Edit::Copy(from, count, to) => {
                let from = from % (length + 1);
                let piece = bytes[from..length.min(from + count)].to_vec();
                drop(bytes.splice(to % (length + 1)..to % (length + 1), piece));
            }
            Edit::Replace(..) => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn random_text(text in "\\PC{0,200}") {
        check(text.as_bytes());
    }

    #[test]
    fn random_pieces(pieces in prop::collection::vec(0..PIECES.len(), 0..60)) {
        check(pieces.into_iter().map(|piece| PIECES[piece]).collect::<String>().as_bytes());
    }

    #[test]
    fn edited_pipelines(edits in edits()) {
        check(&edited(GOOD, &edits));
    }

    #[test]
    fn edited_cases(edits in edits()) {
        let bytes = edited(CASE, &edits);
        let mut env = MemoryEnv::default();
        env.files.insert("case.toml".into(), bytes.clone());
        if let Err(diagnostics) = load_case("case.toml".as_ref(), &env) {
            prop_assert!(!diagnostics.is_empty());
            let length = String::from_utf8_lossy(&bytes).len();
            for diagnostic in diagnostics {
                prop_assert!(diagnostic.place.is_none_or(|place| place.start <= place.end && place.end <= length));
            }
        }
    }
}

#[test]
fn the_originals_are_right() {
    assert!(common::load(GOOD).is_ok());
}

/// Processor time of this thread, in hundredths of a second: what a clock shows is that of the other tests, too.
fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The name may have spaces in it. Behind it comes the third field; utime and stime are the 14th and the 15th.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_file_that_is_all_errors_takes_no_time() {
    let before = processor_ticks();
    for line in ["[a]\n", "a=1\n", "= = =\n", "= ", "[[a]\n"] {
        check(line.repeat(50_000).as_bytes());
    }
    let keys: String = (0..50_000).map(|key| format!("k{key} = 1\n")).collect();
    check(keys.as_bytes());
    let ticks = processor_ticks() - before;
    assert!(ticks < 60 * 100, "{ticks} hundredths of a second");
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for (open, count) in [("[", 100_000), ("{a=", 100_000), ("[{a=", 50_000)] {
        check(format!("x = {}", open.repeat(count)).as_bytes());
    }
    check(format!("x{} = 1", ".a".repeat(20_000)).as_bytes());
    check(format!("[x{}]", ".a".repeat(20_000)).as_bytes());
}
