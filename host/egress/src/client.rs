//! Requests: checked, put together, sent, measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use ureq::Agent;
use ureq::http::{self, HeaderName, HeaderValue, Method, Uri};

use crate::allow::{AllowList, normal};
use crate::counters::{Counters, EgressStats, add};
use crate::failure::Failure;
use crate::limits;
use crate::request::{Part, Request, Response};
use crate::resolve::{Lookup, Resolver, system};
use crate::secret::{SecretFor, Secrets, mask};
use crate::stream::Opener;
use crate::tcp::Connection;
use crate::tls::Tls;
use crate::transport::{Connect, NoResolver, target};

/// What is allowed and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`, `*.domain:port`, addresses. `None`: everything, near addresses too (for a person at a terminal).
    pub allow: Option<Vec<String>>,
    /// By name.
    pub secrets: BTreeMap<String, SecretFor>,
    /// Certificates in PEM to believe instead of the system's.
    pub ca: Option<PathBuf>,
    /// Time for one call.
    pub timeout: Duration,
    /// Bytes of a request's body, and of one write.
    pub request_bytes_max: u64,
    /// Bytes of an answer's body, and of one read.
    pub response_bytes_max: u64,
    /// Connections open at once. At most half are kept idle: with 1 each request has a connection of its own.
    pub connections_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            allow: Some(Vec::new()),
            secrets: BTreeMap::new(),
            ca: None,
            timeout: Duration::from_secs(10),
            request_bytes_max: 64 << 20,
            response_bytes_max: 16 << 20,
            connections_max: 8,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// Of `allow`.
    #[error("{0}")]
    Allow(String),
    /// Of `hosts` of a secret.
    #[error("secret {name:?}: {reason}")]
    Secret {
        /// Which.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Of `ca`.
    #[error("{0}")]
    Ca(String),
}

/// The way out of one user of it, with its connections.
#[derive(Debug)]
pub struct Egress {
    settings: Settings,
    secrets: Secrets,
    opener: Arc<Opener>,
    counters: Arc<Counters>,
    agent: Agent,
}

impl Egress {
    /// Opens nothing yet; reads `ca`.
    pub fn new(settings: Settings) -> Result<Arc<Egress>, SettingsError> {
        Egress::with_lookup(settings, system())
    }

    pub(crate) fn with_lookup(settings: Settings, lookup: Lookup) -> Result<Arc<Egress>, SettingsError> {
        let allow =
            settings.allow.as_deref().map(AllowList::parse).transpose().map_err(SettingsError::Allow)?;
        let tls = Tls::new(settings.ca.as_deref()).map_err(SettingsError::Ca)?;
        let mut secrets = BTreeMap::new();
        for (name, secret) in &settings.secrets {
            let hosts = secret.hosts.as_deref().map(AllowList::parse).transpose();
            let hosts = hosts.and_then(|hosts| match hosts {
                Some(hosts) if hosts.is_empty() => Err("`hosts` is empty, so it could go nowhere".to_owned()),
                hosts => Ok(hosts),
            });
            let hosts = hosts.map_err(|reason| SettingsError::Secret { name: name.clone(), reason })?;
            secrets.insert(name.clone(), (secret.value.clone(), hosts));
        }
        let counters = Arc::new(Counters::default());
        let opener = Arc::new(Opener {
            resolver: Resolver::new(allow, lookup),
            tls,
            counters: counters.clone(),
            connections_max: u64::from(settings.connections_max.max(1)),
        });
        // Some are left for hosts that were not talked to yet: an idle one is closed only when it was not used for a while.
        let idle = usize::try_from(settings.connections_max / 2).unwrap_or(0);
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .user_agent(concat!("flumen/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(limits::RESPONSE_HEAD_BYTES_MAX)
            .max_idle_connections(idle)
            .max_idle_connections_per_host(idle)
            .max_idle_age(limits::IDLE_MAX)
            .build();
        let agent = Agent::with_parts(config, Connect(opener.clone()), NoResolver);
        Ok(Arc::new(Egress { settings, secrets: Secrets(secrets), opener, counters, agent }))
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What was done so far.
    pub fn stats(&self) -> EgressStats {
        self.counters.snapshot()
    }

    /// Sends a request and waits for the whole answer, until `deadline` at most.
    pub fn send(&self, request: Request, deadline: Instant) -> Result<Response, Failure> {
        let outcome = self.counted(|| self.exchange(request, deadline));
        if outcome.as_ref().is_ok_and(|response| response.status >= 400) {
            add(&self.counters.error_answers, 1);
        }
        outcome
    }

    /// Opens a connection, until `deadline` at most.
    pub fn connect(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        tls: bool,
        deadline: Instant,
    ) -> Result<Connection, Failure> {
        let host = normal(host);
        self.counted(|| {
            let stream = self.opener.open(&host, port, tls, self.deadline(None, deadline))?;
            Ok(Connection::new(stream, self.clone(), host.clone(), port))
        })
    }

    pub(crate) fn counted<T>(&self, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let started = Instant::now();
        let outcome = call();
        self.counters.call(started.elapsed(), &outcome);
        outcome
    }

    /// The earliest of the settings' limit, the caller's wish and the deadline.
    pub(crate) fn deadline(&self, timeout: Option<Duration>, deadline: Instant) -> Instant {
        let time = timeout.unwrap_or(self.settings.timeout).min(self.settings.timeout);
        deadline.min(Instant::now() + time)
    }

    /// The parts as one, with secrets, if it is not too long.
    pub(crate) fn joined<'a>(
        &'a self,
        parts: Vec<Part>,
        host: &str,
        port: u16,
        used: &mut Vec<&'a str>,
    ) -> Result<Vec<u8>, Failure> {
        let joined = self.secrets.join(parts, host, port, used)?;
        let max = self.settings.request_bytes_max;
        if joined.len() as u64 > max {
            return Err(Failure::Invalid(format!(
                "it has {} bytes, at most {max} may be sent at once",
                joined.len()
            )));
        }
        Ok(joined)
    }

    fn exchange(&self, request: Request, deadline: Instant) -> Result<Response, Failure> {
        let deadline = self.deadline(request.timeout, deadline);
        let invalid = |text: String| Failure::Invalid(text);
        let uri: Uri = request.url.parse().map_err(|error| invalid(format!("the URL is none: {error}")))?;
        let (host, port) = target(&uri)?;
        // Also for a connection that is open already.
        self.opener.resolver.check_name(&host, port)?;
        let method: Method = request.method.parse().map_err(|_| invalid("the method is none".to_owned()))?;
        if method == Method::CONNECT {
            return Err(invalid("CONNECT is not for requests; use the power `tcp`".to_owned()));
        }
        let mut used = Vec::new();
        let body = self.joined(request.body, &host, port, &mut used)?;
        let mut made = http::Request::builder().method(method).uri(uri);
        self.headers(request.headers, (&host, port), &mut used, made.headers_mut())?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TimedOut);
        }
        let sent = made.body(body).map_err(|error| invalid(error.to_string()))?;
        let response = self.run(sent, left)?;
        let (head, mut body) = response.into_parts();
        let max = self.settings.response_bytes_max;
        // Said before it is read, if it is known before.
        if body.content_length().is_some_and(|length| length > max) {
            return Err(Failure::TooLarge(max));
        }
        let body = body.with_config().limit(max).read_to_vec().map_err(|error| failure(error, max))?;
        let headers = head.headers.iter().map(|(name, value)| {
            let value = mask(value.as_bytes().to_vec(), &used);
            (name.as_str().to_owned(), String::from_utf8_lossy(&value).into_owned())
        });
        Ok(Response { status: head.status.as_u16(), headers: headers.collect(), body: mask(body, &used) })
    }

    fn run(
        &self,
        request: http::Request<Vec<u8>>,
        time: Duration,
    ) -> Result<http::Response<ureq::Body>, Failure> {
        let max = self.settings.response_bytes_max;
        let is_bodiless = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::DELETE
        );
        let answered = if request.body().is_empty() && is_bodiless {
            let request =
                self.agent.configure_request(request.map(|_| ())).timeout_global(Some(time)).build();
            self.agent.run(request)
        } else if is_bodiless && *request.method() != Method::DELETE {
            return Err(Failure::Invalid(format!("a {} has no body", request.method())));
        } else {
            let request = self.agent.configure_request(request).timeout_global(Some(time)).build();
            self.agent.run(request)
        };
        answered.map_err(|error| failure(error, max))
    }

    fn headers<'a>(
        &'a self,
        headers: Vec<(String, Vec<Part>)>,
        (host, port): (&str, u16),
        used: &mut Vec<&'a str>,
        into: Option<&mut http::HeaderMap>,
    ) -> Result<(), Failure> {
        let Some(into) = into else {
            return Err(Failure::Invalid("the URL or the method is none".to_owned()));
        };
        if headers.len() > limits::REQUEST_HEADERS_MAX {
            return Err(Failure::Invalid(format!("it has over {} headers", limits::REQUEST_HEADERS_MAX)));
        }
        let mut bytes = 0;
        for (name, value) in headers {
            let shown = name.escape_default().to_string();
            let name: HeaderName =
                name.parse().map_err(|_| Failure::Invalid(format!("the header's name {shown:?} is none")))?;
            if OURS.contains(&name.as_str()) {
                return Err(Failure::Invalid(format!("the header {name} is the host's own")));
            }
            let before = used.len();
            let value = self.secrets.join(value, host, port, used)?;
            bytes += name.as_str().len() + value.len();
            if bytes > limits::REQUEST_HEAD_BYTES_MAX {
                let max = limits::REQUEST_HEAD_BYTES_MAX;
                return Err(Failure::Invalid(format!("its headers have over {max} bytes")));
            }
            // The value is not shown: it may have a secret in it.
            let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
                Failure::Invalid(format!(
                    "the value of the header {name} has a line end or another control character"
                ))
            })?;
            value.set_sensitive(used.len() > before);
            into.append(name, value);
        }
        Ok(())
    }
}

/// What says where a message begins and ends and whom it is for: two opinions on it are how requests are smuggled.
const OURS: [&str; 8] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "proxy-connection",
];

fn failure(error: ureq::Error, response_bytes_max: u64) -> Failure {
    match error {
        ureq::Error::Io(error) => Failure::of_io(&error),
        ureq::Error::Timeout(_) => Failure::TimedOut,
        ureq::Error::BodyExceedsLimit(_) => Failure::TooLarge(response_bytes_max),
        ureq::Error::LargeResponseHeader(_, max) => Failure::TooLarge(max as u64),
        ureq::Error::Protocol(error) => Failure::unreachable(format!("the answer is not HTTP: {error}")),
        ureq::Error::BadUri(text) => Failure::Invalid(format!("the URL is none: {text}")),
        error => Failure::unreachable(error.to_string()),
    }
}
