//! Files by a codec whose version changes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arrow_array::BinaryArray;
use flumen_event::Batch;
use flumen_pipeline::codec::{CodecError, Encoded};
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::sink::{Cursors, Sink, SinkContext};
use flumen_pipeline::{Encoder, EncoderLink, EncoderSlot, Options, Quarantined, Value};

use super::super::FileSink;
use super::super::disk::SystemDisk;
use super::super::options::Settings;
use super::super::testing::{Committed, context_with, delivery};

/// A place whose version is a number.
#[derive(Clone, Default)]
struct Place(Arc<AtomicU8>);

struct Version(Arc<str>);

impl EncoderSlot for Place {
    fn name(&self) -> &str {
        "codec"
    }

    fn current(&self) -> Arc<dyn Encoder> {
        Arc::new(Version(format!("v{}", self.0.load(Ordering::Relaxed)).into()))
    }
}

impl Encoder for Version {
    fn hash(&self) -> &Arc<str> {
        &self.0
    }

    /// Bodies that begin with `!` are rejected.
    fn encode(&self, batch: &Batch, file: Option<u64>) -> Encoded {
        assert!(file.is_some());
        let is_good = |row: &u32| !batch.body().value(*row as usize).starts_with(b"!");
        let (good, bad): (Vec<u32>, Vec<u32>) = (0..batch.rows() as u32).partition(is_good);
        let rows = batch.take(&good.into()).unwrap();
        let rejected = batch.take(&bad.into()).unwrap();
        let text = |body: &[u8]| format!("{} {}\n", self.0, String::from_utf8_lossy(body)).into_bytes();
        let payloads: BinaryArray = rows.body().iter().map(|body| body.map(text)).collect();
        let group = Quarantined {
            reasons: vec!["!".into(); rejected.rows()],
            batch: rejected,
            by: "codec".into(),
            hash: self.0.clone(),
            rejected: true,
        };
        Encoded { rows, payloads, quarantined: vec![group] }
    }

    fn begin(&self, seed: u64) -> Result<Vec<u8>, CodecError> {
        Ok(format!("<{} {seed}\n", self.0).into_bytes())
    }

    fn end(&self, seed: u64) -> Result<Vec<u8>, CodecError> {
        Ok(format!("{} {seed}>\n", self.0).into_bytes())
    }
}

struct Scene {
    root: tempfile::TempDir,
    place: Place,
    committed: Committed,
    context: SinkContext,
    sink: FileSink,
    next: u64,
}

fn sink(root: &Path, place: &Place) -> FileSink {
    let path = Value::Text(root.join("a.log").display().to_string());
    let options = Options([("path".to_owned(), path)].into());
    let codec = EncoderLink::new(Arc::new(place.clone()), OnReject::Quarantine);
    FileSink::new(
        Settings::with_codec(&options, codec).unwrap(),
        Box::<SystemDisk>::default(),
        Box::new(|| 0),
    )
}

impl Scene {
    fn new() -> Scene {
        let (root, place, committed) = (tempfile::tempdir().unwrap(), Place::default(), Committed::default());
        let (sink, context) = (sink(root.path(), &place), context_with(committed.clone()));
        let mut scene = Scene { root, place, committed, context, sink, next: 0 };
        scene.recover();
        scene
    }

    fn recover(&mut self) {
        let position = self.committed.0.lock().clone();
        self.sink.recover(&mut self.context, position.as_deref(), &mut Cursors::none()).unwrap();
    }

    /// Another process, with what was committed last.
    fn restart(&mut self) {
        self.sink = sink(self.root.path(), &self.place);
        self.recover();
    }

    fn deliver(&mut self, bodies: &[&str]) {
        let delivery = delivery(self.next, bodies);
        self.next = delivery.next;
        self.sink.deliver(&mut self.context, &delivery).unwrap();
    }

    fn flush(&mut self) {
        let position = self.sink.flush(&mut self.context, b"").unwrap();
        *self.committed.0.lock() = Some(position.clone());
        self.sink.committed(&mut self.context, &position).unwrap();
    }

    /// The files by number, with `#` for their seeds, which are the same in each file.
    fn files(&self) -> Vec<String> {
        let mut paths: Vec<_> =
            std::fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let text = |path| {
            let text = std::fs::read_to_string(path).unwrap();
            let seed =
                text.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or("none").to_owned();
            text.replace(&seed, "#")
        };
        paths.into_iter().map(text).collect()
    }
}

#[test]
fn a_swap_ends_a_file_at_the_next_flush_and_no_file_is_by_two_versions() {
    let mut scene = Scene::new();
    scene.deliver(&["a"]);
    scene.flush();
    scene.place.0.store(1, Ordering::Relaxed);
    assert!(scene.sink.due(), "a swap does not wait for events");
    scene.deliver(&["b"]);
    scene.flush();
    scene.deliver(&["c"]);
    scene.flush();
    assert_eq!(scene.files(), ["<v0 #\nv0 a\nv0 b\nv0 #>\n", "<v1 #\nv1 c\n"]);
    scene.sink.close(&mut scene.context).unwrap();
    assert_eq!(scene.files(), ["<v0 #\nv0 a\nv0 b\nv0 #>\n", "<v1 #\nv1 c\nv1 #>\n"]);
}

#[test]
fn a_file_goes_on_after_a_crash_and_begins_once() {
    let mut scene = Scene::new();
    scene.deliver(&["a"]);
    scene.flush();
    scene.deliver(&["lost, and delivered again"]);
    scene.restart();
    scene.deliver(&["b"]);
    scene.flush();
    assert_eq!(scene.files(), ["<v0 #\nv0 a\nv0 b\n"]);
    // With another version there is an end, and another file.
    scene.place.0.store(1, Ordering::Relaxed);
    scene.restart();
    scene.restart();
    scene.deliver(&["c"]);
    scene.flush();
    assert_eq!(scene.files(), ["<v0 #\nv0 a\nv0 b\nv1 #>\n", "<v1 #\nv1 c\n"]);
}

#[test]
fn without_a_payload_there_is_no_file() {
    let mut scene = Scene::new();
    scene.deliver(&["!", "!"]);
    scene.flush();
    scene.sink.close(&mut scene.context).unwrap();
    assert!(scene.files().is_empty(), "{:?}", scene.files());
    let quarantined: usize = scene.context.take_quarantined().iter().map(|group| group.batch.rows()).sum();
    assert_eq!(quarantined, 2);
    scene.restart();
    scene.deliver(&["!", "a"]);
    scene.flush();
    assert_eq!(scene.files(), ["<v0 #\nv0 a\n"]);
}
