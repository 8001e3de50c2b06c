//! Release 0.1.0 of the interface: `wit/0.1.0`.
//!
//! A batch crosses straight from arrow's buffers: each list is one copy into the guest's memory. The answer's lists are
//! one copy out of it, each into the buffer that the new batch will use. What the guest may make the host copy is
//! bounded before the copy, by the store's fuel for host calls ([`PluginLimits::answer_bytes`]).

mod columns;
mod host;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use wasmtime::component::types::{self, ComponentInstance, ComponentItem};
use wasmtime::component::{
    Component, ComponentNamedList, ComponentType, Instance, InstancePre, Lift, Linker, Lower, TypedFunc,
};
use wasmtime::{Engine, PoolConcurrencyLimitError, ResourceLimiter, Store, Trap};

use crate::abi::{Guest, Reads, Release};
use crate::answer::{self, RawAnswer, RawColumn, RawHeader};
use crate::engine::ticks;
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure, cut};
use crate::limits;
use crate::services::Services;

pub(crate) const WORLD: &str = "flumen:plugin/interceptor@0.1.0";
pub(crate) const GUEST: &str = "flumen:plugin/guest@0.1.0";
pub(crate) const TYPES: &str = "flumen:plugin/types@0.1.0";
const OPEN: &str = "open";
const PROCESS: &str = "process";

type OpenParams<'a> = (&'a str,);
type OpenResult = (Result<ReadsOut, String>,);
type ProcessParams<'a> = (columns::BatchIn<'a>,);
type ProcessResult = (Result<DifferenceOut, String>,);

/// The power that a pipeline grants for an import of this name.
pub(crate) fn power(import: &str) -> Option<&'static str> {
    host::POWERS.iter().find(|(_, interface)| *interface == import).map(|(power, _)| *power)
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct ReadsOut {
    body: bool,
    time: bool,
    identity: bool,
    headers: Vec<String>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct BytesOut {
    offsets: Vec<u8>,
    data: Vec<u8>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct HeaderOut {
    name: String,
    offsets: Vec<u8>,
    data: Vec<u8>,
    present: Option<Vec<u8>>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct RejectionOut {
    row: u32,
    reason: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct DifferenceOut {
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

/// What a store holds beside the guest.
pub(crate) struct HostSide {
    limiter: Limiter,
    services: Arc<Services>,
    /// Bytes that host calls of this batch may still carry.
    call_bytes_left: u64,
}

/// The memory cap over all memories of an instance, and what the guest asked for.
struct Limiter {
    memory_bytes: u64,
    memory_bytes_max: u64,
    /// The size that was refused last.
    refused_bytes: Option<u64>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, now: usize, wanted: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let wanted_bytes = self.memory_bytes.saturating_add((wanted as u64).saturating_sub(now as u64));
        if wanted_bytes > self.memory_bytes_max {
            self.refused_bytes = Some(wanted_bytes);
            return Ok(false);
        }
        self.memory_bytes = wanted_bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, wanted: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(wanted <= limits::TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        limits::CORE_INSTANCES_PER_PLUGIN as usize
    }

    fn tables(&self) -> usize {
        limits::TABLES_PER_PLUGIN as usize
    }

    fn memories(&self) -> usize {
        limits::MEMORIES_PER_PLUGIN as usize
    }
}

/// Both functions have to be there, with the right types.
pub(crate) fn check_guest(
    engine: &Engine,
    component: &types::Component,
    guest: &ComponentInstance,
    path: &Path,
) -> Result<(), LoadError> {
    let check = |function: &str, reason: Option<String>| match reason {
        Some(reason) => Err(LoadError::WrongShape {
            path: path.to_owned(),
            function: format!("{GUEST}#{function}"),
            reason,
        }),
        None => Ok(()),
    };
    check(OPEN, mismatch::<OpenParams, OpenResult>(engine, component, guest, OPEN))?;
    check(PROCESS, mismatch::<ProcessParams, ProcessResult>(engine, component, guest, PROCESS))
}

/// How the function differs from what it should be.
fn mismatch<Params, Return>(
    engine: &Engine,
    component: &types::Component,
    guest: &ComponentInstance,
    function: &str,
) -> Option<String>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    match guest.get_export(engine, function).map(|export| export.ty) {
        Some(ComponentItem::ComponentFunc(found)) if found.async_() => {
            Some("it is an async function".to_owned())
        }
        Some(ComponentItem::ComponentFunc(found)) => {
            let checked = found.typecheck::<Params, Return>(&component.instance_type());
            checked.err().map(|error| format!("{error:#}"))
        }
        Some(_) => Some("it is not a function".to_owned()),
        None => Some("it is missing".to_owned()),
    }
}

/// A linked component of this release.
pub(crate) struct Linked {
    engine: Engine,
    ready: InstancePre<HostSide>,
}

pub(crate) fn link(engine: &Engine, component: &Component, grants: &[String]) -> wasmtime::Result<Linked> {
    let mut linker = Linker::new(engine);
    host::define(&mut linker, grants)?;
    // Whatever is left is WASI: `shape` let nothing else through.
    linker.define_unknown_imports_as_traps(component)?;
    Ok(Linked { engine: engine.clone(), ready: linker.instantiate_pre(component)? })
}

impl Release for Linked {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let limiter = Limiter { memory_bytes: 0, memory_bytes_max: limits.memory_bytes, refused_bytes: None };
        let side = HostSide { limiter, services: services.clone(), call_bytes_left: limits.host_call_bytes };
        let mut store = Store::new(&self.engine, side);
        store.limiter(|side| &mut side.limiter);
        store.set_hostcall_fuel(usize::try_from(limits.answer_bytes).unwrap_or(usize::MAX));
        // A start function runs here already.
        store.set_epoch_deadline(ticks(limits.time));
        let made = self.ready.instantiate(&mut store).and_then(|instance| {
            let open = function(&mut store, &instance, OPEN)?;
            let process = function(&mut store, &instance, PROCESS)?;
            Ok((open, process))
        });
        match made {
            Ok((open, process)) => Ok(Box::new(Running { store, open, process, limits: *limits })),
            Err(error) if error.is::<PoolConcurrencyLimitError>() => {
                Err(Failure::HostFull(limits::INSTANCES_MAX))
            }
            Err(error) => {
                Err(Failure::Instantiate(classify(&error, store.data(), limits, limits.time).to_string()))
            }
        }
    }
}

fn function<Params, Return>(
    store: &mut Store<HostSide>,
    instance: &Instance,
    name: &str,
) -> wasmtime::Result<TypedFunc<Params, Return>>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    let missing = || wasmtime::Error::msg(format!("{GUEST}#{name} is missing"));
    let guest = instance.get_export_index(&mut *store, None, GUEST).ok_or_else(missing)?;
    let index = instance.get_export_index(&mut *store, Some(&guest), name).ok_or_else(missing)?;
    instance.get_typed_func(store, index)
}

struct Running {
    store: Store<HostSide>,
    open: TypedFunc<OpenParams<'static>, OpenResult>,
    process: TypedFunc<ProcessParams<'static>, ProcessResult>,
    limits: PluginLimits,
}

impl Running {
    /// Everything that a call is measured against begins anew.
    fn begin(&mut self, time: Duration) {
        self.store.set_epoch_deadline(ticks(time));
        let side = self.store.data_mut();
        side.call_bytes_left = self.limits.host_call_bytes;
        side.limiter.refused_bytes = None;
    }

    fn classify(&self, error: &wasmtime::Error, time: Duration) -> Failure {
        classify(error, self.store.data(), &self.limits, time)
    }
}

impl Guest for Running {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        self.begin(self.limits.time);
        let called: wasmtime::Result<OpenResult> = self.open.call(&mut self.store, (config,));
        match called {
            Ok((Ok(ReadsOut { body, time, identity, headers }),)) => {
                Ok(Reads { body, time, identity, headers })
            }
            Ok((Err(text),)) => Err(OpenFailure::Refused(cut(&text, limits::TEXT_BYTES_MAX).to_owned())),
            Err(error) => Err(OpenFailure::Failed(self.classify(&error, self.limits.time))),
        }
    }

    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure> {
        self.begin(time);
        let columns = columns::Columns::of(batch, reads);
        let headers = columns.headers();
        let called: wasmtime::Result<ProcessResult> =
            self.process.call(&mut self.store, (columns.batch(&headers),));
        match called {
            Ok((Ok(difference),)) => Ok(answer::decode(difference.into(), batch.rows())?),
            Ok((Err(text),)) => {
                Err(Failure::Refused(cut(&text, flumen_event::limits::REASON_BYTES_MAX).to_owned()))
            }
            Err(error) => Err(self.classify(&error, time)),
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.store.data().limiter.memory_bytes
    }
}

/// What an error of the engine means. A guest whose memory ran out traps in one way or another: the cause is named.
fn classify(error: &wasmtime::Error, side: &HostSide, limits: &PluginLimits, time: Duration) -> Failure {
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::Interrupt) {
        return Failure::Timeout(time);
    }
    if let Some(wanted_bytes) = side.limiter.refused_bytes {
        return Failure::Memory { wanted_bytes, limit_bytes: limits.memory_bytes };
    }
    if let Some(trap) = trap {
        let text = trap.to_string();
        return Failure::Trap(text.strip_prefix("wasm trap: ").unwrap_or(&text).to_owned());
    }
    let text = format!("{error:#}");
    if text.contains("fuel allocated for hostcalls") {
        return Failure::Oversized { limit_bytes: limits.answer_bytes };
    }
    let text = cut(&text, flumen_event::limits::REASON_BYTES_MAX).to_owned();
    match text.contains("has not been defined") {
        true => Failure::Trap(format!("it called what Flumen does not offer: {text}")),
        false => Failure::Abi(text),
    }
}
