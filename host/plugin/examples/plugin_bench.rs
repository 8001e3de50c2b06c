//! What a plugin costs per event, crossings and deadlines included: `cargo run --release -p flumen-plugin --example
//! plugin_bench [DIR [NAME]]`, where DIR holds the guests that `cargo xtask plugins` builds (default: `target/plugins`) and
//! NAME is the only one to measure. At the end the pause that a swap makes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow_array::builder::StringBuilder;
use flumen_event::{Batch, BatchBuilder};
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnReject, PluginLimits};
use flumen_pipeline::{Interceptor, InterceptorVersion};
use flumen_plugin::{Alone, HostConfig, PluginHost, StartCost};
use memchr::memmem;
use regex::bytes::Regex;
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const LINE_BYTES: usize = 173;
const ROUNDS: usize = 300;
/// After so long fewer rounds have to do.
const TIME_MAX: Duration = Duration::from_secs(2);
const ROUNDS_MIN: usize = 10;
const START_ROUNDS: u32 = 20;
const SWAPS: usize = 1_000;
/// A batch takes microseconds.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// Rows per batch: a small one, and about what the pipeline makes.
const SIZES: [usize; 2] = [1_000, 8_000];
const STATE: &[&str] = &["state"];
const KEEP: &str = r#"{"contains":" 503 "}"#;
const LINE: &str = r#"^(?<addr>\S+) \S+ (?<user>\S+) \[(?<time>[^\]]+)\] "(?<method>\S+) (?<path>\S+) (?<version>[^"]*)" (?<status>\d{3}) (?<bytes>\S+) "(?<referer>[^"]*)" "(?<agent>[^"]*)"$"#;

/// What is measured: file, name of its figures, configuration, events, grants.
struct Task(&'static str, &'static str, &'static str, Events, &'static [&'static str]);

/// The first are the same small plugin in every language.
const TASKS: [Task; 20] = [
    Task("keep-rust", "rust_substring", KEEP, Events::Access, &[]),
    Task("keep-c", "c_substring", KEEP, Events::Access, &[]),
    Task("keep-go", "go_substring", KEEP, Events::Access, &[]),
    Task("keep-js", "js_substring", KEEP, Events::Access, &[]),
    Task("keep-python", "python_substring", KEEP, Events::Access, &[]),
    Task("reads-nothing", "rust_nothing", "{}", Events::Access, &[]),
    Task("noop", "rust_noop", "{}", Events::Access, &[]),
    Task("filter", "rust_filter", r#"{"keep":{"contains":" 503 "}}"#, Events::Access, &[]),
    Task("access-log", "rust_access_log", "{}", Events::Access, &[]),
    // The configuration is made from `LINE`.
    Task("regex", "rust_regex", "", Events::Access, &[]),
    Task("json", "rust_json", "{}", Events::Json, &[]),
    Task("logfmt", "rust_logfmt", "{}", Events::Logfmt, &[]),
    Task("redact", "rust_redact", "{}", Events::Access, &[]),
    Task("sample", "rust_sample", r#"{"keep":0.1,"by":"body"}"#, Events::Access, &[]),
    Task("route", "rust_route", ROUTE, Events::Access, &[]),
    Task(
        "timestamp",
        "rust_timestamp",
        r#"{"format":"%d/%b/%Y:%H:%M:%S %z","after":"["}"#,
        Events::Access,
        &[],
    ),
    Task("dedup", "rust_dedup", r#"{"by":"body"}"#, Events::Access, STATE),
    Task("rate-limit", "rust_rate_limit", r#"{"events":500}"#, Events::Access, STATE),
    Task("multiline", "rust_multiline", r#"{"start":"^\\d"}"#, Events::Traces, STATE),
    Task("window-count", "rust_window_count", r#"{"window":"10s"}"#, Events::Access, STATE),
];
const ROUTE: &str = r#"{"header":"to","otherwise":"rest","routes":[{"when":{"contains":" 503 "},"to":"alarm"},{"when":{"contains":"/pay"},"to":"pay"}]}"#;

/// What the events look like.
#[derive(Clone, Copy)]
enum Events {
    /// Lines of 173 bytes, one in twenty with status 503.
    Access,
    Json,
    Logfmt,
    /// Stack traces: ten lines each.
    Traces,
}

impl Events {
    fn line(self, row: usize) -> String {
        let status = if row.is_multiple_of(20) { 503 } else { 200 };
        let (minute, second) = (row / 60 % 60, row % 60);
        match self {
            Events::Access => {
                let mut line = format!(
                    "192.0.2.{} - - [21/Nov/2026:10:{minute:02}:{second:02} +0000] \"GET /shop/item/{row}?ref=home HTTP/1.1\" \
                     {status} {} \"https://example.org/shop\" \"Mozilla/5.0 (X11; Linux x86_64; rv:1",
                    row % 250,
                    1_000 + row % 9_000
                );
                while line.len() < LINE_BYTES - 1 {
                    line.push('0');
                }
                line.truncate(LINE_BYTES - 1);
                line.push('"');
                line
            }
            Events::Json => format!(
                r#"{{"time":"2026-11-21T10:{minute:02}:{second:02}Z","level":"info","service":"shop","request":{{"method":"GET","path":"/shop/item/{row}","status":{status}}},"bytes":{},"took_ms":12.5}}"#,
                1_000 + row % 9_000
            ),
            Events::Logfmt => format!(
                r#"time=2026-11-21T10:{minute:02}:{second:02}Z level=info service=shop method=GET path=/shop/item/{row} status={status} bytes={} took=12ms msg="an item was shown""#,
                1_000 + row % 9_000
            ),
            Events::Traces if row.is_multiple_of(10) => {
                format!(
                    "2026-11-21 10:{minute:02}:{second:02},{row} ERROR [http-8] Checkout: cannot pay the order {row}"
                )
            }
            Events::Traces => {
                format!("    at org.example.shop.Checkout$Payment.process{row}(Checkout.java:{})", row % 900)
            }
        }
    }

    /// The batch that begins with this event: a thousand of them are a second.
    fn batch(self, first: usize, rows: usize) -> Outcome<Batch> {
        let mut builder = BatchBuilder::with_capacity(rows, rows * LINE_BYTES);
        for row in first..first + rows {
            builder.push(1, row as u64, row as i64 * 1_000_000, self.line(row).as_bytes());
        }
        Ok(builder.finish(Vec::new())?)
    }
}

/// What the guest `filter` does, in native code: a search with SIMD in each line, and the rows that are kept.
fn native_filter(finder: &memmem::Finder<'_>, batch: &Batch) -> Outcome<Batch> {
    let kept = (0_u32..).zip(batch.body().iter().flatten()).filter(|(_, line)| finder.find(line).is_some());
    Ok(batch.take(&kept.map(|(row, _)| row).collect())?)
}

/// What `regex` does, in native code: the groups of one expression into header columns.
fn native_regex(expression: &Regex, batch: &Batch) -> Outcome<Batch> {
    let names: Vec<(usize, &str)> =
        expression.capture_names().enumerate().filter_map(|(group, name)| Some((group, name?))).collect();
    let mut columns: Vec<StringBuilder> = names.iter().map(|_| StringBuilder::new()).collect();
    let mut found = expression.capture_locations();
    for line in batch.body().iter().flatten() {
        let matched = expression.captures_read(&mut found, line).is_some();
        for ((group, _), column) in names.iter().zip(&mut columns) {
            let value = found.get(*group).filter(|_| matched).and_then(|(from, to)| line.get(from..to));
            column.append_option(value.and_then(|value| std::str::from_utf8(value).ok()));
        }
    }
    with_headers(batch, names.iter().map(|(_, name)| *name), columns)
}

/// What `access-log` does, in native code: the fields of a combined line, cut at their borders, into header columns.
fn native_access_log(batch: &Batch) -> Outcome<Batch> {
    const NAMES: [&str; 10] =
        ["addr", "user", "time", "method", "path", "version", "status", "bytes", "referer", "agent"];
    let mut columns: Vec<StringBuilder> = NAMES.iter().map(|_| StringBuilder::new()).collect();
    for line in batch.body().iter().flatten() {
        let mut line = std::str::from_utf8(line)?;
        let mut next = |border: char| -> Option<&str> {
            let at = memchr::memchr(border as u8, line.as_bytes())?;
            let (field, rest) = line.split_at(at);
            line = rest.get(1..)?;
            Some(field)
        };
        let addr = next(' ');
        next(' ');
        let user = next(' ');
        next('[');
        let time = next(']');
        next('"');
        let (method, path, version) = (next(' '), next(' '), next('"'));
        next(' ');
        let (status, bytes) = (next(' '), next(' '));
        next('"');
        let referer = next('"');
        next('"');
        let agent = next('"');
        let fields = [addr, user, time, method, path, version, status, bytes, referer, agent];
        columns.iter_mut().zip(fields).for_each(|(column, field)| column.append_option(field));
    }
    with_headers(batch, NAMES.into_iter(), columns)
}

fn with_headers<'a>(
    batch: &Batch,
    names: impl Iterator<Item = &'a str>,
    columns: Vec<StringBuilder>,
) -> Outcome<Batch> {
    let fields = names.zip(columns);
    Ok(fields
        .into_iter()
        .try_fold(batch.clone(), |batch, (name, mut column)| batch.with_header(name, column.finish()))?)
}

/// ns per event of each round, sorted. The batches are made outside of the time that counts, and what comes out is
/// freed outside of it: that is the cost of whoever takes it.
fn measure(
    mut input: impl FnMut(usize) -> Outcome<Batch>,
    mut process: impl FnMut(Batch) -> Outcome<Batch>,
) -> Outcome<Vec<f64>> {
    let mut times = Vec::with_capacity(ROUNDS);
    let begun = Instant::now();
    while times.len() < ROUNDS && (times.len() < ROUNDS_MIN || begun.elapsed() < TIME_MAX) {
        let input = input(times.len())?;
        let rows = input.rows() as f64;
        let started = Instant::now();
        let output = std::hint::black_box(process(input)?);
        times.push(started.elapsed().as_nanos() as f64 / rows);
        drop(output);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn print_times(name: &str, rows: usize, times: &[f64], memory_kib: u64) {
    let p50 = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let min = times.first().copied().unwrap_or(f64::NAN);
    print!("{name:<18}{rows:>8}{p50:>12.1}{min:>12.1}{memory_kib:>14}");
}

fn native(name: &str, mut process: impl FnMut(&Batch) -> Outcome<Batch>) -> Outcome<()> {
    for rows in SIZES {
        let batch = Events::Access.batch(0, rows)?;
        print_times(name, rows, &measure(|_| Ok(batch.clone()), |batch| process(&batch))?, 0);
        println!();
    }
    Ok(())
}

fn plugin(host: &PluginHost, dir: &Path, task: &Task, start_rounds: u32) -> Outcome<()> {
    let Task(file, name, config, events, grants) = *task;
    let config = if file == "regex" { json!({ "extract": LINE }).to_string() } else { config.to_owned() };
    let path = dir.join(file).with_extension("wasm");
    if !path.is_file() {
        return Err(format!("{name}: there is no {}; `cargo xtask plugins` builds it", path.display()).into());
    }
    let keeps_state = !grants.is_empty();
    let grants: Vec<String> = grants.iter().map(|grant| (*grant).to_owned()).collect();
    let limits = PluginLimits { state_bytes: 1 << 30, ..PluginLimits::default() };
    let start = host.start_cost(&path, &config, start_rounds)?;
    for rows in SIZES {
        let version = host.open(&path, name, &config, &grants, limits)?;
        let alone = Alone::new(version.clone());
        let first = events.batch(0, rows)?;
        // What keeps state sees new events in each batch.
        let input = |round: usize| match keeps_state {
            true => events.batch(round * rows, rows),
            false => Ok(first.clone()),
        };
        let times = measure(input, |batch| {
            let processed = if keeps_state { alone.process(batch, None).0 } else { version.process(batch) };
            match processed.quarantined.first() {
                Some(failed) => Err(format!("{name}: {:?}", failed.reasons.first()).into()),
                None => Ok(processed.kept),
            }
        })?;
        print_times(name, rows, &times, version.stats().memory_max_bytes / 1_024);
        let StartCost { load_ns, first_load_ns, instantiate_ns, open_ns } = start;
        let [instantiate, open] = [instantiate_ns, open_ns].map(|ns| ns as f64 / 1e3);
        let [load, first_load] = [load_ns, first_load_ns].map(|ns| ns as f64 / 1e6);
        println!("{instantiate:>16.1}{open:>12.1}{load:>12.2}{first_load:>16.2}");
    }
    Ok(())
}

/// ms from the batch before a swap to the end of the batch after it, beyond what a batch usually takes, sorted: one swap after
/// the other while batches flow.
fn swap_pauses(host: &PluginHost, from: &Path) -> Outcome<Vec<f64>> {
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
    // Swaps that a batch has seen.
    let seen = AtomicUsize::new(0);
    let input = Events::Access.batch(0, 1_000)?;
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let (mut times, mut after_swap) = (Vec::new(), Vec::new());
            let mut hash = slot.current().hash().to_owned();
            let mut ended = Instant::now();
            while !is_done.load(Ordering::Relaxed) {
                let version = slot.current();
                std::hint::black_box(version.process(input.clone()));
                let is_other = version.hash() != hash;
                if is_other {
                    version.hash().clone_into(&mut hash);
                }
                // It may be the last one that has the old version.
                drop(version);
                let took = std::mem::replace(&mut ended, Instant::now());
                let took = ended.duration_since(took).as_secs_f64() * 1e3;
                if is_other {
                    after_swap.push(took);
                    seen.fetch_add(1, Ordering::Relaxed);
                } else {
                    times.push(took);
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
            slot.reload_now()?;
            let deadline = Instant::now() + SEEN_MAX;
            while seen.load(Ordering::Relaxed) <= number && Instant::now() < deadline {
                std::thread::yield_now();
            }
            Outcome::Ok(())
        });
        is_done.store(true, Ordering::Relaxed);
        let pauses = flow.join().map_err(|_| "the flow stopped")?;
        swapped.map(|()| pauses)
    })
}

fn main() -> Outcome<()> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/plugins");
    let dir = std::env::args_os().nth(1).map_or(PathBuf::from(default), PathBuf::from);
    let only = std::env::args().nth(2);
    // A profiler sees more of what is done more often.
    let start_rounds = if only.is_some() { START_ROUNDS * 20 } else { START_ROUNDS };
    let cache = tempfile::tempdir()?;
    let host = PluginHost::new(HostConfig { watch: false, ..HostConfig::new(cache.path()) })?;
    println!(
        "{:<18}{:>8}{:>12}{:>12}{:>14}{:>16}{:>12}{:>12}{:>16}",
        "plugin",
        "rows",
        "p50 ns/ev",
        "min ns/ev",
        "instance KiB",
        "instantiate us",
        "open us",
        "load ms",
        "first load ms"
    );
    let finder = memmem::Finder::new(b" 503 ");
    native("native_substring", |batch| native_filter(&finder, batch))?;
    native("native_access_log", native_access_log)?;
    let expression = Regex::new(LINE)?;
    native("native_regex", |batch| native_regex(&expression, batch))?;
    // One that fails does not keep the others from being measured.
    let mut failed = Vec::new();
    for task in TASKS.iter().filter(|Task(_, name, ..)| only.as_ref().is_none_or(|only| only == name)) {
        if let Err(error) = plugin(&host, &dir, task, start_rounds) {
            failed.push(error.to_string());
        }
    }
    let pauses = swap_pauses(&host, &dir)?;
    let at = |percent: usize| pauses.get(pauses.len() * percent / 100).copied().unwrap_or(f64::NAN);
    let most = pauses.last().copied().unwrap_or(f64::NAN);
    println!("swap pause of {} swaps, ms: p50 {:.3}, max {most:.3}, p99 {:.3}", pauses.len(), at(50), at(99));
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .for_each(|line| println!("{line}"));
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}
