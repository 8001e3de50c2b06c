//! The world of interceptors.
//!
//! A batch crosses straight from arrow's buffers: each list is one copy into the guest's memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{InstancePre, TypedFunc};

use super::answers::{DifferenceOut, ReadsOut};
use super::store::{self, HostSide, Room};
use super::{Guest, Linked, Migrate, Reads, columns};
use crate::answer;
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure};
use crate::services::Services;

const OPEN: &str = "open";
const PROCESS: &str = "process";

type OpenParams<'a> = (&'a str,);
type OpenResult = (Result<ReadsOut, String>,);
type ProcessParams<'a> = (columns::BatchIn<'a>,);
type ProcessResult = (Result<DifferenceOut, String>,);

/// Both functions have to be there, with the right types.
pub(super) fn check(
    engine: &Engine,
    component: &types::Component,
    guest: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported: guest, interface, path };
    check.function::<OpenParams, OpenResult>(OPEN)?;
    check.function::<ProcessParams, ProcessResult>(PROCESS)
}

/// A linked interceptor.
pub(super) struct Interceptor {
    pub(super) engine: Engine,
    pub(super) ready: InstancePre<HostSide>,
    pub(super) interface: &'static str,
    pub(super) migration: Option<&'static str>,
}

impl Linked for Interceptor {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let (room, (open, process, migrate)) =
            Room::new(&self.engine, &self.ready, services, limits, |store, instance| {
                let open = store::function(store, instance, self.interface, OPEN)?;
                let process = store::function(store, instance, self.interface, PROCESS)?;
                let migrate = Migrate::of(store, instance, self.migration)?;
                Ok((open, process, migrate))
            })?;
        Ok(Box::new(Running { room, open, process, migrate }))
    }
}

struct Running {
    room: Room,
    open: TypedFunc<OpenParams<'static>, OpenResult>,
    process: TypedFunc<ProcessParams<'static>, ProcessResult>,
    migrate: Migrate,
}

impl Guest for Running {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        let time = self.room.limits().time;
        self.room.call(&self.open, (config,), time).map(Reads::from)
    }

    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure> {
        let columns = columns::Columns::of(batch, reads);
        let headers = columns.headers();
        let difference = self.room.call(&self.process, (columns.batch(&headers),), time);
        Ok(answer::decode(difference.map_err(Failure::of_call)?.into(), batch.rows())?)
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
