//! Getting a plugin's file: from a directory, over HTTP, from an OCI registry.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::cases;

/// No plugin is larger; nothing beyond is read.
const BYTES_MAX: u64 = 256 << 20;
/// Manifests and tokens.
const TEXT_BYTES_MAX: u64 = 1 << 20;
const TIME_MAX: Duration = Duration::from_secs(120);
const MANIFEST_TYPES: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// What registries call a component.
const WASM_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];
/// What minisign puts behind the name of what it signed.
const SIGNATURE: &str = ".minisig";
/// The annotation of a layer that says which file it was.
const TITLE: &str = "org.opencontainers.image.title";

/// A file and its signature, if one was asked for.
pub struct Fetched {
    /// The component.
    pub bytes: Vec<u8>,
    /// Text of the `.minisig` file.
    pub signature: Option<String>,
}

/// SHA-256 in hex, as registries and `sha256sum` write it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gets what a source names.
pub fn fetch(source: &str, is_signed: bool) -> Result<Fetched> {
    let client = Client::new();
    if let Some(reference) = source.strip_prefix("oci://") {
        return client.oci(reference, is_signed);
    }
    if source.starts_with("https://") || source.starts_with("http://") {
        let bytes = client.get(source, &[], BYTES_MAX)?;
        let signature = match is_signed {
            true => Some(text(client.get(&format!("{source}{SIGNATURE}"), &[], TEXT_BYTES_MAX)?)?),
            false => None,
        };
        return Ok(Fetched { bytes, signature });
    }
    let path = Path::new(source);
    let path = if path.is_dir() { cases::find_wasm(path)? } else { path.to_owned() };
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut signature = path.into_os_string();
    signature.push(SIGNATURE);
    let signature = match is_signed {
        true => Some(
            std::fs::read_to_string(&signature)
                .with_context(|| format!("cannot read {}", Path::new(&signature).display()))?,
        ),
        false => None,
    };
    Ok(Fetched { bytes, signature })
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("the answer is not text")
}

struct Client(ureq::Agent);

/// An answer that is no file.
struct Refused {
    status: u16,
    challenge: Option<String>,
}

impl Client {
    fn new() -> Client {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIME_MAX)).http_status_as_error(false);
        Client(config.build().new_agent())
    }

    fn get(&self, url: &str, headers: &[(&str, &str)], bytes_max: u64) -> Result<Vec<u8>> {
        match self.ask(url, headers, bytes_max)? {
            Ok(bytes) => Ok(bytes),
            Err(refused) => bail!("{url}: the server answers {}", refused.status),
        }
    }

    fn ask(&self, url: &str, headers: &[(&str, &str)], bytes_max: u64) -> Result<Result<Vec<u8>, Refused>> {
        let mut request = self.0.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.call().with_context(|| format!("cannot get {url}"))?;
        if !answer.status().is_success() {
            let challenge = answer.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
            return Ok(Err(Refused {
                status: answer.status().as_u16(),
                challenge: challenge.map(str::to_owned),
            }));
        }
        let mut bytes = Vec::new();
        answer.body_mut().as_reader().take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            bail!("{url}: more than {bytes_max} bytes");
        }
        Ok(Ok(bytes))
    }

    /// `registry/repository:tag` or `registry/repository@sha256:digest`.
    fn oci(&self, reference: &str, is_signed: bool) -> Result<Fetched> {
        let wrong = || format!("oci://{reference}: write oci://REGISTRY/REPOSITORY:TAG");
        let (registry, rest) = reference.split_once('/').with_context(wrong)?;
        let (repository, tag) = rest.split_once('@').or_else(|| rest.rsplit_once(':')).with_context(wrong)?;
        // As every registry's client does it: plain HTTP only to this machine.
        let host = registry.split(':').next().unwrap_or(registry);
        let scheme = if ["localhost", "127.0.0.1"].contains(&host) { "http" } else { "https" };
        let base = format!("{scheme}://{registry}/v2/{repository}");
        let url = format!("{base}/manifests/{tag}");
        let accept = ("accept", MANIFEST_TYPES);
        let (manifest, token) = match self.ask(&url, &[accept], TEXT_BYTES_MAX)? {
            Ok(manifest) => (manifest, None),
            Err(Refused { status: 401, challenge: Some(challenge) }) => {
                let token = format!("Bearer {}", self.token(&challenge)?);
                (self.get(&url, &[accept, ("authorization", &token)], TEXT_BYTES_MAX)?, Some(token))
            }
            Err(refused) => bail!("{url}: the registry answers {}", refused.status),
        };
        if let Some(digest) = tag.strip_prefix("sha256:")
            && sha256(&manifest) != digest
        {
            bail!("{url}: the manifest is not the one that was asked for");
        }
        let layers = Layers::of(&manifest).with_context(|| url.clone())?;
        let token: Vec<(&str, &str)> = token.iter().map(|token| ("authorization", token.as_str())).collect();
        let layer = |digest: &str, bytes_max: u64| -> Result<Vec<u8>> {
            let bytes = self.get(&format!("{base}/blobs/{digest}"), &token, bytes_max)?;
            if digest != format!("sha256:{}", sha256(&bytes)) {
                bail!("{url}: the layer's bytes are not those of its digest {digest}");
            }
            Ok(bytes)
        };
        let signature = match (is_signed, layers.signature) {
            (false, _) => None,
            (true, Some(digest)) => Some(text(layer(&digest, TEXT_BYTES_MAX)?)?),
            (true, None) => {
                bail!("{url}: the image is not signed: it has no layer with a name that ends in {SIGNATURE}")
            }
        };
        Ok(Fetched { bytes: layer(&layers.wasm, BYTES_MAX)?, signature })
    }

    /// `Bearer realm="https://…",service="…",scope="…"`: a token for nobody in particular.
    fn token(&self, challenge: &str) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(alias = "access_token")]
            token: String,
        }
        let fields =
            challenge.strip_prefix("Bearer ").context("the registry wants a login that is not known here")?;
        let field = |name: &str| {
            let (_, rest) = fields.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        let realm = field("realm").context("the registry does not say where tokens are")?;
        let query: Vec<String> =
            ["service", "scope"].iter().filter_map(|name| Some(format!("{name}={}", field(name)?))).collect();
        let answer = self.get(&format!("{realm}?{}", query.join("&")), &[], TEXT_BYTES_MAX)?;
        Ok(serde_json::from_slice::<Token>(&answer).context("the registry gives no token")?.token)
    }
}

/// What an image holds: digests.
struct Layers {
    /// The component.
    wasm: String,
    /// Its signature: a layer with the name of a `.minisig` file, as clients of registries note it.
    signature: Option<String>,
}

impl Layers {
    fn of(manifest: &[u8]) -> Result<Layers> {
        #[derive(Deserialize)]
        struct Manifest {
            layers: Vec<Layer>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layer {
            media_type: String,
            digest: String,
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        let Manifest { layers } = serde_json::from_slice(manifest).context("this is no image's manifest")?;
        let digest = |is_it: &dyn Fn(&Layer) -> bool| {
            layers.iter().find(|layer| is_it(layer)).map(|layer| layer.digest.clone())
        };
        let wasm = digest(&|layer| WASM_TYPES.contains(&layer.media_type.as_str()));
        let is_signature =
            |layer: &Layer| layer.annotations.get(TITLE).is_some_and(|title| title.ends_with(SIGNATURE));
        Ok(Layers {
            wasm: wasm.context("the image has no layer of type application/wasm")?,
            signature: digest(&is_signature),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// Answers requests for these paths until as many were made as there are; each asks for a token first if `with_token`.
    fn serve(with_token: bool, answers: Vec<(String, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = address.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let has_token = headers.iter().any(|line| line.to_lowercase() == "authorization: bearer t");
                let found = answers.iter().find(|(at, _)| *at == path);
                let (status, extra, body) = match found {
                    _ if path.starts_with("/token?") => {
                        ("200 OK", String::new(), b"{\"token\":\"t\"}".to_vec())
                    }
                    _ if with_token && !has_token => {
                        let challenge = format!(
                            "www-authenticate: Bearer realm=\"http://{own}/token\",service=\"s\"\r\n"
                        );
                        ("401 Unauthorized", challenge, Vec::new())
                    }
                    Some((_, body)) => ("200 OK", String::new(), body.clone()),
                    None => ("404 Not Found", String::new(), Vec::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\n{extra}content-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&body).unwrap();
            }
        });
        address
    }

    #[test]
    fn a_url_is_fetched_and_an_error_is_told() {
        let address = serve(false, vec![("/a.wasm".into(), b"bytes".to_vec())]);
        assert_eq!(fetch(&format!("http://{address}/a.wasm"), false).unwrap().bytes, b"bytes");
        let error = fetch(&format!("http://{address}/b.wasm"), false).err().unwrap().to_string();
        assert!(error.contains("404"), "{error}");
    }

    #[test]
    fn a_registry_is_asked_as_it_wants_and_its_bytes_are_checked() {
        let layer = |of: &[u8]| {
            let digest = format!("sha256:{}", sha256(of));
            let manifest =
                format!("{{\"layers\":[{{\"mediaType\":\"application/wasm\",\"digest\":\"{digest}\"}}]}}");
            (manifest.into_bytes(), digest)
        };
        let (manifest, digest) = layer(b"wasm");
        let blob = format!("/v2/me/p/blobs/{digest}");
        let good =
            vec![("/v2/me/p/manifests/1".to_owned(), manifest.clone()), (blob.clone(), b"wasm".to_vec())];
        for with_token in [false, true] {
            let address = serve(with_token, good.clone());
            assert_eq!(fetch(&format!("oci://{address}/me/p:1"), false).unwrap().bytes, b"wasm");
        }
        let address =
            serve(false, vec![("/v2/me/p/manifests/1".to_owned(), manifest), (blob, b"evil".to_vec())]);
        assert!(fetch(&format!("oci://{address}/me/p:1"), false).is_err());
    }
}
