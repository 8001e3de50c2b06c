//! The releases of the interface: what their interfaces are called. Release 0.2.0 kept the shapes of 0.1.0, so both share the
//! code of the worlds; a release that changes a shape gets code of its own beside it.

/// What a plugin does, by what it exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A batch in, the difference out.
    Interceptor,
    /// An interceptor that also makes events of its own.
    Aggregator,
    /// Bytes to events.
    Decoder,
    /// Events to bytes.
    Encoder,
    /// Delivers batches.
    Sink,
}

impl Role {
    /// For messages: `an interceptor`.
    pub(crate) fn with_article(self) -> &'static str {
        match self {
            Role::Interceptor => "an interceptor",
            Role::Aggregator => "an aggregator",
            Role::Decoder => "a decoder",
            Role::Encoder => "an encoder",
            Role::Sink => "a sink",
        }
    }
}

/// One release.
#[derive(Debug)]
pub(crate) struct Release {
    /// What it has for each role: the interface that a plugin exports, and the world to build it for.
    pub(crate) roles: &'static [(Role, &'static str, &'static str)],
    /// Host powers by the interface that a plugin imports.
    pub(crate) powers: &'static [(&'static str, &'static str)],
    /// Interfaces that hold nothing but types.
    pub(crate) types: &'static [&'static str],
    /// The interface in which a plugin tells about itself.
    pub(crate) about: Option<&'static str>,
    /// The interface by which it takes over the state of an older version.
    pub(crate) migration: Option<&'static str>,
}

static V0_1: Release = Release {
    roles: &[(Role::Interceptor, "flumen:plugin/guest@0.1.0", "flumen:plugin/interceptor@0.1.0")],
    powers: &[
        ("log", "flumen:plugin/log@0.1.0"),
        ("metrics", "flumen:plugin/metrics@0.1.0"),
        ("clock", "flumen:plugin/clock@0.1.0"),
    ],
    types: &["flumen:plugin/types@0.1.0"],
    about: None,
    migration: None,
};

static V0_2: Release = Release {
    roles: &[
        (Role::Interceptor, "flumen:plugin/guest@0.2.0", "flumen:plugin/interceptor@0.2.0"),
        (Role::Sink, "flumen:plugin/delivery@0.2.0", "flumen:plugin/sink@0.2.0"),
        (Role::Aggregator, "flumen:plugin/aggregation@0.2.0", "flumen:plugin/aggregator@0.2.0"),
        (Role::Decoder, "flumen:plugin/decoding@0.2.0", "flumen:plugin/decoder@0.2.0"),
        (Role::Encoder, "flumen:plugin/encoding@0.2.0", "flumen:plugin/encoder@0.2.0"),
    ],
    powers: &[
        ("log", "flumen:plugin/log@0.2.0"),
        ("metrics", "flumen:plugin/metrics@0.2.0"),
        ("clock", "flumen:plugin/clock@0.2.0"),
        ("random", "flumen:plugin/random@0.2.0"),
        ("http", "flumen:plugin/http@0.2.0"),
        ("tcp", "flumen:plugin/tcp@0.2.0"),
        ("state", "flumen:plugin/state@0.2.0"),
    ],
    types: &["flumen:plugin/types@0.2.0", "flumen:plugin/egress@0.2.0"],
    about: Some("flumen:plugin/about@0.2.0"),
    migration: Some("flumen:plugin/migration@0.2.0"),
};

/// The newest first: what is missing is explained by it.
pub(crate) static RELEASES: [&Release; 2] = [&V0_2, &V0_1];

impl Release {
    /// The interface that a plugin of this role exports.
    pub(crate) fn interface(&self, role: Role) -> Option<&'static str> {
        self.roles.iter().find(|(has, ..)| *has == role).map(|(_, interface, _)| *interface)
    }

    /// The power behind an import.
    pub(crate) fn power(&self, import: &str) -> Option<&'static str> {
        self.powers.iter().find(|(_, interface)| *interface == import).map(|(power, _)| *power)
    }
}
