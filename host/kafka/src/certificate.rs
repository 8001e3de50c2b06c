//! Just enough of certificates to say what is wrong with one: until when it is valid, for which names, who signed.
//!
//! librdkafka says of a broker's certificate only that it could not be verified. So the broker is asked for it
//! once more: in TLS 1.2 it comes in the clear, in the answer to the first message (RFC 5246, 7.4). Nothing is
//! decided by what is read here; it only makes a message better, and foreign bytes are `None`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use crate::limits;
use crate::oauth::decode_base64;

/// A broker that does not answer the question within this time is not asked further: connection, question and answer
/// together, because the thread that polls the client waits meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// More than any chain of certificates.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Not valid before.
    pub begins: Timestamp,
    /// Not valid after.
    pub ends: Timestamp,
    /// Who signed it (common name).
    pub issuer: String,
    /// Whose it is (common name).
    pub subject: String,
    /// Host names and addresses that it is for.
    pub names: Vec<String>,
}

/// What a port answers to the beginning of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// TLS, with a certificate if it could be read.
    Tls(Option<Certificate>),
    /// Something else, or the end of the connection.
    NoTls,
    /// Nothing.
    Silence,
}

impl Certificate {
    /// Whether it is for a host, by name or address; `*.` stands for one part of a name.
    pub fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
            None => name.eq_ignore_ascii_case(host),
        })
    }
}

/// The certificates of a file in PEM; those that cannot be read are left out.
pub fn all_of_file(path: &Path) -> Vec<Certificate> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let certificate = |rest: &str| {
        let (body, _) = rest.split_once("-----END")?;
        let body: String = body.split_whitespace().collect();
        read(&decode_base64(&body)?)
    };
    text.split("-----BEGIN CERTIFICATE-----").skip(1).filter_map(certificate).collect()
}

/// The first certificate of a file in PEM.
pub fn of_file(path: &Path) -> Option<Certificate> {
    all_of_file(path).into_iter().next()
}

/// What ports answered, and when they were last asked.
static ASKED: Mutex<BTreeMap<String, (Instant, Answer)>> = Mutex::new(BTreeMap::new());

/// Asks a port, `host:port`; once in [`limits::LOG_REPEAT`], because the same trouble comes with each try to connect. Silence is
/// also that of a broker that stands still, so an answer of before counts more.
pub fn of_port(address: &str) -> Answer {
    let before = ASKED.lock().get(address).cloned();
    if let Some((_, answer)) = before.as_ref().filter(|(at, _)| at.elapsed() < limits::LOG_REPEAT) {
        return answer.clone();
    }
    // Not with the lock: others ask other ports.
    let answer = match (ask(address), before) {
        (Answer::Silence, Some((_, before))) => before,
        (answer, _) => answer,
    };
    let mut asked = ASKED.lock();
    if asked.len() >= limits::LOG_LINES_MAX {
        asked.clear();
    }
    asked.insert(address.to_owned(), (Instant::now(), answer.clone()));
    answer
}

fn ask(address: &str) -> Answer {
    let until = Instant::now() + PATIENCE;
    let left = || until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    let connect = |one| TcpStream::connect_timeout(&one, left()?).ok();
    let Some(mut stream) =
        address.to_socket_addrs().ok().and_then(|mut addresses| addresses.find_map(connect))
    else {
        return Answer::Silence;
    };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let Some(patience) = left() else { return Answer::Silence };
    let asked = stream.set_write_timeout(Some(patience)).and_then(|()| stream.write_all(&client_hello(host)));
    if asked.is_err() {
        return Answer::NoTls;
    }
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while bytes.len() < ANSWER_BYTES_MAX {
        let Some(patience) = left() else {
            if bytes.is_empty() {
                return Answer::Silence;
            }
            break;
        };
        if stream.set_read_timeout(Some(patience)).is_err() {
            break;
        }
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend(chunk.iter().take(count)),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                if bytes.is_empty() {
                    return Answer::Silence;
                }
                break;
            }
            Err(_) => break,
        }
        if let Some(certificate) = certificate_message(&bytes) {
            return Answer::Tls(read(certificate));
        }
        if bytes.first() == Some(&ALERT) {
            break;
        }
    }
    match bytes.first() {
        Some(&HANDSHAKE | &ALERT) => Answer::Tls(None),
        _ => Answer::NoTls,
    }
}

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// A ClientHello of TLS 1.2 with the suites that Java and OpenSSL take.
fn client_hello(host: &str) -> Vec<u8> {
    const SUITES: [u16; 12] =
        [0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035];
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(counted(body));
    };
    if host.parse::<std::net::IpAddr>().is_err() {
        let name = [&[0][..], &counted(host.as_bytes())].concat();
        extension(0, &counted(&name));
    }
    extension(10, &[0, 6, 0, 29, 0, 23, 0, 24]);
    extension(11, &[1, 0]);
    let signatures: Vec<u8> = [0x0403_u16, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601]
        .iter()
        .flat_map(|s| s.to_be_bytes())
        .collect();
    extension(13, &counted(&signatures));
    let suites: Vec<u8> = SUITES.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    // Its random part need not be: no key comes of this conversation.
    let body = [&[3, 3][..], &[0x46; 32], &[0], &counted(&suites), &[1, 0], &counted(&extensions)].concat();
    let message = [&[1, 0][..], &counted(&body)].concat();
    [&[HANDSHAKE, 3, 1][..], &counted(&message)].concat()
}

/// A body behind its length in two bytes.
fn counted(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

/// The first certificate in the server's messages, when all of it has come.
fn certificate_message(bytes: &[u8]) -> Option<&[u8]> {
    // Messages may go over several records; where the certificate does, it is found in the joined rest.
    let mut rest = bytes;
    while let Some((record, behind)) = record(rest) {
        let mut messages = record;
        while let Some((kind, body, next)) = message(messages) {
            if kind == 11 {
                let (_, list) = body.split_at_checked(3)?;
                let (length, certificate) = list.split_at_checked(3)?;
                return certificate.get(..u24(length)?);
            }
            messages = next;
        }
        rest = behind;
    }
    None
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(5)?;
    let &[HANDSHAKE, _, _, high, low] = head else { return None };
    rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))
}

fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(4)?;
    let (kind, length) = head.split_first()?;
    let (body, rest) = rest.split_at_checked(u24(length)?)?;
    Some((*kind, body, rest))
}

fn u24(bytes: &[u8]) -> Option<usize> {
    let &[a, b, c] = bytes else { return None };
    usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()
}

/// One element of DER: its tag, its content, what is behind it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = length
                .iter()
                .try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))?;
            (length, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn elements(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, content, rest) = element(bytes)?;
        bytes = rest;
        Some((tag, content))
    })
}

/// X.509 (RFC 5280, 4.1) in DER.
fn read(der: &[u8]) -> Option<Certificate> {
    const VERSION: u8 = 0xa0;
    const EXTENSIONS: u8 = 0xa3;
    let (_, whole, _) = element(der)?;
    let (_, signed, _) = element(whole)?;
    let mut fields = elements(signed).skip_while(|(tag, _)| *tag == VERSION).skip(2);
    let (_, issuer) = fields.next()?;
    let mut validity = elements(fields.next()?.1);
    let (begins, ends) = (time(validity.next()?)?, time(validity.next()?)?);
    let (_, subject) = fields.next()?;
    let extensions = fields.find(|(tag, _)| *tag == EXTENSIONS).map_or(&[][..], |(_, content)| content);
    let mut names = alternative_names(extensions).unwrap_or_default();
    if names.is_empty() {
        names.extend(common_name(subject));
    }
    let [issuer, subject] = [issuer, subject].map(|name| common_name(name).unwrap_or_default());
    Some(Certificate { begins, ends, issuer, subject, names })
}

fn time((tag, content): (u8, &[u8])) -> Option<Timestamp> {
    const UTC_TIME: u8 = 0x17;
    let text = std::str::from_utf8(content).ok()?.trim_end_matches('Z');
    // Two digits of a year: below 50 it is of this century.
    let text = match tag {
        UTC_TIME if text < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        _ => text.to_string(),
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn common_name(name: &[u8]) -> Option<String> {
    const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
    elements(name).flat_map(|(_, set)| elements(set)).find_map(|(_, pair)| {
        let mut pair = elements(pair);
        (pair.next()?.1 == COMMON_NAME).then_some(())?;
        Some(String::from_utf8_lossy(pair.next()?.1).into_owned())
    })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    const SUBJECT_ALTERNATIVE_NAME: [u8; 3] = [0x55, 0x1d, 17];
    const DNS: u8 = 0x82;
    const ADDRESS: u8 = 0x87;
    let (_, list, _) = element(extensions)?;
    let (_, extension) = elements(list)
        .find(|(_, one)| elements(one).next().is_some_and(|(_, id)| id == SUBJECT_ALTERNATIVE_NAME))?;
    let (_, octets) = elements(extension).last()?;
    let (_, names, _) = element(octets)?;
    let name = |(tag, content): (u8, &[u8])| match tag {
        DNS => Some(String::from_utf8_lossy(content).into_owned()),
        ADDRESS => match content.len() {
            4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(content).ok()?).to_string()),
            _ => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(content).ok()?).to_string()),
        },
        _ => None,
    };
    Some(elements(names).filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of `openssl req -x509 -newkey ed25519 -days 1`, with the common name and the names that are expected below.
    const PEM: &str = include_str!("certificate_test.pem");

    #[test]
    fn a_certificate_says_its_time_and_names() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), PEM).unwrap();
        let certificate = of_file(path.path()).unwrap();
        assert_eq!(certificate.names, ["k1", "*.kafka.lan", "10.0.0.1"]);
        assert_eq!(certificate.issuer, "who");
        assert_eq!(certificate.ends.to_string(), "2026-11-22T07:43:52Z");
        assert_eq!(certificate.ends.duration_since(certificate.begins).as_hours(), 24);
        for (host, expected) in
            [("k1", true), ("K1", true), ("b.kafka.lan", true), ("a.b.kafka.lan", false), ("k", false)]
        {
            assert_eq!(certificate.is_for(host), expected, "{host}");
        }
    }

    /// A port that does this with each connection.
    fn port(serve: impl Fn(TcpStream) + Send + 'static) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        address
    }

    #[test]
    fn a_port_is_asked_once_for_a_while() {
        let asked_twice = || {
            let count = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            let counted = count.clone();
            let address = port(move |mut stream| {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            });
            let answers = [of_port(&address), of_port(&address)];
            (answers, count.load(std::sync::atomic::Ordering::Relaxed))
        };
        // Silence: the other thread got no time to answer.
        let seen = (0..5).map(|_| asked_twice()).find(|([first, _], _)| *first != Answer::Silence);
        assert_eq!(seen, Some(([Answer::NoTls, Answer::NoTls], 1)));
    }

    #[test]
    fn an_answer_of_before_counts_more_than_silence() {
        let (keep, _kept) = std::sync::mpsc::channel();
        // It never answers and never ends.
        let address = port(move |stream| keep.send(stream).unwrap());
        // A machine that has just started has no such time.
        let Some(long_ago) = Instant::now().checked_sub(limits::LOG_REPEAT * 2) else { return };
        ASKED.lock().insert(address.clone(), (long_ago, Answer::Tls(None)));
        assert_eq!(of_port(&address), Answer::Tls(None));
        assert!(ASKED.lock()[&address].0 > long_ago, "asked");
    }

    #[test]
    fn what_comes_byte_by_byte_is_not_waited_for() {
        let address = port(|mut stream| {
            // Until nobody listens any more: who waited for the end would wait for ever.
            while stream.write_all(&[HANDSHAKE]).is_ok() {
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        let (answers, answered) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Silence: the other thread got no time to write.
            let answer = (0..5).map(|_| ask(&address)).find(|answer| *answer != Answer::Silence);
            answers.send(answer).unwrap();
        });
        assert_eq!(answered.recv_timeout(Duration::from_secs(60)).unwrap(), Some(Answer::Tls(None)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_none(bytes: Vec<u8>) {
            read(&bytes);
            certificate_message(&bytes);
        }
    }
}
