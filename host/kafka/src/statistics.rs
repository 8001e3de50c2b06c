//! librdkafka's statistics as gauges of a component: per broker latency, queue and retries, and what waits.
//!
//! Names: `kafka/out_queue_events`, `kafka/out_queue_bytes`, and per broker
//! `kafka/HOST:PORT/{rtt_p99_us,requests_waiting,requests_in_flight,retries,errors,sent_bytes,received_bytes}`.

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
    gauges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named_and_foreign_bytes_are_nothing() {
        let report = r#"{"msg_cnt":3,"msg_size":300,"brokers":{"k1:9092/1":{"nodeid":1,"nodename":"k1:9092","source":"learned","rtt":{"p99":512},"txretries":2,"outbuf_cnt":-1},"boot":{"nodeid":-1,"nodename":"k1:9092"},"GroupCoordinator":{"nodeid":1,"nodename":"k1:9092","source":"logical"}}}"#;
        let gauges = gauges(&serde_json::from_str(report).unwrap());
        assert_eq!(gauges.len(), 9);
        assert!(gauges.contains(&("kafka/k1:9092/rtt_p99_us".into(), 512)));
        assert!(gauges.contains(&("kafka/k1:9092/requests_waiting".into(), 0)));
        let metrics = ComponentMetrics::new(flumen_pipeline::ComponentKind::Sink, "s".into());
        publish(b"\xff{", &metrics);
        assert!(metrics.gauges().is_empty());
    }
}
