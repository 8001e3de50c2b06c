//! The files that options name: there, readable, and of the right kind.

use std::path::Path;

use flumen_pipeline::BuildError;

use crate::settings::{Sasl, Settings};

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const TRUSTED: &str = "-----BEGIN TRUSTED CERTIFICATE-----";
const KEY_END: &str = "PRIVATE KEY-----";
/// A key that wants a password says so in one of these two ways.
const LOCKED: [&str; 2] = ["ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];

/// All of them; the first that is wrong.
pub fn check(settings: &Settings, has_key_password: bool) -> Result<(), BuildError> {
    if let Some(ca) = &settings.tls_ca
        && !ca.is_dir()
    {
        certificate("tls_ca", ca)?;
    }
    if let Some((ours, key)) = &settings.tls_identity {
        certificate("tls_certificate", ours)?;
        let text = read("tls_key", key)?;
        if !text.contains(KEY_END) {
            let fix = "name the file of the private key, in PEM (-----BEGIN PRIVATE KEY-----)";
            return Err(wrong("tls_key", key, "has no private key in PEM", fix));
        }
        if !has_key_password && LOCKED.iter().any(|mark| text.contains(mark)) {
            let reason = format!("is missing, but the key in {} is locked with one", key.display());
            return Err(BuildError::new(
                "tls_key_password",
                reason,
                "add it, best as \"${file:…}\" or \"${env:…}\"",
            ));
        }
    }
    if let (Some(Sasl::OauthBearer), Some(token)) = (settings.sasl, &settings.token_file) {
        read("token_file", token)?;
    }
    Ok(())
}

fn certificate(option: &str, path: &Path) -> Result<(), BuildError> {
    let text = read(option, path)?;
    if text.contains(CERTIFICATE) || text.contains(TRUSTED) {
        return Ok(());
    }
    let fix = "name a file in PEM (-----BEGIN CERTIFICATE-----); `openssl x509 -inform der` makes one of DER, \
               `keytool -exportcert -rfc` of a Java key store";
    Err(wrong(option, path, "has no certificate in PEM", fix))
}

fn read(option: &str, path: &Path) -> Result<String, BuildError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            let fix = "correct the path, or let the agent's user read the file";
            Err(wrong(option, path, &format!("cannot be read: {error}"), fix))
        }
    }
}

fn wrong(option: &str, path: &Path, what: &str, fix: &str) -> BuildError {
    BuildError::new(option, format!("{} {what}", path.display()), fix)
}
