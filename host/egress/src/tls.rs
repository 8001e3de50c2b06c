//! Whom to believe: the system's certificates, or those of one file.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::failure::Failure;

/// Made when the first connection needs it: reading the system's certificates takes milliseconds.
pub(crate) struct Tls {
    roots: Option<RootCertStore>,
    config: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    /// With the certificates of a file in PEM, or the system's.
    pub(crate) fn new(ca: Option<&Path>) -> Result<Tls, String> {
        let roots = ca.map(of_file).transpose()?;
        Ok(Tls { roots, config: OnceLock::new() })
    }

    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let made = self.config.get_or_init(|| {
            let roots = match &self.roots {
                Some(roots) => roots.clone(),
                None => of_system()?,
            };
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| error.to_string())?;
            Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
        });
        made.clone().map_err(Failure::Unreachable)
    }
}

pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, Failure> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::Invalid(format!("{host:?} is no name that a certificate can have")))
}

fn of_file(path: &Path) -> Result<RootCertStore, String> {
    let shown = path.display();
    let read =
        CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in read {
        let certificate = certificate.map_err(|error| format!("{shown} is damaged: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate of {shown} cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{shown} has no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(roots)
}

fn of_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err("TLS: this machine has no CA certificates; install its package ca-certificates, or name a file in `ca`".to_owned()),
        false => Ok(roots),
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}
