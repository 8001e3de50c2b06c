//! The store of one instance, whatever its world: what it is measured against, and what its failures mean.
//!
//! What the guest may make the host copy is bounded before the copy, by the store's fuel for host calls
//! ([`PluginLimits::answer_bytes`]).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use wasmtime::component::types::{self, ComponentInstance, ComponentItem};
use wasmtime::component::{ComponentNamedList, Instance, InstancePre, Lift, Lower, TypedFunc};
use wasmtime::{Engine, PoolConcurrencyLimitError, ResourceLimiter, Store, Trap};

use super::egress::Connections;
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure, printable};
use crate::services::Services;
use crate::{limits, ticker};

/// What a store holds beside the guest.
pub(crate) struct HostSide {
    limiter: Limiter,
    pub(super) services: Arc<Services>,
    /// Bytes that host calls of this batch may still carry.
    pub(super) call_bytes_left: u64,
    /// When the time of this call is over: the engine does not interrupt the host.
    pub(super) deadline: Instant,
    /// Calls to the outside that are left to this batch.
    pub(super) egress_calls_left: u32,
    pub(super) connections: Connections,
    /// The state of the batch that is processed; at other times one of nothing.
    pub(super) session: Session,
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

/// What a component exports as an interface of Flumen, before it is linked.
pub(super) struct Check<'a> {
    pub(super) engine: &'a Engine,
    pub(super) component: &'a types::Component,
    pub(super) exported: &'a ComponentInstance,
    pub(super) interface: &'a str,
    pub(super) path: &'a Path,
}

impl Check<'_> {
    /// The function has to be there, with these types.
    pub(super) fn function<Params, Return>(&self, name: &str) -> Result<(), LoadError>
    where
        Params: ComponentNamedList + Lower,
        Return: ComponentNamedList + Lift,
    {
        match mismatch::<Params, Return>(self.engine, self.component, self.exported, name) {
            Some(reason) => Err(LoadError::WrongShape {
                path: self.path.to_owned(),
                function: format!("{}#{name}", self.interface),
                reason,
            }),
            None => Ok(()),
        }
    }
}

/// One function of an interface that the instance exports.
pub(super) fn function<Params, Return>(
    store: &mut Store<HostSide>,
    instance: &Instance,
    interface: &str,
    name: &str,
) -> wasmtime::Result<TypedFunc<Params, Return>>
where
    Params: ComponentNamedList + Lower,
    Return: ComponentNamedList + Lift,
{
    let missing = || wasmtime::Error::msg(format!("{interface}#{name} is missing"));
    let exported = instance.get_export_index(&mut *store, None, interface).ok_or_else(missing)?;
    let index = instance.get_export_index(&mut *store, Some(&exported), name).ok_or_else(missing)?;
    instance.get_typed_func(store, index)
}

/// One instance and its store. A call that failed leaves it unfit for another.
pub(super) struct Room {
    pub(super) store: Store<HostSide>,
    limits: PluginLimits,
}

impl Room {
    /// Instantiates, and looks up what the world calls.
    pub(super) fn new<Functions>(
        engine: &Engine,
        ready: &InstancePre<HostSide>,
        services: &Arc<Services>,
        limits: &PluginLimits,
        functions: impl FnOnce(&mut Store<HostSide>, &Instance) -> wasmtime::Result<Functions>,
    ) -> Result<(Room, Functions), Failure> {
        let limiter = Limiter { memory_bytes: 0, memory_bytes_max: limits.memory_bytes, refused_bytes: None };
        let side = HostSide {
            limiter,
            services: services.clone(),
            call_bytes_left: limits.host_call_bytes,
            deadline: Instant::now() + limits.time,
            egress_calls_left: services.egress_calls_per_batch,
            connections: Connections::default(),
            session: Session::default(),
        };
        let mut store = Store::new(engine, side);
        store.limiter(|side| &mut side.limiter);
        store.set_hostcall_fuel(usize::try_from(limits.answer_bytes).unwrap_or(usize::MAX));
        // A start function runs here already.
        ticker::set_deadline(&mut store, limits.time);
        let made = ready.instantiate(&mut store).and_then(|instance| functions(&mut store, &instance));
        match made {
            Ok(functions) => Ok((Room { store, limits: *limits }, functions)),
            Err(error) if error.is::<PoolConcurrencyLimitError>() => {
                Err(Failure::HostFull(limits::INSTANCES_MAX))
            }
            Err(error) => {
                Err(Failure::Instantiate(classify(&error, store.data(), limits, limits.time).to_string()))
            }
        }
    }

    /// Calls a function that may answer with an error: it is in the guest's own words, cut.
    pub(super) fn call<Params, Answer>(
        &mut self,
        function: &TypedFunc<Params, (Result<Answer, String>,)>,
        params: Params,
        time: Duration,
    ) -> Result<Answer, OpenFailure>
    where
        Params: ComponentNamedList + Lower,
        (Result<Answer, String>,): ComponentNamedList + Lift,
    {
        let (answer,) = self.call_plain(function, params, time).map_err(OpenFailure::Failed)?;
        answer.map_err(|text| OpenFailure::Refused(printable(&text, limits::TEXT_BYTES_MAX)))
    }

    /// Calls a function: everything that a call is measured against begins anew.
    pub(super) fn call_plain<Params, Return>(
        &mut self,
        function: &TypedFunc<Params, Return>,
        params: Params,
        time: Duration,
    ) -> Result<Return, Failure>
    where
        Params: ComponentNamedList + Lower,
        Return: ComponentNamedList + Lift,
    {
        ticker::set_deadline(&mut self.store, time);
        let side = self.store.data_mut();
        side.call_bytes_left = self.limits.host_call_bytes;
        side.deadline = Instant::now() + time;
        side.egress_calls_left = side.services.egress_calls_per_batch;
        side.limiter.refused_bytes = None;
        let called = function.call(&mut self.store, params);
        called.map_err(|error| classify(&error, self.store.data(), &self.limits, time))
    }

    /// Lent for a call, and taken back after it.
    pub(super) fn session(&mut self) -> &mut Session {
        &mut self.store.data_mut().session
    }

    /// Linear memory that it holds.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store.data().limiter.memory_bytes
    }

    pub(super) fn limits(&self) -> &PluginLimits {
        &self.limits
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
    let text = printable(&text, flumen_event::limits::REASON_BYTES_MAX);
    match text.contains("has not been defined") {
        true => Failure::Trap(format!("it called what Flumen does not offer: {text}")),
        false => Failure::Abi(text),
    }
}
