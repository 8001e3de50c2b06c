//! Reads the log beside its writer: what is committed, from an offset on.

use std::time::{Duration, Instant};

use flumen_journal::log::{LogError, LogReader};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::options::LogOptions;
use crate::context::Context;
use crate::{limits, read_back};

/// See the module.
pub(super) struct KafkaLogReader {
    options: LogOptions,
    consumer: Option<BaseConsumer<Context>>,
    /// Where it is to begin; `None`: it has begun.
    seek: Option<i64>,
    /// What may have been fetched ahead is behind this offset.
    last: i64,
    /// When the last record came, or was asked for.
    heard: Instant,
}

impl KafkaLogReader {
    pub fn new(options: LogOptions) -> KafkaLogReader {
        KafkaLogReader { options, consumer: None, seek: Some(0), last: -1, heard: Instant::now() }
    }

    fn consumer(&mut self) -> Result<&BaseConsumer<Context>, String> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => {
                let (who, id) = (self.options.who(), self.options.id());
                self.options.partition(&who, &id).reader("read_committed")?
            }
        };
        if let Some(from) = self.seek.take() {
            let assigned = read_back::assign(&consumer, &self.options.topic, 0, from);
            if let Err(error) = assigned {
                self.seek = Some(from);
                return Err(consumer.context().explain(&error));
            }
        }
        let consumer: &BaseConsumer<Context> = self.consumer.insert(consumer);
        Ok(consumer)
    }
}

impl LogReader for KafkaLogReader {
    fn seek(&mut self, place: u64) {
        let from = i64::try_from(place).unwrap_or(i64::MAX);
        if from <= self.last {
            // Nothing that was fetched ahead may come first: what is behind the wanted record would mean that that one is lost.
            self.consumer = None;
        }
        (self.seek, self.last) = (Some(from), from - 1);
        self.heard = Instant::now();
    }

    fn next(&mut self, wait: Duration) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let heard = self.heard;
        let consumer = self.consumer()?;
        let found = match consumer.poll(wait) {
            Some(Ok(message)) => {
                consumer.context().works();
                let place = u64::try_from(message.offset()).unwrap_or(0);
                Some((place, message.payload().unwrap_or_default().to_vec()))
            }
            Some(Err(error)) if read_back::is_lasting(&error) => {
                return Err(LogError::Unknown(consumer.context().explain(&error)));
            }
            _ => match consumer.context().last_error() {
                Some(reason) if heard.elapsed() > limits::LOG_SILENCE => {
                    return Err(LogError::Unknown(reason));
                }
                _ => None,
            },
        };
        if let Some((place, _)) = &found {
            (self.last, self.heard) = (i64::try_from(*place).unwrap_or(i64::MAX), Instant::now());
        }
        Ok(found)
    }
}
