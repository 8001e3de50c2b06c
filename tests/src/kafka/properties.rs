//! A broker's `server.properties`: one node that is broker and controller (or, in a cluster, broker alone), a
//! listener for each way in.

use std::collections::BTreeMap;
use std::path::Path;

use super::broker::BrokerOptions;
use super::ports::Ports;
use super::security::Listener;
use super::tls::TlsFiles;

/// The user that every SASL mechanism knows, and the password.
pub const USER: (&str, &str) = ("alice", "alice-secret");

/// The node that is the controller.
pub(super) const FIRST_NODE: u16 = 1;

/// Makes log4j write what happens to standard output; without it only errors come.
pub(super) const LOG4J: &str = "rootLogger.level=info\nrootLogger.appenderRefs=out\n\
    rootLogger.appenderRef.out.ref=out\nappender.out.type=Console\nappender.out.name=out\n\
    appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=%d{ISO8601} %p %c{1}: %m%n\n";

/// What `StorageTool format` needs; nothing of it but the directory ends up in the result.
pub(super) fn for_format(data: &Path) -> String {
    format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n\
         controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n\
         log.dirs={}\n",
        data.display()
    )
}

/// The whole file. Further properties of the options replace what has the same name.
pub(super) fn text(ports: Ports, data: &Path, tls: &TlsFiles, options: &BrokerOptions) -> String {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        all.insert(name.to_owned(), value.to_owned());
    };
    for (name, value) in FIXED {
        set(name, value);
    }
    listeners(ports, options, &mut set);
    set("log.dirs", &data.display().to_string());
    set("ssl.keystore.location", &tls.broker_keystore.display().to_string());
    set("ssl.truststore.location", &tls.ca.display().to_string());
    let expired = &tls.expired_broker_keystore;
    set("listener.name.expired.ssl.keystore.location", &expired.display().to_string());
    for listener in ["sasl_plaintext", "sasl_ssl"] {
        login_modules(listener, &mut set);
    }
    if options.has_authorizer {
        set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer");
        // Listeners without a login are the broker's own and the oracle's.
        set("super.users", "User:ANONYMOUS");
        set("allow.everyone.if.no.acl.found", "true");
    }
    for (name, value) in &options.properties {
        set(name, value);
    }
    all.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

fn listeners(ports: Ports, options: &BrokerOptions, set: &mut impl FnMut(&str, &str)) {
    let controller = options.controller.unwrap_or_else(|| ports.controller());
    let mut bound = Vec::new();
    set("node.id", &options.node.to_string());
    if options.controller.is_some() {
        set("process.roles", "broker");
    } else {
        bound.push(format!("CONTROLLER://127.0.0.1:{controller}"));
    }
    let mut protocols = "CONTROLLER:PLAINTEXT".to_owned();
    let mut advertised = Vec::new();
    for listener in Listener::ALL {
        let (name, port) = (listener.name(), ports.of(listener));
        bound.push(format!("{name}://127.0.0.1:{port}"));
        protocols.push_str(&format!(",{name}:{}", listener.protocol()));
        let seen = if listener == Listener::Proxied { ports.proxy() } else { port };
        advertised.push(format!("{name}://127.0.0.1:{seen}"));
    }
    set("controller.quorum.voters", &format!("{FIRST_NODE}@127.0.0.1:{controller}"));
    set("listeners", &bound.join(","));
    set("advertised.listeners", &advertised.join(","));
    set("listener.security.protocol.map", &protocols);
}

/// Without them the broker ends at its start: "Could not find a 'KafkaServer'".
fn login_modules(listener: &str, set: &mut impl FnMut(&str, &str)) {
    let security = "org.apache.kafka.common.security";
    let (name, password) = USER;
    let prefix = format!("listener.name.{listener}");
    for mechanism in ["scram-sha-256", "scram-sha-512"] {
        set(
            &format!("{prefix}.{mechanism}.sasl.jaas.config"),
            &format!("{security}.scram.ScramLoginModule required;"),
        );
    }
    set(
        &format!("{prefix}.plain.sasl.jaas.config"),
        &format!("{security}.plain.PlainLoginModule required user_{name}=\"{password}\";"),
    );
    set(
        &format!("{prefix}.oauthbearer.sasl.jaas.config"),
        &format!(
            "{security}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";"
        ),
    );
    set(
        &format!("{prefix}.oauthbearer.sasl.server.callback.handler.class"),
        &format!("{security}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"),
    );
}

/// What is the same for every broker. Intervals are short so that a test of retention, of a hanging
/// transaction or of a lost group member need not wait for minutes.
const FIXED: [(&str, &str); 33] = [
    ("process.roles", "broker,controller"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"),
    ("ssl.keystore.type", "PEM"),
    ("ssl.truststore.type", "PEM"),
    ("listener.name.mtls.ssl.client.auth", "required"),
    ("auto.create.topics.enable", "false"),
    ("num.partitions", "1"),
    ("default.replication.factor", "1"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    // Kafka's own default, and no shorter: a broker that starts again and aborts old transactions before it has a
    // leader for their partitions leaves the markers out (KAFKA-20734), and what was aborted becomes visible.
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "10000"),
    ("log.initial.task.delay.ms", "500"),
    ("log.retention.check.interval.ms", "1000"),
    // Lines of tests are of a day that is long over, and a sink's records have their time.
    ("log.retention.ms", "-1"),
    ("log.segment.delete.delay.ms", "1000"),
    ("log.cleaner.backoff.ms", "1000"),
    // Of the small heap, the default would take a quarter.
    ("log.cleaner.dedupe.buffer.size", "16777216"),
    // After a SIGKILL the controller takes the broker for alive this long, and keeps the new one waiting.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    ("controlled.shutdown.enable", "true"),
    ("num.network.threads", "2"),
    ("num.io.threads", "4"),
    ("background.threads", "4"),
];
