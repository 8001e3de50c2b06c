//! Tests of the file journal, on a disk in memory that loses what was not synced.

#![allow(clippy::let_underscore_must_use, reason = "tests that look for panics only")]

mod basic;
mod compressed;
mod damage;
pub mod disk;
mod faults;
mod formats;
mod hard;
mod inspect;
mod leading;
mod once;
mod readers;
mod reading;
mod sealed;
mod sim;
mod spares;
mod state;
mod threads;
mod tools;
