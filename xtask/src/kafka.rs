//! `cargo xtask kafka`: a Kafka broker to try things on.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use flumen_tests::kafka::properties::USER;
use flumen_tests::kafka::{Broker, BrokerOptions, Listener, process};
use flumen_tests::locate;

#[derive(Args)]
pub struct Arguments {
    /// The port of the plaintext listener; those behind it are taken for the other listeners
    #[arg(long, default_value_t = 19_092)]
    port: u16,
    /// Where the broker's data lies and stays; else in a directory that goes with the broker
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = BrokerOptions {
        dir: arguments.dir.clone(),
        first_port: Some(arguments.port),
        properties: vec![("auto.create.topics.enable".to_owned(), "true".to_owned())],
        jvm: Vec::new(),
        ..BrokerOptions::default()
    };
    let mut broker = Broker::start(&options)?;
    if arguments.dir.is_none() {
        // Ctrl-C ends this process at once; the kernel ends the broker, and a shell clears up.
        process::remove_after_exit(broker.dir())?;
    }
    print!("{}", greeting(&broker, &locate::repository()?));
    let status = broker.wait_end()?;
    bail!("the broker ended by itself ({status})");
}

fn greeting(broker: &Broker, repository: &Path) -> String {
    let bootstrap = broker.bootstrap();
    let (name, password) = USER;
    let tls = broker.tls();
    let script = repository.join("tests/kafka/client.py");
    let client = format!("PYTHONPATH={} python3 {}", broker.python().display(), script.display());
    format!(
        "Kafka is ready at {bootstrap} (data and log in {dir}). In another shell:\n\n  \
         client() {{ {client} --bootstrap {bootstrap} \"$@\"; }}\n  \
         client create-topic events --partitions 2\n  \
         seq 1000 > /tmp/lines && client produce events --lines /tmp/lines\n  \
         client consume events --values --output - | tail\n\n\
         Topics are also created when they are first used. Other ways in:\n  \
         {sasl_ssl}  SASL_SSL: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 as {name} / {password}, OAUTHBEARER unsigned\n  \
         {sasl}  SASL_PLAINTEXT: the same without TLS\n  \
         {mtls}  SSL with a client certificate: {certificate}, {key}\n  \
         CA: {ca}\n\n\
         Ctrl-C ends it.\n",
        dir = broker.dir().display(),
        sasl_ssl = broker.bootstrap_sasl_ssl(),
        sasl = broker.bootstrap_on(Listener::SaslPlaintext),
        mtls = broker.bootstrap_on(Listener::MutualTls),
        certificate = tls.client.certificate.display(),
        key = tls.client.key.display(),
        ca = tls.ca.display(),
    )
}
