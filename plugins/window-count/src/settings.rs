//! The configuration, and what follows from it.

use flumen_sdk::aggregate::Events;
use flumen_sdk::config::duration;
use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{self, json};

use crate::aggregate::Aggregate;

/// Values of the top list that are kept, for each one that is shown: counts are exact up to so many different values.
const TOP_KEPT_TIMES: usize = 20;

/// Windows that one event may be in.
const WINDOWS_MAX: i64 = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    window: String,
    slide: Option<String>,
    #[serde(default)]
    by: Vec<String>,
    #[serde(default)]
    sum: Vec<String>,
    top: Option<Top>,
    #[serde(default = "no_time")]
    lateness: String,
    #[serde(default)]
    late: Late,
    #[serde(default = "one_minute")]
    idle: String,
    #[serde(default)]
    pass: bool,
}

fn no_time() -> String {
    "0s".to_owned()
}

fn one_minute() -> String {
    "1m".to_owned()
}

/// What becomes of late events.
#[derive(Default, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// They go to quarantine.
    #[default]
    Reject,
    /// They are counted nowhere.
    Ignore,
}

/// The most frequent values of a header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    header: String,
    #[serde(default = "ten")]
    count: usize,
}

fn ten() -> usize {
    10
}

/// The configuration.
pub struct Settings {
    window_ns: i64,
    slide_ns: i64,
    /// Headers of the key; their columns come first.
    pub by: Vec<String>,
    sum: Vec<String>,
    top: Option<Top>,
    /// How far an event's time may be behind.
    pub lateness_ns: i64,
    /// What becomes of late events.
    pub late: Late,
    /// Without events for so long, the clock closes windows.
    pub idle_ns: i64,
    /// The events go on, too.
    pub pass: bool,
}

impl Settings {
    /// Reads the configuration.
    pub fn read(config: &Config) -> Result<Settings, String> {
        let given: Given = config.parse()?;
        let window_ns = time("window", &given.window)?;
        let slide_ns = given.slide.as_deref().map_or(Ok(window_ns), |slide| time("slide", slide))?;
        if window_ns == 0 || slide_ns == 0 {
            return Err("config.window: a window has a length, such as \"1m\"".to_owned());
        }
        if slide_ns > window_ns || window_ns / slide_ns > WINDOWS_MAX {
            return Err(format!(
                "config.slide: {} is not between the window and a {WINDOWS_MAX}th of it",
                given.slide.unwrap_or_default()
            ));
        }
        if given.top.as_ref().is_some_and(|top| !(1..=100).contains(&top.count)) {
            return Err("config.top.count: write a number from 1 to 100".to_owned());
        }
        Ok(Settings {
            window_ns,
            slide_ns,
            by: given.by,
            sum: given.sum,
            top: given.top,
            lateness_ns: time("lateness", &given.lateness)?,
            late: given.late,
            idle_ns: time("idle", &given.idle)?,
            pass: given.pass,
        })
    }

    /// The headers that are read: of the key, to sum, of the top list. One that is named twice is read twice.
    pub fn headers(&self) -> impl Iterator<Item = &String> {
        self.by.iter().chain(&self.sum).chain(self.top.iter().map(|top| &top.header))
    }

    /// A tick for each tenth of a window, not more often than ten times a second.
    pub fn tick_ms(&self) -> u32 {
        (self.slide_ns / 10_000_000).clamp(100, 10_000) as u32
    }

    /// Ends of the windows that a time is in.
    pub fn ends(&self, time: i64) -> impl Iterator<Item = i64> {
        let first =
            time.div_euclid(self.slide_ns).saturating_mul(self.slide_ns).saturating_add(self.slide_ns);
        let last = time.saturating_add(self.window_ns);
        let slide_ns = self.slide_ns;
        let next = move |end: &i64| end.checked_add(slide_ns);
        std::iter::successors(Some(first), next).take_while(move |end| *end <= last)
    }

    /// Bytes of each value of the key.
    pub fn key_bytes_max(&self) -> usize {
        900 / self.by.len().max(1)
    }

    /// How many values of the top list are kept.
    pub fn top_kept(&self) -> usize {
        self.top.as_ref().map(|top| top.count * TOP_KEPT_TIMES).unwrap_or_default()
    }

    /// The numbers of a row that are summed.
    pub fn numbers<'a>(&'a self, batch: &'a BatchView, row: usize) -> impl Iterator<Item = f64> + 'a {
        self.sum.iter().map(move |name| {
            let value = self.column(batch, name).and_then(|header| header.get_str(row));
            value
                .and_then(|text| text.trim().parse().ok())
                .filter(|number: &f64| number.is_finite())
                .unwrap_or(0.0)
        })
    }

    /// The row's value for the top list.
    pub fn top_value<'a>(&self, batch: &'a BatchView, row: usize) -> Option<&'a [u8]> {
        let top = self.top.as_ref()?;
        self.column(batch, &top.header)?.get(row)
    }

    fn column<'a>(&self, batch: &'a BatchView, name: &str) -> Option<HeaderColumn<'a>> {
        batch.headers().find(|header| header.name() == name)
    }

    /// The event of a window that closed.
    pub fn emit(&self, events: &mut Events, end: i64, values: &[&[u8]], aggregate: &Aggregate) {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let key: Vec<(&str, String)> =
            self.by.iter().map(String::as_str).zip(values.iter().map(|value| text(value))).collect();
        let mut body = json!({
            "start_ms": end.saturating_sub(self.window_ns).div_euclid(1_000_000),
            "end_ms": end.div_euclid(1_000_000),
            "count": aggregate.count,
        });
        if let Some(object) = body.as_object_mut() {
            if !key.is_empty() {
                let key = key.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into()));
                object.insert("key".to_owned(), serde_json::Value::Object(key.collect()));
            }
            if !self.sum.is_empty() {
                let sums = self.sum.iter().zip(&aggregate.sums).map(|(name, sum)| (name.clone(), json!(sum)));
                object.insert("sum".to_owned(), serde_json::Value::Object(sums.collect()));
            }
            if let Some(top) = &self.top {
                let list =
                    aggregate.top(top.count).into_iter().map(|(value, count)| json!([text(value), count]));
                object.insert("top".to_owned(), serde_json::Value::Array(list.collect()));
            }
        }
        let mut headers = vec![("aggregate", "window-count")];
        headers.extend(key.iter().map(|(name, value)| (*name, value.as_str())));
        events.push(end, body.to_string().as_bytes(), &headers);
    }
}

fn time(key: &str, text: &str) -> Result<i64, String> {
    let parsed = duration(text).and_then(|time| i64::try_from(time.as_nanos()).ok());
    parsed.ok_or_else(|| {
        format!("config.{key}: `{text}` is not a time; write a number with ms, s, m, h or d, such as \"1m\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: &str) -> Result<Settings, String> {
        Settings::read(&Config::new(config))
    }

    #[test]
    fn a_time_is_in_its_windows() {
        let ends = |config: &str, time| settings(config).unwrap().ends(time).collect::<Vec<_>>();
        let s = 1_000_000_000;
        assert_eq!(ends(r#"{"window":"10s"}"#, 25 * s), [30 * s]);
        assert_eq!(ends(r#"{"window":"10s"}"#, 30 * s), [40 * s]);
        assert_eq!(ends(r#"{"window":"10s"}"#, -1), [0]);
        assert_eq!(ends(r#"{"window":"10s","slide":"5s"}"#, 25 * s), [30 * s, 35 * s]);
        assert_eq!(ends(r#"{"window":"10s","slide":"4s"}"#, 25 * s), [28 * s, 32 * s]);
        assert_eq!(ends(r#"{"window":"10s"}"#, i64::MAX).len(), 1);
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| settings(config).map(|_| ()).unwrap_err();
        assert!(error("{}").contains("`window` is missing"));
        assert!(error(r#"{"window":"1x"}"#).starts_with("config.window: `1x` is not a time"));
        assert!(error(r#"{"window":"0s"}"#).starts_with("config.window: a window has a length"));
        assert!(error(r#"{"window":"1m","slide":"2m"}"#).starts_with("config.slide: 2m"));
        assert!(error(r#"{"window":"1m","top":{"header":"a","count":0}}"#).starts_with("config.top.count"));
    }
}
