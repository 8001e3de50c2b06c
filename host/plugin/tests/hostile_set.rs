//! Every guest of the hostile set: refused by name and reason, or its rows are quarantined with the reason; and a good
//! plugin beside them in the same host works after each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;
mod forge;

use std::time::{Duration, Instant};

use common::*;
use flumen_pipeline::InterceptorVersion;
use flumen_pipeline::plan::PluginLimits;
use forge::Forge;
use forge::set::{Fate, Hostile};

/// Of loading, opening and one batch together: compiling is most of it on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn printable(text: &str) -> bool {
    !text.chars().any(|character| character.is_control())
}

/// What is wrong with what became of it.
fn check(sandbox: &Sandbox, hostile: &Hostile) -> Result<(), String> {
    let path = sandbox.write("guest.wasm", &hostile.bytes);
    let grants: Vec<String> = hostile.grants.iter().map(|grant| (*grant).to_owned()).collect();
    // Short only for who wastes it: on a busy machine a call of anybody else may stand still for seconds.
    let wastes_time = match hostile.fate {
        Fate::Refused(_, part) | Fate::Fails(part) => part.contains("took longer than"),
        Fate::Works => false,
    };
    let limits = match wastes_time {
        true => PluginLimits { time: Duration::from_millis(500), ..PluginLimits::default() },
        false => patient(),
    };
    let opened = sandbox.host.open(&path, hostile.name, "{}", &grants, limits);
    let version = match (opened, hostile.fate) {
        (Err(error), Fate::Refused(code, part)) => {
            let text = error.to_string();
            let is_right = error.code() == code && text.contains(part) && text.contains("guest.wasm");
            return match is_right && printable(&text) && text.len() < 8_192 {
                true => Ok(()),
                false => Err(format!("refused with {}: {text:?}", error.code())),
            };
        }
        (Err(error), _) => return Err(format!("refused with {}: {error}", error.code())),
        (Ok(_), Fate::Refused(..)) => return Err("it opened".to_owned()),
        (Ok(version), _) => version,
    };
    let processed = version.process(batch_with(1, &[], ""));
    let reasons = quarantined(&processed);
    match (hostile.fate, reasons.as_slice()) {
        (Fate::Works, []) if processed.kept.rows() == 1 => Ok(()),
        (Fate::Fails(part), [(0, reason)]) if reason.contains(part) && printable(reason) => Ok(()),
        _ => Err(format!("{} rows kept, in quarantine: {reasons:?}", processed.kept.rows())),
    }
}

#[test]
fn each_is_reported_and_harms_nobody() {
    let sandbox = Sandbox::new();
    let set = forge::set::all();
    let names: std::collections::BTreeSet<_> = set.iter().map(|hostile| hostile.name).collect();
    assert!(names.len() == set.len() && set.len() >= 90, "{} of {}", names.len(), set.len());
    let path = sandbox.write("good.wasm", &Forge::good().module());
    let good = sandbox.host.open(&path, "good", "{}", &[], patient()).unwrap();
    let mut wrong = Vec::new();
    for hostile in &set {
        let started = Instant::now();
        if let Err(what) = check(&sandbox, hostile) {
            wrong.push(format!("{}: {what}; it should have been {:?}", hostile.name, hostile.fate));
        }
        let took = started.elapsed();
        if took > PATIENCE {
            wrong.push(format!("{}: it took {took:?}", hostile.name));
        }
        check_isolated(&good, &batch_with(10, &[], ""), &[], "");
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), set.len(), wrong.join("\n"));
}

/// What the forge makes is a plugin, as a module and as a component.
#[test]
fn a_forged_guest_works() {
    let sandbox = Sandbox::new();
    for bytes in [Forge::good().module(), Forge::good().component()] {
        let path = sandbox.write("guest.wasm", &bytes);
        let version = sandbox.host.open(&path, "guest", "{}", &[], patient()).unwrap();
        // More than its first memory, again and again.
        (0..20).for_each(|_| check_isolated(&version, &batch(&vec!["x".repeat(1_000); 1_000]), &[], ""));
        assert_eq!(version.stats().instances, 1);
    }
}
