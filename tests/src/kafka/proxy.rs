//! The network between a client and the broker, to be held up and cut: a TCP proxy on the loopback.
//!
//! A thread accepts; two threads per connection move bytes. [`Proxy::pause`] holds bytes back while
//! connections stay open, as a router that drops packets does. [`Proxy::cut`] resets every connection
//! and closes the port, so that new ones are refused.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

use crate::limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Flowing,
    Paused,
    Cut,
    Ended,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    is_listening: bool,
    /// Threads that move bytes.
    pumps: usize,
    error: Option<String>,
}

#[derive(Debug)]
struct Shared {
    listen_port: u16,
    target_port: u16,
    state: Mutex<State>,
    changed: Condvar,
    moved_bytes: AtomicU64,
    /// See [`Proxy::pause_after`].
    pause_at: AtomicU64,
}

/// A running proxy. Dropped, it closes its port and its connections.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on one port of the loopback and connects to another.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(listen_port: u16, target_port: u16) -> Result<Self> {
        let state = State { mode: Mode::Flowing, is_listening: false, pumps: 0, error: None };
        let shared = Arc::new(Shared {
            listen_port,
            target_port,
            state: Mutex::new(state),
            changed: Condvar::new(),
            moved_bytes: AtomicU64::new(0),
            pause_at: AtomicU64::new(u64::MAX),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept_until_ended()
        });
        let proxy = Self { shared, acceptor: Some(acceptor) };
        proxy.wait(|state| state.is_listening)?;
        Ok(proxy)
    }

    /// Bytes stop; connections stay open, and new ones are taken but nothing comes of them.
    ///
    /// # Errors
    /// If the proxy failed.
    pub fn pause(&self) -> Result<()> {
        self.shared.set(Mode::Paused);
        self.wait(|state| state.is_listening)
    }

    /// As [`Proxy::pause`], once, by itself, when so many more bytes were passed on: a test that looks may look too late.
    pub fn pause_after(&self, bytes: u64) {
        self.shared.pause_at.store(self.moved_bytes().saturating_add(bytes), Ordering::Relaxed);
    }

    /// Whether bytes are held back.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.mode() == Mode::Paused
    }

    /// Bytes flow again, first those that were held back.
    ///
    /// # Errors
    /// If the proxy failed.
    pub fn resume(&self) -> Result<()> {
        self.shared.set(Mode::Flowing);
        self.wait(|state| state.is_listening)
    }

    /// Resets all connections, and refuses new ones until [`Proxy::mend`]. What was held back is lost.
    ///
    /// # Errors
    /// If the proxy failed.
    pub fn cut(&self) -> Result<()> {
        self.shared.set(Mode::Cut);
        self.wait(|state| !state.is_listening && state.pumps == 0)
    }

    /// Takes connections again.
    ///
    /// # Errors
    /// If the port was taken meanwhile.
    pub fn mend(&self) -> Result<()> {
        self.resume()
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().pumps / 2
    }

    /// Bytes that were passed on so far, both ways together.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.shared.moved_bytes.load(Ordering::Relaxed)
    }

    fn wait(&self, is_done: impl Fn(&State) -> bool) -> Result<()> {
        let is_waiting = |state: &mut State| state.error.is_none() && !is_done(state);
        let (state, timed_out) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), limits::CONDITION, is_waiting)
            .map_err(|_| anyhow!("a thread of the proxy panicked"))?;
        match &state.error {
            Some(error) => bail!("the proxy on port {} failed: {error}", self.shared.listen_port),
            None if timed_out.timed_out() => bail!("the proxy does not become {:?}", state.mode),
            None => Ok(()),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.set(Mode::Ended);
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            eprintln!("the proxy's thread panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn set(&self, mode: Mode) {
        self.change(|state| state.mode = mode);
    }

    fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Waits while the mode is the given one; gives the next.
    fn wait_past(&self, mode: Mode) -> Mode {
        let state = self.changed.wait_while(self.state(), |state| state.mode == mode);
        state.unwrap_or_else(PoisonError::into_inner).mode
    }

    fn accept_until_ended(self: &Arc<Self>) {
        loop {
            let ended = match self.mode() {
                Mode::Ended => return,
                Mode::Cut => {
                    self.wait_past(Mode::Cut);
                    Ok(())
                }
                Mode::Flowing | Mode::Paused => self.accept_until_cut(),
            };
            self.change(|state| {
                state.is_listening = false;
                if let Err(error) = &ended {
                    state.error = Some(format!("{error:#}"));
                }
            });
            if ended.is_err() {
                return;
            }
        }
    }

    /// The listener lives as long as this call: while the proxy is cut, nobody listens.
    fn accept_until_cut(self: &Arc<Self>) -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", self.listen_port)).context("cannot listen")?;
        listener.set_nonblocking(true)?;
        self.change(|state| state.is_listening = true);
        while matches!(self.mode(), Mode::Flowing | Mode::Paused) {
            match listener.accept() {
                // A broker that is down: the client sees its connection closed, as without a proxy.
                Ok((client, _)) => drop(self.connect(client)),
                Err(error) if is_nothing_yet(error.kind()) => await_readable(&listener)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let client = prepared(client)?;
        let broker = prepared(TcpStream::connect(("127.0.0.1", self.target_port))?)?;
        self.change(|state| state.pumps += 2);
        for (from, to) in [(&client, &broker), (&broker, &client)] {
            let (shared, from, to) = (Arc::clone(self), Arc::clone(from), Arc::clone(to));
            thread::spawn(move || {
                // Which side failed is of no interest: both get to know by the end of the connection.
                drop(shared.pump(&from, &to));
                // A socket that is gone needs neither.
                for socket in [&from, &to] {
                    drop(if shared.mode() == Mode::Cut {
                        // Whoever closes a socket last then resets its peer.
                        set_socket_linger(socket, Some(Duration::ZERO)).map_err(io::Error::from)
                    } else {
                        // Wakes the other thread of the connection.
                        socket.shutdown(Shutdown::Both)
                    });
                }
                drop((from, to));
                shared.change(|state| state.pumps -= 1);
            });
        }
        Ok(())
    }

    fn pump(&self, mut from: &TcpStream, to: &TcpStream) -> Result<()> {
        let mut buffer = vec![0; limits::PROXY_BUFFER_BYTES];
        while self.may_flow() {
            let taken = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(taken) => taken,
                Err(error) if is_nothing_yet(error.kind()) => continue,
                Err(error) => return Err(error.into()),
            };
            self.write(to, buffer.get(..taken).unwrap_or_default())?;
        }
        Ok(())
    }

    fn write(&self, mut to: &TcpStream, mut rest: &[u8]) -> Result<()> {
        while !rest.is_empty() {
            if !self.may_flow() {
                bail!("cut");
            }
            match to.write(rest) {
                Ok(0) => bail!("closed"),
                Ok(written) => {
                    let before = self.moved_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    rest = rest.get(written..).unwrap_or_default();
                    self.pause_if_due(before + written as u64);
                }
                Err(error) if is_nothing_yet(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn pause_if_due(&self, moved: u64) {
        let at = self.pause_at.load(Ordering::Relaxed);
        let is_first = || self.pause_at.compare_exchange(at, u64::MAX, Ordering::Relaxed, Ordering::Relaxed);
        if moved >= at && is_first().is_ok() {
            self.change(|state| {
                if state.mode == Mode::Flowing {
                    state.mode = Mode::Paused;
                }
            });
        }
    }

    /// Waits while the proxy is paused; whether bytes may go on then.
    fn may_flow(&self) -> bool {
        match self.mode() {
            Mode::Paused => self.wait_past(Mode::Paused) == Mode::Flowing,
            mode => mode == Mode::Flowing,
        }
    }
}

/// A socket whose reads and writes look up now and then.
fn prepared(stream: TcpStream) -> Result<Arc<TcpStream>> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limits::PROXY_LOOK))?;
    stream.set_write_timeout(Some(limits::PROXY_LOOK))?;
    Ok(Arc::new(stream))
}

fn is_nothing_yet(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn await_readable(listener: &TcpListener) -> Result<()> {
    let look = Timespec::try_from(limits::PROXY_LOOK)?;
    poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)], Some(&look))?;
    Ok(())
}
