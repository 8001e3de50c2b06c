//! Ways into the broker, and what a client on librdkafka has to be told for each.

use super::properties::USER;
use super::tls::{Identity, TlsFiles};

/// A listener of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// No login, no encryption; a superuser where there is an authorizer.
    Plaintext,
    /// The same, advertised as the port of a [`super::Proxy`].
    Proxied,
    /// A login without encryption.
    SaslPlaintext,
    /// A login over TLS.
    SaslSsl,
    /// TLS that asks for the client's certificate.
    MutualTls,
    /// TLS with a broker certificate that has expired.
    Expired,
}

/// How to log in on the SASL listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// The password as it is.
    Plain,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
    /// An unsigned token.
    OauthBearer,
}

impl Listener {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Plaintext, Self::Proxied, Self::SaslPlaintext, Self::SaslSsl, Self::MutualTls, Self::Expired];

    /// Its distance from the first port.
    pub(super) fn offset(self) -> u16 {
        match self {
            Self::Plaintext => 0,
            Self::Proxied => 1,
            Self::SaslPlaintext => 2,
            Self::SaslSsl => 3,
            Self::MutualTls => 4,
            Self::Expired => 5,
        }
    }

    /// Its name in `server.properties`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Proxied => "PROXIED",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
            Self::MutualTls => "MTLS",
            Self::Expired => "EXPIRED",
        }
    }

    /// Kafka's `security.protocol`.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Plaintext | Self::Proxied => "PLAINTEXT",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
            Self::MutualTls | Self::Expired => "SSL",
        }
    }
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Plain, Self::ScramSha256, Self::ScramSha512, Self::OauthBearer];

    /// Its registered name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Settings of librdkafka to log in as [`USER`] on a SASL listener; others may be put behind to replace
/// them (the last of a name counts).
#[must_use]
pub fn sasl(listener: Listener, mechanism: Mechanism, tls: &TlsFiles) -> Vec<(String, String)> {
    let (name, password) = USER;
    let mut settings = vec![
        pair("security.protocol", listener.protocol()),
        pair("ssl.ca.location", &tls.ca.display().to_string()),
        pair("sasl.mechanism", mechanism.name()),
    ];
    if mechanism == Mechanism::OauthBearer {
        settings.push(pair("enable.sasl.oauthbearer.unsecure.jwt", "true"));
        settings.push(pair("sasl.oauthbearer.config", &format!("principal={name}")));
    } else {
        settings.push(pair("sasl.username", name));
        settings.push(pair("sasl.password", password));
    }
    settings
}

/// The options of a component that logs in as [`USER`], on [`Listener::SaslPlaintext`].
#[must_use]
pub fn scram_options() -> String {
    let (name, password) = USER;
    format!("sasl = \"scram-sha-256\"\nusername = \"{name}\"\npassword = \"{password}\"")
}

/// Settings of librdkafka to trust the broker over TLS, and to present nothing.
#[must_use]
pub fn server_tls(tls: &TlsFiles) -> Vec<(String, String)> {
    vec![pair("security.protocol", "SSL"), pair("ssl.ca.location", &tls.ca.display().to_string())]
}

/// Settings of librdkafka to present a certificate.
#[must_use]
pub fn mutual_tls(identity: &Identity, tls: &TlsFiles) -> Vec<(String, String)> {
    vec![
        pair("security.protocol", "SSL"),
        pair("ssl.ca.location", &tls.ca.display().to_string()),
        pair("ssl.certificate.location", &identity.certificate.display().to_string()),
        pair("ssl.key.location", &identity.key.display().to_string()),
    ]
}

/// An unsigned JWT, as the broker's handler takes it: the user, and since and until when it counts (seconds).
#[must_use]
pub fn token(user: &str, issued: i64, expires: i64) -> String {
    let claims = format!("{{\"sub\":\"{user}\",\"iat\":{issued},\"exp\":{expires}}}");
    format!("{}.{}.", base64_url("{\"alg\":\"none\"}"), base64_url(&claims))
}

fn base64_url(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = text.as_bytes().chunks(3).flat_map(|three| {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let six = move |at: usize| LETTERS.get((bits >> (18 - 6 * at)) as usize & 63).copied();
        (0..=three.len()).filter_map(six)
    });
    letters.map(char::from).collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
