//! The world of sinks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{ComponentType, InstancePre, Lift, TypedFunc};

use super::answers::{ReadsOut, RejectionOut};
use super::store::{self, HostSide, Room};
use super::{Guest, Linked, Outcome, Reads, columns, not_this_role};
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure, cut, printable};
use crate::services::Services;

const OPEN: &str = "open";
const RECOVER: &str = "recover";
const DELIVER: &str = "deliver";

#[derive(ComponentType, Lift)]
#[component(record)]
struct OpenedOut {
    reads: ReadsOut,
    recovers: bool,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct LaterOut {
    reason: String,
    #[component(name = "after-ms")]
    after_ms: Option<u32>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
enum OutcomeOut {
    #[component(name = "delivered")]
    Delivered(Vec<RejectionOut>),
    #[component(name = "retry")]
    Retry(LaterOut),
}

impl From<OutcomeOut> for Outcome {
    fn from(out: OutcomeOut) -> Outcome {
        match out {
            OutcomeOut::Delivered(rejected) => {
                let rejected = rejected.into_iter().map(|RejectionOut { row, reason }| (row, reason));
                Outcome::Delivered(rejected.collect())
            }
            OutcomeOut::Retry(LaterOut { reason, after_ms }) => Outcome::Retry {
                // It stands in the log and in the status until the destination takes the batch.
                reason: printable(&reason, flumen_event::limits::REASON_BYTES_MAX),
                after: after_ms.map(|ms| Duration::from_millis(ms.into())),
            },
        }
    }
}

type OpenParams<'a> = (&'a str,);
type OpenResult = (Result<OpenedOut, String>,);
type RecoverResult = (Result<Option<Vec<u8>>, String>,);
type DeliverParams<'a> = (columns::BatchIn<'a>, &'a [u8]);
type DeliverResult = (Result<OutcomeOut, String>,);

/// All three functions have to be there, with the right types.
pub(super) fn check(
    engine: &Engine,
    component: &types::Component,
    guest: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported: guest, interface, path };
    check.function::<OpenParams, OpenResult>(OPEN)?;
    check.function::<(), RecoverResult>(RECOVER)?;
    check.function::<DeliverParams, DeliverResult>(DELIVER)
}

/// A linked sink.
pub(super) struct Sink {
    pub(super) engine: Engine,
    pub(super) ready: InstancePre<HostSide>,
    pub(super) interface: &'static str,
}

impl Linked for Sink {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let (room, (open, recover, deliver)) =
            Room::new(&self.engine, &self.ready, services, limits, |store, instance| {
                let open = store::function(store, instance, self.interface, OPEN)?;
                let recover = store::function(store, instance, self.interface, RECOVER)?;
                let deliver = store::function(store, instance, self.interface, DELIVER)?;
                Ok((open, recover, deliver))
            })?;
        Ok(Box::new(Running { room, open, recover, deliver, recovers: false }))
    }
}

struct Running {
    room: Room,
    open: TypedFunc<OpenParams<'static>, OpenResult>,
    recover: TypedFunc<(), RecoverResult>,
    deliver: TypedFunc<DeliverParams<'static>, DeliverResult>,
    recovers: bool,
}

impl Guest for Running {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        let time = self.room.limits().time;
        let OpenedOut { reads, recovers } = self.room.call(&self.open, (config,), time)?;
        self.recovers = recovers;
        Ok(reads.into())
    }

    fn process(&mut self, _: &Batch, _: &Reads, _: Duration) -> Result<Difference, Failure> {
        Err(not_this_role())
    }

    fn recovers(&self) -> bool {
        self.recovers
    }

    fn recover(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let time = self.room.limits().time;
        self.room.call(&self.recover, (), time).map_err(refused)
    }

    fn deliver(&mut self, batch: &Batch, reads: &Reads, cursor: &[u8]) -> Result<Outcome, Failure> {
        let columns = columns::Columns::of(batch, reads);
        let headers = columns.headers();
        let time = self.room.limits().time;
        self.room
            .call(&self.deliver, (columns.batch(&headers), cursor), time)
            .map(Outcome::from)
            .map_err(refused)
    }

    fn session(&mut self) -> &mut Session {
        self.room.session()
    }

    fn memory_bytes(&self) -> u64 {
        self.room.memory_bytes()
    }
}

fn refused(failure: OpenFailure) -> Failure {
    match failure {
        OpenFailure::Refused(text) => {
            Failure::Refused(cut(&text, flumen_event::limits::REASON_BYTES_MAX).to_owned())
        }
        OpenFailure::Failed(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_to_wait_has_nothing_that_a_terminal_obeys() {
        let later = LaterOut { reason: "\x1b[2Jbusy\r\n".to_owned(), after_ms: Some(5) };
        let reason = "\\u{1b}[2Jbusy\\r\\n".to_owned();
        let after = Some(Duration::from_millis(5));
        assert_eq!(Outcome::from(OutcomeOut::Retry(later)), Outcome::Retry { reason, after });
    }
}
