//! Codecs on the real binary: records instead of lines in, files of a codec's own out, each event once across SIGKILL, with
//! codecs swapped meanwhile and records that they cannot work with.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use flumen_tests::output::{self, LineCounter};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, poll};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

/// Lives of one agent that end with SIGKILL.
const KILLS: usize = 7;

fn dice() -> SmallRng {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    eprintln!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// The same plugin with other bytes, copied over it as `cp` does: custom sections say nothing.
fn swap(scene: &Scene, plugin: &str, turn: u8) {
    let mut bytes = fs::read(locate::plugin(plugin).unwrap()).unwrap();
    bytes.extend_from_slice(&[0, 3, 1, b't', turn]);
    fs::write(scene.plugin_dir().join(format!("{plugin}.wasm")), bytes).unwrap();
}

/// An input that grows in pieces that end anywhere.
struct Input {
    path: PathBuf,
    file: File,
    turn: u32,
    /// Written, and cut off the last piece.
    rest: Vec<u8>,
}

impl Input {
    fn new(scene: &Scene) -> Input {
        let path = scene.input().join("in.log");
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        Input { path, file, turn: 0, rest: Vec::new() }
    }

    fn write(&mut self, text: &[u8], dice: &mut SmallRng) {
        self.rest.extend_from_slice(text);
        while self.rest.len() > 10_000 {
            let piece = dice.random_range(1..10_000);
            self.file.write_all(&self.rest[..piece]).unwrap();
            self.rest.drain(..piece);
        }
    }

    /// Everything, and then another file by the same name.
    fn rotate(&mut self) {
        self.finish();
        self.turn += 1;
        fs::rename(&self.path, self.path.with_extension(format!("log.{}", self.turn))).unwrap();
        self.file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
    }

    fn finish(&mut self) {
        self.file.write_all(&self.rest).unwrap();
        self.rest.clear();
    }
}

/// Runs an agent until it has delivered something of what is written meanwhile, and kills it at a moment that nobody chose.
fn run_and_kill(scene: &Scene, input: &mut Input, text: &[u8], dice: &mut SmallRng) {
    let mut agent = scene.start_ready().unwrap();
    let before = output::bytes(&scene.output).unwrap();
    let (first, second) = text.split_at(text.len() / 2);
    input.write(first, dice);
    poll::until("something new in the output", limits::CONDITION, || {
        agent.expect_running()?;
        Ok(output::bytes(&scene.output)? != before)
    })
    .unwrap();
    input.write(second, dice);
    thread::sleep(Duration::from_millis(dice.random_range(0..300)));
    agent.kill().unwrap();
}

/// Events of a JSON output: body, stream, position.
fn events(dir: &Path) -> Vec<(String, String, u64)> {
    let event = |line: Vec<u8>| {
        let event: Value = serde_json::from_slice(&line)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line)));
        (
            event["body"].as_str().unwrap().to_owned(),
            event["stream"].as_str().unwrap().to_owned(),
            event["position"].as_u64().unwrap(),
        )
    };
    output::lines(dir).unwrap().into_iter().map(event).collect()
}

fn wait_lines(scene: &Scene, lines: u64) {
    let mut counter = LineCounter::default();
    poll::until_counted("lines", limits::CONDITION, lines, || counter.count(&scene.output))
        .unwrap_or_else(|error| panic!("{error}; {:?}", scene.status()));
}

fn seq(body: &str) -> u64 {
    let digits: String =
        body.split("seq=").nth(1).unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("foreign: {body:?}"))
}

/// Each number once; gives them back in their order.
fn once(bodies: impl Iterator<Item = String>, expected: u64) {
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    bodies.for_each(|body| *seen.entry(seq(&body)).or_default() += 1);
    let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
    let lost: Vec<_> = (0..expected).filter(|seq| !seen.contains_key(seq)).take(5).collect();
    assert!(
        doubled.is_empty() && lost.is_empty(),
        "{} of {expected}: doubled {doubled:?}, lost {lost:?}",
        seen.len()
    );
    assert_eq!(seen.len() as u64, expected);
}

#[test]
fn tail_with_a_decoder_across_kills_rotations_and_swaps() {
    let scene = Scene::new().unwrap();
    scene.install("hostile-codec", "hostile-codec").unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/in.log*\"]\ncodec = { plugin = \"hostile-codec\" }\n\n\
             [sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n",
        )
        .unwrap();
    let mut input = Input::new(&scene);
    let mut dice = dice();
    let (mut next, mut rejected, mut trapped) = (0, 0, 0);
    // Records of one to three events; some that the codec rejects, a few that it traps on.
    let mut text = |records: u32, dice: &mut SmallRng| {
        let mut text = String::new();
        for _ in 0..records {
            match dice.random_range(0..200) {
                0 => {
                    trapped += 1;
                    text.push_str(&format!("bad {trapped} TRAP\n"));
                }
                1..4 => {
                    rejected += 1;
                    text.push_str(&format!("REJECT {rejected}\n"));
                }
                _ => {
                    let count = dice.random_range(1..4_u64);
                    let parts: Vec<String> =
                        (next..next + count).map(|seq| format!("seq={seq} {}", "x".repeat(60))).collect();
                    text.push_str(&parts.join("\t"));
                    text.push('\n');
                    next += count;
                }
            }
        }
        text.into_bytes()
    };
    for turn in 0..KILLS {
        if turn % 3 == 2 {
            input.rotate();
        }
        swap(&scene, "hostile-codec", turn as u8);
        let text = text(2_000, &mut dice);
        run_and_kill(&scene, &mut input, &text, &mut dice);
    }
    let agent = scene.start_ready().unwrap();
    swap(&scene, "hostile-codec", 200);
    let text = text(500, &mut dice);
    input.write(&text, &mut dice);
    input.finish();
    wait_lines(&scene, next);
    poll::until("the quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() >= rejected + trapped))
        .unwrap();
    agent.stop().unwrap();
    let events = events(&scene.output);
    once(events.iter().map(|(body, ..)| body.clone()), next);
    let places: BTreeSet<_> = events.iter().map(|(_, stream, position)| (stream, position)).collect();
    assert_eq!(places.len(), events.len(), "each event has an identity of its own");
    let quarantined = scene.quarantine().unwrap();
    let bodies: BTreeSet<String> =
        quarantined.iter().map(|event| event["body"].as_str().unwrap().trim_end().to_owned()).collect();
    let expected: BTreeSet<String> = (1..=trapped)
        .map(|number| format!("bad {number} TRAP"))
        .chain((1..=rejected).map(|number| format!("REJECT {number}")))
        .collect();
    assert_eq!(bodies, expected);
    assert_eq!(quarantined.len(), expected.len(), "each once");
    let text = serde_json::to_string(&quarantined).unwrap();
    assert!(text.contains("trapped") && text.contains("`REJECT` was read"), "with their reasons");
}

/// Appends bytes to a file of the input.
fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn an_unfinished_record_waits_for_its_end_and_is_taken_when_the_file_is_gone() {
    let scene = Scene::new().unwrap();
    scene.install("json-lines", "json-lines").unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.json\"]\nlast_line_timeout = \"100ms\"\n\
             [source.in.codec]\nplugin = \"json-lines\"\nconfig = { body = \"message\", fields = [\"level\"] }\n\n\
             [sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n",
        )
        .unwrap();
    let path = scene.input().join("a.json");
    append(
        &path,
        b"{\"message\":\"seq=0\",\"level\":\"info\",\"time\":\"2026-01-01T00:00:00.5Z\"}\n{\"message\":\"se",
    );
    let agent = scene.start_ready().unwrap();
    wait_lines(&scene, 1);
    agent.kill().unwrap();
    append(&path, b"q=1\"}\n\n{\"no\":\"message\"}\n{\"message\":\"seq=2\"}");
    let agent = scene.start_ready().unwrap();
    wait_lines(&scene, 2);
    // Longer than the timeout: a decoder's rest is not taken while its file is there.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(LineCounter::default().count(&scene.output).unwrap(), 2);
    fs::rename(&path, scene.input().join("a.old")).unwrap();
    wait_lines(&scene, 3);
    agent.stop().unwrap();
    once(events(&scene.output).into_iter().map(|(body, ..)| body), 3);
    let first: Value = serde_json::from_slice(&output::lines(&scene.output).unwrap()[0]).unwrap();
    assert_eq!(
        (&first["headers"]["level"], &first["time"]),
        (&"info".into(), &"2026-01-01T00:00:00.500000000Z".into())
    );
    assert_eq!(first["headers"]["file"], path.display().to_string());
    let quarantined = scene.quarantine().unwrap();
    assert_eq!(quarantined.len(), 1);
    assert!(quarantined[0].to_string().contains("there is no key `message`"), "{}", quarantined[0]);
}

#[test]
fn files_by_an_encoder_across_kills_and_swaps() {
    let scene = Scene::new().unwrap();
    scene.install("hostile-codec", "hostile-codec").unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/in.log*\"]\n\n\
             [sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nflush_interval = \"50ms\"\nroll_size = \"100 KiB\"\n\
             [sink.out.codec]\nplugin = \"hostile-codec\"\nconfig = { begin = \"begin {seed}\\n\", end = \"end {seed}\\n\", tag = \"> \" }\n",
        )
        .unwrap();
    let mut input = Input::new(&scene);
    let mut dice = dice();
    let (mut next, mut rejected, mut trapped) = (0, 0, 0);
    let mut text = |lines: u32, dice: &mut SmallRng| {
        let mut text = String::new();
        for _ in 0..lines {
            match dice.random_range(0..400) {
                0 => {
                    trapped += 1;
                    text.push_str(&format!("bad {trapped} TRAP\n"));
                }
                1..3 => {
                    rejected += 1;
                    text.push_str(&format!("REJECT {rejected}\n"));
                }
                _ => {
                    text.push_str(&format!("seq={next} {}\n", "x".repeat(100)));
                    next += 1;
                }
            }
        }
        text.into_bytes()
    };
    for turn in 0..KILLS {
        let text = text(2_000, &mut dice);
        run_and_kill(&scene, &mut input, &text, &mut dice);
        swap(&scene, "hostile-codec", turn as u8);
    }
    let agent = scene.start_ready().unwrap();
    swap(&scene, "hostile-codec", 200);
    let text = text(2_000, &mut dice);
    input.write(&text, &mut dice);
    input.finish();
    // Beginnings and ends are lines too.
    let events = || -> anyhow::Result<u64> {
        let lines = output::lines(&scene.output)?;
        Ok(lines.iter().filter(|line| line.starts_with(b"> ")).count() as u64)
    };
    poll::until_counted("events", limits::CONDITION, next, || Ok(events().unwrap_or(0))).unwrap();
    poll::until("the quarantine", limits::CONDITION, || {
        Ok(scene.quarantine()?.len() as u64 >= rejected + trapped)
    })
    .unwrap();
    agent.stop().unwrap();

    let (mut bodies, mut seeds, mut files) = (Vec::new(), BTreeSet::new(), 0);
    for path in output::files(&scene.output).unwrap() {
        assert!(!path.to_string_lossy().ends_with(".open"), "a clean stop finishes {}", path.display());
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (first, last) =
            (lines[0].strip_prefix("begin ").unwrap(), lines[lines.len() - 1].strip_prefix("end "));
        assert_eq!(Some(first), last, "one number from its beginning to its end: {}", path.display());
        assert!(seeds.insert(first.to_owned()), "{first} is the number of two files");
        let inner = &lines[1..lines.len() - 1];
        bodies.extend(
            inner.iter().map(|line| line.strip_prefix("> ").unwrap_or_else(|| panic!("{line:?}")).to_owned()),
        );
        files += 1;
    }
    assert!(files > KILLS, "{files} files");
    once(bodies.into_iter(), next);
    let quarantined = scene.quarantine().unwrap();
    assert_eq!(quarantined.len() as u64, rejected + trapped);
    let bodies: BTreeSet<&str> = quarantined.iter().map(|event| event["body"].as_str().unwrap()).collect();
    assert_eq!(bodies.len() as u64, rejected + trapped, "each once");
}

#[test]
fn what_cannot_be_a_codec_is_said_with_its_place() {
    let scene = Scene::new().unwrap();
    scene.install("filter", "filter").unwrap();
    scene.install("json-lines", "json-lines").unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\ncodec = { plugin = \"filter\" }\n\n\
             [sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\ncodec = { plugin = \"json-lines\", config = { boddy = 1 } }\n",
        )
        .unwrap();
    let config = scene.config().display().to_string();
    let answer = scene.flumen(&["check", &config]).unwrap();
    let text = format!("{}{}", answer.stdout, answer.stderr);
    assert_eq!(answer.status.code(), Some(78), "{text}");
    for part in ["a decoder", "codec = { plugin = \"filter\"", "the plugin has no option `boddy`"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let mut lines = text.lines().skip_while(|line| !line.contains("boddy = 1"));
    let (line, below) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!(line.find("boddy"), below.find("^^^^^"), "{text}");
}
