//! The interface as components see it. Nothing above this module knows which release a plugin was built for.
//!
//! `release` names what each release has; a file for each world turns a component into [`Linked`] and [`Guest`];
//! `store` is what an instance of any world lives in; `powers` is what it may import.

mod about;
mod aggregator;
mod answers;
mod codec;
mod columns;
mod delivery;
mod egress;
mod interceptor;
mod migration;
mod powers;
mod release;
mod state;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::codec::Decoded;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use serde::Serialize;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, InstancePre, Linker};

pub use self::about::Description;
use self::migration::Migrate;
pub use self::release::Role;
use self::release::{RELEASES, Release};
use self::store::HostSide;
use crate::codec_answer::EncodedRows;
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

impl Reads {
    /// All headers that a batch has, instead of some by name.
    pub(crate) fn is_all_headers(&self) -> bool {
        matches!(self.headers.as_slice(), [all] if all == "*")
    }
}

/// One running copy of a plugin. It has one owner, and is dropped after any failure.
pub(crate) trait Guest: Send {
    /// Called once, first.
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure>;

    /// `batch` has at least one row. The answer is checked, but not yet against the columns of the batch.
    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure>;

    /// A sink's: whether its destination keeps the cursor. Known once it is open.
    fn recovers(&self) -> bool {
        false
    }

    /// A sink's: the cursor that its destination has.
    fn recover(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        Err(not_this_role())
    }

    /// A sink's: `batch` has at least one row. The rejected rows are not yet held against the batch.
    fn deliver(&mut self, batch: &Batch, reads: &Reads, cursor: &[u8]) -> Result<Outcome, Failure> {
        let _unused = (batch, reads, cursor);
        Err(not_this_role())
    }

    /// An aggregator's: how often it wants to be ticked, once it is open; 0: never.
    fn tick_ms(&self) -> u32 {
        0
    }

    /// An aggregator's: time passed. What it makes is in the session.
    fn tick(&mut self, now_ns: i64, time: Duration) -> Result<(), Failure> {
        let _unused = (now_ns, time);
        Err(not_this_role())
    }

    /// Takes over the state of another version, if the plugin knows how to.
    fn migrate(&mut self, from: &str) -> Result<(), OpenFailure> {
        let _unused = from;
        Ok(())
    }

    /// The state that its calls see and write: lent to it before a call, and taken back after it.
    fn session(&mut self) -> &mut Session;
    /// An encoder's: `batch` has at least one row. The answer is checked, but not yet against the columns of the batch.
    fn encode(
        &mut self,
        batch: &Batch,
        reads: &Reads,
        file: Option<u64>,
        time: Duration,
    ) -> Result<EncodedRows, Failure> {
        let _unused = (batch, reads, file, time);
        Err(not_this_role())
    }

    /// An encoder's: what stands at the beginning of a file, or at its end.
    fn around(&mut self, part: FilePart, seed: u64, time: Duration) -> Result<Vec<u8>, Failure> {
        let _unused = (part, seed, time);
        Err(not_this_role())
    }

    /// A decoder's. The answer is checked.
    fn decode(&mut self, input: &[u8], is_last: bool, time: Duration) -> Result<Decoded, Failure> {
        let _unused = (input, is_last, time);
        Err(not_this_role())
    }

    /// Linear memory that it holds.
    fn memory_bytes(&self) -> u64;
}

/// A part of a file that is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilePart {
    Begin,
    End,
}

/// What became of a batch that a sink was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Row numbers with reasons: all others arrived.
    Delivered(Vec<(u32, String)>),
    /// Nothing is known to have arrived.
    Retry {
        /// For a person.
        reason: String,
        /// When the batch is to come again; `None`: at the host's pace.
        after: Option<Duration>,
    },
}

/// A version is linked for one role, and called for no other.
fn not_this_role() -> Failure {
    Failure::Refused("the host called it for a role that it was not opened for (a bug of Flumen)".to_owned())
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
    /// Whether it can take over the state of an older version.
    pub(crate) migrates: bool,
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
    let migration = release.migration.filter(|migration| has(migration));
    if let Some(migration) = migration {
        let exported = exported(engine, &types, migration, path)?;
        self::migration::check(engine, &types, &exported, migration, path)?;
    }
    let imports = types.imports(engine).map(|(name, _)| name);
    let imports = imports.filter(|name| !release.types.contains(name));
    let imports: Vec<String> = imports.map(str::to_owned).collect();
    let is_known = |name: &String| release.power(name).is_some() || is_wasi(name);
    let unknown: Vec<String> = imports.iter().filter(|name| !is_known(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(LoadError::UnknownImports { path: path.to_owned(), imports: unknown });
    }
    let mut needs: Vec<String> =
        imports.iter().filter_map(|name| release.power(name)).map(str::to_owned).collect();
    // The identities of its events are counted there.
    if roles.contains(&Role::Aggregator) && !needs.iter().any(|power| power == "state") {
        needs.push("state".to_owned());
    }
    let world = world.unwrap_or_default();
    Ok(Shape {
        release,
        roles,
        world,
        imports,
        exports,
        needs,
        is_described: about.is_some(),
        migrates: migration.is_some(),
    })
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
        Role::Decoder => codec::check_decoder(engine, types, &exported, interface, path),
        Role::Encoder => codec::check_encoder(engine, types, &exported, interface, path),
        Role::Sink => delivery::check(engine, types, &exported, interface, path),
        Role::Aggregator => aggregator::check(engine, types, &exported, interface, path),
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

/// Whether the plugin can stand in a place for this role.
pub(crate) fn fits(shape: &Shape, role: Role) -> bool {
    shape.roles.contains(&role_of(shape, role))
}

/// An aggregator stands where an interceptor does.
fn role_of(shape: &Shape, role: Role) -> Role {
    let is_aggregator = shape.roles.contains(&Role::Aggregator) && !shape.roles.contains(&Role::Interceptor);
    if role == Role::Interceptor && is_aggregator { Role::Aggregator } else { role }
}

/// Resolves the imports of a component that [`shape`] let through, for one of its roles.
pub(crate) fn link(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    role: Role,
    grants: &[String],
    path: &Path,
) -> Result<Box<dyn Linked>, LoadError> {
    let role = role_of(shape, role);
    let interface = interface(shape, role, path)?;
    let (engine, ready) = (engine.clone(), ready(engine, component, shape, grants, path)?);
    let migration = shape.release.migration.filter(|_| shape.migrates);
    Ok(match role {
        Role::Aggregator => Box::new(aggregator::Aggregator { engine, ready, interface, migration }),
        Role::Sink => Box::new(delivery::Sink { engine, ready, interface }),
        Role::Decoder => Box::new(codec::Decoder { engine, ready, interface }),
        Role::Encoder => Box::new(codec::Encoder { engine, ready, interface }),
        Role::Interceptor => Box::new(interceptor::Interceptor { engine, ready, interface, migration }),
    })
}

/// What the plugin tells about itself; nothing if it does not.
pub(crate) fn describe(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    services: &Arc<Services>,
    limits: &PluginLimits,
    path: &Path,
) -> Result<Description, LoadError> {
    let Some(interface) = shape.release.about.filter(|_| shape.is_described) else {
        return Ok(Description::default());
    };
    // It runs before any pipeline grants anything: what it needs is linked, but `describe` has no use for it.
    let ready = ready(engine, component, shape, &shape.needs, path)?;
    about::describe(engine, &ready, interface, services, limits)
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
