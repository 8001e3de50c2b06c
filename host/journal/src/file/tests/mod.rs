//! Tests of the file journal, on a disk in memory that loses what was not synced.

#![allow(clippy::let_underscore_must_use, reason = "tests that look for panics only")]

mod basic;
mod damage;
mod disk;
mod faults;
mod formats;
mod inspect;
mod model;
mod readers;
mod state;
