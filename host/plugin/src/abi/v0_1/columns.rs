//! The columns of a batch as the lists that cross: slices of arrow's buffers where these fit.

use std::borrow::Cow;

use arrow_array::{Array, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer};
use flumen_event::Batch;
use wasmtime::component::{ComponentType, Lower};

use crate::abi::Reads;

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct BytesIn<'a> {
    offsets: &'a [u8],
    data: &'a [u8],
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct HeaderIn<'a> {
    name: &'a str,
    offsets: &'a [u8],
    data: &'a [u8],
    present: Option<&'a [u8]>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct IdentityIn<'a> {
    #[component(name = "stream")]
    streams: &'a [u8],
    #[component(name = "position")]
    positions: &'a [u8],
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct BatchIn<'a> {
    rows: u32,
    body: Option<BytesIn<'a>>,
    time: Option<&'a [u8]>,
    headers: &'a [HeaderIn<'a>],
    identity: Option<IdentityIn<'a>>,
}

/// Offsets from 0, and the data that they cover.
struct Bytes<'a> {
    offsets: Cow<'a, [u8]>,
    data: &'a [u8],
}

/// A header column; its bits are copied only if they begin within a byte.
struct Header<'a> {
    name: &'a str,
    bytes: Bytes<'a>,
    present: Option<Buffer>,
}

/// Everything of a batch that one call passes.
pub(super) struct Columns<'a> {
    batch: &'a Batch,
    reads: &'a Reads,
    body: Option<Bytes<'a>>,
    headers: Vec<Header<'a>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(batch: &'a Batch, reads: &'a Reads) -> Columns<'a> {
        let body = reads.body.then(|| Bytes::of(batch.body().offsets(), batch.body().values()));
        let headers = reads.headers.iter().map(|name| Header::of(name, batch)).collect();
        Columns { batch, reads, body, headers }
    }

    pub(super) fn headers(&self) -> Vec<HeaderIn<'_>> {
        self.headers
            .iter()
            .map(|Header { name, bytes, present }| HeaderIn {
                name,
                offsets: &bytes.offsets,
                data: bytes.data,
                present: present.as_deref(),
            })
            .collect()
    }

    pub(super) fn batch<'b>(&'b self, headers: &'b [HeaderIn<'b>]) -> BatchIn<'b> {
        let Columns { batch, reads, body, .. } = self;
        BatchIn {
            rows: batch.rows() as u32,
            body: body.as_ref().map(|Bytes { offsets, data }| BytesIn { offsets, data }),
            time: reads.time.then(|| batch.time().values().inner().as_slice()),
            headers,
            identity: reads.identity.then(|| IdentityIn {
                streams: batch.stream().values().inner().as_slice(),
                positions: batch.position().values().inner().as_slice(),
            }),
        }
    }
}

impl<'a> Bytes<'a> {
    fn of(offsets: &'a OffsetBuffer<i32>, data: &'a Buffer) -> Bytes<'a> {
        let (first, last) = (offsets.first(), offsets.last());
        let data = data.get(first as usize..last as usize).unwrap_or_default();
        let offsets = match first {
            0 => Cow::Borrowed(offsets.inner().inner().as_slice()),
            // A slice of a batch begins in the middle of the data.
            first => offsets.iter().flat_map(|offset| (offset - first).to_le_bytes()).collect(),
        };
        Bytes { offsets, data }
    }
}

impl<'a> Header<'a> {
    fn of(name: &'a str, batch: &'a Batch) -> Header<'a> {
        match batch.header(name) {
            Some(values) => Header {
                name,
                bytes: Bytes::of(values.offsets(), values.values()),
                present: presence(values),
            },
            None => {
                let rows = batch.rows();
                let bytes = Bytes { offsets: vec![0; (rows + 1) * 4].into(), data: &[] };
                Header { name, bytes, present: Some(vec![0_u8; rows.div_ceil(8)].into()) }
            }
        }
    }
}

fn presence(values: &StringArray) -> Option<Buffer> {
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0)?;
    let bits = nulls.inner().sliced();
    Some(bits.slice_with_length(0, values.len().div_ceil(8)))
}
