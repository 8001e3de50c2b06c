//! The least that a group commit is: threads that put bytes into a common buffer and wait, one thread that writes, syncs and wakes
//! them. What it reaches is what the scheduler leaves of the disk's rate, whatever a journal does.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::thread::futex;

use crate::raw;
use crate::series::Series;

#[derive(Default)]
struct Gathering {
    bytes: Vec<u8>,
    /// What those in it wait for.
    done: Arc<AtomicU32>,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    gathering: Mutex<Gathering>,
    work: Condvar,
}

/// Threads that commit `bytes` each, one at a time, into a file of `file_bytes` that was written before.
pub fn run(
    dir: &Path,
    threads: usize,
    bytes: usize,
    file_bytes: usize,
    limit: Duration,
) -> io::Result<Series> {
    let path = raw::zeros(dir, file_bytes)?;
    let file = OpenOptions::new().write(true).open(path)?;
    let shared = Shared::default();
    let chunk = raw::noise(bytes);
    let started = Instant::now();
    let commits = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&shared, &file, file_bytes));
        let commit = || produce(&shared, &chunk, started, limit);
        let producers: Vec<_> = (0..threads).map(|_| scope.spawn(commit)).collect();
        let mut all = Series::default();
        for producer in producers {
            all.append(producer.join().unwrap_or_default());
        }
        all.took = started.elapsed();
        shared.gathering.lock().is_over = true;
        shared.work.notify_one();
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked"))).map(|()| all)
    })?;
    Ok(commits)
}

fn produce(shared: &Shared, chunk: &[u8], started: Instant, limit: Duration) -> Series {
    let mut series = Series::default();
    while started.elapsed() < limit {
        let before = Instant::now();
        let done = {
            let mut gathering = shared.gathering.lock();
            gathering.bytes.extend_from_slice(chunk);
            gathering.done.clone()
        };
        shared.work.notify_one();
        while done.load(Ordering::Acquire) == 0 {
            // Whatever it answers, it looks again.
            futex::wait(&done, futex::Flags::PRIVATE, 0, None).ok();
        }
        series.add(before.elapsed(), chunk.len());
    }
    series
}

fn write(shared: &Shared, file: &std::fs::File, file_bytes: usize) -> io::Result<()> {
    let (mut bytes, mut offset) = (Vec::new(), 0);
    let mut outcome = Ok(());
    loop {
        let done = {
            let mut gathering = shared.gathering.lock();
            while gathering.bytes.is_empty() && !gathering.is_over {
                shared.work.wait(&mut gathering);
            }
            if gathering.bytes.is_empty() {
                return outcome;
            }
            std::mem::swap(&mut gathering.bytes, &mut bytes);
            std::mem::take(&mut gathering.done)
        };
        if offset + bytes.len() > file_bytes {
            offset = 0;
        }
        // After an error the threads only come to their end.
        if outcome.is_ok() {
            outcome = file.write_all_at(&bytes, offset as u64).and_then(|()| file.sync_data());
        }
        offset += bytes.len();
        bytes.clear();
        done.store(1, Ordering::Release);
        futex::wake(&done, futex::Flags::PRIVATE, i32::MAX as u32)?;
    }
}
