//! Taking over the state of an older version, for a plugin that exports it.

use std::path::Path;

use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{Instance, TypedFunc};
use wasmtime::{Engine, Store};

use super::store::{self, HostSide, Room};
use crate::error::LoadError;
use crate::failure::OpenFailure;

const MIGRATE: &str = "migrate";

type Params<'a> = (&'a str,);
type Return = (Result<(), String>,);

/// The function has to have the right type.
pub(super) fn check(
    engine: &Engine,
    component: &types::Component,
    exported: &ComponentInstance,
    interface: &str,
    path: &Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported, interface, path };
    check.function::<Params, Return>(MIGRATE)
}

/// The function, if there is one.
pub(super) struct Migrate(Option<TypedFunc<Params<'static>, Return>>);

impl Migrate {
    pub(super) fn of(
        store: &mut Store<HostSide>,
        instance: &Instance,
        interface: Option<&'static str>,
    ) -> wasmtime::Result<Migrate> {
        let function = interface.map(|interface| store::function(store, instance, interface, MIGRATE));
        Ok(Migrate(function.transpose()?))
    }

    pub(super) fn call(&self, room: &mut Room, from: &str) -> Result<(), OpenFailure> {
        let time = room.limits().time;
        match &self.0 {
            Some(migrate) => room.call(migrate, (from,), time),
            None => Ok(()),
        }
    }
}
