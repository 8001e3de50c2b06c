//! Files that a fuzzer found, in `tests/cases/`: each is refused in words, or does no harm. `cargo xtask fuzz` finds new ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;
mod forge;
mod judge;

use common::*;
use flumen_pipeline::InterceptorVersion;
use forge::mutate::{Dice, mutate};
use judge::{is_printable, judge};

#[test]
fn files_that_were_found_do_no_harm() {
    let sandbox = Sandbox::new();
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
    let mut cases = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        cases += 1;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let grants = ["log", "metrics", "clock"].map(str::to_owned);
        match sandbox.host.open(&path, "case", "{}", &grants, quick()) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(&name) && is_printable(&text), "{text:?}");
            }
            Ok(version) => {
                let input = batch_with(3, &[], "");
                judge(&input, &version.process(input.clone()))
                    .unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            }
        }
    }
    assert!(cases > 0, "no cases in {dir}");
}

/// What is changed is changed, and often enough still a file of the format.
#[test]
fn the_mutator_changes_files_and_leaves_most_of_them() {
    let corpus = [forge::Forge::good().module(), forge::Forge::good().component()];
    let mut dice = Dice(1);
    let changed: Vec<Vec<u8>> = (0..200).map(|at| mutate(&corpus[at % 2], &corpus, &mut dice)).collect();
    assert!(changed.iter().filter(|bytes| corpus.contains(bytes)).count() < 20);
    let close = |bytes: &&Vec<u8>| bytes.starts_with(b"\0asm") && bytes.len() > corpus[0].len() / 2;
    assert!(changed.iter().filter(close).count() > 150);
}
