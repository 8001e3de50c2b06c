//! librdkafka's statistics as gauges of a component: per broker latency, queue and retries, and what waits.
//!
//! Names: `kafka/out_queue_events`, `kafka/out_queue_bytes`, and per broker
//! `kafka/HOST:PORT/{rtt_p99_us,requests_waiting,requests_in_flight,retries,errors,sent_bytes,received_bytes}`.
//! Of a consumer, for each partition that it reads: `kafka/TOPIC/PARTITION/lag`, records that can be read and were not
//! (an upper bound: compaction and markers of transactions leave gaps in the numbers).

use flumen_pipeline::ComponentMetrics;
use serde_json::Value;

const PREFIX: &str = "kafka/";

/// Replaces the component's gauges by what a statistics report says. Not understood: left as it was.
pub fn publish(json: &[u8], metrics: &ComponentMetrics) {
    let Ok(report) = serde_json::from_slice::<Value>(json) else { return };
    metrics.set_gauges(PREFIX, gauges(&report));
}

fn gauges(report: &Value) -> Vec<(String, u64)> {
    let number = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0).max(0).unsigned_abs()
    };
    let mut gauges = vec![
        (format!("{PREFIX}out_queue_events"), number(report, "/msg_cnt")),
        (format!("{PREFIX}out_queue_bytes"), number(report, "/msg_size")),
    ];
    let brokers = report.get("brokers").and_then(Value::as_object);
    // Brokers of the bootstrap list and coordinators are listed besides, without a node id.
    let named = brokers
        .into_iter()
        .flatten()
        .filter(|(_, b)| b.get("nodeid").and_then(Value::as_i64).is_some_and(|id| id >= 0));
    for (_, broker) in named.filter(|(_, b)| b.get("source").and_then(Value::as_str) != Some("logical")) {
        let Some(name) = broker.get("nodename").and_then(Value::as_str).filter(|name| !name.is_empty())
        else {
            continue;
        };
        for (metric, pointer) in [
            ("rtt_p99_us", "/rtt/p99"),
            ("requests_waiting", "/outbuf_cnt"),
            ("requests_in_flight", "/waitresp_cnt"),
            ("retries", "/txretries"),
            ("errors", "/txerrs"),
            ("sent_bytes", "/txbytes"),
            ("received_bytes", "/rxbytes"),
        ] {
            gauges.push((format!("{PREFIX}{name}/{metric}"), number(broker, pointer)));
        }
    }
    lags(report, &mut gauges);
    gauges
}

fn lags(report: &Value, gauges: &mut Vec<(String, u64)>) {
    let topics = report.get("topics").and_then(Value::as_object);
    for (topic, of) in topics.into_iter().flatten() {
        let partitions = of.get("partitions").and_then(Value::as_object);
        for (number, partition) in partitions.into_iter().flatten() {
            let get = |name: &str| partition.get(name).and_then(Value::as_i64).filter(|offset| *offset >= 0);
            let is_read = partition.get("fetch_state").and_then(Value::as_str) == Some("active");
            let (true, Some(end), Some(fetched)) = (is_read, get("ls_offset"), get("next_offset")) else {
                continue;
            };
            let waiting = get("fetchq_cnt").unwrap_or(0);
            // What the broker handed out to the very end is read, whatever numbers the markers took.
            let lag = match (end - fetched).max(0) {
                0 => waiting,
                behind => get("app_offset").map_or(behind + waiting, |read| end - read),
            };
            gauges.push((format!("{PREFIX}{topic}/{number}/lag"), lag.max(0).unsigned_abs()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named() {
        let report = r#"{"msg_cnt":3,"msg_size":300,"brokers":{"k1:9092/1":{"nodeid":1,"nodename":"k1:9092","source":"learned","rtt":{"p99":512},"txretries":2,"outbuf_cnt":-1},"boot":{"nodeid":-1,"nodename":"k1:9092"},"GroupCoordinator":{"nodeid":1,"nodename":"k1:9092","source":"logical"}}}"#;
        let gauges = gauges(&serde_json::from_str(report).unwrap());
        assert_eq!(gauges.len(), 9);
        assert!(gauges.contains(&("kafka/k1:9092/rtt_p99_us".into(), 512)));
        assert!(gauges.contains(&("kafka/k1:9092/requests_waiting".into(), 0)));
        let partition = |fetched: i64, queued: i64, state: &str| serde_json::json!({"fetch_state": state, "ls_offset": 100, "next_offset": fetched, "fetchq_cnt": queued, "app_offset": 40});
        let report = serde_json::json!({"topics": {"t": {"partitions": {
            "0": partition(100, 0, "active"), "1": partition(100, 7, "active"), "2": partition(60, 7, "active"),
            "-1": {"fetch_state": "none"}, "3": partition(60, 0, "stopped")}}}});
        let mut lag = Vec::new();
        lags(&report, &mut lag);
        let expected = [("kafka/t/0/lag", 0), ("kafka/t/1/lag", 7), ("kafka/t/2/lag", 60)];
        lag.sort();
        assert_eq!(lag, expected.map(|(name, value)| (name.to_string(), value)));
    }

    /// Recorded of the sink `kafka` while it delivered (librdkafka 2.12.1, one broker that also coordinates).
    #[test]
    fn a_real_report_is_understood() {
        let gauges = gauges(&serde_json::from_str(include_str!("statistics_test.json")).unwrap());
        let of = |name: &str| gauges.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!((of("kafka/out_queue_events"), of("kafka/out_queue_bytes")), (42, 5376));
        assert_eq!(of("kafka/127.0.0.1:23150/rtt_p99_us"), 74_751);
        assert_eq!(of("kafka/127.0.0.1:23150/retries"), 0);
        assert!(of("kafka/127.0.0.1:23150/sent_bytes") > 0 && of("kafka/127.0.0.1:23150/received_bytes") > 0);
        assert_eq!(gauges.len(), 9, "the coordinator is the same broker: {gauges:?}");
    }

    #[test]
    fn bytes_that_are_no_report_change_nothing() {
        let metrics = ComponentMetrics::new(flumen_pipeline::ComponentKind::Sink, "s".into());
        publish(b"\xff{", &metrics);
        assert!(metrics.gauges().is_empty());
    }
}
