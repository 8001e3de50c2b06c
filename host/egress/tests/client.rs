//! The way out against real servers on loopback: what is reused, refused, bounded and kept secret.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use flumen_egress::{Egress, Failure, Part, Request, Response, Secret, SecretFor, Settings};

/// A request as a server saw it.
struct Seen {
    connection: usize,
    head: String,
    body: Vec<u8>,
}

/// Answers each request with what `answer` says of it, on as many connections as come. Ends with the test's process.
fn serve(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + Clone + 'static) -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (sender, seen)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let (answer, sender) = (answer.clone(), sender.clone());
            std::thread::spawn(move || talk(connection, stream.unwrap(), &answer, &sender));
        }
    });
    (address, seen)
}

fn talk(connection: usize, stream: TcpStream, answer: &impl Fn(&Seen) -> Vec<u8>, sender: &Sender<Seen>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let seen = Seen { connection, head, body };
        if stream.write_all(&answer(&seen)).is_err() {
            return;
        }
        let _nobody_listens = sender.send(seen);
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Kind: Test\r\n\r\n{body}", body.len()).into_bytes()
}

fn settings(address: SocketAddr) -> Settings {
    // A call may stand still for a while on a busy machine.
    let timeout = Duration::from_secs(60);
    Settings { allow: Some(vec![address.to_string()]), timeout, ..Settings::default() }
}

fn egress(settings: Settings) -> std::sync::Arc<Egress> {
    Egress::new(settings).unwrap()
}

fn get(url: impl std::fmt::Display) -> Request {
    Request { method: "GET".into(), url: url.to_string(), headers: vec![], body: vec![], timeout: None }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn text(response: &Response) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

#[test]
fn a_connection_is_used_again_and_everything_is_counted() {
    let (address, seen) = serve(|seen| ok(&format!("{} bytes", seen.body.len())));
    let egress = egress(settings(address));
    for _ in 0..3 {
        let request = Request {
            method: "POST".into(),
            body: vec![Part::Text("ab".into()), Part::Bytes(vec![7; 3])],
            headers: vec![("Content-Type".into(), vec![Part::Text("text/plain".into())])],
            ..get(format!("http://{address}/_bulk?x=1"))
        };
        let response = egress.send(request, soon()).unwrap();
        assert_eq!((response.status, text(&response)), (200, "5 bytes"));
        assert!(response.headers.contains(&("x-kind".to_owned(), "Test".to_owned())));
    }
    let all: Vec<Seen> = (0..3).map(|_| seen.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
    assert!(all.iter().all(|seen| seen.connection == 0 && seen.body == b"ab\x07\x07\x07"));
    assert!(all[0].head.starts_with("POST /_bulk?x=1 HTTP/1.1\r\n"), "{}", all[0].head);
    assert!(all[0].head.to_lowercase().contains("content-type: text/plain"), "{}", all[0].head);
    let stats = egress.stats();
    assert_eq!((stats.calls, stats.failures, stats.connections, stats.open_connections), (3, 0, 1, 1));
    assert!(stats.bytes_sent > 15 && stats.bytes_received > 21 && stats.busy_ns > 0, "{stats:?}");
}

#[test]
fn a_connection_that_the_server_closed_is_not_used_again() {
    let (address, _seen) =
        serve(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".to_vec());
    let egress = egress(settings(address));
    for _ in 0..3 {
        assert_eq!(text(&egress.send(get(format!("http://{address}/")), soon()).unwrap()), "ok");
    }
    assert_eq!((egress.stats().connections, egress.stats().failures), (3, 0));
}

#[test]
fn methods_with_and_without_a_body() {
    let (address, seen) = serve(|seen| ok(if seen.head.starts_with("HEAD") { "" } else { "fine" }));
    let egress = egress(settings(address));
    for (method, body) in [
        ("GET", ""),
        ("HEAD", ""),
        ("DELETE", ""),
        ("DELETE", "x"),
        ("PUT", ""),
        ("PUT", "x"),
        ("PATCH", "x"),
        ("PURGE", "x"),
    ] {
        let body = if body.is_empty() { vec![] } else { vec![Part::Text(body.into())] };
        let request =
            Request { method: method.into(), body: body.clone(), ..get(format!("http://{address}/")) };
        assert_eq!(egress.send(request, soon()).map(|response| response.status), Ok(200), "{method}");
        let seen = seen.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(seen.body.len(), body.len(), "{}", seen.head);
    }
}

#[test]
fn a_redirect_is_an_answer() {
    let (address, _seen) = serve(|_| {
        b"HTTP/1.1 307 Go\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let response = egress(settings(address)).send(get(format!("http://{address}/")), soon()).unwrap();
    assert_eq!(response.status, 307);
}

#[test]
fn what_is_not_allowed_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let egress = egress(Settings {
        allow: Some(vec!["*.1:1".into(), format!("*.1:{}", address.port())]),
        ..Settings::default()
    });
    let denied = |url: String| match egress.send(get(url), soon()) {
        Err(Failure::Denied(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(denied(format!("http://{address}/")).contains(&format!("add \"{address}\" to `allow`")));
    let text = denied(format!("http://127.1:{}/", address.port()));
    assert!(text.contains("loopback") && text.contains(&address.to_string()), "{text}");
    denied("http://[::1]:80/".into());
    denied("https://example.com/".into());
    let refused = egress.connect("127.0.0.1", address.port(), false, soon()).unwrap_err();
    assert!(matches!(refused, Failure::Denied(_)), "{refused}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody connected");
    assert_eq!((egress.stats().denied, egress.stats().connections), (5, 0));
}

#[test]
fn what_is_no_request_is_said() {
    let (address, _seen) = serve(|_| ok(""));
    let egress = egress(settings(address));
    let header = |name: &str, value: &str| vec![(name.to_owned(), vec![Part::Text(value.to_owned())])];
    let url = format!("http://{address}/");
    for (request, part) in [
        (get("ftp://x/"), "http://"),
        (get("/path"), "http://"),
        (get("http://"), "URL"),
        (get(format!("http://u:p@{address}/")), "user or password"),
        (get("http://127.0.0.1:99999/"), "port"),
        (Request { method: "A B".into(), ..get(&url) }, "method"),
        (Request { method: "CONNECT".into(), ..get(&url) }, "CONNECT"),
        (Request { body: vec![Part::Text("x".into())], ..get(&url) }, "no body"),
        (Request { headers: header("a b", "x"), ..get(&url) }, "name"),
        (Request { headers: header("x", "a\r\nb: c"), ..get(&url) }, "line end"),
        (Request { headers: header("Content-Length", "5"), ..get(&url) }, "own"),
        (Request { headers: header("host", "evil"), ..get(&url) }, "own"),
        (Request { headers: header("x", &"y".repeat(40_000)), ..get(&url) }, "over"),
    ] {
        let failed = egress.send(request, soon()).unwrap_err();
        assert!(matches!(&failed, Failure::Invalid(text) if text.contains(part)), "{part}: {failed:?}");
    }
    assert_eq!(egress.stats().connections, 0);
}

#[test]
fn slow_and_silent_servers_have_an_end() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent_at, slow_at) = (silent.local_addr().unwrap(), slow.local_addr().unwrap());
    // One byte of the head after another: each read is quick, the whole never ends.
    std::thread::spawn(move || {
        for stream in slow.incoming() {
            let mut stream = stream.unwrap();
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let short = Duration::from_millis(150);
    for address in [silent_at, slow_at] {
        let egress = egress(Settings { timeout: short, ..settings(address) });
        let started = Instant::now();
        let failed = egress.send(get(format!("http://{address}/")), soon()).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(30));
        // A head of nothing but H may be over before its time: it is not HTTP.
        assert!(failed == Failure::TimedOut || address == slow_at, "{failed:?}");
        let egress = Egress::new(settings(address)).unwrap();
        let started = Instant::now();
        let request = Request { timeout: Some(short), ..get(format!("http://{address}/")) };
        assert!(egress.send(request, soon()).is_err());
        assert!(egress.send(get(format!("http://{address}/")), Instant::now() + short).is_err());
        assert_eq!(egress.send(get(format!("http://{address}/")), Instant::now()), Err(Failure::TimedOut));
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    drop(silent);
}

#[test]
fn a_huge_answer_is_cut_off() {
    let (told, _told) = serve(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n".to_vec());
    let (chunked, _chunked) = serve(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        (0..400).for_each(|_| answer.extend([b"400\r\n".as_slice(), &[b'x'; 1024], b"\r\n"].concat()));
        answer
    });
    let (head, _head) = serve(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        (0..90).for_each(|_| answer.extend(format!("X-Long: {}\r\n", "a".repeat(1_000)).into_bytes()));
        answer
    });
    for address in [told, chunked, head] {
        let egress = egress(Settings { response_bytes_max: 100_000, ..settings(address) });
        let failed = egress.send(get(format!("http://{address}/")), soon()).unwrap_err();
        assert!(matches!(failed, Failure::TooLarge(_)), "{failed:?}");
        assert!(egress.stats().bytes_received < 400_000, "{:?}", egress.stats());
        assert_eq!(egress.stats().open_connections, 0);
    }
}

#[test]
fn a_huge_request_is_not_sent() {
    let (address, _seen) = serve(|_| ok(""));
    let egress = egress(Settings { request_bytes_max: 10, ..settings(address) });
    let request = |bytes: usize| Request {
        method: "PUT".into(),
        body: vec![Part::Bytes(vec![1; bytes])],
        ..get(format!("http://{address}/"))
    };
    assert!(egress.send(request(10), soon()).is_ok());
    let failed = egress.send(request(11), soon()).unwrap_err();
    assert!(matches!(&failed, Failure::Invalid(text) if text.contains("at most 10")), "{failed:?}");
}

fn with_secret(address: SocketAddr, value: &str) -> Settings {
    let secret = SecretFor { value: Secret(value.into()), hosts: None };
    Settings { secrets: BTreeMap::from([("token".to_owned(), secret)]), ..settings(address) }
}

#[test]
fn a_secret_is_sent_and_never_comes_back() {
    let (address, seen) = serve(|seen| {
        format!(
            "HTTP/1.1 200 OK\r\nX-Echo: {}\r\nContent-Length: {}\r\n\r\n{}",
            String::from_utf8_lossy(&seen.body),
            seen.body.len(),
            String::from_utf8_lossy(&seen.body)
        )
        .into_bytes()
    });
    let egress = egress(with_secret(address, "opensesame"));
    let request = Request {
        method: "POST".into(),
        headers: vec![(
            "Authorization".into(),
            vec![Part::Text("Bearer ".into()), Part::Secret("token".into())],
        )],
        body: vec![Part::Text("key=".into()), Part::Secret("token".into())],
        ..get(format!("http://{address}/"))
    };
    let response = egress.send(request, soon()).unwrap();
    let seen = seen.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(seen.head.to_lowercase().contains("authorization: bearer opensesame"), "{}", seen.head);
    assert_eq!(seen.body, b"key=opensesame");
    assert_eq!(text(&response), "key=(secret)");
    assert!(!format!("{response:?} {egress:?}").contains("opensesame"));
}

#[test]
fn a_secret_is_in_no_error() {
    let (address, _seen) = serve(|_| ok(""));
    let egress = egress(with_secret(address, "open\nsesame"));
    let request = Request {
        headers: vec![("Authorization".into(), vec![Part::Secret("token".into())])],
        ..get(format!("http://{address}/"))
    };
    let failed = egress.send(request, soon()).unwrap_err();
    assert!(matches!(failed, Failure::Invalid(_)) && !failed.to_string().contains("sesame"), "{failed}");
}

#[test]
fn connections_are_bounded_and_given_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let egress = egress(Settings { connections_max: 2, ..settings(address) });
    let connect = || egress.connect("127.0.0.1", address.port(), false, soon());
    let first = connect().unwrap();
    let second = connect().unwrap();
    let refused = connect().unwrap_err();
    assert!(matches!(&refused, Failure::Denied(text) if text.contains("2 connections")), "{refused}");
    drop(first);
    connect().unwrap();
    drop(second);
    assert_eq!(egress.stats().open_connections, 0);
}

#[test]
fn an_idle_connection_is_in_nobodys_way() {
    let servers = [serve(|_| ok("fine")), serve(|_| ok("fine"))];
    let allow = Some(servers.iter().map(|(address, _)| address.to_string()).collect());
    let egress = egress(Settings { connections_max: 1, allow, ..settings(servers[0].0) });
    for (address, _) in servers.iter().cycle().take(4) {
        let response = egress.send(get(format!("http://{address}/")), soon());
        assert_eq!(response.map(|response| response.status), Ok(200));
    }
}

/// A server that sends back the line it gets, and something more, then waits for its end.
fn echo(line_bytes: usize, more: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = vec![0; line_bytes];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&[line.as_slice(), more.as_bytes()].concat()).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    address
}

#[test]
fn a_secret_is_not_seen_through_small_reads() {
    let address = echo(15, ", open");
    let egress = egress(with_secret(address, "opensesame"));
    let mut connection = egress.connect("127.0.0.1", address.port(), false, soon()).unwrap();
    connection.write(vec![Part::Text("AUTH ".into()), Part::Secret("token".into())], soon()).unwrap();
    let mut seen = Vec::new();
    // The server waits after what a secret may begin with: it comes out long before the read's timeout.
    let started = Instant::now();
    while !seen.ends_with(b", open") {
        let part = connection.read(4, Some(Duration::from_secs(50)), soon()).unwrap();
        assert!((1..=4).contains(&part.len()), "{part:?}");
        seen.extend(part);
        assert!(seen.len() < 30, "{}", String::from_utf8_lossy(&seen));
    }
    assert_eq!(seen, b"AUTH (secret), open");
    assert!(started.elapsed() < Duration::from_secs(40));
    connection.write(vec![Part::Text("x".into())], soon()).unwrap();
    assert_eq!(connection.read(4, None, soon()).unwrap(), b"");
    assert!(!format!("{connection:?}").contains("opensesame"));
}

#[test]
fn tcp_writes_reads_and_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; 15];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&line).unwrap();
    });
    let egress = egress(with_secret(address, "opensesame"));
    let mut connection = egress.connect("127.0.0.1", address.port(), false, soon()).unwrap();
    connection.write(vec![Part::Text("AUTH ".into()), Part::Secret("token".into())], soon()).unwrap();
    let short = Some(Duration::from_secs(60));
    assert_eq!(connection.read(100, short, soon()).unwrap(), b"AUTH (secret)");
    assert_eq!(connection.read(100, short, soon()).unwrap(), b"");
}

#[test]
fn nobody_listens() {
    // A port that was free a moment ago may be given to somebody else; this one is given to nobody.
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let failed = egress(settings(address)).send(get(format!("http://{address}/")), soon()).unwrap_err();
    assert!(matches!(&failed, Failure::Unreachable(text) if text.contains(&address.to_string())), "{failed}");
}
