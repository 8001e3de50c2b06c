//! Tests of the file journal, on a disk in memory that loses what was not synced.

mod basic;
mod damage;
mod disk;
mod faults;
mod formats;
mod inspect;
mod model;
