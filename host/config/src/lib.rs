//! User text to plans: the only crate that reads it.
//!
//! TOML is parsed with the place of every key and value (`tree`), `${…}` is replaced in string values
//! (`substitute`), and tables are checked against specs that are data (`specs` for Flumen's own
//! tables, [`Registry`] for sources and sinks). All errors of all files are found in one go; each is a
//! [`Diagnostic`] with its place, a reason and a fix. What comes out are the plain values of
//! `flumen_pipeline::plan`, and [`Sources`], which gives errors that are found later their place too.
//!
//! It fails by returning diagnostics, never in another way; it reads files and variables through [`Env`] alone.

mod agent;
mod base64;
mod cases;
mod channels;
mod code;
mod codec_cases;
mod diagnostic;
mod duration;
mod egress;
mod env;
mod failover;
mod groups;
mod interceptor;
mod journal;
mod json;
pub mod limits;
mod load;
mod memory_channels;
mod named;
mod pipeline;
mod plugin_sink;
mod reference;
mod registry;
mod report;
mod schema;
mod selector;
mod sink_cases;
mod size;
mod sources;
mod specs;
mod substitute;
mod suggest;
mod table;
mod tables;
mod tree;
mod value;

pub use agent::AGENT_FILE;
pub use cases::{CaseEvent, CaseFile, CaseStep, load_case};
pub use code::Code;
pub use codec_cases::CodecCase;
pub use diagnostic::{Diagnostic, Place, render};
pub use duration::{format_duration, parse_duration};
pub use env::{Env, MemoryEnv, SystemEnv};
pub use load::{find_data_dir, load_agent};
pub use reference::reference_markdown;
pub use registry::{CodecUse, Registry};
pub use schema::{agent_schema, json_schema, pipeline_schema, schema_files, tables_schema};
pub use sink_cases::{CaseRequest, SinkStep};
pub use size::{format_size, parse_size};
pub use sources::Sources;
pub use tables::{Tables, load_tables};
