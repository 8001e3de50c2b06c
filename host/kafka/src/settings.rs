//! Which brokers, how to reach them, and who we are: the options that everything that speaks Kafka shares.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, OptionKind, OptionSpec, Options};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::{files, limits};

/// The shared options. A component puts its own behind them with [`with_client_options`].
pub const CLIENT_OPTIONS: [OptionSpec; 12] = [
    OptionSpec {
        name: "brokers",
        kind: OptionKind::TextList,
        required: true,
        default: None,
        about: "Brokers to begin with, as \"host:port\"; they tell of all others.",
    },
    option(
        "tls",
        OptionKind::Bool,
        Some("false"),
        "Talk TLS to the brokers. On by itself when `tls_ca` or `tls_certificate` is given.",
    ),
    option(
        "tls_ca",
        OptionKind::Text,
        None,
        "File with the certificates (PEM) of those who may sign a broker's; without it the system's.",
    ),
    option(
        "tls_certificate",
        OptionKind::Text,
        None,
        "File with the certificate (PEM) that this agent shows (mutual TLS).",
    ),
    option("tls_key", OptionKind::Text, None, "File with the private key (PEM) of `tls_certificate`."),
    option(
        "tls_key_password",
        OptionKind::Text,
        None,
        "Password of `tls_key`; best as ${file:…} or ${env:…}.",
    ),
    option(
        "tls_verify_name",
        OptionKind::Bool,
        Some("true"),
        "Check that the broker's certificate is for the name it is reached by.",
    ),
    option(
        "sasl",
        OptionKind::Choice(&["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]),
        None,
        "How this agent says who it is.",
    ),
    option("username", OptionKind::Text, None, "User of `sasl`."),
    option("password", OptionKind::Text, None, "Password of `sasl`; best as ${file:…} or ${env:…}."),
    option(
        "token_file",
        OptionKind::Text,
        None,
        "File with the token of sasl = \"oauthbearer\"; read again before the token expires.",
    ),
    option(
        "properties",
        OptionKind::TextMap,
        None,
        "Properties of librdkafka by their own names, for what has no option here.",
    ),
];

/// Properties that Flumen's promises rest on: not for users to set.
const OWN_PROPERTIES: &[(&str, &str)] = &[
    ("bootstrap.servers", "`brokers`"),
    ("metadata.broker.list", "`brokers`"),
    ("security.protocol", "`tls` and `sasl`"),
    ("sasl.mechanism", "`sasl`"),
    ("sasl.mechanisms", "`sasl`"),
    ("sasl.username", "`username`"),
    ("sasl.password", "`password`"),
    ("sasl.oauthbearer.config", "`token_file`"),
    ("enable.sasl.oauthbearer.unsecure.jwt", "`token_file`"),
    ("ssl.ca.location", "`tls_ca`"),
    ("ssl.certificate.location", "`tls_certificate`"),
    ("ssl.key.location", "`tls_key`"),
    ("ssl.key.password", "`tls_key_password`"),
    ("ssl.endpoint.identification.algorithm", "`tls_verify_name`"),
    ("enable.idempotence", "`delivery`"),
    ("transactional.id", "`delivery` and the names of agent, pipeline and sink"),
    ("acks", "`delivery`"),
    ("request.required.acks", "`delivery`"),
    ("isolation.level", "nothing: Flumen reads what is committed"),
    ("enable.auto.commit", "nothing: offsets are committed after the journal"),
    ("enable.auto.offset.store", "nothing: offsets are committed after the journal"),
    ("auto.offset.reset", "`start`"),
    ("group.id", "`group`"),
    ("group.instance.id", "`instance`"),
    ("partition.assignment.strategy", "nothing: cooperative-sticky"),
    ("max.in.flight", "`delivery`"),
    ("max.in.flight.requests.per.connection", "`delivery`"),
    ("retries", "`delivery`"),
    ("message.send.max.retries", "`delivery`"),
    ("delivery.report.only.error", "nothing"),
    ("dr_cb", "nothing"),
    ("dr_msg_cb", "nothing"),
    ("plugin.library.paths", "nothing: no foreign code is loaded into the agent"),
];

/// [`CLIENT_OPTIONS`], then a component's own.
#[allow(clippy::indexing_slicing, reason = "evaluated when the host is compiled; constants have no `get`")]
pub const fn with_client_options<const OWN: usize, const ALL: usize>(
    own: [OptionSpec; OWN],
) -> [OptionSpec; ALL] {
    let mut all = [CLIENT_OPTIONS[0]; ALL];
    let mut at = 0;
    while at < ALL {
        all[at] = if at < CLIENT_OPTIONS.len() { CLIENT_OPTIONS[at] } else { own[at - CLIENT_OPTIONS.len()] };
        at += 1;
    }
    all
}

/// How the agent says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sasl {
    /// User and password, in the clear unless TLS is on.
    Plain,
    /// Challenge and response.
    ScramSha256,
    /// Challenge and response.
    ScramSha512,
    /// A token from a file.
    OauthBearer,
}

impl Sasl {
    /// Its registered name.
    pub fn mechanism(self) -> &'static str {
        match self {
            Sasl::Plain => "PLAIN",
            Sasl::ScramSha256 => "SCRAM-SHA-256",
            Sasl::ScramSha512 => "SCRAM-SHA-512",
            Sasl::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Checked settings. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`.
    pub brokers: Vec<String>,
    /// TLS is on.
    pub tls: bool,
    /// Certificates of signers.
    pub tls_ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// Who we are.
    pub sasl: Option<Sasl>,
    /// The user, for messages.
    pub username: Option<String>,
    /// Where the token is.
    pub token_file: Option<PathBuf>,
    tls_key_password: Option<String>,
    tls_verify_name: bool,
    password: Option<String>,
    properties: BTreeMap<String, String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Settings { brokers, tls, sasl, username, .. } = self;
        write!(formatter, "Settings({brokers:?}, tls {tls}, sasl {sasl:?}, user {username:?})")
    }
}

impl Settings {
    /// Reads [`CLIENT_OPTIONS`] out of checked options.
    pub fn from_options(options: &Options) -> Result<Settings, BuildError> {
        let text = |name: &str| options.text_opt(name).map(str::to_owned);
        let path = |name: &str| options.text_opt(name).map(PathBuf::from);
        let brokers = options.list("brokers")?.to_vec();
        brokers.iter().try_for_each(|broker| check_broker(broker))?;
        let tls_identity = match (path("tls_certificate"), path("tls_key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(missing("tls_key", "`tls_certificate` is given", "add the file of its key"));
            }
            (None, Some(_)) => {
                return Err(missing(
                    "tls_certificate",
                    "`tls_key` is given",
                    "add the file of its certificate",
                ));
            }
        };
        let sasl = match options.text_opt("sasl") {
            Some("plain") => Some(Sasl::Plain),
            Some("scram-sha-256") => Some(Sasl::ScramSha256),
            Some("scram-sha-512") => Some(Sasl::ScramSha512),
            Some("oauthbearer") => Some(Sasl::OauthBearer),
            _ => None,
        };
        let settings = Settings {
            brokers,
            tls: options.flag_opt("tls").unwrap_or(false)
                || options.text_opt("tls_ca").is_some()
                || tls_identity.is_some(),
            tls_ca: path("tls_ca"),
            tls_identity,
            sasl,
            username: text("username"),
            token_file: path("token_file"),
            tls_key_password: text("tls_key_password"),
            tls_verify_name: options.flag_opt("tls_verify_name").unwrap_or(true),
            password: text("password"),
            properties: options.map_opt("properties").cloned().unwrap_or_default(),
        };
        settings.check_sasl()?;
        settings.check_properties()?;
        Ok(settings)
    }

    /// The same way to other brokers of the cluster.
    pub fn with_brokers(&self, brokers: Vec<String>) -> Settings {
        Settings { brokers, ..self.clone() }
    }

    /// A broker's certificate has to be for the name that it is reached by.
    pub fn verifies_name(&self) -> bool {
        self.tls_verify_name
    }

    /// How a connection is made, for messages: `TLS, as alice (SCRAM-SHA-512)`.
    pub fn in_words(&self) -> String {
        let transport = match (self.tls, &self.tls_identity) {
            (false, _) => "plaintext",
            (true, None) => "TLS",
            (true, Some(_)) => "TLS with our certificate",
        };
        match (self.sasl, &self.username) {
            (None, _) => transport.to_string(),
            (Some(Sasl::OauthBearer), _) => format!("{transport}, with a token"),
            (Some(sasl), user) => {
                format!("{transport}, as {} ({})", user.as_deref().unwrap_or_default(), sasl.mechanism())
            }
        }
    }

    /// Whether the files that options name are there and are what they should be. Making a component touches no
    /// file; this is asked where something is about to connect, and by `flumen check`.
    pub fn check_files(&self) -> Result<(), BuildError> {
        files::check(self, self.tls_key_password.is_some())
    }

    fn check_sasl(&self) -> Result<(), BuildError> {
        match self.sasl {
            None if self.username.is_some() || self.password.is_some() => Err(missing(
                "sasl",
                "`username` or `password` is given",
                "name the mechanism, for instance \"scram-sha-512\"",
            )),
            None if self.token_file.is_some() => {
                Err(missing("sasl", "`token_file` is given", "add sasl = \"oauthbearer\""))
            }
            None => Ok(()),
            Some(Sasl::OauthBearer) if self.token_file.is_none() => {
                Err(missing("token_file", "sasl is \"oauthbearer\"", "name the file that holds the token"))
            }
            Some(Sasl::OauthBearer) => Ok(()),
            Some(_) if self.username.is_none() => {
                Err(missing("username", "`sasl` is given", "add the user's name"))
            }
            Some(_) if self.password.is_none() => {
                Err(missing("password", "`sasl` is given", "add it, best as \"${file:…}\" or \"${env:…}\""))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_properties(&self) -> Result<(), BuildError> {
        let mut trial = ClientConfig::new();
        for (name, value) in &self.properties {
            if let Some((_, instead)) = OWN_PROPERTIES.iter().find(|(own, _)| own == name) {
                let fix = format!("remove it; what decides is {instead}");
                return Err(BuildError::new("properties", format!("`{name}` is not for you to set"), fix));
            }
            trial.set(name, value);
            if let Err(error) = trial.create_native_config() {
                let reason = match error {
                    rdkafka::error::KafkaError::ClientConfig(_, reason, ..) => reason,
                    other => other.to_string(),
                };
                let fix = "use a name and value of librdkafka's CONFIGURATION.md, version 2.12";
                return Err(BuildError::new("properties", format!("`{name}`: {reason}"), fix));
            }
        }
        Ok(())
    }

    /// librdkafka's configuration of a client that says it is `client_id`.
    pub fn config(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", self.brokers.join(","));
        config.set("client.id", client_id);
        config.set("statistics.interval.ms", limits::STATISTICS_EVERY.as_millis().to_string());
        config.set("socket.connection.setup.timeout.ms", limits::CONNECT.as_millis().to_string());
        // A port that ends the connection at once (it talks TLS, or wants a login) is told of only with this; ends of
        // idle connections are not, and the log shows them at debug alone.
        config.set("log.connection.close", "true");
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("topic.metadata.refresh.interval.ms", "30000");
        // A broker that comes back is noticed within this time.
        config.set("reconnect.backoff.max.ms", "5000");
        config.set(
            "security.protocol",
            match (self.tls, self.sasl.is_some()) {
                (false, false) => "plaintext",
                (true, false) => "ssl",
                (false, true) => "sasl_plaintext",
                (true, true) => "sasl_ssl",
            },
        );
        let mut set = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                config.set(name, value);
            }
        };
        if self.tls {
            set(
                "ssl.ca.location",
                self.tls_ca.as_ref().and_then(|path| path.to_str()).or(system_certificates()),
            );
            set(
                "ssl.endpoint.identification.algorithm",
                Some(if self.tls_verify_name { "https" } else { "none" }),
            );
            if let Some((certificate, key)) = &self.tls_identity {
                set("ssl.certificate.location", certificate.to_str());
                set("ssl.key.location", key.to_str());
                set("ssl.key.password", self.tls_key_password.as_deref());
            }
        }
        if let Some(sasl) = self.sasl {
            set("sasl.mechanism", Some(sasl.mechanism()));
            if sasl != Sasl::OauthBearer {
                set("sasl.username", self.username.as_deref());
                set("sasl.password", self.password.as_deref());
            }
        }
        config
    }
}

/// For a client whose statistics nobody looks at. librdkafka queues 10 KiB and more each time, until the client is polled.
pub fn without_statistics(mut config: ClientConfig) -> ClientConfig {
    config.set("statistics.interval.ms", "0");
    config
}

/// OpenSSL is built in and does not know where this system keeps its certificates.
fn system_certificates() -> Option<&'static str> {
    const PLACES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    PLACES.into_iter().find(|place| std::path::Path::new(place).is_file())
}

fn check_broker(broker: &str) -> Result<(), BuildError> {
    let fix = "write \"host:port\", for instance \"kafka-1:9092\"";
    if broker.contains("://") {
        return Err(BuildError::new("brokers", format!("{broker:?} is a URL"), fix));
    }
    if broker.chars().any(|c| c.is_whitespace() || c == ',') {
        return Err(BuildError::new(
            "brokers",
            format!("{broker:?} is not one broker"),
            "give each broker a string of its own",
        ));
    }
    let port =
        broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(BuildError::new("brokers", format!("{broker:?} has no port"), fix)),
    }
}

fn missing(option: &str, because: &str, fix: &str) -> BuildError {
    BuildError::new(option, format!("is missing, but {because}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_pipeline::Value;

    fn settings(options: &[(&str, &str)]) -> Result<Settings, BuildError> {
        let mut all = BTreeMap::from([("brokers".to_string(), Value::TextList(vec!["k:9092".into()]))]);
        for (name, value) in options {
            let value = match *name {
                "brokers" => Value::TextList(vec![value.to_string()]),
                "properties" => {
                    let (key, value) = value.split_once('=').unwrap();
                    Value::TextMap(BTreeMap::from([(key.into(), value.into())]))
                }
                _ => Value::Text(value.to_string()),
            };
            all.insert(name.to_string(), value);
        }
        Settings::from_options(&Options(all))
    }

    #[test]
    fn each_mistake_names_its_option() {
        for (options, option, reason) in [
            (vec![("brokers", "k")], "brokers", "no port"),
            (vec![("brokers", "k:0")], "brokers", "no port"),
            (vec![("brokers", "http://k:9092")], "brokers", "URL"),
            (vec![("brokers", "a:1,b:2")], "brokers", "not one broker"),
            (vec![("username", "u")], "sasl", "missing"),
            (vec![("sasl", "plain")], "username", "missing"),
            (vec![("sasl", "plain"), ("username", "u")], "password", "missing"),
            (vec![("sasl", "oauthbearer")], "token_file", "missing"),
            (vec![("tls_key", "k.pem")], "tls_certificate", "missing"),
            (vec![("tls_certificate", "k.pem")], "tls_key", "missing"),
            (vec![("properties", "acks=1")], "properties", "not for you"),
            (vec![("properties", "no.such=1")], "properties", "No such configuration property"),
            (vec![("properties", "linger.ms=soon")], "properties", "linger.ms"),
        ] {
            let error = settings(&options).unwrap_err();
            assert_eq!(error.option, option, "{error}");
            assert!(error.reason.contains(reason), "{error}");
            assert!(!error.fix.is_empty());
        }
    }

    #[test]
    fn what_is_asked_for_is_what_librdkafka_gets() {
        let get = |options: &[(&str, &str)], name: &str| {
            settings(options).unwrap().config("c").get(name).map(str::to_owned)
        };
        assert_eq!(get(&[], "security.protocol").as_deref(), Some("plaintext"));
        assert_eq!(get(&[("tls_ca", "ca.pem")], "security.protocol").as_deref(), Some("ssl"));
        let sasl = [("sasl", "scram-sha-512"), ("username", "u"), ("password", "p"), ("tls_ca", "ca.pem")];
        assert_eq!(get(&sasl, "security.protocol").as_deref(), Some("sasl_ssl"));
        assert_eq!(get(&sasl, "sasl.mechanism").as_deref(), Some("SCRAM-SHA-512"));
        assert_eq!(get(&[("properties", "linger.ms=7")], "linger.ms").as_deref(), Some("7"));
        let shown = format!("{:?}", settings(&sasl).unwrap());
        assert!(!shown.contains("\"p\""), "{shown}");
    }
}
