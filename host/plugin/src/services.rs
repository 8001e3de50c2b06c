//! What the host does for a plugin that was granted `log` or `metrics`: shared by all its instances and versions.
//!
//! Nothing here can fail a call: what is over a limit is counted and dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use flumen_egress::{Egress, Secret, SecretFor, Settings, SettingsError};
use flumen_pipeline::plan::{EgressPlan, PluginLimits, SecretPlan};
use parking_lot::Mutex;

use crate::failure::printable;
use crate::limits;
use crate::outside::Outside;
use crate::stats::{Counters, GuestMetric, PluginStats, bump};

/// How important a line of a plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// One plugin's services and counters.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) name: Arc<str>,
    pub(crate) counters: Counters,
    log: Mutex<Bucket>,
    metrics: Mutex<Metrics>,
    /// The way out, if there is one.
    pub(crate) egress: Option<Arc<Egress>>,
    pub(crate) egress_calls_per_batch: u32,
    /// In place of the network, for cases and trials.
    pub(crate) outside: Option<Outside>,
}

/// What a plugin counts, and how often it may.
#[derive(Debug)]
struct Metrics {
    calls: Bucket,
    values: BTreeMap<String, GuestMetric>,
}

/// A token bucket that holds one second's calls.
#[derive(Debug)]
struct Bucket {
    per_s: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(per_s: u32) -> Bucket {
        Bucket { per_s: f64::from(per_s), tokens: f64::from(per_s), filled: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.duration_since(self.filled).as_secs_f64() * self.per_s;
        self.filled = now;
        self.tokens = (self.tokens + gained).min(self.per_s.max(1.0));
        let is_allowed = self.per_s > 0.0 && self.tokens >= 1.0;
        if is_allowed {
            self.tokens -= 1.0;
        }
        is_allowed
    }
}

impl Services {
    pub(crate) fn new(name: Arc<str>, limits: &PluginLimits) -> Arc<Services> {
        let log = Mutex::new(Bucket::new(limits.log_lines_per_s));
        let calls = Bucket::new(limits.metric_calls_per_s);
        let metrics = Mutex::new(Metrics { calls, values: BTreeMap::new() });
        let counters = Counters::default();
        let (egress, outside) = (None, None);
        Arc::new(Services { name, counters, log, metrics, egress, egress_calls_per_batch: 0, outside })
    }

    /// The same with something in place of the network.
    pub(crate) fn with_outside(mut self: Arc<Self>, outside: Outside) -> Arc<Self> {
        // Nobody else has it yet.
        if let Some(services) = Arc::get_mut(&mut self) {
            services.outside = Some(outside);
        }
        self
    }

    /// The same with a way out.
    pub(crate) fn with_egress(
        mut self: Arc<Self>,
        plan: Option<&EgressPlan>,
    ) -> Result<Arc<Self>, SettingsError> {
        let Some(plan) = plan else { return Ok(self) };
        let secret = |secret: &SecretPlan| SecretFor {
            value: Secret(secret.value.0.clone()),
            hosts: secret.hosts.clone(),
        };
        let egress = Egress::new(Settings {
            allow: Some(plan.allow.clone()),
            secrets: plan.secrets.iter().map(|(name, plan)| (name.clone(), secret(plan))).collect(),
            ca: plan.ca.clone(),
            timeout: plan.timeout,
            request_bytes_max: plan.request_bytes,
            response_bytes_max: plan.response_bytes,
            connections_max: plan.connections,
        })?;
        // Nobody else has it yet.
        if let Some(services) = Arc::get_mut(&mut self) {
            services.egress = Some(egress);
            services.egress_calls_per_batch = plan.calls_per_batch;
        }
        Ok(self)
    }

    pub(crate) fn stats(&self) -> PluginStats {
        let mut stats = self.counters.snapshot(self.metrics.lock().values.clone());
        stats.egress = self.egress.as_ref().map(|egress| egress.stats());
        stats
    }

    /// True if a line may be written now. Asked before the line is read out of the guest.
    pub(crate) fn may_log(&self) -> bool {
        let is_allowed = self.log.lock().take(Instant::now());
        if !is_allowed {
            self.log_dropped();
        }
        is_allowed
    }

    pub(crate) fn log_dropped(&self) {
        bump(&self.counters.log_lines_dropped);
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        let line = printable(message, limits::LOG_LINE_BYTES_MAX);
        let plugin = &*self.name;
        match level {
            Level::Debug => tracing::debug!(target: "flumen::plugin", plugin, "{line}"),
            Level::Info => tracing::info!(target: "flumen::plugin", plugin, "{line}"),
            Level::Warn => tracing::warn!(target: "flumen::plugin", plugin, "{line}"),
            Level::Error => tracing::error!(target: "flumen::plugin", plugin, "{line}"),
        }
    }

    pub(crate) fn add(&self, counter: &str, amount: u64) {
        self.metric(counter, GuestMetric::Counter(amount), |metric| match metric {
            GuestMetric::Counter(value) => {
                *value = value.saturating_add(amount);
                true
            }
            GuestMetric::Gauge(_) => false,
        });
    }

    pub(crate) fn set(&self, gauge: &str, to: f64) {
        self.metric(gauge, GuestMetric::Gauge(to), |metric| match metric {
            GuestMetric::Gauge(value) => {
                *value = to;
                true
            }
            GuestMetric::Counter(_) => false,
        });
    }

    pub(crate) fn metric_dropped(&self) {
        bump(&self.counters.metric_calls_dropped);
    }

    fn metric(&self, name: &str, first: GuestMetric, update: impl FnOnce(&mut GuestMetric) -> bool) {
        let mut metrics = self.metrics.lock();
        let may_call = metrics.calls.take(Instant::now());
        let has_room = metrics.values.len() < limits::METRIC_NAMES_MAX;
        let is_taken = match metrics.values.get_mut(name) {
            _ if !may_call => false,
            Some(metric) => update(metric),
            None if has_room && is_metric_name(name) => {
                metrics.values.insert(name.to_owned(), first);
                true
            }
            None => false,
        };
        if !is_taken {
            self.metric_dropped();
        }
    }
}

/// `[a-z][a-z0-9_]*`, at most 64 bytes.
fn is_metric_name(name: &str) -> bool {
    name.len() <= limits::METRIC_NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_kept_over_time() {
        let start = Instant::now();
        let mut bucket = Bucket { per_s: 10.0, tokens: 10.0, filled: start };
        let lines = |bucket: &mut Bucket, at: Instant| (0..100).filter(|_| bucket.take(at)).count();
        assert_eq!(lines(&mut bucket, start), 10);
        assert_eq!(lines(&mut bucket, start + Duration::from_millis(500)), 5);
        assert_eq!(lines(&mut bucket, start + Duration::from_secs(60)), 10);
        let mut none = Bucket { per_s: 0.0, tokens: 0.0, filled: start };
        assert_eq!(lines(&mut none, start + Duration::from_secs(60)), 0);
    }

    #[test]
    fn metrics_keep_to_their_names_and_number() {
        let services = Services::new("test".into(), &PluginLimits::default());
        for name in ["", "A", "1a", "a-b", "a b", &"a".repeat(65)] {
            services.add(name, 1);
        }
        assert_eq!(services.stats().metric_calls_dropped, 6);
        (0..100).for_each(|number| services.add(&format!("n{number}"), 1));
        let stats = services.stats();
        assert_eq!(stats.guest_metrics.len(), limits::METRIC_NAMES_MAX);
        assert_eq!(stats.metric_calls_dropped, 6 + 36);
        services.add("n0", u64::MAX);
        services.set("n0", 1.5);
        let stats = services.stats();
        assert_eq!(stats.guest_metrics.get("n0"), Some(&GuestMetric::Counter(u64::MAX)));
        assert_eq!(stats.metric_calls_dropped, 6 + 36 + 1);
    }

    #[test]
    fn metrics_keep_to_their_rate() {
        let limits = PluginLimits { metric_calls_per_s: 10, ..PluginLimits::default() };
        let begun = Instant::now();
        let services = Services::new("test".into(), &limits);
        (0..1_000).for_each(|_| services.add("calls", 1));
        // Ten at once, and one more for each tenth of a second that a busy machine took.
        let most = 10 + begun.elapsed().as_millis() as u64 / 100;
        let stats = services.stats();
        let Some(GuestMetric::Counter(taken)) = stats.guest_metrics.get("calls") else { unreachable!() };
        assert!((10..=most).contains(taken) && stats.metric_calls_dropped == 1_000 - taken, "{stats:?}");
    }
}
