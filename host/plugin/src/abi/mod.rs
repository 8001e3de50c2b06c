//! The interface as components see it. Nothing above this module knows which release a plugin was built for.
//!
//! `release` names what each release has; a file for each world turns a component into [`Linked`] and [`Guest`];
//! `store` is what an instance of any world lives in; `powers` is what it may import.

mod about;
mod answers;
mod columns;
mod interceptor;
mod powers;
mod release;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use serde::Serialize;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, InstancePre, Linker};

pub use self::about::Description;
pub use self::release::Role;
use self::release::{RELEASES, Release};
use self::store::HostSide;
use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure};
use crate::services::Services;

/// The columns that a plugin asked for when it was opened. No other column crosses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// The bodies.
    pub body: bool,
    /// The event times.
    pub time: bool,
    /// Streams and positions.
    pub identity: bool,
    /// Headers by name, in the order in which they are passed.
    pub headers: Vec<String>,
}

/// One running copy of a plugin. It has one owner, and is dropped after any failure.
pub(crate) trait Guest: Send {
    /// Called once, first.
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure>;

    /// `batch` has at least one row. The answer is checked, but not yet against the columns of the batch.
    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure>;

    /// Linear memory that it holds.
    fn memory_bytes(&self) -> u64;
}

/// A component with its imports resolved, ready to be instantiated.
pub(crate) trait Linked: Send + Sync {
    fn instantiate(&self, services: &Arc<Services>, limits: &PluginLimits)
    -> Result<Box<dyn Guest>, Failure>;
}

/// A component as it is: what it is for, and what it exports and imports by name.
pub(crate) struct Shape {
    pub(crate) release: &'static Release,
    /// What it can do; at least one.
    pub(crate) roles: Vec<Role>,
    /// The world of its first role.
    pub(crate) world: &'static str,
    /// Without interfaces of types alone: every guest names them, and there is nothing in them to call.
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// Host powers that it needs.
    pub(crate) needs: Vec<String>,
    /// Whether it tells about itself.
    pub(crate) is_described: bool,
}

/// Looks at a component: it has to be of a known release, and import nothing unknown.
pub(crate) fn shape(engine: &Engine, component: &Component, path: &Path) -> Result<Shape, LoadError> {
    let types = component.component_type();
    let exports: Vec<String> = types.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let has = |interface: &str| exports.iter().any(|export| export == interface);
    let of = |release: &&Release| release.roles.iter().any(|(_, interface, _)| has(interface));
    let Some(release) = RELEASES.into_iter().find(of) else {
        return Err(LoadError::WrongWorld { path: path.to_owned(), exports });
    };
    let mut roles = Vec::new();
    let mut world = None;
    for (role, interface, world_of_role) in release.roles.iter().filter(|(_, interface, _)| has(interface)) {
        check_export(engine, &types, *role, interface, path)?;
        roles.push(*role);
        world = world.or(Some(*world_of_role));
    }
    let about = release.about.filter(|about| has(about));
    if let Some(about) = about {
        let exported = exported(engine, &types, about, path)?;
        self::about::check(engine, &types, &exported, about, path)?;
    }
    let imports = types.imports(engine).map(|(name, _)| name);
    let imports = imports.filter(|name| !release.types.contains(name));
    let imports: Vec<String> = imports.map(str::to_owned).collect();
    let is_known = |name: &String| release.power(name).is_some() || is_wasi(name);
    let unknown: Vec<String> = imports.iter().filter(|name| !is_known(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(LoadError::UnknownImports { path: path.to_owned(), imports: unknown });
    }
    let needs = imports.iter().filter_map(|name| release.power(name)).map(str::to_owned).collect();
    let world = world.unwrap_or_default();
    Ok(Shape { release, roles, world, imports, exports, needs, is_described: about.is_some() })
}

fn check_export(
    engine: &Engine,
    types: &types::Component,
    role: Role,
    interface: &'static str,
    path: &Path,
) -> Result<(), LoadError> {
    let exported = exported(engine, types, interface, path)?;
    match role {
        Role::Interceptor => interceptor::check(engine, types, &exported, interface, path),
        // No release has an interface for these yet.
        Role::Aggregator | Role::Decoder | Role::Encoder | Role::Sink => Ok(()),
    }
}

fn exported(
    engine: &Engine,
    types: &types::Component,
    interface: &'static str,
    path: &Path,
) -> Result<types::ComponentInstance, LoadError> {
    match types.get_export(engine, interface).map(|export| export.ty) {
        Some(ComponentItem::ComponentInstance(exported)) => Ok(exported),
        _ => Err(LoadError::WrongShape {
            path: path.to_owned(),
            function: interface.to_owned(),
            reason: "it is not an interface".to_owned(),
        }),
    }
}

/// Interfaces of WASI, of any version: they load, but lead nowhere (no files, environment, sockets or clocks).
fn is_wasi(import: &str) -> bool {
    import.starts_with("wasi:")
}

/// Resolves the imports of a component that [`shape`] let through, for the role of an interceptor.
pub(crate) fn link(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    grants: &[String],
    path: &Path,
) -> Result<Box<dyn Linked>, LoadError> {
    let interface = interface(shape, Role::Interceptor, path)?;
    let ready = ready(engine, component, shape, grants, path)?;
    Ok(Box::new(interceptor::Interceptor { engine: engine.clone(), ready, interface }))
}

/// What the plugin tells about itself; nothing if it does not.
pub(crate) fn describe(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    services: &Arc<Services>,
    path: &Path,
) -> Result<Description, LoadError> {
    let Some(interface) = shape.release.about.filter(|_| shape.is_described) else {
        return Ok(Description::default());
    };
    // It runs before any pipeline grants anything: what it needs is linked, but `describe` has no use for it.
    let ready = ready(engine, component, shape, &shape.needs, path)?;
    about::describe(engine, &ready, interface, services, &PluginLimits::default())
        .map_err(|failure| LoadError::Open { path: path.to_owned(), reason: failure.to_string() })
}

/// The interface behind a role, or that the plugin is for something else.
fn interface(shape: &Shape, role: Role, path: &Path) -> Result<&'static str, LoadError> {
    let interface = shape.release.interface(role).filter(|_| shape.roles.contains(&role));
    interface.ok_or_else(|| LoadError::WrongRole { path: path.to_owned(), wanted: role, world: shape.world })
}

/// Only what is granted is linked.
fn ready(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    grants: &[String],
    path: &Path,
) -> Result<InstancePre<HostSide>, LoadError> {
    let missing: Vec<String> = shape.needs.iter().filter(|power| !grants.contains(power)).cloned().collect();
    if !missing.is_empty() {
        let mut all = grants.to_vec();
        all.extend(missing.iter().cloned());
        return Err(LoadError::NotGranted { path: path.to_owned(), missing, grants: all });
    }
    let mut linker = Linker::new(engine);
    powers::define(&mut linker, shape.release, grants)
        // Whatever is left is WASI: `shape` let nothing else through.
        .and_then(|()| linker.define_unknown_imports_as_traps(component))
        .and_then(|()| linker.instantiate_pre(component))
        .map_err(|error| LoadError::WrongShape {
            path: path.to_owned(),
            function: shape.world.to_owned(),
            reason: format!("{error:#}"),
        })
}
