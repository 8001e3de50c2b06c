//! The host power `state`: columns are read where they lie in the guest's memory, and answers are one copy into it.
//!
//! What a call carries, both ways, counts in the bytes that host calls of the batch may carry. A call that is refused (a limit,
//! a column that is none) is an error for the guest, not a trap: it has written nothing.

use flumen_journal::ByteColumn;
use flumen_pipeline::state::Session;
use wasmtime::component::{ComponentType, Lift, LinkerInstance, Lower, WasmList};
use wasmtime::{AsContext, StoreContext, StoreContextMut};

use super::store::HostSide;

type Caller<'a> = StoreContextMut<'a, HostSide>;
type Answer<T> = wasmtime::Result<(Result<T, String>,)>;

#[derive(ComponentType, Lift)]
#[component(record)]
struct ColumnIn {
    offsets: WasmList<u8>,
    data: WasmList<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ColumnOut {
    offsets: Vec<u8>,
    data: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ValuesOut {
    offsets: Vec<u8>,
    data: Vec<u8>,
    present: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct EntriesOut {
    keys: ColumnOut,
    values: ColumnOut,
}

pub(super) fn define(instance: &mut LinkerInstance<'_, HostSide>) -> wasmtime::Result<()> {
    instance.func_wrap("get-many", get_many)?;
    instance.func_wrap("put-many", put_many)?;
    instance.func_wrap("insert-if-absent", insert_if_absent)?;
    instance.func_wrap("remove-many", remove_many)?;
    instance.func_wrap("scan", scan)
}

impl ColumnIn {
    fn bytes(&self, store: &StoreContext<'_, HostSide>) -> u64 {
        let bytes = self.offsets.as_le_slice(store).len() + self.data.as_le_slice(store).len();
        bytes as u64
    }

    fn get<'a>(&self, what: &str, store: &'a StoreContext<'_, HostSide>) -> Result<ByteColumn<'a>, String> {
        let column = ByteColumn::new(self.offsets.as_le_slice(store), self.data.as_le_slice(store));
        column.ok_or_else(|| {
            format!("the {what} are no column: offsets are little-endian, begin at 0, never fall and end where the data ends")
        })
    }
}

/// Lends the session to `act`, beside the guest's memory. `carried` bytes come with the call; `act` gets what may go back.
fn with<T>(
    mut caller: Caller<'_>,
    carried: impl FnOnce(&StoreContext<'_, HostSide>) -> u64,
    act: impl FnOnce(&mut Session, &StoreContext<'_, HostSide>, u64) -> Result<(T, usize), String>,
) -> Answer<T> {
    let carried = carried(&caller.as_context());
    let Some(left) = caller.data().call_bytes_left.checked_sub(carried) else {
        return Ok((Err(over(&caller)),));
    };
    let mut session = std::mem::take(&mut caller.data_mut().session);
    let answer = act(&mut session, &caller.as_context(), left);
    let side = caller.data_mut();
    side.session = session;
    side.call_bytes_left = left;
    Ok((match answer {
        Ok((answer, bytes)) => {
            side.call_bytes_left = left.saturating_sub(bytes as u64);
            Ok(answer)
        }
        Err(text) => Err(text),
    },))
}

fn over(caller: &Caller<'_>) -> String {
    let left = caller.data().call_bytes_left;
    format!(
        "this call carries more than the {left} bytes that are left to this batch (`limits.host_call_bytes`)"
    )
}

fn get_many(caller: Caller<'_>, (keys,): (ColumnIn,)) -> Answer<ValuesOut> {
    with(
        caller,
        |store| keys.bytes(store),
        |session, store, left| {
            let values = session.get_many(&keys.get("keys", store)?, left)?;
            let bytes = values.offsets.len() + values.data.len() + values.present.len();
            let out = ValuesOut { offsets: values.offsets, data: values.data, present: values.present };
            Ok((out, bytes))
        },
    )
}

fn put_many(caller: Caller<'_>, (keys, values, ttl_ms): (ColumnIn, ColumnIn, Option<u64>)) -> Answer<()> {
    with(
        caller,
        |store| keys.bytes(store) + values.bytes(store),
        |session, store, _| {
            session.put_many(&keys.get("keys", store)?, &values.get("values", store)?, ttl_ms)?;
            Ok(((), 0))
        },
    )
}

fn insert_if_absent(
    caller: Caller<'_>,
    (keys, values, ttl_ms): (ColumnIn, Option<ColumnIn>, Option<u64>),
) -> Answer<Vec<u8>> {
    with(
        caller,
        |store| keys.bytes(store) + values.as_ref().map(|values| values.bytes(store)).unwrap_or_default(),
        |session, store, _| {
            let values = values.as_ref().map(|values| values.get("values", store)).transpose()?;
            let set = session.insert_if_absent(&keys.get("keys", store)?, values.as_ref(), ttl_ms)?;
            let bytes = set.len();
            Ok((set, bytes))
        },
    )
}

fn remove_many(caller: Caller<'_>, (keys,): (ColumnIn,)) -> Answer<()> {
    with(
        caller,
        |store| keys.bytes(store),
        |session, store, _| {
            session.remove_many(&keys.get("keys", store)?)?;
            Ok(((), 0))
        },
    )
}

fn scan(
    caller: Caller<'_>,
    (prefix, after, limit): (WasmList<u8>, Option<WasmList<u8>>, u32),
) -> Answer<EntriesOut> {
    with(
        caller,
        |_| 0,
        |session, store, left| {
            let after = after.as_ref().map(|after| after.as_le_slice(store));
            // Offsets of two columns of so many rows come on top.
            let bytes = left.saturating_sub(8 * u64::from(limit.min(64 << 10)));
            let entries = session.scan(prefix.as_le_slice(store), after, limit, bytes)?;
            let (keys, values) = (entries.keys, entries.values);
            let bytes = keys.0.len() + keys.1.len() + values.0.len() + values.1.len();
            let column = |(offsets, data)| ColumnOut { offsets, data };
            Ok((EntriesOut { keys: column(keys), values: column(values) }, bytes))
        },
    )
}
