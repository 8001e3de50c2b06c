//! The control socket in the data directory: how `flumen status` reaches the running agent.
//!
//! One request per connection: a line (`status`), answered by one JSON value, then closed. Only the
//! user of the agent can connect (the socket's mode is 0600).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const SOCKET: &str = "control.sock";
/// A request is a word, or a word and what is wanted as JSON.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// A client that neither sends nor reads is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests on a thread of its own until the process ends.
pub fn serve(data_dir: &Path, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Result<()> {
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
        for stream in listener.incoming() {
            if let Err(error) = stream.map_err(anyhow::Error::from).and_then(|stream| handle(stream, &answer))
            {
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
    let (_dir, short) = short_path(data_dir).context("has an agent run with this data_dir?")?;
    let mut stream = UnixStream::connect(&short).with_context(|| {
        format!("no agent answers in {} (is it running, with this data_dir?)", data_dir.display())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
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
