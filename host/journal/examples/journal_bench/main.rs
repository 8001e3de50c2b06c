//! The file journal beside what its disk does: `journal_bench DIR [ROUNDS] [methods|commit|forms] [LOAD]`, which
//! `cargo xtask bench journal` runs.
//!
//! Rounds of everything that is compared take turns, so that what else the machine does falls on all alike; medians of
//! rounds are printed. Lines `figure NAME VALUE` are for programs.

mod journal;
mod lines;
mod plain;
mod raw;
mod ring;
mod series;

use std::path::Path;
use std::time::Duration;

use flumen_journal::Compression;
use journal::{Form, Load, Run};
use raw::{Fill, Method};
use series::median;

/// As the agent's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long one method runs in one round.
const RAW_LIMIT: Duration = Duration::from_millis(300);

/// Bytes that it writes at most.
const RAW_FILE_BYTES: usize = 128 << 20;

/// Chunks: one small commit, a group of 64 of them, a common batch.
const CHUNKS: [(&str, usize); 3] = [("1 KiB", 1 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];

/// How long producers commit in one round.
const LIMIT: Duration = Duration::from_secs(1);

/// Bytes that they commit at most.
const BYTES_MAX: usize = 512 << 20;

/// Who commits: what it is called, and how its figures begin.
const LOADS: [(&str, &str, Load); 4] = [
    (
        "1 producer, 1 KiB each, one at a time",
        "one_",
        Load {
            producers: 1,
            bytes: 1 << 10,
            in_flight: 1,
            limit: LIMIT,
            bytes_max: BYTES_MAX,
            has_sink: true,
        },
    ),
    (
        "64 producers, 1 KiB each, one at a time",
        "many_",
        Load {
            producers: 64,
            bytes: 1 << 10,
            in_flight: 1,
            limit: LIMIT,
            bytes_max: BYTES_MAX,
            has_sink: true,
        },
    ),
    (
        "64 producers, 1 KiB each, 16 on their way",
        "many_ahead_",
        Load {
            producers: 64,
            bytes: 1 << 10,
            in_flight: 16,
            limit: LIMIT,
            bytes_max: BYTES_MAX,
            has_sink: true,
        },
    ),
    (
        "1 producer, batches of 1 MiB, 16 on their way",
        "",
        Load {
            producers: 1,
            bytes: 1 << 20,
            in_flight: 16,
            limit: LIMIT,
            bytes_max: BYTES_MAX,
            has_sink: true,
        },
    ),
];

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "journal-bench".into());
    let rounds: usize = args.next().map(|rounds| rounds.parse()).transpose()?.unwrap_or(5);
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir)?;
    let part = args.next();
    let wants = |name: &str| part.as_ref().is_none_or(|part| part == name);
    if wants("methods") {
        methods(dir, rounds)?;
    }
    // One of the loads alone, by how its figures begin.
    let alone = args.next();
    let is_meant = |prefix: &str| alone.as_ref().is_none_or(|alone| prefix.trim_end_matches('_') == alone);
    for (name, prefix, load) in LOADS.into_iter().filter(|(_, prefix, _)| wants("commit") && is_meant(prefix))
    {
        group_commit(dir, rounds, name, prefix, load)?;
    }
    if wants("forms") {
        forms(dir, rounds)?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// The table of methods.
fn methods(dir: &Path, rounds: usize) -> Outcome<()> {
    let fills = [(Fill::Fallocated, "fallocated"), (Fill::Zeros, "zero-filled")];
    for (chunk_name, chunk) in CHUNKS {
        println!("\nchunks of {chunk_name}, each durable before the next: MB/s, p50 ms, p99 ms");
        let mut figures = vec![[const { Vec::new() }; 3]; Method::ALL.len() * fills.len()];
        for _ in 0..rounds {
            let rows = Method::ALL.iter().flat_map(|method| fills.iter().map(move |fill| (method, fill.0)));
            for ((method, fill), row) in rows.zip(&mut figures) {
                let series = raw::run(dir, *method, fill, chunk, RAW_FILE_BYTES, RAW_LIMIT)?;
                let values = [series.mb_s(), series.percentile_ms(0.5), series.percentile_ms(0.99)];
                row.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
            }
        }
        let rows = Method::ALL.iter().flat_map(|method| fills.iter().map(move |fill| (method, fill.1)));
        for ((method, fill), row) in rows.zip(&figures) {
            let [mb_s, p50, p99] = row.each_ref().map(|all| median(all));
            println!("{:<22} {fill:<12} {mb_s:9.2} {p50:9.3} {p99:9.3}", method.name());
        }
    }
    Ok(())
}

/// The journal beside plain programs that write and sync chunks of the same size, round by round: over blocks that were written
/// before (`raw`), and into fresh ones (`fresh`, and `fio`, the disks' common yardstick, if it is installed).
fn group_commit(dir: &Path, rounds: usize, name: &str, prefix: &str, load: Load) -> Outcome<()> {
    let names = ["commit_mb_s", "ratio_to_raw_sync", "commits_s", "commit_p50_ms", "commit_p99_ms"];
    let of_raw = [
        "raw_mb_s",
        "raw_p50_ms",
        "raw_p99_ms",
        "fresh_mb_s",
        "ratio_to_fresh",
        "fio_mb_s",
        "ratio_to_fio",
        "group_kb",
        "plain_mb_s",
        "ratio_to_plain",
    ];
    let parts = ["encode_ns_per_event", "write_ns_per_event", "sync_ns_per_event"];
    let mut figures: Vec<Vec<f64>> = vec![Vec::new(); names.len() + of_raw.len() + parts.len()];
    for _ in 0..rounds {
        let run = journal::run(dir, load, Form::default(), false)?;
        let chunk = run.group_bytes();
        // Blocks that were written before, as the journal's are once its first segments are done with: the faster of the two ways.
        let raw = raw::run(dir, Method::WriteSync, Fill::Zeros, chunk, load.bytes_max, load.limit)?;
        let fresh = raw::run(dir, Method::WriteSync, Fill::Fallocated, chunk, load.bytes_max, load.limit)?;
        let fio = raw::fio(dir, chunk, load.bytes_max, load.limit)?.unwrap_or(f64::NAN);
        let plain = match load.in_flight {
            1 => plain::run(dir, load.producers, chunk_of(&run), load.bytes_max, load.limit)?.mb_s(),
            _ => f64::NAN,
        };
        let Run { commits, status, .. } = &run;
        let values = [
            run.written_mb_s(),
            run.written_mb_s() / raw.mb_s(),
            commits.per_s(),
            commits.percentile_ms(0.5),
            commits.percentile_ms(0.99),
            raw.mb_s(),
            raw.percentile_ms(0.5),
            raw.percentile_ms(0.99),
            fresh.mb_s(),
            run.written_mb_s() / fresh.mb_s(),
            fio,
            run.written_mb_s() / fio,
            chunk as f64 / 1e3,
            plain,
            run.written_mb_s() / plain,
            run.ns_per_event(status.encode_ns),
            run.ns_per_event(status.write_ns),
            run.ns_per_event(status.sync_ns),
        ];
        figures.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
    }
    println!("\n{name}");
    for (figure, values) in names.iter().chain(&of_raw).chain(&parts).zip(&figures) {
        if values.iter().all(|value| value.is_nan()) {
            continue;
        }
        println!("figure {prefix}{figure} {:.3}", median(values));
    }
    Ok(())
}

/// Bytes on disk of one commit.
fn chunk_of(run: &Run) -> usize {
    (run.status.bytes_written as usize).checked_div(run.commits.len()).unwrap_or_default()
}

/// What compression and encryption cost, and what they save.
fn forms(dir: &Path, rounds: usize) -> Outcome<()> {
    let forms = [
        ("none", Form { compression: Compression::None, is_sealed: false }),
        ("lz4", Form { compression: Compression::Lz4, is_sealed: false }),
        ("zstd", Form { compression: Compression::Zstd, is_sealed: false }),
        ("aes", Form { compression: Compression::None, is_sealed: true }),
        ("zstd_aes", Form { compression: Compression::Zstd, is_sealed: true }),
    ];
    let Some((_, _, load)) = LOADS.last() else { return Ok(()) };
    println!(
        "\nbatches of 1 MiB of access log, MB/s as they are laid out: committed, read back, read back from the disk; \
         share of the disk; ns per event of the producer"
    );
    let mut figures = vec![[const { Vec::new() }; 5]; forms.len()];
    for _ in 0..rounds {
        for ((_, form), row) in forms.iter().zip(&mut figures) {
            let load = Load { has_sink: false, ..*load };
            let run = journal::run(dir, load, *form, true)?;
            let bytes = run.commits.mb_s() * run.commits.took.as_secs_f64();
            let [warm, cold] = run.read.unwrap_or_default().map(|took| bytes / took.as_secs_f64());
            let share = run.status.bytes_written as f64 / 1e6 / bytes;
            let values = [run.commits.mb_s(), warm, cold, share, run.ns_per_event(run.status.encode_ns)];
            row.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
        }
    }
    for ((name, _), row) in forms.iter().zip(&figures) {
        let [committed, warm, cold, share, encode] = row.each_ref().map(|all| median(all));
        println!("{name:<9} {committed:9.0} {warm:9.0} {cold:9.0} {share:9.3} {encode:9.1}");
        println!("figure {name}_commit_mb_s {committed:.1}");
        println!("figure {name}_share_of_disk {share:.4}");
        println!("figure {name}_encode_ns_per_event {encode:.1}");
    }
    Ok(())
}
