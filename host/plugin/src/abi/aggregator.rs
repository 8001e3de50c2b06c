//! The world of aggregators: interceptors that also make events of their own. What they make goes to the session of the batch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{ComponentType, InstancePre, Lift, TypedFunc};

use super::answers::{BytesOut, DifferenceOut, HeaderOut, ReadsOut};
use super::store::{self, HostSide, Room};
use super::{Guest, Linked, Migrate, Reads, columns};
use crate::answer::{self, RawColumn, RawEvents, RawHeader};
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure};
use crate::services::Services;

const OPEN: &str = "open";
const PROCESS: &str = "process";
const TICK: &str = "tick";

#[derive(ComponentType, Lift)]
#[component(record)]
struct OpenedOut {
    reads: ReadsOut,
    #[component(name = "tick-ms")]
    tick_ms: u32,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct EventsOut {
    rows: u32,
    body: BytesOut,
    time: Option<Vec<u8>>,
    headers: Vec<HeaderOut>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct AggregateOut {
    rows: DifferenceOut,
    emitted: Option<EventsOut>,
}

type OpenParams<'a> = (&'a str,);
type OpenResult = (Result<OpenedOut, String>,);
type ProcessParams<'a> = (columns::BatchIn<'a>,);
type ProcessResult = (Result<AggregateOut, String>,);
type TickParams = (i64,);
type TickResult = (Result<Option<EventsOut>, String>,);

/// All functions have to be there, with the right types.
pub(super) fn check(
    engine: &Engine,
    component: &types::Component,
    exported: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported, interface, path };
    check.function::<OpenParams, OpenResult>(OPEN)?;
    check.function::<ProcessParams, ProcessResult>(PROCESS)?;
    check.function::<TickParams, TickResult>(TICK)
}

/// A linked aggregator.
pub(super) struct Aggregator {
    pub(super) engine: Engine,
    pub(super) ready: InstancePre<HostSide>,
    pub(super) interface: &'static str,
    pub(super) migration: Option<&'static str>,
}

impl Linked for Aggregator {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let (room, running) = Room::new(&self.engine, &self.ready, services, limits, |store, instance| {
            let open = store::function(store, instance, self.interface, OPEN)?;
            let process = store::function(store, instance, self.interface, PROCESS)?;
            let tick = store::function(store, instance, self.interface, TICK)?;
            let migrate = Migrate::of(store, instance, self.migration)?;
            Ok((open, process, tick, migrate))
        })?;
        let (open, process, tick, migrate) = running;
        Ok(Box::new(Running { room, open, process, tick, migrate, tick_ms: 0 }))
    }
}

struct Running {
    room: Room,
    open: TypedFunc<OpenParams<'static>, OpenResult>,
    process: TypedFunc<ProcessParams<'static>, ProcessResult>,
    tick: TypedFunc<TickParams, TickResult>,
    migrate: Migrate,
    tick_ms: u32,
}

impl Running {
    fn emit(&mut self, events: Option<EventsOut>) -> Result<(), Failure> {
        let Some(events) = events else { return Ok(()) };
        let session = self.room.session();
        let events = answer::events(events.into(), session.now_ns())?;
        session.emit(events);
        Ok(())
    }
}

impl Guest for Running {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        let time = self.room.limits().time;
        let opened = self.room.call(&self.open, (config,), time)?;
        self.tick_ms = opened.tick_ms;
        Ok(opened.reads.into())
    }

    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure> {
        let columns = columns::Columns::of(batch, reads);
        let headers = columns.headers();
        let aggregate = self.room.call(&self.process, (columns.batch(&headers),), time);
        let aggregate = aggregate.map_err(Failure::of_call)?;
        let difference = answer::decode(aggregate.rows.into(), batch.rows())?;
        self.emit(aggregate.emitted)?;
        Ok(difference)
    }

    fn tick_ms(&self) -> u32 {
        self.tick_ms
    }

    fn tick(&mut self, now_ns: i64, time: Duration) -> Result<(), Failure> {
        let made = self.room.call(&self.tick, (now_ns,), time).map_err(Failure::of_call)?;
        self.emit(made)
    }

    fn migrate(&mut self, from: &str) -> Result<(), OpenFailure> {
        self.migrate.call(&mut self.room, from)
    }

    fn session(&mut self) -> &mut Session {
        self.room.session()
    }

    fn memory_bytes(&self) -> u64 {
        self.room.memory_bytes()
    }
}

impl From<EventsOut> for RawEvents {
    fn from(EventsOut { rows, body, time, headers }: EventsOut) -> RawEvents {
        let BytesOut { offsets, data } = body;
        let headers = headers.into_iter().map(RawHeader::from).collect();
        RawEvents { rows, body: RawColumn { offsets, data }, time, headers }
    }
}
