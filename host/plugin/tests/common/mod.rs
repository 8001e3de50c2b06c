//! Guests, hosts and batches for the tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    reason = "tests"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::Array;
use flumen_event::{Batch, BatchBuilder};
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnReject, PluginLimits};
use flumen_pipeline::{InterceptorVersion, Processed};
use flumen_plugin::{HostConfig, LoadError, PluginHost, PluginVersion};
use tempfile::TempDir;

pub const STREAM: u64 = 7;

/// Where `cargo xtask plugins` puts the guests.
pub fn plugins() -> PathBuf {
    let default =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/target/wasm32-unknown-unknown/release");
    std::env::var_os("FLUMEN_TEST_PLUGINS").map_or(default, PathBuf::from)
}

pub fn guest(name: &str) -> PathBuf {
    let path = plugins().join(format!("{name}.wasm"));
    assert!(path.exists(), "there is no {}: run cargo xtask plugins", path.display());
    path
}

pub struct Sandbox {
    pub dir: TempDir,
    pub host: Arc<PluginHost>,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        let dir = tempfile::tempdir().unwrap();
        let host = PluginHost::new(HostConfig::new(dir.path().join("cache"))).unwrap();
        Sandbox { dir, host }
    }

    pub fn open(
        &self,
        name: &str,
        config: &str,
        limits: PluginLimits,
    ) -> Result<Arc<PluginVersion>, LoadError> {
        self.host.open(&guest(name), name, config, &[], limits)
    }

    pub fn hostile(&self, config: &str, limits: PluginLimits) -> Arc<PluginVersion> {
        self.open("hostile", config, limits).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// For what is not about time: a machine that is busy with something else delays a guest, too.
pub fn patient() -> PluginLimits {
    PluginLimits { time: Duration::from_secs(60), ..PluginLimits::default() }
}

pub fn quick() -> PluginLimits {
    PluginLimits { time: Duration::from_millis(200), ..PluginLimits::default() }
}

pub fn plan(name: &str, config: &str) -> InterceptorPlan {
    InterceptorPlan {
        name: name.to_owned(),
        plugin: name.to_owned(),
        config: config.to_owned(),
        grants: Vec::new(),
        on_reject: OnReject::Quarantine,
        errors: ErrorPlan::default(),
        limits: patient(),
        egress: None,
    }
}

/// Rows with these bodies, positions from 0.
pub fn batch<B: AsRef<[u8]>>(bodies: &[B]) -> Batch {
    let mut builder = BatchBuilder::default();
    for (position, body) in (0..).zip(bodies) {
        builder.push(STREAM, position, 1_000 + position as i64, body.as_ref());
    }
    builder.finish(Vec::new()).unwrap()
}

/// `rows` harmless rows, but those at `bad` hold `text`.
pub fn batch_with(rows: usize, bad: &[usize], text: &str) -> Batch {
    let bodies: Vec<String> = (0..rows)
        .map(|row| if bad.contains(&row) { format!("row {row} {text}") } else { format!("row {row}") })
        .collect();
    batch(&bodies)
}

pub fn positions(batch: &Batch) -> Vec<u64> {
    batch.position().values().to_vec()
}

/// Position and reason of every quarantined row.
pub fn quarantined(processed: &Processed) -> Vec<(u64, String)> {
    let of = |quarantined: &flumen_pipeline::Quarantined| {
        assert_eq!(quarantined.batch.rows(), quarantined.reasons.len());
        positions(&quarantined.batch).into_iter().zip(quarantined.reasons.clone()).collect::<Vec<_>>()
    };
    processed.quarantined.iter().flat_map(of).collect()
}

/// Gives the batch to the plugin and checks that exactly the rows at `bad` are quarantined, each with `reason`, and all
/// others come out once, in order, as they were.
#[track_caller]
pub fn check_isolated(version: &PluginVersion, batch: &Batch, bad: &[usize], reason: &str) {
    let processed = version.process(batch.clone());
    let found = quarantined(&processed);
    let rows: Vec<u64> = found.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, bad.iter().map(|row| *row as u64).collect::<Vec<_>>(), "{found:?}");
    found.iter().for_each(|(_, text)| assert!(text.contains(reason), "{text:?} has no {reason:?}"));
    for quarantined in &processed.quarantined {
        assert_eq!(&*quarantined.by, version.name());
        assert_eq!(&*quarantined.hash, version.hash());
        assert!(!quarantined.rejected);
        for row in 0..quarantined.batch.rows() {
            let position = quarantined.batch.position().value(row) as usize;
            assert_eq!(quarantined.batch.body().value(row), batch.body().value(position));
        }
    }
    let good: Vec<u64> = (0..batch.rows()).filter(|row| !bad.contains(row)).map(|row| row as u64).collect();
    assert_eq!(positions(&processed.kept), good);
    for row in 0..processed.kept.rows() {
        let position = processed.kept.position().value(row) as usize;
        assert_eq!(processed.kept.body().value(row), batch.body().value(position));
    }
    assert_eq!(processed.dropped, 0);
}

pub fn header(batch: &Batch, name: &str) -> Vec<Option<String>> {
    let Some(values) = batch.header(name) else { return vec![None; batch.rows()] };
    (0..values.len()).map(|row| values.is_valid(row).then(|| values.value(row).to_owned())).collect()
}
