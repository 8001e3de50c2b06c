//! Which topic, partition and lane a row goes to.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

use arrow_array::{Array, StringArray};
use flumen_event::Batch;
use flumen_kafka::partition;
use flumen_kafka::rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use flumen_kafka::topics::Topics;
use flumen_kafka::words;

use super::options::{KeyOf, Partitioner, Settings};
use super::template;
use crate::sinks::limits;

/// What is known of a topic.
pub(super) struct Route {
    pub name: String,
    /// `None`: it is not there, or not ours to see.
    pub partitions: Option<i32>,
    /// The brokers do not let us see it.
    pub is_denied: bool,
    /// They let us see it, and refused a record.
    pub is_read_only: bool,
    /// `max.message.bytes`, if we may know it.
    pub record_bytes_max: Option<usize>,
    asked: Instant,
    /// The partition that `sticky` is at, and the bytes since it came there.
    sticky: (i32, u64),
    next: u32,
}

/// Topics that were met, by name.
#[derive(Default)]
pub(super) struct Routes {
    routes: Vec<Route>,
    by_name: HashMap<String, usize>,
}

impl Routes {
    /// Forgets all, if they are too many. Between two transactions only: rows hold numbers of routes.
    pub fn trim(&mut self) -> bool {
        let is_full = self.routes.len() > limits::TOPICS_KNOWN_MAX;
        if is_full {
            *self = Routes::default();
        }
        is_full
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut Route> {
        self.routes.get_mut(index)
    }

    pub fn name(&self, index: usize) -> &str {
        self.routes.get(index).map_or("", |route| &route.name)
    }

    /// The route of a topic; asks the brokers about one that is new, was missing, or was last asked for long ago.
    pub fn find(&mut self, name: &str, topics: &Topics) -> KafkaResult<usize> {
        let known = self.by_name.get(name).copied();
        let route = known.and_then(|index| Some((index, self.routes.get(index)?)));
        if let Some((index, _)) = route.filter(|(_, route)| route.asked.elapsed() < limits::TOPIC_KNOWN) {
            return Ok(index);
        }
        let asked = topics.partitions(name);
        if let (Some((index, Some(_))), Err(error)) =
            (route.map(|(index, route)| (index, route.partitions)), &asked)
        {
            // What is known goes on to count: the producers find out themselves what is wrong.
            tracing::debug!(topic = name, %error, "the topic could not be asked for again");
            self.routes.iter_mut().skip(index).take(1).for_each(|route| route.asked = Instant::now());
            return Ok(index);
        }
        let is_denied = |error: &KafkaError| words::code(error) == Some(Code::TopicAuthorizationFailed);
        let (partitions, is_denied) = match asked {
            // Remembered like one that is not there: a template may come to it again with each row.
            Err(error) if is_denied(&error) => (None, true),
            asked => (asked?, false),
        };
        let index = known.unwrap_or(self.routes.len());
        if known.is_none() {
            self.routes.push(Route::new(name));
            self.by_name.insert(name.to_owned(), index);
        }
        if let Some(route) = self.routes.get_mut(index) {
            (route.asked, route.partitions, route.is_denied) = (Instant::now(), partitions, is_denied);
            // That is found out by writing alone.
            route.is_read_only = false;
            if partitions.is_some() && route.record_bytes_max.is_none() {
                match topics.limits(name) {
                    Ok(limits) => route.record_bytes_max = limits.record_bytes_max,
                    Err(error) => {
                        tracing::debug!(topic = name, %error, "the limits of a topic are not known")
                    }
                }
            }
        }
        Ok(index)
    }

    /// The brokers did not let us write a topic that is there. True: that is new.
    pub fn refuse(&mut self, name: &str) -> bool {
        let index = self.by_name.get(name).copied();
        let route = index.and_then(|index| self.routes.get_mut(index));
        let Some(route) = route.filter(|route| route.is_open()) else { return false };
        (route.is_read_only, route.asked) = (true, Instant::now());
        true
    }

    /// `max.message.bytes` of a topic, as far as it is known.
    pub fn known_limit(&self, name: &str) -> Option<usize> {
        self.routes.get(*self.by_name.get(name)?)?.record_bytes_max
    }

    /// Asks again at once.
    pub fn forget(&mut self) {
        self.routes.clear();
        self.by_name.clear();
    }
}

impl Route {
    fn new(name: &str) -> Route {
        Route {
            name: name.to_owned(),
            partitions: None,
            is_denied: false,
            is_read_only: false,
            record_bytes_max: None,
            asked: Instant::now(),
            sticky: (any_partition(), 0),
            next: random() as u32,
        }
    }

    /// As far as is known, records may go there.
    pub fn is_open(&self) -> bool {
        self.partitions.is_some() && !self.is_read_only
    }

    /// The partition of a row; `bytes` are its value's and its key's: what librdkafka fills a batch by. An error is a
    /// reason for quarantine.
    pub fn partition(
        &mut self,
        how: &Partitioner,
        key: Option<&[u8]>,
        header: Option<&str>,
        bytes: u64,
        batch_bytes: u64,
    ) -> Result<i32, String> {
        let count = self.partitions.unwrap_or(1).max(1);
        match (how, key, header) {
            (Partitioner::Header(name), _, Some(text)) => {
                let number = text.trim().parse::<i32>().ok().filter(|number| (0..count).contains(number));
                number.ok_or_else(|| {
                    format!(
                        "header {name:?} is {text:?}, which is not a partition of topic {:?}: 0 to {}",
                        self.name,
                        count - 1
                    )
                })
            }
            (Partitioner::Fixed(number), ..) => Ok(*number),
            (Partitioner::RoundRobin, ..) => {
                self.next = self.next.wrapping_add(1);
                Ok((self.next % count.unsigned_abs()) as i32)
            }
            (Partitioner::Murmur2 | Partitioner::Header(_), Some(key), _) => {
                Ok(partition::of_key(key, count))
            }
            _ => {
                let (at, so_far) = &mut self.sticky;
                if *so_far >= batch_bytes {
                    // Not the next one: all agents would walk in step. Nor the same again: of an idempotent producer
                    // librdkafka has one request to a partition under way, and what follows waits for its answer.
                    *at = *at % count + 1 + any_partition() % (count - 1).max(1);
                    *so_far = 0;
                }
                *so_far += bytes;
                Ok(*at % count)
            }
        }
    }
}

/// A number that the standard library makes anew for each hash table.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn any_partition() -> i32 {
    (random() >> 33) as i32
}

/// The topic of each row of a batch.
pub(super) struct TopicNames<'a> {
    settings: &'a Settings,
    columns: Vec<Option<&'a StringArray>>,
    name: String,
}

impl<'a> TopicNames<'a> {
    pub fn new(settings: &'a Settings, batch: &'a Batch) -> TopicNames<'a> {
        let columns = settings.topic.columns(batch);
        let name = settings.topic.plain().unwrap_or_default().to_owned();
        TopicNames { settings, columns, name }
    }

    /// The topic of a row; an error is why it may not go to its own.
    pub fn of(&mut self, row: usize) -> Result<&str, String> {
        if self.settings.topic.plain().is_some() {
            return Ok(&self.name);
        }
        self.settings.topic.render(&self.columns, row, &mut self.name);
        if !template::is_legal(&self.name) {
            return Err(format!("{:?} is not a legal name of a topic", self.name));
        }
        if !self.settings.topics.is_match(&self.name) {
            return Err(format!("topic {:?} is not in `topics`", self.name));
        }
        Ok(&self.name)
    }
}

/// Which lane of `lanes` a row goes to: always the same for the same row.
pub(super) struct LaneOf<'a> {
    batch: &'a Batch,
    key: Option<&'a StringArray>,
    lanes: u64,
}

impl<'a> LaneOf<'a> {
    pub fn new(settings: &Settings, batch: &'a Batch, lanes: usize) -> LaneOf<'a> {
        let key = match &settings.key {
            KeyOf::Header(name) => batch.header(name),
            _ => None,
        };
        LaneOf { batch, key, lanes: lanes.max(1) as u64 }
    }

    pub fn row(&self, row: usize) -> usize {
        if self.lanes == 1 {
            return 0;
        }
        let hash = match self.key.filter(|key| key.is_valid(row)) {
            Some(key) => u64::from(partition::murmur2(key.value(row).as_bytes())),
            // A MiB of a file stays together, so that its order is kept there.
            None => self.batch.stream().value(row) ^ (self.batch.position().value(row) >> 20),
        };
        // Mixed (MurmurHash3's finalizer): neither streams nor keys must leave lanes empty, nor go along with partitions.
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        ((hash ^ (hash >> 33)) % self.lanes) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::kafka::options::tests::settings;
    use flumen_event::{BatchBuilder, HeaderColumn};
    use flumen_kafka::rdkafka::bindings::rd_kafka_resp_err_t as RespErr;
    use flumen_kafka::rdkafka::mocking::MockCluster;
    use flumen_pipeline::{Options, Value};
    use std::sync::Arc;

    fn route(partitions: i32) -> Route {
        Route { partitions: Some(partitions), sticky: (4, 0), next: 0, ..Route::new("t") }
    }

    #[test]
    fn partitions_by_each_rule() {
        let mut route = route(3);
        let mut at = |how: &Partitioner, key: Option<&str>, header: Option<&str>| {
            route.partition(how, key.map(str::as_bytes), header, 10, 20)
        };
        assert_eq!(at(&Partitioner::Fixed(2), Some("k"), None), Ok(2));
        let rounds: Vec<_> = (0..4).map(|_| at(&Partitioner::RoundRobin, None, None).unwrap()).collect();
        assert_eq!(rounds, [1, 2, 0, 1]);
        assert_eq!(at(&Partitioner::Murmur2, Some("k"), None), Ok(partition::of_key(b"k", 3)));
        let by_header = Partitioner::Header("p".into());
        assert_eq!(at(&by_header, None, Some("2")), Ok(2));
        assert!(at(&by_header, None, Some("3")).unwrap_err().contains("0 to 2"));
        assert!(at(&by_header, None, Some("x")).is_err());
        assert_eq!(at(&by_header, Some("k"), None), Ok(partition::of_key(b"k", 3)));
        // Two rows fill the first partition's bytes.
        assert_eq!(at(&Partitioner::Sticky, Some("k"), None), Ok(1));
        assert_eq!(at(&Partitioner::Murmur2, None, None), Ok(1));
        assert_eq!(route.sticky.1, 20);
        // Then it is another one's turn, never the same again unless there is only one; all have turns.
        let turns: Vec<i32> =
            (0..200).map(|_| route.partition(&Partitioner::Sticky, None, None, 20, 20).unwrap()).collect();
        assert!(turns[0] != 1 && turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
        assert!((0..3).all(|partition| turns.contains(&partition)), "{turns:?}");
        route.partitions = Some(1);
        assert!((0..4).all(|_| route.partition(&Partitioner::Sticky, None, None, 20, 20) == Ok(0)));
    }

    /// On librdkafka's own mock of a broker.
    #[test]
    fn a_topic_that_we_may_not_see_is_known_as_such() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("seen", 2, 1).unwrap();
        cluster.topic_error("hidden", RespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
        let brokers = Value::TextList(vec![cluster.bootstrap_servers()]);
        let options = Options([("brokers".to_owned(), brokers)].into());
        let client = Arc::new(flumen_kafka::Settings::from_options(&options).unwrap());
        let topics = Topics::new("test", &client).unwrap();
        let mut routes = Routes::default();
        let mut find = |name: &str| {
            let index = routes.find(name, &topics).unwrap();
            routes.get_mut(index).map(|route| (route.partitions, route.is_denied))
        };
        assert_eq!(find("hidden"), Some((None, true)));
        assert_eq!(find("seen"), Some((Some(2), false)));
        assert!(!routes.refuse("hidden") && !routes.refuse("unheard-of"), "there is nothing to refuse");
        // What was there counts on, though the brokers do not show it any more.
        cluster.topic_error("seen", RespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
        let seen = routes.find("seen", &topics).unwrap();
        let long_ago = Instant::now().checked_sub(limits::TOPIC_KNOWN * 2);
        if let (Some(route), Some(long_ago)) = (routes.get_mut(seen), long_ago) {
            route.asked = long_ago;
        }
        assert_eq!(routes.find("seen", &topics).unwrap(), seen);
        assert_eq!(
            routes.get_mut(seen).map(|route| (route.partitions, route.is_denied)),
            Some((Some(2), false))
        );
        // A record that was refused closes it, until it is asked for again.
        assert!(routes.refuse("seen") && !routes.refuse("seen"));
        let is_open = |routes: &mut Routes| routes.get_mut(seen).is_some_and(|route| route.is_open());
        assert!(!is_open(&mut routes));
        if let (Some(route), Some(long_ago)) = (routes.get_mut(seen), long_ago) {
            route.asked = long_ago;
        }
        cluster.topic_error("seen", RespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
        assert_eq!(routes.find("seen", &topics).unwrap(), seen);
        assert!(is_open(&mut routes));
    }

    #[test]
    fn lanes_are_all_used_and_keep_what_belongs_together() {
        let mut builder = BatchBuilder::default();
        (0..4_000).for_each(|row| builder.push(7, row * 2_048, 0, b"x"));
        let keys: StringArray =
            (0..4_000).map(|row| (row % 2 == 0).then(|| format!("k{}", row % 20))).collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values: keys }]).unwrap();
        let plain = settings(&[]).unwrap();
        let of = LaneOf::new(&plain, &batch, 3);
        for lane in 0..3 {
            assert!((0..4_000).any(|row| of.row(row) == lane));
        }
        assert!((0..512).all(|row| of.row(row) == of.row(0)), "one MiB is in one lane");
        let keyed = settings(&[("key", "header.host")]).unwrap();
        let of = LaneOf::new(&keyed, &batch, 3);
        assert!((0..4_000).step_by(20).all(|row| of.row(row) == of.row(0)));
        assert!((0..20).step_by(2).any(|row| of.row(row) != of.row(0)));
        assert_eq!(LaneOf::new(&keyed, &batch, 1).row(3), 0);
    }
}
