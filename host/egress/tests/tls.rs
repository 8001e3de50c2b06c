//! TLS: a CA of one's own, and whom it is not believed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_egress::{Egress, Failure, Part, Request, Settings, SettingsError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A CA, in a file.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, certificate.pem()).unwrap();
        Ca { issuer: Issuer::new(params, key), file, _dir: dir }
    }

    /// A server that answers every request with `ok`, and every line with itself.
    fn serve(&self, name: &str) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let session = ServerConnection::new(config.clone()).unwrap();
                let mut stream = StreamOwned::new(session, socket.unwrap());
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut bytes) {
                        let is_http = bytes.starts_with(b"GET ");
                        let answer: &[u8] = if is_http {
                            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                        } else {
                            &bytes[..read]
                        };
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }
}

fn egress(address: SocketAddr, ca: Option<PathBuf>) -> Arc<Egress> {
    let allow = Some(vec![address.to_string(), format!("localhost:{}", address.port())]);
    // A call may stand still for a while on a busy machine.
    let timeout = Duration::from_secs(60);
    Egress::new(Settings { allow, ca, timeout, ..Settings::default() }).unwrap()
}

fn get(egress: &Egress, host: &str, port: u16) -> Result<Vec<u8>, Failure> {
    let url = format!("https://{host}:{port}/");
    let request = Request { method: "GET".into(), url, headers: vec![], body: vec![], timeout: None };
    egress.send(request, soon()).map(|response| response.body)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn a_ca_of_ones_own() {
    let ca = Ca::new();
    let address = ca.serve("localhost");
    let ours = egress(address, Some(ca.file.clone()));
    assert_eq!(get(&ours, "localhost", address.port()), Ok(b"ok".to_vec()));
    assert_eq!(get(&ours, "localhost", address.port()), Ok(b"ok".to_vec()));
    assert_eq!(ours.stats().connections, 1);
    let mut connection = ours.connect("localhost", address.port(), true, soon()).unwrap();
    connection.write(vec![Part::Text("PING".into())], soon()).unwrap();
    assert_eq!(connection.read(100, None, soon()).unwrap(), b"PING");
}

#[test]
fn an_address_may_be_in_a_certificate() {
    let ca = Ca::new();
    let address = ca.serve("127.0.0.1");
    let ours = egress(address, Some(ca.file.clone()));
    assert_eq!(get(&ours, "127.0.0.1", address.port()), Ok(b"ok".to_vec()));
    let failed = get(&ours, "localhost", address.port()).unwrap_err();
    assert!(matches!(&failed, Failure::Unreachable(text) if text.contains("localhost")), "{failed}");
}

#[test]
fn another_ca_is_not_believed() {
    let (ca, other) = (Ca::new(), Ca::new());
    let address = ca.serve("localhost");
    for roots in [Some(other.file.clone()), None] {
        let failed = get(&egress(address, roots), "localhost", address.port()).unwrap_err();
        let Failure::Unreachable(text) = &failed else { panic!("{failed:?}") };
        assert!(text.contains("`ca`") || text.contains("CA certificates"), "{text}");
    }
}

#[test]
fn plain_text_is_no_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let mut rest = Vec::new();
        let _ends_when_the_client_leaves = stream.read_to_end(&mut rest);
    });
    let failed = get(&egress(address, Some(Ca::new().file.clone())), "localhost", address.port());
    assert!(matches!(failed, Err(Failure::Unreachable(_))), "{failed:?}");
}

#[test]
fn a_file_without_certificates_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, "no certificate").unwrap();
    for (file, part) in [(file, "no certificate in PEM"), (dir.path().join("none.pem"), "cannot be read")] {
        let failed = Egress::new(Settings { ca: Some(file), ..Settings::default() });
        assert!(matches!(&failed, Err(SettingsError::Ca(text)) if text.contains(part)), "{failed:?}");
    }
}
