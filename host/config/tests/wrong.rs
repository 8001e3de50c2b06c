//! Every wrong file in `tests/wrong` gives the messages that its snapshot has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::PathBuf;

use flumen_config::{load_agent, render};

#[test]
fn wrong_files_say_what_is_wrong() {
    let env = common::env_of(&common::here("tests/wrong"));
    let files: Vec<PathBuf> = env
        .files
        .keys()
        .filter(|file| file.extension().is_some_and(|ending| ending == "toml"))
        .cloned()
        .collect();
    let mut count = 0;
    // Files in folders belong to the agent files that name them.
    for file in files.iter().filter(|file| file.parent() == Some("".as_ref())) {
        let diagnostics =
            load_agent(std::slice::from_ref(file), &common::registry(), &env).expect_err("is wrong");
        let text = render(&diagnostics);
        assert!(!text.contains("hunter22"), "{text}");
        for diagnostic in &diagnostics {
            assert!(!diagnostic.reason.is_empty() && !diagnostic.fix.is_empty(), "{diagnostic:?}");
        }
        insta::assert_snapshot!(file.file_stem().unwrap().to_str().unwrap(), text);
        count += 1;
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn a_diagnostic_is_json_too() {
    let diagnostics = common::load("[source]\ntype = \"tial\"\n[sink]\ntype = \"null\"").unwrap_err();
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&diagnostics).unwrap());
}

#[test]
fn errors_of_all_files_come_at_once() {
    let mut env = common::env_of(&common::here("tests/wrong"));
    env.files.insert("many/a.toml".into(), b"[sourc]".to_vec());
    env.files.insert("many/b.toml".into(), b"x =".to_vec());
    let paths = ["many".into(), "nowhere.toml".into(), "unknown-keys.toml".into()];
    let diagnostics = load_agent(&paths, &common::registry(), &env).unwrap_err();
    let mut files: Vec<_> = diagnostics.iter().map(|diagnostic| diagnostic.file.to_str().unwrap()).collect();
    files.dedup();
    assert_eq!(files, ["many/a.toml", "many/b.toml", "nowhere.toml", "unknown-keys.toml"]);
}
