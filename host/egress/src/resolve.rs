//! From names to addresses that were checked, within a deadline.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::allow::{AllowList, host_address};
use crate::failure::Failure;
use crate::limits;

/// How a name is looked up.
pub(crate) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// Looks names up and keeps only addresses that may be reached.
pub(crate) struct Resolver {
    /// `None`: everything is allowed.
    allow: Option<AllowList>,
    lookup: Lookup,
    under_way: Arc<AtomicUsize>,
    kept: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
}

/// The system's own way, with /etc/hosts.
pub(crate) fn system() -> Lookup {
    Arc::new(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
}

impl Resolver {
    pub(crate) fn new(allow: Option<AllowList>, lookup: Lookup) -> Resolver {
        Resolver { allow, lookup, under_way: Arc::default(), kept: Mutex::default() }
    }

    /// Whether a host may be asked for at all.
    pub(crate) fn check_name(&self, host: &str, port: u16) -> Result<(), Failure> {
        match &self.allow {
            Some(allow) if !allow.names(host, port) => {
                let shown =
                    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
                Err(Failure::Denied(format!(
                    "{shown} is not in the list of what is allowed; add \"{shown}\" to `allow`"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of a host that may be connected to; at least one.
    pub(crate) fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Failure> {
        self.check_name(host, port)?;
        let found = match host_address(host) {
            Some(address) => vec![address],
            None => self.addresses(host, deadline)?,
        };
        let mut refusal = None;
        let mut fit = Vec::new();
        for address in found {
            match self.allow.as_ref().and_then(|allow| allow.refuses(host, port, address)) {
                Some(reason) => refusal = Some(reason),
                None => fit.push(SocketAddr::new(address, port)),
            }
        }
        fit.truncate(limits::ADDRESSES_MAX);
        match (fit.is_empty(), refusal) {
            (false, _) => Ok(fit),
            (true, Some(reason)) => Err(Failure::Denied(reason)),
            (true, None) => Err(Failure::unreachable(format!("{host} has no address"))),
        }
    }

    fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, Failure> {
        if let Some((since, addresses)) = self.kept.lock().get(host)
            && since.elapsed() < limits::LOOKUP_KEPT
        {
            return Ok(addresses.clone());
        }
        let addresses = self.look_up(host, deadline)?;
        let mut kept = self.kept.lock();
        if kept.len() >= limits::LOOKUPS_KEPT_MAX {
            kept.clear();
        }
        kept.insert(host.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }

    /// On a thread of its own: the system's resolver has no deadline.
    fn look_up(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(Failure::TimedOut);
        }
        if self.under_way.fetch_add(1, Ordering::AcqRel) >= limits::LOOKUPS_MAX {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(Failure::unreachable(format!(
                "{} lookups of names hang; see /etc/resolv.conf",
                limits::LOOKUPS_MAX
            )));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let (lookup, name, under_way) = (self.lookup.clone(), host.to_owned(), self.under_way.clone());
        let started = std::thread::Builder::new().name("egress-lookup".to_owned()).spawn(move || {
            let found = lookup(&name);
            under_way.fetch_sub(1, Ordering::AcqRel);
            // Nobody listens any more if it took too long.
            let _late = sender.send(found).is_err();
        });
        if let Err(error) = started {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(Failure::unreachable(format!("no thread to look {host} up: {error}")));
        }
        match receiver.recv_timeout(left) {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(Failure::unreachable(format!("{host} cannot be looked up: {error}"))),
            Err(_) => Err(Failure::TimedOut),
        }
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Resolver").field("allow", &self.allow).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn resolver(answers: &'static [&'static str]) -> Resolver {
        let allow = AllowList::parse(&["*.example.com:80".to_owned(), "es.local:80".to_owned()]).unwrap();
        let asked = AtomicUsize::new(0);
        let lookup: Lookup = Arc::new(move |_| {
            let turn = asked.fetch_add(1, Ordering::AcqRel).min(answers.len() - 1);
            Ok(answers[turn].split(' ').map(|address| address.parse().unwrap()).collect())
        });
        Resolver::new(Some(allow), lookup)
    }

    #[test]
    fn only_fit_addresses_are_left() {
        let resolver = resolver(&["127.0.0.1 8.8.8.8 10.0.0.1"]);
        let found = resolver.resolve("a.example.com", 80, soon()).unwrap();
        assert_eq!(found, ["8.8.8.8:80".parse().unwrap()]);
        let found = resolver.resolve("es.local", 80, soon()).unwrap();
        assert_eq!(found, ["8.8.8.8:80".parse().unwrap(), "10.0.0.1:80".parse().unwrap()]);
    }

    #[test]
    fn a_name_that_turns_to_loopback_leads_nowhere() {
        let resolver = resolver(&["8.8.8.8", "127.0.0.1"]);
        assert!(resolver.resolve("a.example.com", 80, soon()).is_ok());
        // However long this thread stands still.
        resolver.kept.lock().values_mut().for_each(|(since, _)| *since += Duration::from_secs(3_600));
        // The first answer is kept; after it is forgotten, the second is refused, not connected to.
        assert!(resolver.resolve("a.example.com", 80, soon()).is_ok());
        resolver.kept.lock().clear();
        let refused = resolver.resolve("a.example.com", 80, soon()).unwrap_err();
        assert!(matches!(&refused, Failure::Denied(text) if text.contains("loopback")), "{refused}");
        resolver.kept.lock().clear();
        let refused = resolver.resolve("es.local", 80, soon()).unwrap_err();
        assert!(matches!(&refused, Failure::Denied(text) if text.contains("127.0.0.1:80")), "{refused}");
    }

    #[test]
    fn other_spellings_of_loopback_are_looked_up_and_refused() {
        let allow = AllowList::parse(&["*.1:80".to_owned(), "2130706433:80".to_owned()]).unwrap();
        let resolver = Resolver::new(Some(allow), system());
        for spelled in ["127.1", "2130706433"] {
            let refused = resolver.resolve(spelled, 80, soon()).unwrap_err();
            assert!(matches!(&refused, Failure::Denied(text) if text.contains("loopback")), "{refused}");
        }
    }

    #[test]
    fn a_resolver_that_hangs_has_an_end() {
        let lookup: Lookup = Arc::new(|_| {
            std::thread::park_timeout(Duration::from_secs(600));
            Ok(Vec::new())
        });
        let resolver = Resolver::new(None, lookup);
        let short = || Instant::now() + Duration::from_millis(1);
        let under_way = || resolver.under_way.load(Ordering::Acquire);
        // One whose time is over before it begins asks nobody.
        for _ in 0..1_000 {
            if under_way() < limits::LOOKUPS_MAX {
                assert_eq!(resolver.resolve("a", 80, short()), Err(Failure::TimedOut));
            }
        }
        assert_eq!(under_way(), limits::LOOKUPS_MAX);
        let refused = resolver.resolve("a", 80, soon()).unwrap_err();
        assert!(matches!(&refused, Failure::Unreachable(text) if text.contains("hang")), "{refused}");
    }
}
