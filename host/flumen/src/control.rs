//! The control socket in the data directory: how `flumen status` reaches the running agent.
//!
//! One request per connection: a line (`status`), answered by one JSON value, then closed. Only the
//! user of the agent can connect (the socket's mode is 0600). Each connection has a thread: a reload that drains takes its
//! time, and must not keep a look at the status waiting.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const SOCKET: &str = "control.sock";
/// A request is a word, or a word and what is wanted as JSON.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Connections at once: more than people and programs ask for, and few threads.
const CONNECTIONS_MAX: usize = 32;
/// A client that neither sends nor reads is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests on a thread of its own until the process ends.
pub fn serve(data_dir: &Path, answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Result<()> {
    let path = data_dir.join(SOCKET);
    // The lock on the data directory is ours, so a socket here is left over.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        bail!("cannot remove the old {}: {error}", path.display());
    }
    let (dir, short) = short_path(data_dir)?;
    let listener =
        UnixListener::bind(&short).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        let _keep = dir;
        // Each connection holds a clone: the count is how many there are.
        let answer = Arc::new(answer);
        for stream in listener.incoming() {
            let answer = answer.clone();
            let is_over = Arc::strong_count(&answer) > CONNECTIONS_MAX + 1;
            let handled = stream.map_err(anyhow::Error::from).and_then(|stream| {
                anyhow::ensure!(!is_over, "more than {CONNECTIONS_MAX} connections");
                let work = move || match handle(stream, &*answer) {
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "control connection failed"),
                };
                Ok(std::thread::Builder::new().name("control".into()).spawn(work).map(drop)?)
            });
            if let Err(error) = handled {
                tracing::debug!(%error, "control connection failed");
            }
        }
    })?;
    Ok(())
}

fn handle(mut stream: UnixStream, answer: &impl Fn(&str) -> Option<String>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_line(&mut request)?;
    let reply = answer(request.trim()).unwrap_or_else(|| r#"{"error":"unknown request"}"#.into());
    stream.write_all(reply.as_bytes())?;
    Ok(())
}

/// Whether an agent runs with this data directory.
pub fn is_answered(data_dir: &Path) -> bool {
    short_path(data_dir).is_ok_and(|(_dir, short)| UnixStream::connect(&short).is_ok())
}

/// Asks the agent that uses this data directory.
pub fn ask(data_dir: &Path, request: &str) -> Result<String> {
    ask_within(data_dir, request, PATIENCE)
}

/// The same for a request whose answer takes its time.
pub fn ask_within(data_dir: &Path, request: &str, patience: Duration) -> Result<String> {
    let (_dir, short) = short_path(data_dir).context("has an agent run with this data_dir?")?;
    let mut stream = UnixStream::connect(&short).with_context(|| {
        format!("no agent answers in {} (is it running, with this data_dir?)", data_dir.display())
    })?;
    stream.set_read_timeout(Some(patience))?;
    if request.len() as u64 >= REQUEST_BYTES_MAX {
        bail!("the request has more than {REQUEST_BYTES_MAX} bytes: name fewer things at once");
    }
    stream.write_all(request.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    if reply.is_empty() {
        bail!("the agent in {} ended without an answer", data_dir.display());
    }
    Ok(reply)
}

/// A socket's path has at most 107 bytes; a data directory may be deeper. Through the directory's own
/// descriptor the path is always short.
fn short_path(data_dir: &Path) -> Result<(File, String)> {
    let dir = File::open(data_dir)
        .with_context(|| format!("cannot open the data directory {}", data_dir.display()))?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    Ok((dir, short))
}
