//! What a plugin costs per event, crossings and deadlines included: `cargo run --release -p flumen-plugin --example
//! plugin_bench [DIR]`, where DIR holds the guests that `cargo xtask plugins` builds (default: `target/plugins`). At the end
//! the pause that a swap makes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnReject, PluginLimits};
use flumen_pipeline::{Interceptor, InterceptorVersion};
use flumen_plugin::{HostConfig, PluginHost, StartCost};
use memchr::memmem;

const LINE_BYTES: usize = 173;
const ROUNDS: usize = 300;
/// After so long fewer rounds have to do.
const TIME_MAX: Duration = Duration::from_secs(4);
const START_ROUNDS: u32 = 20;
const SWAPS: usize = 200;
/// File, name of its figures, configuration. The first are the same small plugin in every language.
const PLUGINS: [(&str, &str, &str); 9] = [
    ("keep-rust", "rust_substring", KEEP),
    ("keep-c", "c_substring", KEEP),
    ("keep-go", "go_substring", KEEP),
    ("keep-js", "js_substring", KEEP),
    ("keep-python", "python_substring", KEEP),
    ("reads-nothing", "rust_nothing", "{}"),
    ("noop", "rust_noop", "{}"),
    ("filter", "rust_filter", r#"{"keep":{"contains":" 503 "}}"#),
    ("access-log", "rust_access_log", "{}"),
];
const KEEP: &str = r#"{"contains":" 503 "}"#;
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
    let begun = Instant::now();
    while times.len() < ROUNDS && (times.len() < 10 || begun.elapsed() < TIME_MAX) {
        let input = batch.clone();
        let started = Instant::now();
        std::hint::black_box(process(input)?);
        times.push(started.elapsed().as_nanos() as f64 / batch.rows() as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Once for each size; what is dear takes fewer rounds, so that the whole stays within a minute.
fn print(name: &str, rows: usize, times: &[f64], memory_kib: u64, start: Option<StartCost>) {
    let p50 = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let min = times.first().copied().unwrap_or(f64::NAN);
    print!("{name:<18}{rows:>8}{p50:>12.1}{min:>12.1}{memory_kib:>14}");
    if let Some(StartCost { load_ns, instantiate_ns }) = start {
        print!("{:>16.1}{:>12.2}", instantiate_ns as f64 / 1e3, load_ns as f64 / 1e6);
    }
    println!();
}

/// ms that the batch after a swap takes longer than one usually does, sorted: one swap after the other while batches flow.
fn swap_pauses(host: &PluginHost, from: &Path) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let put = |name: &str| -> std::io::Result<()> {
        let fresh = dir.path().join("fresh");
        std::fs::copy(from.join(name).with_extension("wasm"), &fresh)?;
        std::fs::rename(fresh, dir.path().join("swapped.wasm"))
    };
    put("swap-a")?;
    let slot = host.slot(
        InterceptorPlan {
            name: "swapped".to_owned(),
            plugin: "swapped".to_owned(),
            config: "{}".to_owned(),
            grants: Vec::new(),
            on_reject: OnReject::Quarantine,
            errors: ErrorPlan::default(),
            limits: PluginLimits::default(),
            egress: None,
        },
        dir.path(),
    )?;
    let is_done = AtomicBool::new(false);
    let input = lines(1_000)?;
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let (mut times, mut after_swap, mut hash) = (Vec::new(), Vec::new(), String::new());
            while !is_done.load(Ordering::Relaxed) {
                let started = Instant::now();
                let version = slot.current();
                std::hint::black_box(version.process(input.clone()));
                let took = started.elapsed().as_secs_f64() * 1e3;
                if version.hash() == hash {
                    times.push(took);
                } else {
                    version.hash().clone_into(&mut hash);
                    after_swap.push(took);
                }
            }
            times.sort_by(f64::total_cmp);
            let usual = times.get(times.len() / 2).copied().unwrap_or_default();
            after_swap.iter_mut().for_each(|took| *took = (*took - usual).max(0.0));
            after_swap.sort_by(f64::total_cmp);
            after_swap
        });
        let swapped = (0..SWAPS).try_for_each(|number| {
            put(if number % 2 == 0 { "swap-b" } else { "swap-a" })?;
            slot.reload_now().map(|_| ()).map_err(Box::<dyn std::error::Error>::from)
        });
        is_done.store(true, Ordering::Relaxed);
        let pauses = flow.join().map_err(|_| "the flow stopped")?;
        swapped.map(|()| pauses)
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/plugins");
    let dir = std::env::args_os().nth(1).map_or(PathBuf::from(default), PathBuf::from);
    let cache = tempfile::tempdir()?;
    let host = PluginHost::new(HostConfig { watch: false, ..HostConfig::new(cache.path()) })?;
    println!(
        "{:<18}{:>8}{:>12}{:>12}{:>14}{:>16}{:>12}",
        "plugin", "rows", "p50 ns/ev", "min ns/ev", "instance KiB", "instantiate us", "load ms"
    );
    for rows in SIZES {
        let finder = memmem::Finder::new(b" 503 ");
        let times = measure(&lines(rows)?, |batch| native_filter(&finder, &batch))?;
        print("native_substring", rows, &times, 0, None);
    }
    for (file, name, config) in PLUGINS {
        let path = dir.join(file).with_extension("wasm");
        if !path.is_file() {
            eprintln!("{name}: there is no {}; `cargo xtask plugins` builds it", path.display());
            continue;
        }
        let version = host.open(&path, name, config, &[], PluginLimits::default())?;
        for rows in SIZES {
            let times = measure(&lines(rows)?, |batch| {
                let processed = version.process(batch);
                match processed.quarantined.first() {
                    Some(failed) => Err(format!("{name}: {failed:?}").into()),
                    None => Ok(processed.kept),
                }
            })?;
            let start = host.start_cost(&path, config, START_ROUNDS)?;
            print(name, rows, &times, version.stats().memory_max_bytes / 1_024, Some(start));
        }
    }
    let pauses = swap_pauses(&host, &dir)?;
    let p99 = pauses.get(pauses.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    println!("swap pause of {} swaps, ms: p99 {p99:.3}", pauses.len());
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .for_each(|line| println!("{line}"));
    Ok(())
}
