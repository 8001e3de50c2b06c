//! One Kafka node of its own: a directory, ports, a process.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::install::{self, Installed};
use super::ports::{Ports, free_ports};
use super::properties;
use super::security::{Listener, Mechanism, sasl};
use super::tls::TlsFiles;
use super::{Client, Proxy, process};
use crate::scene::{self, Answer};
use crate::{limits, poll};

/// What the broker logs when every listener takes connections.
const READY_WORDS: &str = "Kafka Server started";
/// What it logs when another process was faster.
const PORT_TAKEN_WORDS: &str = "Address already in use";

/// What may differ between brokers.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// `-Xmx`, in MiB.
    pub heap_mib: u32,
    /// Further options of java. Without C2 a start costs 3 s of CPU instead of 4.7; to measure, empty it.
    pub jvm: Vec<String>,
    /// Its number in its cluster.
    pub node: u16,
    /// The port of the controller, on another node; `None`: it is the controller itself.
    pub controller: Option<u16>,
    /// Whether rules of access count. Without a rule everything is allowed.
    pub has_authorizer: bool,
    /// Further lines of `server.properties`; they replace those of the same name.
    pub properties: Vec<(String, String)>,
    /// Where its data lies, and stays; `None`: in a directory that goes with the broker.
    pub dir: Option<PathBuf>,
    /// The first of its [`super::ports::PORTS`] ports; `None`: any.
    pub first_port: Option<u16>,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        let jvm = vec!["-XX:TieredStopAtLevel=1".to_owned()];
        Self {
            heap_mib: 512,
            jvm,
            node: properties::FIRST_NODE,
            controller: None,
            has_authorizer: false,
            properties: Vec::new(),
            dir: None,
            first_port: None,
        }
    }
}

/// A broker. Dropped, it is killed and its directory removed, unless a test fails: then the path is said.
#[derive(Debug)]
pub struct Broker {
    options: BrokerOptions,
    installed: &'static Installed,
    /// A further option of java, about the archive of its classes.
    archive: String,
    dir: PathBuf,
    /// `None` where the directory was given, or is to stay.
    temp: Option<tempfile::TempDir>,
    ports: Ports,
    child: Option<Child>,
    /// Where this process's part of the log begins.
    log_start: u64,
}

impl Broker {
    /// Installs what is missing, starts a broker and waits until it is ready.
    ///
    /// # Errors
    /// If something cannot be installed, or the broker does not become ready: with the end of its log.
    pub fn start(options: &BrokerOptions) -> Result<Self> {
        let installed = install::ensure()?;
        install::ensure_archive(installed, |writing| {
            Self::start_with(installed, writing, &BrokerOptions::default())?.stop().map(drop)
        })?;
        // Where there is none, or it does not fit, java does without.
        let reading = format!("-XX:SharedArchiveFile={}", installed.archive.display());
        Self::start_with(installed, reading, options)
    }

    fn start_with(installed: &'static Installed, archive: String, options: &BrokerOptions) -> Result<Self> {
        let temp = match options.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("flumen-kafka-").tempdir()?),
        };
        let dir = match (&options.dir, &temp) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temp)) => temp.path().to_owned(),
            (None, None) => bail!("no directory"),
        };
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Java is started in it, so it has to be absolute.
        let dir = fs::canonicalize(&dir)?;
        let mut broker = Self {
            options: options.clone(),
            installed,
            archive,
            dir,
            temp,
            ports: free_ports(options.first_port)?,
            child: None,
            log_start: 0,
        };
        for _ in 0..limits::PORT_ATTEMPTS {
            match broker.restart() {
                Err(error) if broker.was_port_taken() => {
                    broker.ports = free_ports(options.first_port).with_context(|| format!("{error:#}"))?;
                }
                ended => return ended.map(|()| broker),
            }
        }
        bail!("no free ports after {} attempts", limits::PORT_ATTEMPTS)
    }

    /// A broker for all tests of this process, with default options. It ends with the process, which
    /// also removes its directory.
    ///
    /// # Errors
    /// As [`Broker::start`]; the same for all who ask.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Broker, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let start = || {
                let broker = Self::start(&BrokerOptions::default())?;
                process::remove_after_exit(&broker.dir)?;
                Ok(broker)
            };
            start().map_err(|error: anyhow::Error| format!("{error:#}"))
        });
        shared.as_ref().map_err(|error| anyhow!("the shared broker is not there: {error}"))
    }

    /// Starts it (after [`Broker::kill`] or [`Broker::stop`]) with the same data and ports, and waits
    /// until it is ready. If it runs, it is killed before.
    ///
    /// # Errors
    /// If it does not become ready: with the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// As [`Broker::restart`], without the wait.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        if self.child.is_some() {
            self.kill()?;
        }
        let data = self.dir.join("data");
        if !data.exists() {
            scene::copy_tree(&self.installed.formatted, &data)?;
            if self.options.node != properties::FIRST_NODE {
                become_node(&data, self.options.node)?;
            }
        }
        let tls = &self.installed.tls;
        let options = &self.options;
        let text = properties::text(self.ports, &data, tls, options);
        let config = self.dir.join("server.properties");
        fs::write(&config, text)?;
        fs::write(self.dir.join("log4j2.properties"), properties::LOG4J)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        self.log_start = log.metadata()?.len();
        let mut java = process::bound("java");
        java.current_dir(&self.dir);
        java.args(["-Xms256m", &format!("-Xmx{}m", options.heap_mib)]).args(&options.jvm);
        java.arg(&self.archive).arg("-Dlog4j2.configurationFile=log4j2.properties");
        java.args(["-cp", &format!("{}/*", self.installed.lib.display()), "kafka.Kafka"]).arg(&config);
        java.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(process::spawn(java)?);
        Ok(())
    }

    /// Waits until every listener takes connections.
    ///
    /// # Errors
    /// If that takes longer than [`limits::BROKER_READY`] or the broker ends: with the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = poll::until("the broker to be ready", limits::BROKER_READY, || {
            if self.log()?.contains(READY_WORDS) {
                return Ok(true);
            }
            let ended = self.child_mut()?.try_wait()?;
            ended.map_or(Ok(false), |status| bail!("the broker ended by itself ({status})"))
        });
        ready.with_context(|| self.log_tail())
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM: hands over what it leads and ends by itself.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let child = self.child_mut()?;
        let ended = poll::until_some("the end of the broker", limits::BROKER_READY, || Ok(child.try_wait()?));
        let status = ended.with_context(|| self.log_tail())?;
        self.child = None;
        Ok(status)
    }

    /// SIGSTOP: connections stay open and nobody answers.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until the broker ends by itself.
    ///
    /// # Errors
    /// If it does not run.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let status = self.child_mut()?.wait()?;
        self.child = None;
        Ok(status)
    }

    /// Sets a line of `server.properties`; it counts from the next start on.
    pub fn set_property(&mut self, name: &str, value: &str) {
        self.options.properties.push((name.to_owned(), value.to_owned()));
    }

    /// The address of the plaintext listener.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.bootstrap_on(Listener::Plaintext)
    }

    /// The address of the proxy that [`Broker::proxy`] starts.
    #[must_use]
    pub fn bootstrap_proxied(&self) -> String {
        self.bootstrap_on(Listener::Proxied)
    }

    /// The address of the listener with a login over TLS.
    #[must_use]
    pub fn bootstrap_sasl_ssl(&self) -> String {
        self.bootstrap_on(Listener::SaslSsl)
    }

    /// The address for clients of any listener.
    #[must_use]
    pub fn bootstrap_on(&self, listener: Listener) -> String {
        let is_proxied = listener == Listener::Proxied;
        let port = if is_proxied { self.ports.proxy() } else { self.ports.of(listener) };
        format!("127.0.0.1:{port}")
    }

    /// Starts the proxy before the PROXIED listener.
    ///
    /// # Errors
    /// If one is running.
    pub fn proxy(&self) -> Result<Proxy> {
        Proxy::start(self.ports.proxy(), self.ports.of(Listener::Proxied))
    }

    /// An oracle on the plaintext listener.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.bootstrap())
    }

    /// An oracle that logs in as [`properties::USER`].
    #[must_use]
    pub fn client_sasl(&self, listener: Listener, mechanism: Mechanism) -> Client {
        Client::new(&self.bootstrap_on(listener)).with(sasl(listener, mechanism, self.tls()))
    }

    /// Keys and certificates.
    #[must_use]
    pub fn tls(&self) -> &'static TlsFiles {
        &self.installed.tls
    }

    /// `PYTHONPATH` for `tests/kafka/client.py`.
    #[must_use]
    pub fn python(&self) -> &'static Path {
        &self.installed.python
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Its directory: `data/`, `server.properties`, `broker.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs one of Kafka's own tools against the plaintext listener, such as
    /// `org.apache.kafka.tools.TransactionsCommand` with `list`. Costs seconds of CPU.
    ///
    /// # Errors
    /// If java cannot be started or takes longer than [`limits::COMMAND`].
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<Answer> {
        let mut java = Command::new("java");
        java.args(["-Xmx128m", "-cp", &format!("{}/*", self.installed.lib.display()), class]);
        java.args(["--bootstrap-server", &self.bootstrap()]).args(arguments);
        scene::run(java, limits::COMMAND)
    }

    /// What it has logged since its last start.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let mut file = File::open(self.log_path())?;
        file.seek(SeekFrom::Start(self.log_start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("broker.log")
    }

    fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let keep = usize::try_from(limits::LOG_TAIL_BYTES).unwrap_or(usize::MAX);
        let skip = text.floor_char_boundary(text.len().saturating_sub(keep));
        let tail = text.get(skip..).unwrap_or_default();
        format!("--- end of the broker's log ({}):\n{tail}", self.log_path().display())
    }

    fn was_port_taken(&self) -> bool {
        self.options.first_port.is_none() && self.log().is_ok_and(|log| log.contains(PORT_TAKEN_WORDS))
    }

    fn child_mut(&mut self) -> Result<&mut Child> {
        self.child.as_mut().context("the broker does not run")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.id().context("the broker does not run")?;
        let pid = Pid::from_raw(i32::try_from(id)?).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

/// Makes the copy of a formatted directory another node's; the broker draws an id for the directory by itself.
fn become_node(data: &Path, node: u16) -> Result<()> {
    let path = data.join("meta.properties");
    let text = fs::read_to_string(&path)?;
    let kept =
        text.lines().filter(|line| !line.starts_with("node.id=") && !line.starts_with("directory.id="));
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    fs::write(&path, format!("{kept}node.id={node}\n"))?;
    Ok(())
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("the broker cannot be killed: {error:#}");
        }
        if std::thread::panicking()
            && let Some(temp) = self.temp.take()
        {
            eprintln!("the broker's directory is kept for a look: {}", temp.keep().display());
        }
    }
}
