//! As whom a consumer is in its group: an id that the coordinator gives to a member, never twice.
//!
//! librdkafka (2.12, `rd_kafka_cgrp_handle_JoinGroup`) keeps its partitions when the coordinator answers a static member that
//! joins again with "unknown member": it takes a new id and claims what it had, although the group gave that to others
//! when it expelled the old id. The coordinator then takes offsets of both. So whoever acknowledges compares the id with the one that
//! the partitions came to.
#![allow(unsafe_code, reason = "rdkafka has no safe form of this call")]

use std::ffi::CStr;

use rdkafka::bindings as c;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::context::Context;

/// The id; empty while there is none.
pub fn id(consumer: &BaseConsumer<Context>) -> String {
    let client = consumer.client().native_ptr();
    // SAFETY: the pointer is that of a client that is borrowed, so it lives through the calls, which any thread may make. The text is
    // ours until it is freed, the way that librdkafka wants.
    unsafe {
        let text = c::rd_kafka_memberid(client);
        if text.is_null() {
            return String::new();
        }
        let id = CStr::from_ptr(text).to_string_lossy().into_owned();
        c::rd_kafka_mem_free(client, text.cast());
        id
    }
}
