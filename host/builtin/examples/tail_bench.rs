//! What the tail source costs per event, without a journal: reading and splitting one large file.
//!
//! `cargo run --release -p flumen-builtin --example tail_bench [lines] [idle files]`

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flumen_builtin::sources::sources;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::source::{Emit, Wake};
use flumen_pipeline::{
    ComponentKind, ComponentMetrics, Emission, Metric, Options, Progress, SourceContext, Stopped, Value,
};

struct Count(Arc<AtomicU64>, Wake, u64);

impl Emit for Count {
    fn emit(&mut self, emission: Emission) -> Result<(), Stopped> {
        let rows =
            self.0.fetch_add(emission.batch.rows() as u64, Ordering::Relaxed) + emission.batch.rows() as u64;
        if rows >= self.2 {
            self.1.stop();
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        Progress { emitted: 0, durable: 0 }
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        Ok(())
    }

    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        Vec::new()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let lines = args.next().transpose()?.unwrap_or(2_000_000);
    let idle = args.next().transpose()?.unwrap_or(0);
    let root = std::env::temp_dir().join(format!("tail-bench-{}", std::process::id()));
    std::fs::create_dir(&root)?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(root.join("a.log"))?);
    for n in 0..lines {
        writeln!(
            file,
            "10.0.0.1 - - [10/Oct/2026:13:55:36 +0000] \"GET /item/{n:08} HTTP/1.1\" 200 2326 \"-\" \"Mozilla/5.0 (X11; Linux x86_64) Firefox/1\""
        )?;
    }
    file.flush()?;
    for n in 0..idle {
        std::fs::write(root.join(format!("idle{n}.log")), "")?;
    }
    let bytes = std::fs::metadata(root.join("a.log"))?.len();

    let source = sources().into_iter().find(|source| source.spec.kind == "tail").ok_or("no tail")?;
    let s = |ms| Value::Duration(Duration::from_millis(ms));
    let text = |text: &str| Value::Text(text.to_owned());
    let options = BTreeMap::from([
        ("paths", Value::TextList(vec![root.join("*.log").display().to_string()])),
        ("start", text("beginning")),
        ("file_header", Value::Bool(true)),
        ("max_line", Value::Size(1 << 20)),
        ("long_lines", text("split")),
        ("multiline_timeout", s(5_000)),
        ("last_line_timeout", s(5_000)),
        ("poll_interval", s(250)),
        ("rescan_interval", s(1_000)),
        ("max_open_files", Value::Integer(1_024)),
        ("close_idle_after", s(60_000)),
    ]);
    let options = Options(options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    let metrics = ComponentMetrics::new(ComponentKind::Source, "bench".into());
    let (count, wake) = (Arc::new(AtomicU64::new(0)), Wake::default());
    // With idle files the run goes on after the last line, to see what doing nothing costs.
    let until = if idle == 0 { lines } else { u64::MAX };
    let emit = Box::new(Count(count.clone(), wake.clone(), until));
    let mut context =
        SourceContext::new("bench".into(), BatchPlan::default(), metrics.clone(), wake.clone(), emit);
    let mut source = (source.build)(&options)?;
    let started = Instant::now();
    let thread = std::thread::spawn(move || source.run(&mut context).is_ok());
    if idle > 0 {
        while count.load(Ordering::Relaxed) < lines {
            std::thread::yield_now();
        }
        let before = cpu()?;
        std::thread::sleep(Duration::from_secs(10));
        println!("{idle} idle files: {:.2} % of a core", (cpu()? - before) * 10.0);
        wake.stop();
    }
    thread.join().map_err(|_| "the source panicked")?;
    let elapsed = started.elapsed();
    let per = |metric| metrics.get(metric) as f64 / lines as f64;
    println!(
        "{lines} lines, {} bytes each: read {:.1} ns/event, split {:.1} ns/event, wall {:.1} ns/event, {:.0} MB/s",
        bytes / lines.max(1),
        per(Metric::SourceReadNs),
        per(Metric::SourceSplitNs),
        elapsed.as_nanos() as f64 / lines as f64,
        bytes as f64 / 1e6 / elapsed.as_secs_f64(),
    );
    std::fs::remove_dir_all(root)?;
    Ok(())
}

/// Processor seconds of this process.
fn cpu() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.split(' ').collect();
    let ticks: u64 =
        fields.get(13).ok_or("utime")?.parse::<u64>()? + fields.get(14).ok_or("stime")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
