//! Figures of the file journal on this machine's disk, beside what the disk itself does.
//!
//! `cargo run --release -p flumen-journal --example journal_bench -- [DIR] [MIB]`

use std::io::{IoSlice, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::layout;
use flumen_event::{Batch, BatchBuilder};
use flumen_journal::{
    ChannelId, ChannelSpec, Commit, Disk, Durability, FileConfig, FileJournal, Journal, OsClock, OsDisk, Put,
    ReaderId,
};

const LINE: &[u8] = b"2026-01-02T03:04:05.678Z INFO request id=8f3a path=/api/v1/items/4711 status=200 bytes=5321 ms=12 agent=curl/8.5 host=web-17 ok";

/// Lines of about 130 bytes, one MiB of bodies.
fn batch() -> Result<Batch, Box<dyn std::error::Error>> {
    let rows = (1 << 20) / LINE.len();
    let mut builder = BatchBuilder::with_capacity(rows, 1 << 20);
    for row in 0..rows as u64 {
        builder.push(1, row * 130, 1_700_000_000_000_000_000, LINE);
    }
    Ok(builder.finish(Vec::new())?)
}

fn figure(name: &str, bytes: usize, took: Duration) {
    println!("{name:<44} {:8.1} MB/s", bytes as f64 / 1e6 / took.as_secs_f64());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "journal-bench".into());
    let mib: usize = args.next().map(|mib| mib.parse()).transpose()?.unwrap_or(256);
    let batch = batch()?;
    let (rows, bytes) = (batch.rows(), layout::encode(&batch).len());
    println!("{mib} commits of {rows} events, {bytes} bytes each, in {dir}");

    let rounds = 200;
    let started = Instant::now();
    let mut parts = 0;
    for _ in 0..rounds {
        parts += layout::encode(&batch).parts().len();
    }
    let per_event = started.elapsed().as_nanos() as f64 / (rounds * rows) as f64;
    println!("{:<44} {per_event:8.2} ns/event ({} parts)", "encode", parts / rounds);
    let encoded = layout::encode(&batch);
    let started = Instant::now();
    let mut crc = 0;
    for _ in 0..rounds {
        crc = encoded.parts().iter().fold(crc, |crc, part| crc32c::crc32c_append(crc, part));
    }
    let took = started.elapsed();
    println!("{:<44} {:8.2} ns/event", "CRC-32C", took.as_nanos() as f64 / (rounds * rows) as f64);
    figure(&format!("CRC-32C ({crc:08x})"), bytes * rounds, took);
    let buffer = arrow_buffer::Buffer::from(encoded.to_vec().as_slice());
    let started = Instant::now();
    for _ in 0..rounds {
        layout::decode(buffer.clone())?;
    }
    println!(
        "{:<44} {:8.2} ns/event",
        "decode",
        started.elapsed().as_nanos() as f64 / (rounds * rows) as f64
    );

    std::fs::create_dir_all(&dir)?;
    plain(&dir, &encoded, mib)?;
    for (name, durability, in_flight) in [
        ("journal, durable, one commit at a time", Durability::Durable, 1),
        ("journal, durable, 8 commits in flight", Durability::Durable, 8),
        ("journal, os, 8 commits in flight", Durability::Os, 8),
    ] {
        run(&dir, name, durability, in_flight, &batch, bytes, mib)?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// The same bytes with nothing but preallocation, `pwritev` and `fdatasync`.
fn plain(dir: &str, encoded: &layout::Encoded, mib: usize) -> Result<(), Box<dyn std::error::Error>> {
    for preallocated in [false, true] {
        let path = std::path::Path::new(dir).join("plain");
        let file = OsDisk.create(&path)?;
        if preallocated {
            file.preallocate((encoded.len() * mib) as u64)?;
        }
        let started = Instant::now();
        for n in 0..mib {
            let mut slices: Vec<IoSlice<'_>> =
                encoded.parts().iter().map(|part| IoSlice::new(part)).collect();
            let mut slices = slices.as_mut_slice();
            let mut at = (n * encoded.len()) as u64;
            while !slices.is_empty() {
                let written = file.write_at(at, slices)?;
                at += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            file.sync_data()?;
        }
        let name =
            if preallocated { "plain write + fdatasync, preallocated" } else { "plain write + fdatasync" };
        figure(name, encoded.len() * mib, started.elapsed());
        std::fs::remove_file(path)?;
    }
    std::io::stdout().flush()?;
    Ok(())
}

fn run(
    dir: &str,
    name: &str,
    durability: Durability,
    in_flight: usize,
    batch: &Batch,
    bytes: usize,
    mib: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::path::Path::new(dir).join(format!("{durability:?}-{in_flight}"));
    let config = FileConfig { dir, durability, ..FileConfig::default() };
    let spec = ChannelSpec {
        name: "main".into(),
        readers: vec!["sink".into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    let open = || FileJournal::open(config.clone(), vec![spec.clone()], Arc::new(OsDisk), Arc::new(OsClock));
    let journal = open()?;
    let mut tickets = std::collections::VecDeque::new();
    let started = Instant::now();
    for _ in 0..mib {
        let put = Put { channels: vec![ChannelId(0)], batch: batch.clone() };
        tickets.push_back(journal.commit(Commit { puts: vec![put], ..Commit::default() }, None)?);
        if tickets.len() == in_flight
            && let Some(ticket) = tickets.pop_front()
        {
            ticket.wait(None).transpose()?;
        }
    }
    for ticket in tickets {
        ticket.wait(None).transpose()?;
    }
    figure(name, bytes * mib, started.elapsed());
    let status = journal.status();
    println!(
        "    {} syncs, write {} ms, sync {} ms, encode + CRC {} ms",
        status.syncs,
        status.write_ns / 1_000_000,
        status.sync_ns / 1_000_000,
        status.encode_ns / 1_000_000
    );
    drop(journal);
    let started = Instant::now();
    let journal = open()?;
    println!("    reopened after a crash in {:?}", started.elapsed());
    let started = Instant::now();
    let mut reader = journal.open_reader(ChannelId(0), ReaderId(0));
    while reader.next(Duration::ZERO)?.is_some() {}
    figure("    backlog read back", bytes * mib, started.elapsed());
    Ok(())
}
