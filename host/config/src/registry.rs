//! The sources and sinks that exist, as their specs say. This crate knows no concrete one.

use flumen_pipeline::ComponentSpec;

use crate::specs;
use crate::table::default_value;

/// The known types of sources and sinks.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// Types for `[source.NAME]`.
    pub sources: Vec<ComponentSpec>,
    /// Types for `[sink.NAME]`.
    pub sinks: Vec<ComponentSpec>,
    /// Kinds for `[channel.NAME]`, beside `file`.
    pub channels: Vec<ComponentSpec>,
    /// Kinds for `failover` of a channel that have options of their own there, flat beside the general ones.
    pub failovers: Vec<ComponentSpec>,
    /// Tables of a bridge's file, by their name.
    pub bridge: Vec<ComponentSpec>,
    /// Types of sources that take a decoder.
    pub decoders: Vec<CodecUse>,
    /// Types of sinks that take an encoder.
    pub encoders: Vec<CodecUse>,
}

/// A type of source or sink that takes a codec: `[source.NAME.codec]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodecUse {
    /// The type.
    pub kind: &'static str,
    /// Its options that a codec takes the place of.
    pub instead_of: &'static [&'static str],
}

impl Registry {
    /// The mistakes in the specs themselves: wrong defaults, names that are taken or used twice. For a test.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        check("source", &self.sources, &["type", "codec"], &mut mistakes);
        check("channel", &self.channels, &["kind", "capacity", "failover"], &mut mistakes);
        let general: Vec<&str> = specs::FAILOVER.iter().map(|option| option.name).chain(["memory"]).collect();
        check("failover", &self.failovers, &general, &mut mistakes);
        check("sink", &self.sinks, &["type", "plugin", "interceptor", "codec"], &mut mistakes);
        check("table", &self.bridge, &[], &mut mistakes);
        mistakes
    }
}

fn check(what: &str, specs: &[ComponentSpec], taken: &[&str], mistakes: &mut Vec<String>) {
    for (at, spec) in specs.iter().enumerate() {
        let place = format!("{what} type `{}`", spec.kind);
        if specs.iter().take(at).any(|other| other.kind == spec.kind) {
            mistakes.push(format!("{place} exists twice"));
        }
        for (at, option) in spec.options.iter().enumerate() {
            let place = format!("{place}, option `{}`", option.name);
            let own = what == "sink" && specs::SINK.iter().any(|own| own.name == option.name);
            if own || taken.contains(&option.name) {
                mistakes.push(format!("{place}: the name is taken"));
            }
            if spec.options.iter().take(at).any(|other| other.name == option.name) {
                mistakes.push(format!("{place} exists twice"));
            }
            match option.default {
                Some(_) if option.required => mistakes.push(format!("{place}: required, with a default")),
                Some(text) if default_value(option, text).is_none() => {
                    mistakes.push(format!("{place}: the default {text} is wrong"));
                }
                _ => {}
            }
        }
    }
}
