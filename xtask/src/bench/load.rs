//! `cargo xtask bench load`: a steady load through `tail`, the durable file journal and the file sink, and how late each event is
//! in the output. First Sohu's load (A3.8: 100,000 events/s of 608 bytes for five minutes, at which Flume stopped
//! answering), then its table of batch sizes (A3.4: 30,000 events/s; with batches of 200 Flume was an hour late).
//!
//! All lines are equally long, so the output's length says which are there, and nothing has to be read: line `n` was due
//! `n / rate` seconds after the beginning. That the lines are whole and there once is what the soaks show; here their bytes are counted.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use flumen_tests::agent::Agent;
use flumen_tests::output;
use flumen_tests::scene::Scene;
use serde::Serialize;
use serde_json::json;

use super::{input, machine};
use crate::build;
use crate::report::step;

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Events per second of the long run
    #[arg(long, default_value_t = 100_000)]
    events_s: u64,
    /// Its length
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Length of each run of the table; 0: no table
    #[arg(long, default_value_t = 60)]
    table_seconds: u64,
    /// Bytes of a line
    #[arg(long, default_value_t = 608)]
    event_bytes: usize,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Of the table.
const TABLE_EVENTS_S: u64 = 30_000;
const BATCHES: [u32; 3] = [200, 2_000, 10_000];
/// What is not there by then will not come.
const DRAIN: Duration = Duration::from_secs(120);
/// The beginning is left out: the source finds the file, everything is touched for the first time.
const WARM_UP: Duration = Duration::from_secs(5);
/// How often lines are written, and how often it is looked what is there.
const WRITE_TICK: Duration = Duration::from_millis(5);
const LOOK_TICK: Duration = Duration::from_millis(2);
/// The input is rotated when it is so long, and the one before it removed: five minutes are 18 GB.
const INPUT_BYTES_MAX: u64 = 1 << 30;
/// Ages in milliseconds that are told apart.
const AGES: usize = 60_000;

/// One run.
#[derive(Debug, Clone, Serialize)]
struct Run {
    batch_rows: Option<u32>,
    events_s: u64,
    seconds: u64,
    /// By the end of the load and [`DRAIN`].
    is_complete: bool,
    p50_ms: usize,
    p99_ms: usize,
    max_ms: usize,
    /// The longest time in which nothing came.
    longest_stall_ms: u128,
    cpu_ns_per_event: f64,
    peak_rss_mb: f64,
}

/// Measures; succeeds if everything came.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = build::host(true)?;
    let mut runs = vec![measure(arguments, &binary, None, arguments.events_s, arguments.seconds)?];
    if arguments.table_seconds > 0 {
        for rows in BATCHES {
            runs.push(measure(arguments, &binary, Some(rows), TABLE_EVENTS_S, arguments.table_seconds)?);
        }
    }
    println!(
        "lines of {} bytes, tail to file journal to file, every acknowledgement durable",
        arguments.event_bytes
    );
    println!("  batch  events/s  seconds    p50 ms    p99 ms    max ms  stall ms    CPU ns   peak MB");
    for run in &runs {
        println!(
            "{:>7} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9.0} {:>9.0}{}",
            run.batch_rows.map_or("default".to_owned(), |rows| rows.to_string()),
            run.events_s,
            run.seconds,
            run.p50_ms,
            run.p99_ms,
            run.max_ms,
            run.longest_stall_ms,
            run.cpu_ns_per_event,
            run.peak_rss_mb,
            if run.is_complete { "" } else { "  NOT ALL CAME" }
        );
    }
    if arguments.json {
        println!(
            "{}",
            json!({ "event_bytes": arguments.event_bytes, "runs": runs, "machine": machine::describe() })
        );
    }
    Ok(if runs.iter().all(|run| run.is_complete) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    arguments: &Arguments,
    binary: &Path,
    batch_rows: Option<u32>,
    events_s: u64,
    seconds: u64,
) -> Result<Run> {
    let mut scene = Scene::below(&input::dir()?)?;
    scene.binary = Some(binary.to_owned());
    let batch = batch_rows.map_or(String::new(), |rows| {
        format!("[batch]\nrows = {rows}\nbytes = \"16 MiB\"\nlinger = \"1s\"\n")
    });
    scene.pipeline(&format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/load.log*\"]\n[sink.out]\ntype = \"file\"\npath = \"{{out}}/all.log\"\n{batch}"
    ))?;
    let agent = scene.start_ready()?;
    let name = format!(
        "{events_s} events/s for {seconds} s{}",
        batch_rows.map_or(String::new(), |rows| format!(", batches of {rows}"))
    );
    step(&name, || {
        let writer = Writer {
            path: scene.input().join("load.log"),
            events_s,
            events: events_s * seconds,
            event_bytes: arguments.event_bytes,
        };
        let run = observe(&writer, &scene, &agent).with_context(|| agent.log_tail())?;
        let (cpu_ns, memory) = (agent.cpu_ns()?, agent.memory()?);
        let peak_rss_mb = memory.peak as f64 / 1e6;
        let run =
            Run { batch_rows, cpu_ns_per_event: cpu_ns as f64 / writer.events as f64, peak_rss_mb, ..run };
        eprintln!("    p50 {} ms, p99 {} ms", run.p50_ms, run.p99_ms);
        Ok(run)
    })
    .and_then(|run| agent.stop().map(|()| run))
}

/// Looks at the output while the load goes on, and until all of it is there.
fn observe(writer: &Writer, scene: &Scene, agent: &Agent) -> Result<Run> {
    let (line_bytes, due_s) = (writer.event_bytes as u64 + 1, writer.events as f64 / writer.events_s as f64);
    let stopping = AtomicBool::new(false);
    let mut ages = vec![0_u64; AGES];
    let (mut seen, mut longest_stall) = (0_u64, Duration::ZERO);
    thread::scope(|scope| {
        let begin = Instant::now();
        let (stop, begun) = (&stopping, begin);
        let writing = scope.spawn(move || writer.run(begun, stop));
        let mut last = begin;
        let looked = loop {
            let there = match output::bytes(&scene.output) {
                Ok(bytes) => bytes / line_bytes,
                Err(error) => break Err(error),
            };
            let now = begin.elapsed();
            if there > seen {
                if now > WARM_UP {
                    longest_stall = longest_stall.max(last.elapsed());
                    count(&mut ages, seen..there, writer.events_s, now);
                }
                (seen, last) = (there, Instant::now());
            }
            if seen >= writer.events || now > Duration::from_secs_f64(due_s) + DRAIN {
                break Ok(());
            }
            if let Err(error) = agent.memory() {
                break Err(error);
            }
            thread::sleep(LOOK_TICK);
        };
        stopping.store(true, Ordering::Relaxed);
        looked.and(writing.join().map_err(|_| anyhow!("the writer panicked"))?)
    })?;
    let counted: u64 = ages.iter().sum();
    let quantile = |share: f64| {
        let wanted = (counted as f64 * share) as u64;
        let below = |sum: &mut u64, count: &u64| {
            *sum += count;
            Some(*sum)
        };
        ages.iter().scan(0, below).position(|sum| sum > wanted).unwrap_or(0)
    };
    Ok(Run {
        batch_rows: None,
        events_s: writer.events_s,
        seconds: due_s as u64,
        is_complete: seen == writer.events,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        max_ms: ages.iter().rposition(|count| *count > 0).unwrap_or(0),
        longest_stall_ms: longest_stall.as_millis(),
        cpu_ns_per_event: 0.0,
        peak_rss_mb: 0.0,
    })
}

/// Events of these numbers came now.
fn count(ages: &mut [u64], numbers: std::ops::Range<u64>, events_s: u64, now: Duration) {
    let now_ms = now.as_millis() as u64;
    // A millisecond of the load at a time.
    let mut next = numbers.start;
    while next < numbers.end {
        let due_ms = next * 1_000 / events_s;
        let until = ((due_ms + 1) * events_s).div_ceil(1_000).clamp(next + 1, numbers.end);
        let age = usize::try_from(now_ms.saturating_sub(due_ms)).unwrap_or(AGES).min(AGES - 1);
        if let Some(count) = ages.get_mut(age) {
            *count += until - next;
        }
        next = until;
    }
}

/// Writes lines as they become due. Each begins with its number, of ten digits.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) events_s: u64,
    pub(super) events: u64,
    pub(super) event_bytes: usize,
}

impl Writer {
    /// Until all are written, or it is told to stop.
    pub(super) fn run(&self, begin: Instant, stopping: &AtomicBool) -> Result<()> {
        let open = || OpenOptions::new().create(true).append(true).open(&self.path);
        let (mut file, mut bytes): (File, u64) = (open()?, 0);
        let (mut next, mut text) = (0, Vec::new());
        while next < self.events && !stopping.load(Ordering::Relaxed) {
            let due = (begin.elapsed().as_micros() as u64 * self.events_s / 1_000_000).min(self.events);
            text.clear();
            (next..due).for_each(|number| self.push(&mut text, number));
            file.write_all(&text)?;
            (next, bytes) = (due.max(next), bytes + text.len() as u64);
            if bytes > INPUT_BYTES_MAX {
                fs::rename(&self.path, self.path.with_extension("log.1"))?;
                (file, bytes) = (open()?, 0);
            }
            thread::sleep(WRITE_TICK);
        }
        Ok(())
    }

    fn push(&self, text: &mut Vec<u8>, number: u64) {
        const FILLER: &[u8] = b"GET /wiki/The_Ladder_of_Log_Lines?rev=20817 HTTP/1.1 200 18201 \"https://example.org/list?page=7\" ";
        let end = text.len() + self.event_bytes;
        text.extend_from_slice(format!("{number:010} ").as_bytes());
        while text.len() < end {
            text.extend_from_slice(FILLER.get(..FILLER.len().min(end - text.len())).unwrap_or_default());
        }
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_the_age_of_its_millisecond() {
        let mut ages = vec![0; AGES];
        // At 2,500 events/s: numbers 0 to 2 are due in the first millisecond, 3 and 4 in the second.
        count(&mut ages, 0..5, 2_500, Duration::from_millis(10));
        assert_eq!((ages[10], ages[9], ages.iter().sum::<u64>()), (3, 2, 5));
        count(&mut ages, 5..6, 2_500, Duration::from_secs(3_600));
        assert_eq!(ages[AGES - 1], 1);
    }

    #[test]
    fn lines_are_equally_long() {
        let writer = Writer { path: PathBuf::new(), events_s: 1, events: 1, event_bytes: 608 };
        let mut text = Vec::new();
        (0..3).for_each(|number| writer.push(&mut text, number));
        assert_eq!(text.len(), 3 * 609);
        assert_eq!(text.split(|byte| *byte == b'\n').filter(|line| line.len() == 608).count(), 3);
    }
}
