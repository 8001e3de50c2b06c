//! Places between the steps of a delivery at which a test may kill the process (`docs/faults.md`).

use flumen_journal::faults::{self, Point, point};

/// Before the names of this sink's points.
pub const PLACE: &str = "kafka-sink";

/// All of them. Steps of brokers are refused by killing brokers: here nothing is refused.
pub const POINTS: &[Point] = &[
    point("start.taken-over", "the transactional ids are ours, and what was open of them is aborted"),
    point("start.claimed", "a record names this process as the one that delivers"),
    point("transaction.begun", "a transaction is begun; no broker knows of it"),
    point("records.handed-over", "a batch is handed to the client; some of it may be at the brokers"),
    point("records.acknowledged", "the brokers have everything since the last commit"),
    point(
        "refusal.taken-back",
        "a broker has refused a record, the transaction is aborted, and nothing of it is sent again",
    ),
    point("offsets.sent", "the acknowledgement of a Kafka channel is in the transaction"),
    point("progress.handed-over", "how far the sink is, is handed to the client"),
    point("progress.acknowledged", "the brokers have it, and the transaction is open"),
    point(
        "transaction.committed",
        "the transaction of a lane counts; nothing of it is acknowledged in the journal",
    ),
];

pub(super) fn passed(name: &str) {
    faults::passed(PLACE, name);
}
