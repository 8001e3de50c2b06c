//! What is wrong with a connection: librdkafka's reason, with what our own files and the broker's port show.
//!
//! librdkafka tells most troubles in one sentence for several causes ("certificate could not be verified"). Here
//! each cause gets a sentence of its own that names the option to look at. The reason itself stays behind it.

use std::path::Path;

use jiff::Timestamp;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::certificate::{self, Answer};
use crate::settings::{Sasl, Settings};

/// Why a connection does not come about.
pub fn of(code: Option<Code>, reason: &str, settings: &Settings) -> String {
    let is_early_end = is_early_end(reason);
    let trouble = Trouble { reason: tidy(reason), address: address(reason), is_early_end, settings };
    let lower = trouble.reason.to_ascii_lowercase();
    let has = |text: &str| lower.contains(text);
    let advice = if has("certificate verify failed") {
        Some(trouble.of_broker_certificate())
    } else if has("ssl/tls alert")
        || has("alert number")
        || has("client ssl authentication might be required")
    {
        Some(trouble.of_our_certificate())
    } else if has("connecting to a plaintext broker listener")
        || has("wrong version number")
        || has("packet length too long")
    {
        Some(NO_TLS.into())
    } else if has("failed to acquire sasl oauthbearer token") {
        let (_, why) = trouble.reason.split_once("token: ").unwrap_or(("", &trouble.reason));
        return why.to_string();
    } else if has("mechanism handshake failed") {
        Some(trouble.of_mechanism())
    } else if code == Some(Code::Authentication) || has("sasl authentication error") {
        Some(trouble.of_login())
    } else if has("failed to resolve") {
        Some(format!("nobody knows the name {}: correct `brokers`, or look at DNS", trouble.host()))
    } else if has("connection refused") {
        Some("nothing listens there: is the broker running, and is the port in `brokers` right?".into())
    } else if has("setup timed out") || has("no route to host") || has("network is unreachable") {
        Some("the machine does not answer: is it up, and does a firewall let this through?".into())
    } else if has("disconnected") && !has("idle") {
        trouble.of_early_end(&lower)
    } else {
        None
    };
    match advice {
        Some(advice) => format!("{advice} ({})", trouble.reason),
        None => trouble.reason,
    }
}

const ENDED: &str = "the broker ended the connection at once";

const NO_TLS: &str =
    "the port does not talk TLS: name the broker's TLS port in `brokers`, or leave `tls` out";

/// A connection that the other side ended before anything was said, by librdkafka's whole sentence: while the
/// broker's version was asked for, or right after (a listener for logins answers that much to everybody).
pub fn is_early_end(reason: &str) -> bool {
    const SOON_MS: u64 = 2_000;
    let Some((what, state)) = reason.rsplit_once(" (after ") else { return false };
    let Some((ms, state)) = state.split_once("ms in state ") else { return false };
    let is_soon = ms.parse::<u64>().is_ok_and(|ms| ms < SOON_MS);
    what.contains("Disconnected")
        && is_soon
        && (state.starts_with("APIVERSION_QUERY") || state.starts_with("UP"))
}

/// Why a client could not be made: a file that an option names, nearly always.
pub fn of_creation(reason: &str, settings: &Settings) -> String {
    if let Err(error) = settings.check_files() {
        return format!("{error}; {}", error.fix);
    }
    let lower = reason.to_ascii_lowercase();
    let advice = if lower.contains("key values mismatch") {
        "`tls_key` is not the key of `tls_certificate`"
    } else if lower.contains("ssl.key.location")
        && (lower.contains("bad decrypt") || lower.contains("password"))
    {
        "`tls_key_password` does not open `tls_key`"
    } else if lower.contains("ssl.key.location") {
        "`tls_key` cannot be used"
    } else if lower.contains("ssl.certificate.location") {
        "`tls_certificate` cannot be used"
    } else if lower.contains("ssl.ca.location") {
        "`tls_ca` cannot be used"
    } else if lower.starts_with("token") || lower.starts_with("the token") {
        return reason.to_string();
    } else {
        return format!("the client cannot be made: {reason}");
    };
    format!("{advice} ({reason})")
}

struct Trouble<'a> {
    reason: String,
    /// `host:port` of the broker that it is about.
    address: Option<String>,
    is_early_end: bool,
    settings: &'a Settings,
}

impl Trouble<'_> {
    fn host(&self) -> &str {
        let address = self.address.as_deref().unwrap_or_default();
        address.rsplit_once(':').map_or(address, |(host, _)| host)
    }

    fn port(&self) -> Answer {
        self.address.as_deref().map_or(Answer::Silence, certificate::of_port)
    }

    fn of_broker_certificate(&self) -> String {
        let Answer::Tls(Some(theirs)) = self.port() else {
            return "the broker's certificate cannot be verified: it has expired, or none of `tls_ca` signed it, or it \
                    is for another name than the one in `brokers`"
                .into();
        };
        let now = Timestamp::now();
        if theirs.ends < now {
            return format!(
                "the broker's certificate expired on {}: whoever runs it has to renew it",
                theirs.ends
            );
        }
        if theirs.begins > now {
            return format!(
                "the broker's certificate is valid from {} on: is the clock of this machine right?",
                theirs.begins
            );
        }
        let issuer = &theirs.issuer;
        let (host, names) = (self.host(), theirs.names.join(", "));
        let is_known = self.settings.tls_ca.as_deref().is_some_and(|ca| signs(ca, issuer));
        if self.settings.verifies_name()
            && !theirs.is_for(host)
            && (is_known || self.settings.tls_ca.is_none())
        {
            return format!(
                "the broker's certificate is for {names}, not for {host}: use one of these names in `brokers`, or set \
                 tls_verify_name = false"
            );
        }
        match &self.settings.tls_ca {
            Some(ca) => format!(
                "the broker's certificate was signed by `{issuer}`, which is not in `tls_ca` ({}): name the file with \
                 that signer's certificate",
                ca.display()
            ),
            None => format!(
                "the broker's certificate was signed by `{issuer}`, which this system does not know: set `tls_ca` to the \
                 file with that signer's certificate"
            ),
        }
    }

    fn of_our_certificate(&self) -> String {
        let Some((path, _)) = &self.settings.tls_identity else {
            return "the broker wants to see a certificate of ours: set `tls_certificate` and `tls_key`"
                .into();
        };
        let shown = path.display();
        let Some(ours) = certificate::of_file(path) else {
            return format!("the broker does not accept our certificate (`tls_certificate`, {shown})");
        };
        let now = Timestamp::now();
        if ours.ends < now {
            return format!(
                "our certificate (`tls_certificate`, {shown}) expired on {}: renew it",
                ours.ends
            );
        }
        if ours.begins > now {
            return format!("our certificate (`tls_certificate`, {shown}) is valid from {} on", ours.begins);
        }
        format!(
            "the broker does not accept our certificate (`tls_certificate`, {shown}): it was signed by `{}`, which the \
             broker does not trust, or it is not meant for clients",
            ours.issuer
        )
    }

    fn of_mechanism(&self) -> String {
        let offered =
            self.reason.rsplit_once("supported mechanisms:").map_or("", |(_, offered)| offered.trim());
        let ours = self.settings.sasl.map_or("", Sasl::mechanism);
        if offered.is_empty() {
            return "the port takes no login: leave `sasl` out, or name the broker's port for logins in `brokers`".into();
        }
        format!(
            "the broker does not know the mechanism {ours} there: set `sasl` to one that it offers, {offered}"
        )
    }

    fn of_login(&self) -> String {
        let user = self.settings.username.as_deref().unwrap_or_default();
        match self.settings.sasl {
            Some(Sasl::OauthBearer) => {
                let path = self.settings.token_file.as_deref().unwrap_or(Path::new(""));
                format!(
                    "the broker refuses the token (`token_file`, {}): it has expired by the broker's clock, or is meant \
                     for another service, or is none",
                    path.display()
                )
            }
            Some(sasl) => format!(
                "the broker refuses the login of `{user}` ({}): look at `username` and `password`",
                sasl.mechanism()
            ),
            None => "the broker wants to know who this is: set `sasl`".into(),
        }
    }

    /// A connection that ends before anything was said: a port for something else.
    fn of_early_end(&self, lower: &str) -> Option<String> {
        let is_silent = lower.contains("ssl connection closed by peer");
        if !is_silent && !self.is_early_end {
            return None;
        }
        let answer = self.port();
        if is_silent && answer == Answer::NoTls {
            return Some(NO_TLS.into());
        }
        if !self.is_early_end {
            return None;
        }
        let has_login = self.settings.sasl.is_some();
        Some(match (self.settings.tls, answer) {
            (false, Answer::Tls(_)) => {
                "the port talks TLS: set tls = true, and `tls_ca` if the signer is not a public one".into()
            }
            (false, Answer::Silence) => {
                let waited_s = certificate::PATIENCE.as_secs();
                let otherwise = match has_login {
                    false => "it wants a login: set `sasl`, `username` and `password`",
                    true => "is this a port of Kafka, for clients?",
                };
                format!(
                    "{ENDED} and did not answer within {waited_s} s whether the port talks TLS: set tls = true if it does, \
                     and `tls_ca` if the signer is not a public one; if it does not, {otherwise}"
                )
            }
            _ if !has_login => {
                format!("{ENDED}: most likely the port wants a login; set `sasl`, `username` and `password`")
            }
            _ => format!("{ENDED}: is this a port of Kafka, for clients?"),
        })
    }
}

/// Whether a file of signers has one of that name. Names, not keys: it only chooses between two messages.
fn signs(file: &Path, issuer: &str) -> bool {
    certificate::all_of_file(file).iter().any(|one| one.subject == issuer)
}

/// `ssl://k1:9093/bootstrap: Connect failed: … (after 3ms in state CONNECT, 1 identical error(s) suppressed)` without
/// what changes each time: `k1:9093: Connect failed: …`.
fn tidy(reason: &str) -> String {
    let mut text = reason.trim();
    if let Some((_, rest)) = text.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        text = rest;
    }
    if let Some((before, _)) = text.rsplit_once(" (after ") {
        text = before;
    }
    for scheme in ["sasl_plaintext://", "sasl_ssl://", "plaintext://", "ssl://"] {
        text = text.strip_prefix(scheme).unwrap_or(text);
    }
    match text.split_once(": ") {
        Some((who, what)) if who.contains('/') => {
            let who = who.split('/').next().unwrap_or(who);
            format!("{who}: {what}")
        }
        _ => text.to_string(),
    }
}

/// `host:port` at the beginning of a reason.
fn address(reason: &str) -> Option<String> {
    let tidy = tidy(reason);
    let (who, _) = tidy.split_once(": ")?;
    let (host, port) = who.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| who.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_pipeline::{Options, Value};
    use std::io::{Read, Write};

    /// What is said of a port that answers a question for TLS with these bytes; `None`: it says nothing.
    fn said_of_an_early_end(answer: Option<&'static [u8]>) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                match answer {
                    Some(bytes) => stream.write_all(bytes).unwrap(),
                    None => kept.push(stream),
                }
            }
        });
        let brokers = Value::TextList(vec![address.clone()]);
        let settings = Settings::from_options(&Options([("brokers".to_owned(), brokers)].into())).unwrap();
        let reason = format!(
            "{address}/1: Disconnected: connection closed by peer (after 0ms in state APIVERSION_QUERY)"
        );
        of(None, &reason, &settings)
    }

    #[test]
    fn a_port_that_does_not_say_whether_it_talks_tls_may_want_either() {
        const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
        for (answer, has, has_not) in [
            (Some(ALERT), "the port talks TLS: set tls = true", "login"),
            (Some(&b""[..]), "most likely the port wants a login", "TLS"),
            (None, "did not answer within 2 s whether the port talks TLS: set tls = true", "most likely"),
        ] {
            let said = said_of_an_early_end(answer);
            assert!(said.contains(has) && !said.contains(has_not), "{said}");
        }
        assert!(said_of_an_early_end(None).contains("if it does not, it wants a login: set `sasl`"));
    }

    #[test]
    fn what_changes_each_time_is_left_out() {
        for (reason, expected) in [
            (
                "sasl_ssl://k1:9093/bootstrap: SSL handshake failed: Disconnected (after 4ms in state SSL_HANDSHAKE, 1 identical error(s) suppressed)",
                "k1:9093: SSL handshake failed: Disconnected",
            ),
            (
                "[thrd:k1:9092/1]: k1:9092/1: Connect failed (after 0ms in state CONNECT)",
                "k1:9092: Connect failed",
            ),
            ("1/1 brokers are down", "1/1 brokers are down"),
        ] {
            assert_eq!(tidy(reason), expected);
        }
        assert!(is_early_end(
            "k1:9092/1: Disconnected: connection closed by peer (after 0ms in state APIVERSION_QUERY)"
        ));
        assert!(is_early_end(
            "k1:9092/1: Disconnected (after 3ms in state UP, 1 identical error(s) suppressed)"
        ));
        assert!(!is_early_end("k1:9092/1: Disconnected (after 61000ms in state UP)"));
        assert_eq!(address("ssl://[::1]:9093/1: x").as_deref(), Some("[::1]:9093"));
        assert_eq!(address("1/1 brokers are down"), None);
    }
}
