//! Keys and certificates: what a client may present and trust, and what must be refused.
//!
//! All are made by openssl, P-256, PEM. The broker's and the clients' are signed by one CA; `expired`
//! ones ended before they were made; the `stranger` has a CA of its own that nobody trusts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{install, packages};
use crate::limits;

/// Changes when this file makes something else than before.
pub(super) const RECIPE: &str = "tls 1";

/// Longer than any target directory lives.
const DAYS: &str = "3650";
/// openssl takes it: the end lies before the beginning.
const DAYS_EXPIRED: &str = "-1";

/// A certificate and its private key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key, PKCS #8, not encrypted.
    pub key: PathBuf,
}

/// Everything that is made.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The CA that broker and clients trust.
    pub ca: PathBuf,
    /// A CA that signed nothing of the broker.
    pub other_ca: PathBuf,
    /// For mutual TLS, CN=alice.
    pub client: Identity,
    /// Like `client`, but expired.
    pub expired_client: Identity,
    /// Signed by `other_ca`.
    pub stranger: Identity,
    /// The broker's key and certificate in one file, as Kafka wants it.
    pub broker_keystore: PathBuf,
    /// Like `broker_keystore`, but expired.
    pub expired_broker_keystore: PathBuf,
}

impl TlsFiles {
    pub(super) fn in_dir(dir: &Path) -> Self {
        let identity = |name: &str| Identity {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        Self {
            ca: dir.join("ca.pem"),
            other_ca: dir.join("other-ca.pem"),
            client: identity("client"),
            expired_client: identity("expired-client"),
            stranger: identity("stranger"),
            broker_keystore: dir.join("broker.keystore.pem"),
            expired_broker_keystore: dir.join("expired-broker.keystore.pem"),
        }
    }
}

/// Makes all of it in a directory.
pub(super) fn fill(dir: &Path) -> Result<()> {
    packages::need("openssl", "openssl")?;
    install::step("making certificates");
    for ca in ["ca", "other-ca"] {
        let subject = format!("/CN=Flumen tests {ca}");
        let out = format!("{ca}.pem");
        let key = format!("{ca}.key");
        let mut arguments = vec!["req", "-x509", "-days", DAYS];
        arguments.extend(new_key(&key));
        arguments.extend(["-out", &out, "-subj", &subject]);
        openssl(dir, &arguments)?;
    }
    signed(dir, "broker", "localhost", "ca", DAYS)?;
    signed(dir, "expired-broker", "localhost", "ca", DAYS_EXPIRED)?;
    signed(dir, "client", "alice", "ca", DAYS)?;
    signed(dir, "expired-client", "alice", "ca", DAYS_EXPIRED)?;
    signed(dir, "stranger", "alice", "other-ca", DAYS)?;
    for name in ["broker", "expired-broker"] {
        let key = fs::read_to_string(dir.join(format!("{name}.key")))?;
        let certificate = fs::read_to_string(dir.join(format!("{name}.pem")))?;
        fs::write(dir.join(format!("{name}.keystore.pem")), key + &certificate)?;
    }
    Ok(())
}

fn signed(dir: &Path, name: &str, common_name: &str, ca: &str, days: &str) -> Result<()> {
    let (key, request, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
    let subject = format!("/CN={common_name}");
    let mut arguments = vec!["req"];
    arguments.extend(new_key(&key));
    arguments.extend(["-out", &request, "-subj", &subject]);
    arguments.extend(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    openssl(dir, &arguments)?;
    let (ca_certificate, ca_key) = (format!("{ca}.pem"), format!("{ca}.key"));
    let mut arguments = vec!["x509", "-req", "-in", &request, "-out", &out, "-days", days];
    arguments.extend(["-CA", &ca_certificate, "-CAkey", &ca_key, "-CAcreateserial"]);
    arguments.extend(["-copy_extensions", "copy"]);
    openssl(dir, &arguments)
}

fn new_key(file: &str) -> [&str; 7] {
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file]
}

fn openssl(dir: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(arguments);
    install::succeed(command, limits::COMMAND)
}
