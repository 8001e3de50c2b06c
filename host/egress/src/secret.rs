//! Values that are sent and never shown.

use std::collections::BTreeMap;
use std::fmt;

use crate::allow::AllowList;
use crate::failure::Failure;
use crate::request::Part;

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(secret)")
    }
}

/// A secret, and the hosts that it may be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFor {
    /// What is sent.
    pub value: Secret,
    /// `host:port` as in the list of what is allowed; `None`: everything that is allowed.
    pub hosts: Option<Vec<String>>,
}

/// All secrets by their names.
#[derive(Debug, Default)]
pub(crate) struct Secrets(pub(crate) BTreeMap<String, (Secret, Option<AllowList>)>);

/// Answers shorter than this are not looked for a secret: a short word is found everywhere.
pub(crate) const MASKED_BYTES_MIN: usize = 6;

impl Secrets {
    /// The parts joined, with the secrets in their places; tells which were used.
    pub(crate) fn join<'a>(
        &'a self,
        parts: Vec<Part>,
        host: &str,
        port: u16,
        used: &mut Vec<&'a str>,
    ) -> Result<Vec<u8>, Failure> {
        let mut joined = Vec::new();
        for part in parts {
            match part {
                // The usual body is one part: it is not copied.
                Part::Bytes(bytes) if joined.is_empty() => joined = bytes,
                Part::Bytes(bytes) => joined.extend(bytes),
                Part::Text(text) if joined.is_empty() => joined = text.into_bytes(),
                Part::Text(text) => joined.extend(text.into_bytes()),
                Part::Secret(name) => {
                    let value = self.value(&name, host, port)?;
                    used.push(value);
                    joined.extend(value.as_bytes());
                }
            }
        }
        Ok(joined)
    }

    fn value(&self, name: &str, host: &str, port: u16) -> Result<&str, Failure> {
        let Some((secret, hosts)) = self.0.get(name) else {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Failure::Denied(format!("there is no secret {name:?} (`secrets` has: {known})")));
        };
        match hosts {
            Some(hosts) if !hosts.names(host, port) => Err(Failure::Denied(format!(
                "the secret {name:?} is not for {host}:{port}; its `hosts` say where it may go"
            ))),
            _ => Ok(&secret.0),
        }
    }
}

/// Takes secrets that a server sent back out of what it sent.
pub(crate) fn mask(bytes: Vec<u8>, secrets: &[&str]) -> Vec<u8> {
    secrets.iter().fold(bytes, |bytes, secret| {
        let secret = secret.as_bytes();
        let is_there = secret.len() >= MASKED_BYTES_MIN
            && bytes.len() >= secret.len()
            && bytes.windows(secret.len()).any(|window| window == secret);
        if is_there { replaced(&bytes, secret) } else { bytes }
    })
}

fn replaced(bytes: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        match rest.strip_prefix(secret) {
            Some(behind) => {
                out.extend_from_slice(b"(secret)");
                rest = behind;
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = SecretFor { value: Secret("hunter22".into()), hosts: None };
        assert!(!format!("{secret:?}").contains("hunter22"));
        let masked = mask(b"you sent hunter22, hunter22!".to_vec(), &["hunter22"]);
        assert_eq!(masked, b"you sent (secret), (secret)!");
        assert_eq!(mask(b"nothing".to_vec(), &["hunter22"]), b"nothing");
    }

    #[test]
    fn a_secret_goes_to_its_hosts_only() {
        let hosts = AllowList::parse(&["es.local:9200".to_owned()]).unwrap();
        let secrets = Secrets(BTreeMap::from([("t".to_owned(), (Secret("abc".into()), Some(hosts)))]));
        let join = |host, port, name: &str| {
            secrets.join(
                vec![Part::Text("ApiKey ".into()), Part::Secret(name.into())],
                host,
                port,
                &mut Vec::new(),
            )
        };
        assert_eq!(join("es.local", 9200, "t").unwrap(), b"ApiKey abc");
        for wrong in [join("es.local", 9201, "t"), join("evil.local", 9200, "t"), join("es.local", 9200, "x")]
        {
            let Err(Failure::Denied(text)) = wrong else { panic!("{wrong:?}") };
            assert!(!text.contains("abc"), "{text}");
        }
    }
}
