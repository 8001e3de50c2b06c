//! The host powers. Each is linked only if the pipeline grants it.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, WasmStr};

use super::egress;
use super::release::Release;
use super::store::HostSide;
use crate::failure::cut;
use crate::limits;
use crate::services::Level;
use crate::stats;

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
// Values are only made by lifting them out of a guest.
#[allow(dead_code)]
enum LevelIn {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<LevelIn> for Level {
    fn from(level: LevelIn) -> Level {
        match level {
            LevelIn::Debug => Level::Debug,
            LevelIn::Info => Level::Info,
            LevelIn::Warn => Level::Warn,
            LevelIn::Error => Level::Error,
        }
    }
}

type Caller<'a> = StoreContextMut<'a, HostSide>;

pub(super) fn define(
    linker: &mut Linker<HostSide>,
    release: &Release,
    grants: &[String],
) -> wasmtime::Result<()> {
    for (power, interface) in release.powers {
        if !grants.iter().any(|grant| grant == power) {
            continue;
        }
        let mut instance = linker.instance(interface)?;
        match *power {
            "log" => instance.func_wrap("write", write)?,
            "metrics" => {
                instance.func_wrap("add", add)?;
                instance.func_wrap("set", set)?;
            }
            "random" => {
                instance.func_wrap("bytes", random_bytes)?;
                instance.func_wrap("number", random_number)?;
            }
            "http" => egress::define_http(&mut instance)?,
            "tcp" => egress::define_tcp(&mut instance)?,
            "state" => super::state::define(&mut instance)?,
            _ => instance.func_wrap("now", now)?,
        }
    }
    Ok(())
}

fn write(mut caller: Caller<'_>, (level, message): (LevelIn, WasmStr)) -> wasmtime::Result<()> {
    // Asked first: a flood of lines costs no copy and no check of their text.
    if !caller.data().services.may_log() {
        return Ok(());
    }
    let services = caller.data().services.clone();
    let (bytes, line) = {
        let message = message.to_str(&caller)?;
        (message.len(), cut(&message, limits::LOG_LINE_BYTES_MAX).to_owned())
    };
    match spend(&mut caller, bytes) {
        true => services.log(level.into(), &line),
        false => services.log_dropped(),
    }
    Ok(())
}

fn add(mut caller: Caller<'_>, (counter, amount): (WasmStr, u64)) -> wasmtime::Result<()> {
    with_name(&mut caller, counter, |side, name| side.services.add(name, amount))
}

fn set(mut caller: Caller<'_>, (gauge, to): (WasmStr, f64)) -> wasmtime::Result<()> {
    with_name(&mut caller, gauge, |side, name| side.services.set(name, to))
}

fn now(_: Caller<'_>, (): ()) -> wasmtime::Result<(i64,)> {
    Ok((stats::now(),))
}

fn random_bytes(_: Caller<'_>, (count,): (u32,)) -> wasmtime::Result<(Vec<u8>,)> {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(limits::RANDOM_BYTES_MAX);
    let mut bytes = vec![0; count];
    random(&mut bytes)?;
    Ok((bytes,))
}

fn random_number(_: Caller<'_>, (): ()) -> wasmtime::Result<(u64,)> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok((u64::from_le_bytes(bytes),))
}

fn random(bytes: &mut [u8]) -> wasmtime::Result<()> {
    getrandom::fill(bytes).map_err(|error| wasmtime::Error::msg(format!("no randomness: {error}")))
}

fn with_name(
    caller: &mut Caller<'_>,
    name: WasmStr,
    act: impl FnOnce(&HostSide, &str),
) -> wasmtime::Result<()> {
    if caller.data().call_bytes_left == 0 {
        caller.data().services.metric_dropped();
        return Ok(());
    }
    let bytes = {
        let name = name.to_str(&*caller)?;
        let is_allowed = name.len() as u64 <= caller.data().call_bytes_left;
        match is_allowed {
            true => act(caller.data(), &name),
            false => caller.data().services.metric_dropped(),
        }
        name.len()
    };
    spend(caller, bytes);
    Ok(())
}

/// Takes from the bytes that host calls of this batch may carry; false if they are used up.
fn spend(caller: &mut Caller<'_>, bytes: usize) -> bool {
    let left = &mut caller.data_mut().call_bytes_left;
    let is_enough = bytes as u64 <= *left;
    *left = left.saturating_sub(bytes as u64);
    is_enough
}
