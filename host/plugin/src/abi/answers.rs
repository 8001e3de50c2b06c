//! What guests answer with, as it is lifted: each list is one copy out of the guest's memory, into the buffer that the new
//! batch will use.

use wasmtime::component::{ComponentType, Lift};

use super::aggregator::EventsOut;
use crate::abi::Reads;
use crate::answer::{RawAnswer, RawColumn, RawHeader};
use crate::codec_answer::{RawBad, RawDecoded, RawEncoded};

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ReadsOut {
    body: bool,
    time: bool,
    identity: bool,
    headers: Vec<String>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct BytesOut {
    pub(super) offsets: Vec<u8>,
    pub(super) data: Vec<u8>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct HeaderOut {
    name: String,
    offsets: Vec<u8>,
    data: Vec<u8>,
    present: Option<Vec<u8>>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct RejectionOut {
    pub(super) row: u32,
    pub(super) reason: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct DifferenceOut {
    #[component(name = "rows-from")]
    rows_from: Option<Vec<u8>>,
    body: Option<BytesOut>,
    time: Option<Vec<u8>>,
    #[component(name = "set-headers")]
    set_headers: Vec<HeaderOut>,
    #[component(name = "remove-headers")]
    remove_headers: Vec<String>,
    rejected: Vec<RejectionOut>,
}

impl From<HeaderOut> for RawHeader {
    fn from(HeaderOut { name, offsets, data, present }: HeaderOut) -> RawHeader {
        RawHeader { name, offsets, data, present }
    }
}

impl From<DifferenceOut> for RawAnswer {
    fn from(out: DifferenceOut) -> RawAnswer {
        RawAnswer {
            rows_from: out.rows_from,
            body: out.body.map(|BytesOut { offsets, data }| RawColumn { offsets, data }),
            time: out.time,
            set_headers: out.set_headers.into_iter().map(RawHeader::from).collect(),
            remove_headers: out.remove_headers,
            rejected: out.rejected.into_iter().map(|RejectionOut { row, reason }| (row, reason)).collect(),
        }
    }
}

impl From<ReadsOut> for Reads {
    fn from(ReadsOut { body, time, identity, headers }: ReadsOut) -> Reads {
        Reads { body, time, identity, headers }
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct BadBytesOut {
    begin: u32,
    end: u32,
    reason: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct DecodedOut {
    consumed: u32,
    events: EventsOut,
    ends: Vec<u8>,
    bad: Vec<BadBytesOut>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct EncodedOut {
    payloads: BytesOut,
    rejected: Vec<RejectionOut>,
}

impl From<BytesOut> for RawColumn {
    fn from(BytesOut { offsets, data }: BytesOut) -> RawColumn {
        RawColumn { offsets, data }
    }
}

impl From<DecodedOut> for RawDecoded {
    fn from(DecodedOut { consumed, events, ends, bad }: DecodedOut) -> RawDecoded {
        let bad = bad.into_iter().map(|BadBytesOut { begin, end, reason }| RawBad { begin, end, reason });
        RawDecoded { consumed, events: events.into(), ends, bad: bad.collect() }
    }
}

impl From<EncodedOut> for RawEncoded {
    fn from(EncodedOut { payloads, rejected }: EncodedOut) -> RawEncoded {
        let rejected = rejected.into_iter().map(|RejectionOut { row, reason }| (row, reason)).collect();
        RawEncoded { payloads: payloads.into(), rejected }
    }
}
