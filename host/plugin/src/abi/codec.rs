//! The worlds of codecs: `decoding` and `encoding`. A component may export both; an instance is opened for one of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::codec::Decoded;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{InstancePre, TypedFunc};

use super::answers::{DecodedOut, EncodedOut, ReadsOut};
use super::store::{self, HostSide, Room};
use super::{FilePart, Guest, Linked, Reads, columns, not_this_role};
use crate::codec_answer::{self, EncodedRows};
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure};
use crate::services::Services;

const OPEN: &str = "open";
const DECODE: &str = "decode";
const BEGIN: &str = "begin";
const ENCODE: &str = "encode";
const END: &str = "end";

type OpenParams<'a> = (&'a str,);
type OpenDecoderResult = (Result<(), String>,);
type OpenEncoderResult = (Result<ReadsOut, String>,);
type DecodeParams<'a> = (&'a [u8], bool);
type DecodeResult = (Result<DecodedOut, String>,);
type EncodeParams<'a> = (columns::BatchIn<'a>, Option<u64>);
type EncodeResult = (Result<EncodedOut, String>,);
type AroundParams = (u64,);
type AroundResult = (Result<Vec<u8>, String>,);

/// Both functions have to be there, with the right types.
pub(super) fn check_decoder(
    engine: &Engine,
    component: &types::Component,
    exported: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported, interface, path };
    check.function::<OpenParams, OpenDecoderResult>(OPEN)?;
    check.function::<DecodeParams, DecodeResult>(DECODE)
}

/// All four functions have to be there, with the right types.
pub(super) fn check_encoder(
    engine: &Engine,
    component: &types::Component,
    exported: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported, interface, path };
    check.function::<OpenParams, OpenEncoderResult>(OPEN)?;
    check.function::<AroundParams, AroundResult>(BEGIN)?;
    check.function::<EncodeParams, EncodeResult>(ENCODE)?;
    check.function::<AroundParams, AroundResult>(END)
}

/// A linked decoder.
pub(super) struct Decoder {
    pub(super) engine: Engine,
    pub(super) ready: InstancePre<HostSide>,
    pub(super) interface: &'static str,
}

impl Linked for Decoder {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let (room, (open, decode)) =
            Room::new(&self.engine, &self.ready, services, limits, |store, instance| {
                let open = store::function(store, instance, self.interface, OPEN)?;
                let decode = store::function(store, instance, self.interface, DECODE)?;
                Ok((open, decode))
            })?;
        Ok(Box::new(RunningDecoder { room, open, decode }))
    }
}

struct RunningDecoder {
    room: Room,
    open: TypedFunc<OpenParams<'static>, OpenDecoderResult>,
    decode: TypedFunc<DecodeParams<'static>, DecodeResult>,
}

impl Guest for RunningDecoder {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        let time = self.room.limits().time;
        self.room.call(&self.open, (config,), time).map(|()| Reads::default())
    }

    fn process(&mut self, _: &Batch, _: &Reads, _: Duration) -> Result<Difference, Failure> {
        Err(not_this_role())
    }

    fn decode(&mut self, input: &[u8], is_last: bool, time: Duration) -> Result<Decoded, Failure> {
        let decoded = self.room.call(&self.decode, (input, is_last), time).map_err(Failure::of_call)?;
        Ok(codec_answer::decoded(decoded.into(), input.len())?)
    }

    fn session(&mut self) -> &mut Session {
        self.room.session()
    }

    fn memory_bytes(&self) -> u64 {
        self.room.memory_bytes()
    }
}

/// A linked encoder.
pub(super) struct Encoder {
    pub(super) engine: Engine,
    pub(super) ready: InstancePre<HostSide>,
    pub(super) interface: &'static str,
}

impl Linked for Encoder {
    fn instantiate(
        &self,
        services: &Arc<Services>,
        limits: &PluginLimits,
    ) -> Result<Box<dyn Guest>, Failure> {
        let (room, (open, begin, encode, end)) =
            Room::new(&self.engine, &self.ready, services, limits, |store, instance| {
                let open = store::function(store, instance, self.interface, OPEN)?;
                let begin = store::function(store, instance, self.interface, BEGIN)?;
                let encode = store::function(store, instance, self.interface, ENCODE)?;
                let end = store::function(store, instance, self.interface, END)?;
                Ok((open, begin, encode, end))
            })?;
        Ok(Box::new(RunningEncoder { room, open, begin, encode, end }))
    }
}

struct RunningEncoder {
    room: Room,
    open: TypedFunc<OpenParams<'static>, OpenEncoderResult>,
    begin: TypedFunc<AroundParams, AroundResult>,
    encode: TypedFunc<EncodeParams<'static>, EncodeResult>,
    end: TypedFunc<AroundParams, AroundResult>,
}

impl Guest for RunningEncoder {
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure> {
        let time = self.room.limits().time;
        self.room.call(&self.open, (config,), time).map(Reads::from)
    }

    fn process(&mut self, _: &Batch, _: &Reads, _: Duration) -> Result<Difference, Failure> {
        Err(not_this_role())
    }

    fn encode(
        &mut self,
        batch: &Batch,
        reads: &Reads,
        file: Option<u64>,
        time: Duration,
    ) -> Result<EncodedRows, Failure> {
        let columns = columns::Columns::of(batch, reads);
        let headers = columns.headers();
        let encoded =
            self.room.call(&self.encode, (columns.batch(&headers), file), time).map_err(Failure::of_call)?;
        Ok(codec_answer::encoded(encoded.into(), batch.rows())?)
    }

    fn around(&mut self, part: FilePart, seed: u64, time: Duration) -> Result<Vec<u8>, Failure> {
        let function = match part {
            FilePart::Begin => &self.begin,
            FilePart::End => &self.end,
        };
        self.room.call(function, (seed,), time).map_err(Failure::of_call)
    }

    fn session(&mut self) -> &mut Session {
        self.room.session()
    }

    fn memory_bytes(&self) -> u64 {
        self.room.memory_bytes()
    }
}
