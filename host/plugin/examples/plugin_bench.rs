//! What a plugin costs per event, crossings and deadlines included: `cargo run --release -p flumen-plugin --example
//! plugin_bench [DIR]`, where DIR holds the guests that `cargo xtask plugins` builds.

use std::path::PathBuf;
use std::time::Instant;

use flumen_event::{Batch, BatchBuilder};
use flumen_pipeline::InterceptorVersion;
use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::{HostConfig, PluginHost};
use memchr::memmem;

const LINE_BYTES: usize = 173;
const ROUNDS: usize = 300;
/// Rows per batch: a small one, and about what the pipeline makes.
const SIZES: [usize; 2] = [1_000, 8_000];

/// Lines of 173 bytes, one in twenty with status 503.
fn lines(rows: usize) -> Result<Batch, Box<dyn std::error::Error>> {
    let mut builder = BatchBuilder::with_capacity(rows, rows * LINE_BYTES);
    for row in 0..rows {
        let status = if row % 20 == 0 { 503 } else { 200 };
        let mut line = format!(
            "192.0.2.{} - - [21/Nov/2026:10:{:02}:{:02} +0000] \"GET /shop/item/{row}?ref=home HTTP/1.1\" {status} {} \
             \"https://example.org/shop\" \"Mozilla/5.0 (X11; Linux x86_64; rv:1",
            row % 250,
            row / 60 % 60,
            row % 60,
            1_000 + row % 9_000
        );
        while line.len() < LINE_BYTES - 1 {
            line.push('0');
        }
        line.truncate(LINE_BYTES - 1);
        line.push('"');
        builder.push(1, row as u64, 0, line.as_bytes());
    }
    Ok(builder.finish(Vec::new())?)
}

/// What the guest `filter` does, in native code: a search with SIMD in each line, and the rows that are kept.
fn native_filter(finder: &memmem::Finder<'_>, batch: &Batch) -> Result<Batch, Box<dyn std::error::Error>> {
    let kept = (0_u32..).zip(batch.body().iter().flatten()).filter(|(_, line)| finder.find(line).is_some());
    Ok(batch.take(&kept.map(|(row, _)| row).collect())?)
}

/// ns per event of each round, sorted.
fn measure(
    batch: &Batch,
    mut process: impl FnMut(Batch) -> Result<Batch, Box<dyn std::error::Error>>,
) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let input = batch.clone();
        let started = Instant::now();
        std::hint::black_box(process(input)?);
        times.push(started.elapsed().as_nanos() as f64 / batch.rows() as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn print(name: &str, rows: usize, times: &[f64], memory_kib: u64) {
    let (p50, min) = (times.get(ROUNDS / 2).copied().unwrap_or(0.0), times.first().copied().unwrap_or(0.0));
    println!("{name:<16}{rows:>8}{p50:>12.1}{min:>12.1}{memory_kib:>14}");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/target/wasm32-unknown-unknown/release");
    let dir = std::env::args_os().nth(1).map_or(PathBuf::from(default), PathBuf::from);
    let cache = tempfile::tempdir()?;
    let host = PluginHost::new(HostConfig { watch: false, ..HostConfig::new(cache.path()) })?;
    let plugins = [
        ("reads_nothing", "{}"),
        ("noop", "{}"),
        ("filter", r#"{"keep":{"contains":" 503 "}}"#),
        ("access_log", "{}"),
    ];
    println!("{:<16}{:>8}{:>12}{:>12}{:>14}", "plugin", "rows", "p50 ns/ev", "min ns/ev", "instance KiB");
    for rows in SIZES {
        let finder = memmem::Finder::new(b" 503 ");
        let times = measure(&lines(rows)?, |batch| native_filter(&finder, &batch))?;
        print("native_filter", rows, &times, 0);
    }
    for (name, config) in plugins {
        let path = dir.join(format!("{name}.wasm"));
        let version = host.open(&path, name, config, &[], PluginLimits::default())?;
        for rows in SIZES {
            let times = measure(&lines(rows)?, |batch| {
                let processed = version.process(batch);
                match processed.quarantined.first() {
                    Some(failed) => Err(format!("{name}: {failed:?}").into()),
                    None => Ok(processed.kept),
                }
            })?;
            print(name, rows, &times, version.stats().memory_max_bytes / 1_024);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .for_each(|line| println!("{line}"));
    Ok(())
}
