//! A steady load for minutes: does the delay from the event to a consumer grow?

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Arguments;
use super::agent::{self, Delivery, Variant};
use super::ground::Ground;
use super::yardstick::{AgeOf, DelayConsumer, Window};
use crate::report::step;

const EVENTS_S: u64 = 100_000;
const EVENT_BYTES: u64 = 608;
const SECONDS: u64 = 180;
/// Each line of the answer.
const WINDOW_S: u64 = 30;
/// Three minutes are 11 GB: the broker keeps the newest GB of it.
const RETENTION: [(&str, &str); 2] = [("retention.bytes", "268435456"), ("segment.bytes", "67108864")];
/// The load counts as kept up with if so much of every window's was there within a second of when it was due, and
/// the rest later. By when events came it could not be said: a transaction is half a second of load, 1.7 % of a window,
/// and falls on either side of its end.
const KEPT_UP: f64 = 0.99;
/// What the median may grow from the second window to the last one: a transaction's interval, and not more.
const GROWTH_MS: f64 = 500.0;

/// Measures.
///
/// # Errors
/// If nothing comes.
pub fn run(ground: &Ground, binary: &Path, arguments: &Arguments) -> Result<Value> {
    const TOPIC: &str = "sustained";
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let variant = Variant { delivery: Delivery::ExactlyOnce, lanes: 1 };
    ground.topic(TOPIC, &RETENTION)?;
    let source = format!("[source.in]\ntype = \"generator\"\nrate = {EVENTS_S}\nsize = {EVENT_BYTES}\n");
    let pipeline = source + &agent::sink(ground, TOPIC, variant, &arguments.sink());
    let scene = agent::scene(ground, binary, &pipeline)?;
    let name = format!("{EVENTS_S} events/s of {EVENT_BYTES} bytes, exactly once, for {seconds} s");
    let (windows, cpu, rss) = step(&name, || {
        let window_s = WINDOW_S.min(seconds);
        let consumer = DelayConsumer::start(ground, TOPIC, seconds, window_s, AgeOf::Due(EVENTS_S))?;
        let agent = scene.start_ready()?;
        let windows = consumer.windows().with_context(|| agent.log_tail())?;
        let (cpu_ns, memory) = (agent.cpu_ns()?, agent.memory()?);
        let cpu = cpu_ns as f64 / (seconds * EVENTS_S) as f64;
        agent.kill()?;
        Ok((windows, cpu, memory.peak as f64 / 1e6))
    })?;
    ground.client().delete_topic(TOPIC)?;
    let holds = holds(&windows);
    println!("\n{name}");
    let heads = ["until s", "in 1 s /s", "events/s", "p50 ms", "p99 ms", "max ms"];
    println!("{}", heads.map(|head| format!("{head:>10}")).concat());
    for (window, until) in windows.iter().zip((1..).map(|number| number * WINDOW_S.min(seconds))) {
        println!("{until:>10}{:>10.0}{}", window.in_time_events_s, row(window));
    }
    let word = if holds { "does not grow" } else { "GROWS" };
    println!("the delay {word}; the agent took {cpu:.0} ns/event and {rss:.0} MB");
    Ok(json!({
        "events_s": EVENTS_S, "event_bytes": EVENT_BYTES, "seconds": seconds, "window_s": WINDOW_S.min(seconds),
        "windows": windows, "delay_does_not_grow": holds, "cpu_ns_per_event": cpu, "peak_rss_mb": rss,
    }))
}

/// A window's figures in columns.
pub fn row(window: &Window) -> String {
    let [p50, p99, max] = [window.p50_ms, window.p99_ms, window.max_ms]
        .map(|ms| ms.map_or("-".to_owned(), |ms| format!("{ms:.0}")));
    format!("{:>10.0} {p50:>8} {p99:>8} {max:>8}", window.events_s)
}

/// The first window has the start in it. Of the others nothing may be missing, and nothing there twice.
fn holds(windows: &[Window]) -> bool {
    let keeps_up = |window: &Window| {
        let is_whole = (window.events_s - EVENTS_S as f64).abs() < 1e-3;
        is_whole && window.in_time_events_s >= EVENTS_S as f64 * KEPT_UP
    };
    let steady = windows.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(windows);
    match (steady.first(), steady.last()) {
        (Some(first), Some(last)) => {
            let grown = last.p50_ms.zip(first.p50_ms).map(|(last, first)| last - first);
            steady.iter().all(keeps_up) && grown.is_some_and(|ms| ms <= GROWTH_MS)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_is_seen() {
        let window = |in_time_events_s: f64, ms: f64| Window {
            events_s: 100e3,
            in_time_events_s,
            p50_ms: Some(ms),
            p99_ms: Some(ms),
            max_ms: Some(ms),
        };
        let good = [window(90e3, 900.0), window(100e3, 300.0), window(100e3, 320.0)];
        assert!(holds(&good));
        assert!(!holds(&[good[0], good[1], window(100e3, 900.0)]));
        assert!(!holds(&[good[0], window(80e3, 300.0), good[2]]));
        assert!(!holds(&[good[0], Window { events_s: 99_999.9, ..good[1] }, good[2]]));
        assert!(!holds(&[]));
    }
}
