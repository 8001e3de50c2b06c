//! systemd as the supervisor (`Type=notify`, `WatchdogSec=`): it is told when the agent is ready, reloads and stops, and that it
//! lives. `examples/flumen.service` is a unit.
//!
//! The protocol (sd_notify(3)): lines `NAME=value`, in one datagram to the socket that `NOTIFY_SOCKET` names: a path or, with `@` in
//! front, an abstract name. Nobody answers. Without the variable nothing is sent. A socket that takes nothing costs a line in the
//! log and no more: whether events flow must not depend on who watches.
//!
//! Not by the crate `sd-notify`: its sends wait without a limit for a systemd that does not read, and ours are on the thread
//! that has to see SIGTERM.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

/// How long one message may wait for a systemd that does not read: its queue holds hundreds, so it is busy with itself.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// Who is told how the agent is.
pub struct Supervisor {
    listener: Option<Listener>,
    /// Locked while a message is sent: what a reload says and what a stop says come in their order.
    stage: Mutex<Stage>,
    /// The last message could not be sent: said once, not with each ping.
    is_deaf: AtomicBool,
}

/// The agent's life as systemd knows it. A reload may be under way before the agent is ready, and when it stops; its READY=1
/// would then say something else than "reloaded".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Stopping,
}

impl Supervisor {
    /// The one that has started this process, if it wants to be told.
    pub fn from_env() -> Supervisor {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let listener = name.and_then(|name| match Listener::open(&name) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, socket = %name.display(), "NOTIFY_SOCKET cannot be used: systemd is not told how this agent is");
                None
            }
        });
        Supervisor::of(listener)
    }

    fn of(listener: Option<Listener>) -> Supervisor {
        Supervisor { listener, stage: Mutex::new(Stage::Starting), is_deaf: AtomicBool::new(false) }
    }

    /// Everything runs. `status` is what `systemctl status` shows: one line.
    pub fn ready(&self, status: &str) {
        let mut stage = self.stage.lock();
        *stage = Stage::Ready;
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload begins.
    pub fn reloading(&self) {
        let stage = self.stage.lock();
        if *stage == Stage::Ready {
            // The time tells systemd a message of this reload from a late one of the last (`Type=notify-reload`).
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
        }
    }

    /// It has ended, well or not: everything runs.
    pub fn reloaded(&self, status: &str) {
        let stage = self.stage.lock();
        if *stage == Stage::Ready {
            self.tell(&format!("READY=1\nSTATUS={status}"));
        }
    }

    /// An orderly stop begins, which takes `limit` at most.
    ///
    /// systemd sends SIGKILL after its own `TimeoutStopSec`, and knows nothing of `drain_timeout`, which may be longer. It is told once, for the
    /// whole stop: what is not done by then hangs, and a kill loses nothing. Its watchdog looks no more at who stops, so there are no pings.
    pub fn stopping(&self, limit: Duration) {
        let mut stage = self.stage.lock();
        *stage = Stage::Stopping;
        let limit_us = limit.as_micros();
        self.tell(&format!(
            "STOPPING=1\nSTATUS=stopping: sources end, sinks drain\nEXTEND_TIMEOUT_USEC={limit_us}"
        ));
    }

    fn tell(&self, message: &str) {
        let Some(listener) = &self.listener else { return };
        let sent = listener.send(message);
        let was_deaf = self.is_deaf.swap(sent.is_err(), Ordering::Relaxed);
        if let Err(error) = sent
            && !was_deaf
        {
            tracing::warn!(%error, "systemd (NOTIFY_SOCKET) does not hear how this agent is; it runs on");
        }
    }
}

/// Where messages go. The address is looked up with each: the socket may be made anew while the agent runs.
struct Listener {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Listener {
    fn open(name: &OsStr) -> io::Result<Listener> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_WAIT))?;
        Ok(Listener { socket, address })
    }

    fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }
}

/// systemd's clock: `Instant` does not show its number.
fn monotonic_us() -> u128 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic));
    now.unwrap_or_default().as_micros()
}

/// The pings of `WatchdogSec=`. They are for the main loop to send and nobody else: a thread of its own would ping while all else
/// hangs. They say that the loop goes round, and so that SIGTERM, failures and ends are seen. They do not say that events
/// flow: a sink whose destination is away and a disk that does not answer are waited for, and a restart would wait for the same.
pub struct Watchdog {
    supervisor: Arc<Supervisor>,
    /// Half of what systemd waits for, as sd_watchdog_enabled(3) wants it; `None`: nobody watches.
    every: Option<Duration>,
    last: Option<Instant>,
}

impl Watchdog {
    /// As systemd asks for it.
    pub fn from_env(supervisor: Arc<Supervisor>) -> Watchdog {
        let (usec, pid) = (env::var("WATCHDOG_USEC").ok(), env::var("WATCHDOG_PID").ok());
        let every = half(usec.as_deref(), pid.as_deref(), std::process::id());
        Watchdog { supervisor, every, last: None }
    }

    /// The main loop has gone round: a ping, if one is due.
    pub fn went_round(&mut self) {
        let Some(every) = self.every else { return };
        if self.last.is_none_or(|last| last.elapsed() >= every) {
            self.last = Some(Instant::now());
            self.supervisor.tell("WATCHDOG=1");
        }
    }
}

/// `WATCHDOG_PID` is somebody else when this process was started by the one that is watched.
fn half(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse::<u32>() == Ok(own));
    let period_us = usec?.parse::<u64>().ok()?;
    (is_ours && period_us > 0).then(|| Duration::from_micros(period_us / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor and the socket that it tells.
    fn told() -> (tempfile::TempDir, UnixDatagram, Supervisor) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (dir, socket, Supervisor::of(Some(Listener::open(path.as_os_str()).unwrap())))
    }

    /// The message that lies there; empty: none.
    fn next(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        match socket.recv(&mut bytes) {
            Ok(length) => String::from_utf8(bytes[..length].to_vec()).unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                String::new()
            }
        }
    }

    #[test]
    fn a_reload_is_no_start_and_does_not_undo_a_stop() {
        let (_dir, socket, supervisor) = told();
        supervisor.reloading();
        supervisor.reloaded("early");
        assert_eq!(next(&socket), "", "a reload before the agent is ready must not make it ready");
        supervisor.ready("1 pipeline");
        assert_eq!(next(&socket), "READY=1\nSTATUS=1 pipeline");
        supervisor.reloading();
        assert!(next(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        supervisor.stopping(Duration::from_secs(30));
        let stop = next(&socket);
        assert!(
            stop.starts_with("STOPPING=1\n") && stop.ends_with("\nEXTEND_TIMEOUT_USEC=30000000"),
            "{stop}"
        );
        supervisor.reloaded("late");
        supervisor.reloading();
        assert_eq!(next(&socket), "", "a reload that ends in a stop must not make the agent ready again");
    }

    #[test]
    fn an_abstract_socket_is_told() {
        let name = format!("flumen-supervisor-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = Listener::open(OsStr::new(&format!("@{name}"))).unwrap();
        Supervisor::of(Some(listener)).ready("here");
        assert_eq!(next(&socket), "READY=1\nSTATUS=here");
    }

    #[test]
    fn a_supervisor_that_does_not_read_holds_nobody_up() {
        let (_dir, socket, supervisor) = told();
        // More than any queue holds. Each message behind a full one waits its two seconds, so one is enough.
        while !supervisor.is_deaf.load(Ordering::Relaxed) {
            supervisor.tell("WATCHDOG=1");
        }
        assert_eq!(next(&socket), "WATCHDOG=1");
        supervisor.tell("WATCHDOG=1");
        assert!(!supervisor.is_deaf.load(Ordering::Relaxed), "it reads again, and is told again");
    }

    #[test]
    fn pings_come_every_half_and_only_if_they_are_ours() {
        let half_second = Some(Duration::from_millis(500));
        assert_eq!(half(Some("1000000"), None, 7), half_second);
        assert_eq!(half(Some("1000000"), Some("7"), 7), half_second);
        assert_eq!(half(Some("1000000"), Some("8"), 7), None);
        assert_eq!(half(Some("1000000"), Some(""), 7), None);
        assert_eq!(half(Some("0"), None, 7), None);
        assert_eq!(half(Some("soon"), None, 7), None);
        assert_eq!(half(None, Some("7"), 7), None);
    }

    #[test]
    fn a_ping_is_sent_when_it_is_due() {
        let (_dir, socket, supervisor) = told();
        let hour = Some(Duration::from_secs(3600));
        let mut watchdog = Watchdog { supervisor: Arc::new(supervisor), every: hour, last: None };
        watchdog.went_round();
        watchdog.went_round();
        assert_eq!(next(&socket), "WATCHDOG=1");
        assert_eq!(next(&socket), "", "one round more is no reason for a ping");
        watchdog.every = Some(Duration::ZERO);
        watchdog.went_round();
        assert_eq!(next(&socket), "WATCHDOG=1");
    }
}
