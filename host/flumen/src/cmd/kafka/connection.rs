//! Which cluster, and as whom: from options of the command, or from a component of a pipeline file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_kafka::Settings;
use flumen_kafka::admin::check::{PROGRESS_TOPIC, Target};
use flumen_pipeline::plan::AgentPlan;
use flumen_pipeline::{BuildError, Options, Value};

use crate::cmd;
use crate::exit::{Failure, USAGE};

/// Options of every command, before or behind its own.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Brokers to begin with, as host:port,host:port.
    #[arg(long, short, global = true, value_delimiter = ',')]
    brokers: Vec<String>,
    /// Take brokers and security from a component of this pipeline file or flumen.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which source or sink of --config; not needed if only one speaks Kafka.
    #[arg(long, global = true, value_name = "NAME")]
    component: Option<String>,
    #[command(flatten)]
    security: Security,
    /// A property of librdkafka by its own name, as name=value.
    #[arg(long = "property", global = true, value_parser = pair, value_name = "NAME=VALUE")]
    properties: Vec<(String, String)>,
    /// Print JSON; the same as --output json.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct Security {
    /// Talk TLS.
    #[arg(long, global = true)]
    tls: bool,
    /// File with the certificates (PEM) of those who may sign a broker's.
    #[arg(long, global = true, value_name = "FILE")]
    tls_ca: Option<String>,
    /// File with our certificate (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    tls_certificate: Option<String>,
    /// File with the private key (PEM) of --tls-certificate.
    #[arg(long, global = true, value_name = "FILE")]
    tls_key: Option<String>,
    /// File with the password of --tls-key.
    #[arg(long, global = true, value_name = "FILE")]
    tls_key_password_file: Option<PathBuf>,
    /// Take a broker's certificate whatever name it is for.
    #[arg(long, global = true)]
    tls_any_name: bool,
    /// plain, scram-sha-256, scram-sha-512 or oauthbearer.
    #[arg(long, global = true, value_parser = ["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"])]
    sasl: Option<String>,
    /// User of --sasl.
    #[arg(long, global = true)]
    username: Option<String>,
    /// File with the password of --sasl. (An argument would be seen by everyone on this machine.)
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Environment variable with the password of --sasl.
    #[arg(long, global = true, value_name = "NAME")]
    password_env: Option<String>,
    /// File with the token of --sasl oauthbearer.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<String>,
}

/// A cluster, and the component that names it.
pub struct Connection {
    /// How to reach it.
    pub settings: Arc<Settings>,
    /// The component of --config.
    pub target: Option<Target>,
}

impl Security {
    fn is_given(&self) -> bool {
        let texts = [&self.tls_ca, &self.tls_certificate, &self.tls_key, &self.sasl, &self.username];
        let others = [&self.password_env, &self.token_file];
        let files = [&self.tls_key_password_file, &self.password_file];
        self.tls
            || self.tls_any_name
            || texts.into_iter().chain(others).any(Option::is_some)
            || files.into_iter().any(Option::is_some)
    }
}

impl Args {
    /// Reads options or files. Nothing is connected.
    pub fn open(&self) -> Result<Connection, Failure> {
        match &self.config {
            Some(_) if !self.brokers.is_empty() || self.security.is_given() => {
                Err(usage("--config takes brokers and security from the component; leave one of the two out"))
            }
            Some(config) => self.of_component(config),
            None if self.brokers.is_empty() => {
                Err(usage("which cluster? Give --brokers HOST:PORT, or --config FILE of a pipeline"))
            }
            None => {
                let settings =
                    Settings::from_options(&self.options()?).map_err(|error| usage(&as_argument(&error)))?;
                Ok(Connection { settings: Arc::new(settings), target: None })
            }
        }
    }

    fn options(&self) -> Result<Options, Failure> {
        let security = &self.security;
        let mut all = BTreeMap::from([("brokers".to_string(), Value::TextList(self.brokers.clone()))]);
        let texts = [
            ("tls_ca", security.tls_ca.clone()),
            ("tls_certificate", security.tls_certificate.clone()),
            ("tls_key", security.tls_key.clone()),
            ("tls_key_password", secret(security.tls_key_password_file.as_ref(), None)?),
            ("sasl", security.sasl.clone()),
            ("username", security.username.clone()),
            ("password", secret(security.password_file.as_ref(), security.password_env.as_deref())?),
            ("token_file", security.token_file.clone()),
        ];
        all.extend(texts.into_iter().filter_map(|(name, text)| Some((name.into(), Value::Text(text?)))));
        all.insert("tls".into(), Value::Bool(security.tls));
        all.insert("tls_verify_name".into(), Value::Bool(!security.tls_any_name));
        all.insert("properties".into(), Value::TextMap(self.properties.iter().cloned().collect()));
        Ok(Options(all))
    }

    fn of_component(&self, config: &Path) -> Result<Connection, Failure> {
        let (plan, sources) = cmd::load(&[config.to_owned()])?;
        let found = find(&plan, self.component.as_deref())?;
        let mut options = found.options.clone();
        if let Some(Value::TextMap(properties)) = options.0.get_mut("properties") {
            properties.extend(self.properties.iter().cloned());
        } else {
            options.0.insert("properties".into(), Value::TextMap(self.properties.iter().cloned().collect()));
        }
        let settings = Settings::from_options(&options).map_err(|error| {
            Failure::Config(vec![sources.diagnostic_for(&found.pipeline, found.kind, &found.name, &error)])
        })?;
        settings.check_files().map_err(|error| {
            Failure::Config(vec![sources.diagnostic_for(&found.pipeline, found.kind, &found.name, &error)])
        })?;
        Ok(Connection { settings: Arc::new(settings), target: Some(found.target(&plan.name)) })
    }
}

struct Found {
    kind: flumen_pipeline::ComponentKind,
    pipeline: String,
    channel: String,
    name: String,
    options: Options,
}

impl Found {
    fn target(&self, agent: &str) -> Target {
        let Found { pipeline, channel, name, options, .. } = self;
        let is_sink = self.kind == flumen_pipeline::ComponentKind::Sink;
        let is_plain = |topic: &&String| !topic.contains(['{', '*', '^', '$']);
        let one = options.text_opt("topic").map(str::to_owned);
        let topics = one.iter().chain(options.list_opt("topics").unwrap_or_default());
        Target {
            who: format!("{} `{name}`", self.kind.word()),
            topics: topics.filter(is_plain).cloned().collect(),
            is_transactional: is_sink
                && options.text_opt("delivery").is_none_or(|delivery| delivery == "exactly-once"),
            id_prefix: if is_sink { format!("{agent}/{pipeline}/{name}/") } else { String::new() },
            progress_of: if is_sink { format!("{agent}/{pipeline}/{channel}/{name}") } else { String::new() },
            progress_topic: options.text_opt("progress_topic").unwrap_or(PROGRESS_TOPIC).to_owned(),
        }
    }
}

/// The component of that name, or the only one; what has brokers speaks Kafka.
fn find(plan: &AgentPlan, wanted: Option<&str>) -> Result<Found, Failure> {
    use flumen_pipeline::ComponentKind::{Sink, Source};
    let mut all = Vec::new();
    for pipeline in &plan.pipelines {
        let found = |kind, channel: &str, name: &String, options: &Options| Found {
            kind,
            pipeline: pipeline.name.clone(),
            channel: channel.into(),
            name: name.clone(),
            options: options.clone(),
        };
        all.extend(pipeline.sources.iter().map(|source| found(Source, "", &source.name, &source.options)));
        all.extend(pipeline.sinks.iter().map(|sink| found(Sink, &sink.channel, &sink.name, &sink.options)));
    }
    for bridge in &plan.bridges {
        let kafka = bridge.tables.get("kafka").cloned();
        let (pipeline, name, channel) = (bridge.name.clone(), bridge.name.clone(), String::new());
        all.extend(kafka.map(|options| Found { kind: Source, pipeline, channel, name, options }));
    }
    all.retain(|found| found.options.list_opt("brokers").is_some());
    let names = all.iter().map(|found| found.name.clone()).collect::<Vec<_>>().join(", ");
    all.retain(|found| wanted.is_none_or(|wanted| wanted == found.name));
    match (all.len(), wanted) {
        (1, _) => all.pop().ok_or_else(|| anyhow::anyhow!("no component").into()),
        (0, _) if names.is_empty() => Err(anyhow::anyhow!("no source or sink there speaks Kafka").into()),
        (0, Some(wanted)) => {
            Err(anyhow::anyhow!("no {wanted:?} there speaks Kafka; there are: {names}").into())
        }
        (_, None) => Err(anyhow::anyhow!("several speak Kafka; name one with --component: {names}").into()),
        (_, Some(wanted)) => Err(anyhow::anyhow!(
            "several components are named {wanted:?}; give --config the file of one pipeline"
        )
        .into()),
    }
}

/// An error of [`Settings`], whose options are arguments here.
fn as_argument(error: &BuildError) -> String {
    let flag = match error.option.as_str() {
        "password" => "--password-file or --password-env".to_string(),
        "tls_key_password" => "--tls-key-password-file".to_string(),
        "properties" => "--property".to_string(),
        other => format!("--{}", other.replace('_', "-")),
    };
    let fix =
        if matches!(error.option.as_str(), "password" | "tls_key_password") { "give it" } else { &error.fix };
    format!("{flag} {}; {fix}", error.reason)
}

/// A wrong argument that clap does not know of.
fn usage(text: &str) -> Failure {
    eprintln!("flumen: {text}");
    Failure::Reported(USAGE)
}

fn secret(file: Option<&PathBuf>, variable: Option<&str>) -> Result<Option<String>, Failure> {
    if let Some(path) = file {
        let text =
            std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        return Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()));
    }
    match variable.map(|name| (name, std::env::var(name))) {
        None => Ok(None),
        Some((_, Ok(text))) => Ok(Some(text)),
        Some((name, Err(error))) => Err(anyhow::anyhow!("environment variable {name}: {error}").into()),
    }
}

/// `name=value`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write name=value".into()),
    }
}
