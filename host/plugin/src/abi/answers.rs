//! What guests answer with, as it is lifted: each list is one copy out of the guest's memory, into the buffer that the new
//! batch will use.

use wasmtime::component::{ComponentType, Lift};

use crate::abi::Reads;
use crate::answer::{RawAnswer, RawColumn, RawHeader};

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
    offsets: Vec<u8>,
    data: Vec<u8>,
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
    row: u32,
    reason: String,
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

impl From<DifferenceOut> for RawAnswer {
    fn from(out: DifferenceOut) -> RawAnswer {
        let header = |HeaderOut { name, offsets, data, present }| RawHeader { name, offsets, data, present };
        RawAnswer {
            rows_from: out.rows_from,
            body: out.body.map(|BytesOut { offsets, data }| RawColumn { offsets, data }),
            time: out.time,
            set_headers: out.set_headers.into_iter().map(header).collect(),
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
