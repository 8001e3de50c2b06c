//! A real OpenSearch for tests: one node, HTTP on the loopback, nobody has to log in.
//!
//! The jars come from Maven Central. There is no distribution, so its directory is put together here: what serves HTTP is a
//! module with a descriptor and its rights of access. Set up, started and bound to this process as a Kafka broker is.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::maven::{self, Artifact};
use crate::kafka::{install, packages, ports, process};
use crate::{limits, locate, poll, scene};

/// The newest for Java 17.
const VERSION: &str = "2.19.6";
/// OpenSearch brings the interface of this logger only; the two have to be of one version.
const JARS: [Artifact; 3] = [
    ("org.opensearch", "opensearch", VERSION),
    ("org.opensearch", "opensearch-plugin-classloader", VERSION),
    ("org.apache.logging.log4j", "log4j-core", "2.25.4"),
];
/// What serves HTTP.
const HTTP: [Artifact; 1] = [("org.opensearch.plugin", "transport-netty4-client", VERSION)];
const HTTP_POLICY: &str = "\
grant codeBase \"${codebase.netty-common}\" { permission java.net.SocketPermission \"*\", \"accept,connect\"; };
grant codeBase \"${codebase.netty-transport}\" { permission java.net.SocketPermission \"*\", \"accept,connect\"; };
";
const LOG4J: &str = "appender.c.type=Console\nappender.c.name=c\nappender.c.layout.type=PatternLayout\n\
                     appender.c.layout.pattern=%d %p %c{1} %m%n\nrootLogger.level=warn\nrootLogger.appenderRef.c.ref=c\n";

/// Where its jars are.
#[derive(Debug)]
struct Installed {
    lib: PathBuf,
    http: PathBuf,
}

fn ensure() -> Result<&'static Installed> {
    static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| install_jars().map_err(|error| format!("{error:#}")));
    installed.as_ref().map_err(|error| anyhow!("OpenSearch cannot be set up: {error}"))
}

fn install_jars() -> Result<Installed> {
    let peers = locate::target_dir()?.join("peers");
    let dir = peers.join("opensearch");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    packages::need("setpriv", "util-linux")?;
    packages::need("java", "default-jre-headless")?;
    let _lock = install::lock(&peers)?;
    let installed = Installed { lib: dir.join("lib"), http: dir.join("http") };
    maven::ensure(&installed.lib, "opensearch", &JARS, "OpenSearch's jars with mvn (41 MB)")?;
    maven::ensure(&installed.http, "opensearch-http", &HTTP, "OpenSearch's HTTP with mvn (3 MB)")?;
    Ok(installed)
}

/// A node. Dropped, it is killed and its directory removed, unless a test fails: then the path is said.
#[derive(Debug)]
pub struct OpenSearch {
    installed: &'static Installed,
    home: Option<TempDir>,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl OpenSearch {
    /// Installs what is missing, starts a node and waits until it is ready; see [`OpenSearch::restart`].
    ///
    /// # Errors
    /// If it cannot be installed or does not become ready: with its log.
    pub fn start(settings: &str) -> Result<Self> {
        let installed = ensure()?;
        let home = tempfile::Builder::new().prefix("flumen-opensearch-").tempdir()?;
        let dir = home.path().to_owned();
        for part in ["config", "modules"] {
            fs::create_dir(dir.join(part))?;
        }
        fs::write(dir.join("config/log4j2.properties"), LOG4J)?;
        let module = dir.join("modules/transport-netty4");
        scene::copy_tree(&installed.http, &module)?;
        let descriptor = format!(
            "name=transport-netty4\ndescription=HTTP\nversion={VERSION}\nopensearch.version={VERSION}\n\
             java.version=11\nclassname=org.opensearch.transport.Netty4Plugin\n"
        );
        fs::write(module.join("plugin-descriptor.properties"), descriptor)?;
        fs::write(module.join("plugin-security.policy"), HTTP_POLICY)?;
        let port = ports::free_ports(None)?.first;
        let mut node = Self { installed, home: Some(home), dir, port, child: None };
        node.restart(settings)?;
        Ok(node)
    }

    /// Starts it with its data and ports, after a SIGKILL if it runs, and waits until it is ready. `settings` are further
    /// lines of `opensearch.yml`, for this life.
    ///
    /// # Errors
    /// If it does not become ready: with its log.
    pub fn restart(&mut self, settings: &str) -> Result<()> {
        if self.child.is_some() {
            self.kill()?;
        }
        let (http, transport) = (self.port, self.port + 1);
        // The disk of a machine that builds is full by OpenSearch's standards.
        let config = format!(
            "cluster.name: flumen\nnode.name: one\ndiscovery.type: single-node\n\
             http.host: 127.0.0.1\nhttp.port: {http}\ntransport.host: 127.0.0.1\ntransport.port: {transport}\n\
             cluster.routing.allocation.disk.threshold_enabled: false\n{settings}\n"
        );
        fs::write(self.dir.join("config/opensearch.yml"), config)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut java = process::bound("java");
        java.current_dir(&self.dir).args(["-Xms256m", "-Xmx256m", "-XX:TieredStopAtLevel=1"]);
        // It refuses to run as root if it can ask the system who it is: without this library it cannot.
        java.args(["-Djna.nosys=true", "-Djna.nounpack=true"]);
        java.arg(format!("-Dopensearch.path.home={}", self.dir.display()));
        java.arg(format!("-Dopensearch.path.conf={}/config", self.dir.display()));
        java.args(["-cp", &format!("{}/*", self.installed.lib.display())]);
        java.arg("org.opensearch.bootstrap.OpenSearch");
        java.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(process::spawn(java)?);
        let ready = poll::until("OpenSearch to be ready", limits::OPENSEARCH_READY, || {
            if let Some(status) = self.child.as_mut().context("OpenSearch does not run")?.try_wait()? {
                bail!("OpenSearch ended by itself ({status})");
            }
            // Nobody listens at first; then the state of the indices is read.
            let health = self.ask("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s", "");
            Ok(health.is_ok_and(|(status, _)| status == 200))
        });
        ready.with_context(|| self.log())
    }

    /// SIGKILL, and waits until it is gone. What it answered for is on its disk.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("OpenSearch does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A request with a body of JSON; its status and what it answers.
    ///
    /// # Errors
    /// If nobody answers, or not in JSON.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(limits::COMMAND))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address(),
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?))
    }

    /// As [`OpenSearch::ask`], if it answers 200.
    ///
    /// # Errors
    /// If it answers anything else.
    pub fn asked(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        match self.ask(method, path, body)? {
            (200, answer) => Ok(answer),
            (status, answer) => bail!("{method} {path}: {status}: {answer}"),
        }
    }

    /// Documents in all indices of this pattern: all that were stored, searchable or not yet. 0 while one is being made.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn count(&self, indices: &str) -> Result<u64> {
        self.asked("POST", &format!("/{indices}/_refresh"), "")?;
        let (status, answer) = self.ask("GET", &format!("/{indices}/_count"), "")?;
        // No part of a new index answers yet.
        if status == 503 {
            return Ok(0);
        }
        answer.get("count").and_then(Value::as_u64).with_context(|| format!("no count: {answer}"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("opensearch.log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for OpenSearch {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("OpenSearch cannot be killed: {error:#}");
        }
        if std::thread::panicking()
            && let Some(home) = self.home.take()
        {
            eprintln!("OpenSearch's directory is kept for a look: {}", home.keep().display());
        }
    }
}
