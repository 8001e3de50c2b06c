//! One connection: to a checked address, counted, with a deadline on every step.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::counters::{Counters, add};
use crate::failure::Failure;
use crate::resolve::Resolver;
use crate::tls::{Tls, server_name};

/// Opens connections, as many as are allowed at once.
#[derive(Debug)]
pub(crate) struct Opener {
    pub(crate) resolver: Resolver,
    pub(crate) tls: Tls,
    pub(crate) counters: Arc<Counters>,
    pub(crate) connections_max: u64,
}

impl Opener {
    pub(crate) fn open(
        &self,
        host: &str,
        port: u16,
        tls: bool,
        deadline: Instant,
    ) -> Result<Stream, Failure> {
        let addresses = self.resolver.resolve(host, port, deadline)?;
        let place = Place::take(&self.counters, self.connections_max)?;
        let socket = connect(host, &addresses, deadline)?;
        // Small requests go at once. A socket that does not take the option works without it.
        let _is_delayed = socket.set_nodelay(true).is_err();
        let timed = Timed { socket, deadline, read_wait_max: Duration::MAX };
        let kind = match tls {
            false => Kind::Plain(timed),
            true => Kind::Tls(Box::new(self.shake_hands(host, timed)?)),
        };
        add(&self.counters.connections, 1);
        Ok(Stream { kind, place })
    }

    fn shake_hands(
        &self,
        host: &str,
        mut timed: Timed,
    ) -> Result<StreamOwned<ClientConnection, Timed>, Failure> {
        let session = ClientConnection::new(self.tls.config()?, server_name(host)?);
        let mut session = session.map_err(|error| Failure::unreachable(format!("TLS: {error}")))?;
        while session.is_handshaking() {
            session.complete_io(&mut timed).map_err(|error| match Failure::of_io(&error) {
                Failure::Unreachable(text) => Failure::unreachable(format!("{host}: {text}")),
                other => other,
            })?;
        }
        Ok(StreamOwned::new(session, timed))
    }
}

fn connect(host: &str, addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Failure> {
    let mut last = Failure::TimedOut;
    for (tried, address) in addresses.iter().enumerate() {
        // An address that does not answer leaves time for the others.
        let others = u32::try_from(addresses.len() - tried).unwrap_or(1);
        let time = left(deadline)? / others;
        match TcpStream::connect_timeout(address, time.max(Duration::from_millis(1))) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => last = Failure::TimedOut,
            Err(error) => last = Failure::unreachable(format!("{host} ({address}): {error}")),
        }
    }
    Err(last)
}

/// The time that is left; an error if there is none.
fn left(deadline: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::TimedOut) } else { Ok(left) }
}

/// One of the connections that may be open at once.
#[derive(Debug)]
struct Place(Arc<Counters>);

impl Place {
    fn take(counters: &Arc<Counters>, max: u64) -> Result<Place, Failure> {
        if counters.open.fetch_add(1, Ordering::AcqRel) >= max {
            counters.open.fetch_sub(1, Ordering::AcqRel);
            return Err(Failure::Denied(format!("{max} connections are open (`connections`)")));
        }
        Ok(Place(counters.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Stream {
    kind: Kind,
    place: Place,
}

#[derive(Debug)]
enum Kind {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// The deadline of everything from now on.
    pub(crate) fn until(&mut self, deadline: Instant) {
        self.timed().deadline = deadline;
    }

    fn timed(&mut self) -> &mut Timed {
        match &mut self.kind {
            Kind::Plain(timed) => timed,
            Kind::Tls(stream) => &mut stream.sock,
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(timed) => timed.write_all(bytes)?,
            Kind::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()?;
            }
        }
        add(&self.place.0.bytes_sent, bytes.len() as u64);
        Ok(())
    }

    /// 0: the other side is done.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.kind {
            Kind::Plain(timed) => timed.read(into),
            Kind::Tls(stream) => stream.read(into),
        }?;
        add(&self.place.0.bytes_received, read as u64);
        Ok(read)
    }

    /// The same, and waits for so long at most. That begins with the read: a thread that stood still before it reads what came meanwhile.
    pub(crate) fn read_within(&mut self, into: &mut [u8], wait_max: Duration) -> io::Result<usize> {
        self.timed().read_wait_max = wait_max;
        let read = self.read(into);
        self.timed().read_wait_max = Duration::MAX;
        read
    }

    /// Whether it can be used again: nothing came and nobody closed it while it was idle.
    pub(crate) fn is_quiet(&self) -> bool {
        let socket = match &self.kind {
            Kind::Plain(timed) => &timed.socket,
            Kind::Tls(stream) => &stream.sock.socket,
        };
        let mut byte = [0];
        if socket.set_nonblocking(true).is_err() {
            return false;
        }
        let waits = matches!(socket.peek(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        socket.set_nonblocking(false).is_ok() && waits
    }
}

/// A socket whose every wait ends at the deadline, however many waits there are.
#[derive(Debug)]
struct Timed {
    socket: TcpStream,
    deadline: Instant,
    /// One wait of a read ends after this, if the deadline does not come before.
    read_wait_max: Duration,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        left(self.deadline).map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(self.left()?.min(self.read_wait_max)))?;
            match self.socket.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                outcome => return outcome,
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.socket.set_write_timeout(Some(self.left()?))?;
            match self.socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_has_come_is_read_however_short_the_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(b"ab").unwrap();
        // Waits until it has come.
        socket.peek(&mut [0]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut timed = Timed { socket, deadline, read_wait_max: Duration::from_nanos(1) };
        let mut bytes = [0; 4];
        assert_eq!(timed.read(&mut bytes).unwrap(), 2);
        assert_eq!(timed.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::TimedOut);
        timed.read_wait_max = Duration::MAX;
        drop(other);
        assert_eq!(timed.read(&mut bytes).unwrap(), 0);
    }
}
