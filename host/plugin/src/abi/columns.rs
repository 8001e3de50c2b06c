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
        let headers = match reads.is_all_headers() {
            true => {
                batch.headers().iter().map(|header| Header::present(&header.name, &header.values)).collect()
            }
            false => reads.headers.iter().map(|name| Header::of(name, batch)).collect(),
        };
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
    fn present(name: &'a str, values: &'a StringArray) -> Header<'a> {
        Header { name, bytes: Bytes::of(values.offsets(), values.values()), present: presence(values) }
    }

    fn of(name: &'a str, batch: &'a Batch) -> Header<'a> {
        match batch.header(name) {
            Some(values) => Header::present(name, values),
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

#[cfg(test)]
mod tests {
    use flumen_event::BatchBuilder;

    use super::*;

    fn numbers<const WIDTH: usize>(list: &[u8]) -> Vec<u64> {
        assert_eq!(list.len() % WIDTH, 0);
        let wide = |bytes: &[u8]| {
            let mut number = [0; 8];
            number[..WIDTH].copy_from_slice(bytes);
            u64::from_le_bytes(number)
        };
        list.chunks(WIDTH).map(wide).collect()
    }

    #[test]
    fn every_column_of_a_slice_begins_at_its_first_row() {
        let mut builder = BatchBuilder::default();
        for row in 0..10_u64 {
            builder.push(7, row, 100 + row as i64, "x".repeat(row as usize).as_bytes());
        }
        let header: StringArray = (0..10).map(|row| (row != 5).then(|| row.to_string())).collect();
        let batch = builder.finish(Vec::new()).unwrap().with_header("h", header).unwrap().slice(4, 3);
        let headers = vec!["h".to_owned(), "none".to_owned()];
        let reads = Reads { body: true, time: true, identity: true, headers };
        let columns = Columns::of(&batch, &reads);
        let lists = columns.headers();
        let lowered = columns.batch(&lists);
        assert_eq!(lowered.rows, 3);
        let body = lowered.body.as_ref().unwrap();
        assert_eq!((numbers::<4>(body.offsets), body.data.len()), (vec![0, 4, 9, 15], 15));
        assert_eq!(numbers::<8>(lowered.time.unwrap()), [104, 105, 106]);
        let identity = lowered.identity.as_ref().unwrap();
        assert_eq!(numbers::<8>(identity.streams), [7, 7, 7]);
        assert_eq!(numbers::<8>(identity.positions), [4, 5, 6]);
        let [h, none] = lowered.headers else { panic!("two headers") };
        assert_eq!(
            (numbers::<4>(h.offsets), h.data, h.present.unwrap()[0] & 7),
            (vec![0, 1, 1, 2], &b"46"[..], 0b101)
        );
        assert_eq!(
            (none.name, numbers::<4>(none.offsets), none.present),
            ("none", vec![0; 4], Some(&[0_u8][..]))
        );

        let all = Reads { headers: vec!["*".to_owned()], ..Reads::default() };
        let columns = Columns::of(&batch, &all);
        let lists = columns.headers();
        let names: Vec<&str> = lists.iter().map(|header| header.name).collect();
        assert_eq!(names, ["h"]);

        let nothing = Reads::default();
        let columns = Columns::of(&batch, &nothing);
        let lowered = columns.batch(&[]);
        assert!(lowered.body.is_none() && lowered.time.is_none() && lowered.identity.is_none());
    }
}
