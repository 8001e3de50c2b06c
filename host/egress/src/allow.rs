//! What may be reached: hosts and ports, and which addresses they may lead to.
//!
//! An entry is `host:port`: a name, `*.domain` (any name below it), an IPv4 address, or an IPv6 address in brackets.
//! A name that leads to an address of the public Internet is always fine. One of a private network needs the name itself
//! in the list, not a `*.` above it. Loopback, link-local (where clouds answer with credentials) and other special
//! addresses need the address itself in the list; `localhost` names loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The list.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowList(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    /// With the dot before it.
    Below(String),
    Address(IpAddr),
}

/// How near an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Public,
    /// A network that is not routed on the Internet.
    Private(&'static str),
    /// This machine, this link, or no host at all.
    Special(&'static str),
}

impl AllowList {
    /// Reads entries; an error says what is wrong with which.
    pub(crate) fn parse(entries: &[String]) -> Result<AllowList, String> {
        entries.iter().map(|entry| parse(entry)).collect::<Result<_, _>>().map(AllowList)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a host, as it is written in a request, is in the list.
    pub(crate) fn names(&self, host: &str, port: u16) -> bool {
        self.0.iter().any(|entry| entry.port == port && entry.host.is(host))
    }

    /// Why this host must not lead to this address.
    pub(crate) fn refuses(&self, host: &str, port: u16, address: IpAddr) -> Option<String> {
        let address = canonical(address);
        let has = |wanted: &Host| self.0.iter().any(|entry| entry.port == port && entry.host == *wanted);
        let is_named = has(&Host::Address(address));
        let shown = Shown(address, port);
        match reach(address) {
            _ if is_named => None,
            Reach::Public => None,
            Reach::Private(_) if has(&Host::Name(host.to_owned())) => None,
            Reach::Special(_) if host == "localhost" && address.is_loopback() => None,
            Reach::Private(what) => Some(format!(
                "{host} is {address}, {what}, and only a pattern allows it; add \"{host}:{port}\" or \"{shown}\" to `allow`"
            )),
            Reach::Special(what) => {
                Some(format!("{host} is {address}, {what}; add \"{shown}\" to `allow` if it is meant"))
            }
        }
    }
}

impl Host {
    fn is(&self, host: &str) -> bool {
        match self {
            Host::Name(name) => name == host,
            Host::Below(domain) => host.len() > domain.len() && host.ends_with(domain.as_str()),
            Host::Address(address) => host_address(host).is_some_and(|host| canonical(host) == *address),
        }
    }
}

struct Shown(IpAddr, u16);

impl std::fmt::Display for Shown {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(out, "{address}:{}", self.1),
            IpAddr::V6(address) => write!(out, "[{address}]:{}", self.1),
        }
    }
}

/// A host as it is compared: lower case, without the dot of the root, an address without brackets.
pub(crate) fn normal(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The address that a host is, if it is one.
pub(crate) fn host_address(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

fn parse(entry: &str) -> Result<Entry, String> {
    let wrong = |why: &str| Err(format!("{entry:?} {why}"));
    let Some((host, port)) = entry.rsplit_once(':') else {
        return wrong("has no port; write \"host:port\", such as \"es.local:9200\"");
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
        return wrong("has no port from 1 to 65535; write \"host:port\"");
    };
    if host.contains('/') {
        return wrong("is a URL or a network; write \"host:port\"");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return wrong("has a `:` in its host; write an IPv6 address in brackets: \"[::1]:9200\"");
    }
    let host = normal(host);
    let is_name = |name: &str| {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        name.len() <= 253 && name.split('.').all(is_label)
    };
    let host = match (host_address(&host), host.strip_prefix('*')) {
        (Some(address), _) => Host::Address(canonical(address)),
        (None, Some(domain)) if domain.strip_prefix('.').is_some_and(is_name) => {
            Host::Below(domain.to_owned())
        }
        (None, Some(_)) => {
            return wrong("has a `*` that is not `*.domain`; name the hosts, or the domain above them");
        }
        (None, None) if is_name(&host) => Host::Name(host),
        (None, None) => return wrong("is not a name or address with a port; write \"host:port\""),
    };
    Ok(Entry { host, port })
}

/// An IPv4 address that is wrapped in an IPv6 one is what it leads to.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let from = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match six.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => from(high, low),
        // NAT64 (RFC 6052) and 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        [0x2002, high, low, ..] => from(high, low),
        _ => address,
    }
}

/// By RFC 6890 and the registries of IANA that follow it.
fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        [127, ..] => Reach::Special("loopback"),
        [169, 254, ..] => Reach::Special("link-local"),
        [0, ..] => Reach::Special("this host"),
        [224..=255, ..] => Reach::Special("multicast or reserved"),
        [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Reach::Special("reserved"),
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => Reach::Private("a private network"),
        [100, 64..=127, ..] => Reach::Private("a carrier's network"),
        [198, 18..=19, ..] => Reach::Private("a test network"),
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    match address.segments() {
        _ if address.is_loopback() => Reach::Special("loopback"),
        _ if address.is_unspecified() => Reach::Special("this host"),
        _ if address.is_multicast() => Reach::Special("multicast"),
        [0xfe80..=0xfebf, ..] => Reach::Special("link-local"),
        [0xfec0..=0xfeff, ..] => Reach::Private("a private network"),
        [0xfc00..=0xfdff, ..] => Reach::Private("a private network"),
        // Teredo and documentation; what an address of ::/96 means is not known any more.
        [0x2001, 0, ..] | [0x2001, 0xdb8, ..] | [0, 0, 0, 0, 0, 0, ..] => Reach::Special("reserved"),
        [0x64, 0xff9b, ..] => Reach::Special("reserved"),
        _ => Reach::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(entries: &[&str]) -> AllowList {
        AllowList::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn may(list: &AllowList, host: &str, port: u16, address: &str) -> bool {
        let host = normal(host);
        list.names(&host, port) && list.refuses(&host, port, address.parse().unwrap()).is_none()
    }

    #[test]
    fn names_patterns_and_addresses_with_their_ports() {
        let list =
            list(&["ES.local:9200", "*.example.com:443", "10.1.2.3:80", "[fd00::1]:80", "localhost:1"]);
        assert!(may(&list, "es.local", 9200, "8.8.8.8"));
        assert!(may(&list, "ES.LOCAL.", 9200, "10.0.0.7"), "a name in the list may be private");
        assert!(!may(&list, "es.local", 9201, "8.8.8.8"));
        assert!(!may(&list, "xes.local", 9200, "8.8.8.8"));
        assert!(may(&list, "a.b.example.com", 443, "8.8.8.8"));
        assert!(!may(&list, "example.com", 443, "8.8.8.8"), "the domain itself is not below it");
        assert!(!may(&list, ".example.com", 443, "10.0.0.1"));
        assert!(!may(&list, "evilexample.com", 443, "8.8.8.8"));
        assert!(may(&list, "10.1.2.3", 80, "10.1.2.3"));
        assert!(may(&list, "[fd00::1]", 80, "fd00::1"));
        assert!(!may(&list, "10.1.2.4", 80, "10.1.2.4"));
        assert!(may(&list, "localhost", 1, "127.0.0.1") && may(&list, "localhost", 1, "::1"));
        assert!(!may(&list, "localhost", 1, "169.254.169.254"));
    }

    #[test]
    fn a_name_does_not_lead_near() {
        let list = list(&["es.local:80", "*.example.com:80"]);
        for near in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
        ] {
            assert!(!may(&list, "es.local", 80, near), "{near}");
            assert!(!may(&list, "a.example.com", 80, near), "{near}");
        }
        for private in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1"] {
            assert!(may(&list, "es.local", 80, private), "{private}");
            assert!(!may(&list, "a.example.com", 80, private), "{private}");
        }
    }

    #[test]
    fn a_wrong_entry_is_named_with_its_fix() {
        for (entry, part) in [
            ("es.local", "no port"),
            ("es.local:http", "no port"),
            ("es.local:0", "no port"),
            ("http://es.local:80", "URL"),
            ("10.0.0.0/8:80", "URL or a network"),
            ("::1:80", "brackets"),
            ("*:80", "`*.domain`"),
            ("a*.com:80", "not a name"),
            ("user@host:80", "not a name"),
            (":80", "not a name"),
            ("a..b:80", "not a name"),
        ] {
            let error = AllowList::parse(&[entry.to_owned()]).unwrap_err();
            assert!(error.contains(part) && error.contains(entry), "{entry}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_entry_or_a_reason(text in any::<String>(), port in any::<u16>()) {
            let _outcome = AllowList::parse(std::slice::from_ref(&text));
            let _outcome = AllowList::parse(&[format!("{text}:{port}")]);
        }

        #[test]
        fn no_pattern_reaches_a_private_address(bits in any::<u32>(), prefix in 0..6_usize) {
            let masks = [(0x0a00_0000, 8), (0xac10_0000, 12), (0xc0a8_0000, 16), (0x7f00_0000, 8), (0xa9fe_0000, 16), (0x6440_0000, 10)];
            let (base, length) = masks[prefix];
            let address = Ipv4Addr::from(base | (bits >> length));
            let list = list(&["*.example.com:80"]);
            prop_assert!(list.refuses("a.example.com", 80, address.into()).is_some());
            prop_assert!(list.refuses("a.example.com", 80, address.to_ipv6_mapped().into()).is_some());
        }
    }
}
