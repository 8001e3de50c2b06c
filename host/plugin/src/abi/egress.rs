//! The powers `http` and `tcp`: requests and connections, as the pipeline's `egress` allows them.
//!
//! A call of the host is not interrupted by the engine's epochs, so each gets what is left of the batch's time as its
//! deadline. Connections end with their instance.

use std::time::Duration;

use flumen_egress::{Connection, Egress, Failure, Part, Request, Response};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, LinkerInstance, Lower, Resource, ResourceType};

use super::store::HostSide;
use crate::limits;

type Caller<'a> = StoreContextMut<'a, HostSide>;

#[derive(ComponentType, Lift)]
#[component(variant)]
enum PartIn {
    #[component(name = "text")]
    Text(String),
    #[component(name = "bytes")]
    Bytes(Vec<u8>),
    #[component(name = "secret")]
    Secret(String),
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct HeaderIn {
    name: String,
    value: Vec<PartIn>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct RequestIn {
    method: String,
    url: String,
    headers: Vec<HeaderIn>,
    body: Vec<PartIn>,
    #[component(name = "timeout-ms")]
    timeout_ms: Option<u32>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ResponseOut {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum FailureOut {
    #[component(name = "denied")]
    Denied(String),
    #[component(name = "invalid")]
    Invalid(String),
    #[component(name = "unreachable")]
    Unreachable(String),
    #[component(name = "timed-out")]
    TimedOut,
    #[component(name = "too-large")]
    TooLarge(u64),
}

impl From<Failure> for FailureOut {
    fn from(failure: Failure) -> FailureOut {
        match failure {
            Failure::Denied(text) => FailureOut::Denied(text),
            Failure::Invalid(text) => FailureOut::Invalid(text),
            Failure::Unreachable(text) => FailureOut::Unreachable(text),
            Failure::TimedOut => FailureOut::TimedOut,
            Failure::TooLarge(bytes) => FailureOut::TooLarge(bytes),
        }
    }
}

fn parts(parts: Vec<PartIn>) -> Vec<Part> {
    let part = |part| match part {
        PartIn::Text(text) => Part::Text(text),
        PartIn::Bytes(bytes) => Part::Bytes(bytes),
        PartIn::Secret(name) => Part::Secret(name),
    };
    parts.into_iter().map(part).collect()
}

fn millis(timeout_ms: Option<u32>) -> Option<Duration> {
    timeout_ms.map(|ms| Duration::from_millis(ms.into()))
}

/// The connections of one instance; a resource is a place here.
#[derive(Default)]
pub(crate) struct Connections(Vec<Option<Connection>>);

impl Connections {
    fn add(&mut self, connection: Connection) -> u32 {
        let free = self.0.iter().position(Option::is_none);
        let place = free.unwrap_or(self.0.len());
        match self.0.get_mut(place) {
            Some(slot) => *slot = Some(connection),
            None => self.0.push(Some(connection)),
        }
        // There are as many as `connections_max` at most.
        place as u32
    }

    fn get(&mut self, place: u32) -> Option<&mut Connection> {
        self.0.get_mut(place as usize)?.as_mut()
    }

    fn remove(&mut self, place: u32) {
        if let Some(slot) = self.0.get_mut(place as usize) {
            *slot = None;
        }
    }
}

pub(super) fn define_http(instance: &mut LinkerInstance<'_, HostSide>) -> wasmtime::Result<()> {
    instance.func_wrap("send", send)
}

pub(super) fn define_tcp(instance: &mut LinkerInstance<'_, HostSide>) -> wasmtime::Result<()> {
    instance.resource("connection", ResourceType::host::<Connection>(), |mut caller, place| {
        caller.data_mut().connections.remove(place);
        Ok(())
    })?;
    instance.func_wrap("[static]connection.connect", connect)?;
    instance.func_wrap("[method]connection.write", write)?;
    instance.func_wrap("[method]connection.read", read)
}

/// The way out, if this batch may still make a call.
fn begin(caller: &mut Caller<'_>) -> Result<std::sync::Arc<Egress>, Failure> {
    let side = caller.data_mut();
    let Some(egress) = side.services.egress.clone() else {
        let fix = "add egress = { allow = [\"host:port\"] } to the plugin's table";
        return Err(Failure::Denied(format!("the pipeline does not say where it may connect to; {fix}")));
    };
    match side.egress_calls_left.checked_sub(1) {
        Some(left) => side.egress_calls_left = left,
        None => {
            let reason = "the calls of this batch are used up (`egress.calls_per_batch`)";
            return Err(Failure::Denied(reason.to_owned()));
        }
    }
    Ok(egress)
}

type Sent = (Result<ResponseOut, FailureOut>,);

fn send(mut caller: Caller<'_>, (request,): (RequestIn,)) -> wasmtime::Result<Sent> {
    let deadline = caller.data().deadline;
    let headers = request.headers.into_iter().map(|HeaderIn { name, value }| (name, parts(value)));
    let request = Request {
        method: request.method,
        url: request.url,
        headers: headers.collect(),
        body: parts(request.body),
        timeout: millis(request.timeout_ms),
    };
    let answer = match &caller.data().services.outside {
        Some(outside) => outside.answer(&request),
        None => begin(&mut caller).and_then(|egress| egress.send(request, deadline)),
    };
    let answer = answer.map(|Response { status, headers, body }| ResponseOut { status, headers, body });
    Ok((answer.map_err(FailureOut::from),))
}

type Connected = (Result<Resource<Connection>, FailureOut>,);

fn connect(mut caller: Caller<'_>, (host, port, tls): (String, u16, bool)) -> wasmtime::Result<Connected> {
    let deadline = caller.data().deadline;
    let connected = begin(&mut caller).and_then(|egress| egress.connect(&host, port, tls, deadline));
    let connected = connected.map(|connection| {
        let place = caller.data_mut().connections.add(connection);
        Resource::new_own(place)
    });
    Ok((connected.map_err(FailureOut::from),))
}

fn write(
    mut caller: Caller<'_>,
    (connection, data): (Resource<Connection>, Vec<PartIn>),
) -> wasmtime::Result<(Result<(), FailureOut>,)> {
    let deadline = caller.data().deadline;
    let written = begin(&mut caller).and_then(|_| {
        let connection = caller.data_mut().connections.get(connection.rep()).ok_or_else(closed)?;
        connection.write(parts(data), deadline)
    });
    Ok((written.map_err(FailureOut::from),))
}

type Read = (Result<Vec<u8>, FailureOut>,);

fn read(
    mut caller: Caller<'_>,
    (connection, max, timeout_ms): (Resource<Connection>, u32, Option<u32>),
) -> wasmtime::Result<Read> {
    let deadline = caller.data().deadline;
    let bytes = begin(&mut caller).and_then(|_| {
        let connection = caller.data_mut().connections.get(connection.rep()).ok_or_else(closed)?;
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(limits::TCP_READ_BYTES_MAX);
        connection.read(max, millis(timeout_ms), deadline)
    });
    Ok((bytes.map_err(FailureOut::from),))
}

fn closed() -> Failure {
    Failure::Invalid("the connection is closed".to_owned())
}
