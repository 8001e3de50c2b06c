//! The agent's own log: standard error, for people or as JSON, repeats limited.
//!
//! Log data never goes in here: messages carry counts, names, paths and reasons.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::exit::Failure;

/// Messages from one place of the code that go out within [`WINDOW`]; a broken disk says the same
/// thing thousands of times, and the log must not fill another.
const REPEATS_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Options of the log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Form of the agent's own log on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// Least level that is logged: error, warn, info, debug, trace, or a filter such as `info,flumen_journal=debug`.
    #[arg(long, global = true)]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Sets the log up, once per process.
pub fn init(args: &LogArgs, default_level: &str) -> Result<Repeats, Failure> {
    let level = args.log_level.as_deref().unwrap_or(default_level);
    let filter = EnvFilter::try_new(level)
        .map_err(|error| anyhow::anyhow!("--log-level {level:?}: {error}; try info or debug"))?;
    let repeats = Repeats::default();
    let registry = tracing_subscriber::registry().with(filter).with(repeats.clone());
    match args.log_format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Human => {
            let color = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_target(false).with_ansi(color).with_writer(std::io::stderr))
                .try_init()
        }
    }
    .map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))?;
    Ok(repeats)
}

/// Counts messages by the place that they come from, and lets only so many through.
#[derive(Clone, Default)]
pub struct Repeats(Arc<Mutex<HashMap<Identifier, Window>>>);

struct Window {
    since: Instant,
    messages: u32,
    place: &'static Metadata<'static>,
}

impl Repeats {
    /// Logs what was left out in windows that have ended. Called from time to time.
    pub fn report(&self) {
        let mut ended = Vec::new();
        self.0.lock().retain(|_, window| {
            let over = window.since.elapsed() >= WINDOW;
            if over && window.messages > REPEATS_MAX {
                ended.push((window.messages - REPEATS_MAX, window.place));
            }
            !over
        });
        for (left_out, place) in ended {
            let at = format!("{}:{}", place.target(), place.line().unwrap_or(0));
            tracing::warn!(left_out, at, "messages from one place were left out of the log");
        }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let place = event.metadata();
        let mut windows = self.0.lock();
        let fresh = || Window { since: Instant::now(), messages: 0, place };
        let window = windows.entry(place.callsite()).or_insert_with(fresh);
        if window.since.elapsed() >= WINDOW && window.messages <= REPEATS_MAX {
            *window = fresh();
        }
        window.messages = window.messages.saturating_add(1);
        window.messages <= REPEATS_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts the events that reach it.
    struct Count(Arc<AtomicU32>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn repeats_from_one_place_are_limited_and_other_places_are_not() {
        let (written, repeats) = (Arc::new(AtomicU32::new(0)), Repeats::default());
        let subscriber = tracing_subscriber::registry().with(repeats.clone()).with(Count(written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..REPEATS_MAX * 50 {
                tracing::error!("the disk is broken");
            }
            assert_eq!(written.load(Ordering::Relaxed), REPEATS_MAX);
            tracing::error!("something else");
            assert_eq!(written.load(Ordering::Relaxed), REPEATS_MAX + 1);
        });
        let left_out: u32 = repeats.0.lock().values().map(|w| w.messages.saturating_sub(REPEATS_MAX)).sum();
        assert_eq!(left_out, REPEATS_MAX * 49, "what is left out is counted");
    }
}
