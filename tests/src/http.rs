//! A real HTTP server of a test's own: it answers what the test says, and behaves as badly as the test wants.
//!
//! [`Appender`] is a destination that stores lines and a cursor in one step, and takes a request only if it follows what it has:
//! what `plugins/http-append` is written for. What it took is never lost; connections and answers are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A request, whole.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }
}

/// What a server does with a request.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// 0: the connection is cut without an answer.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// Bytes.
    pub body: Vec<u8>,
    /// Before the answer.
    pub pause: Duration,
}

impl Reply {
    /// A status with a text.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    /// The end of the connection.
    #[must_use]
    pub fn cut() -> Self {
        Self::default()
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Later.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// A server on a free port of loopback. Its threads end with the process.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    is_down: Arc<AtomicBool>,
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no port.
    pub fn start(answer: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, is_down) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let (down, answer) = (is_down.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (down, answer) = (down.clone(), answer.clone());
                if !down.load(Ordering::Acquire) {
                    std::thread::spawn(move || serve(&stream, &down, answer.as_ref()).ok());
                }
            }
        });
        Ok(Self { address, is_down })
    }

    /// Down: connections are cut, also those that are open, and no new one is served. What is being stored is stored.
    pub fn down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Release);
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(stream: &TcpStream, down: &AtomicBool, answer: &dyn Fn(Request) -> Reply) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut reader)? {
        if down.load(Ordering::Acquire) {
            return Ok(());
        }
        let reply = answer(request);
        std::thread::sleep(reply.pause);
        if reply.status == 0 || down.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = stream;
        stream.write_all(&[head.as_bytes(), &reply.body].concat())?;
    }
    Ok(())
}

fn read(reader: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    let length = request.header("content-length").map(str::parse).transpose().context("content-length")?;
    request.body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// How often, in percent, an [`Appender`] does what.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Cuts the connection and stores nothing.
    pub cut: u32,
    /// Stores, and cuts the connection instead of answering.
    pub lose_answer: u32,
    /// Says 503 and stores nothing.
    pub busy: u32,
    /// Stores after a pause of this length, which is longer than the client waits.
    pub late: Option<(u32, Duration)>,
}

/// A destination that stores lines and a cursor in one step.
#[derive(Debug)]
pub struct Appender {
    /// The server.
    pub server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    lines: Vec<String>,
    cursor: Option<String>,
    faults: Faults,
    requests: u64,
    conflicts: u64,
    random: StdRng,
}

impl Appender {
    /// Starts it.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start(seed: u64) -> Result<Self> {
        let state = State {
            lines: Vec::new(),
            cursor: None,
            faults: Faults::default(),
            requests: 0,
            conflicts: 0,
            random: StdRng::seed_from_u64(seed),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let server = Server::start(move |request| answer(&shared, &request))?;
        Ok(Self { server, state })
    }

    /// From now on.
    pub fn faults(&self, faults: Faults) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).faults = faults;
    }

    /// Everything that was stored, in order.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// How many lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests, and those that did not follow what was there.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.requests, state.conflicts)
    }
}

fn answer(state: &Mutex<State>, request: &Request) -> Reply {
    let (faults, roll) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests += 1;
        (state.faults, state.random.random_range(0..100_u32))
    };
    let Faults { cut, lose_answer, busy, late } = faults;
    let (late_percent, pause) = late.unwrap_or_default();
    if roll < cut {
        return Reply::cut();
    }
    if roll < cut + busy {
        return Reply::new(503, "not now").header("retry-after", "0");
    }
    let is_late = (cut + busy..cut + busy + late_percent).contains(&roll);
    if is_late {
        // Nobody waits for it any more, and then it is carried out.
        std::thread::sleep(pause);
    }
    let reply = store(&mut state.lock().unwrap_or_else(PoisonError::into_inner), request);
    let is_lost = (cut + busy + late_percent..cut + busy + late_percent + lose_answer).contains(&roll);
    if is_lost { Reply::cut() } else { reply }
}

fn store(state: &mut State, request: &Request) -> Reply {
    if request.method == "GET" {
        return match &state.cursor {
            Some(cursor) => Reply::new(200, "").header("flumen-cursor", cursor),
            None => Reply::new(404, "nothing yet"),
        };
    }
    let after = request.header("flumen-after").unwrap_or("none");
    if let Some(cursor) = request.header("flumen-cursor") {
        if after != state.cursor.as_deref().unwrap_or("none") {
            state.conflicts += 1;
            return Reply::new(409, "this does not follow what is here");
        }
        state.cursor = Some(cursor.to_owned());
    }
    let text = String::from_utf8_lossy(&request.body);
    state.lines.extend(text.lines().map(str::to_owned));
    Reply::new(200, "")
}
