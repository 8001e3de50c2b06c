//! Where a pipeline's events may be beside its journal: the failover that it was started with last is on record, so that an edit
//! before a restart does not leave events behind there. A reload knows the plan before ([`crate::reload`]); a start does not.
//!
//! The record is the file [`NAME`] in the pipeline's directory. Its first line is the kind of the failover, the rest says where it is: the
//! directory of its journal, or of kind `kafka` JSON: brokers, topic, and how one logs in there, without anything secret. It is written
//! before anything can be in the failover, and removed by a start without one, which has seen that nothing is there.
//!
//! How a look fails: a directory that is not there, brokers that do not answer in time or ask for a password that is on no record. Then the
//! start is refused as well, with what to do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use flumen_journal::failover::{self, SecondaryKind};
use flumen_journal::faults::{self, Class, Point, Step, point};
use flumen_journal::inspect::Inspector;
use flumen_journal::{Disk, Keys, OsDisk};
use flumen_kafka::log::{self, LogOptions};
use flumen_pipeline::plan::{AgentPlan, PipelinePlan, takes_over};
use flumen_pipeline::{BuildError, Options, Value};

use crate::agent::JOURNAL_DIR;
use crate::journals::Owner;

/// The file, in the pipeline's directory.
pub const NAME: &str = "failover";

/// Before the names of the steps of the record.
pub const PLACE: &str = "failover-record";

/// Places at which a test may kill the process, behind [`PLACE`].
pub const POINTS: &[Point] = &[
    point("directory.created", "the pipeline's directory is there and durable"),
    point("file.created", "the record that the pipeline has a failover has its unfinished name"),
    point("file.written", "it is written"),
    point("file.synced", "and durable"),
    point("file.named", "it has its name; nothing is in the failover yet"),
    point("file.name-synced", "that name is durable"),
    point("file.removed", "without a failover: the record of the one before is gone"),
    point("file.removal-synced", "and durably"),
];

/// Options of a failover in Kafka that the record has. Those that may be secret are not among them.
const RECORDED: &[&str] = &[
    "brokers",
    "topic",
    "tls",
    "tls_ca",
    "tls_certificate",
    "tls_key",
    "tls_verify_name",
    "sasl",
    "username",
    "token_file",
];

/// Where a failover is.
#[derive(Debug, Clone, PartialEq)]
enum Secondary {
    /// A journal on this machine.
    Local { kind: SecondaryKind, dir: PathBuf },
    /// A topic: [`RECORDED`].
    Topic(Options),
}

impl Secondary {
    /// That of a pipeline's plan. All channels have the same.
    fn of(owner: &Owner<'_>) -> Option<Secondary> {
        let plan = owner.plan;
        let channel = plan.channels.iter().find(|channel| channel.failover.is_some())?;
        let failover = channel.failover.as_ref()?;
        if failover.kind == SecondaryKind::Kafka {
            let known =
                |name: &&str| Some(((*name).to_owned(), channel.failover_options.0.get(*name)?.clone()));
            let mut options = Options(RECORDED.iter().filter_map(known).collect());
            // Options that are wrong are told by whoever opens it.
            let made = LogOptions::new(owner.agent, &plan.name, &channel.failover_options).ok()?;
            options.0.insert("topic".to_owned(), Value::Text(made.topic.to_string()));
            return Some(Secondary::Topic(options));
        }
        let dir = match &failover.dir {
            Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()).join(&plan.name),
            // That of a Kafka channel is the journal on this machine.
            None => owner.dir.join(JOURNAL_DIR),
        };
        Some(Secondary::Local { kind: failover.kind, dir })
    }

    /// Whether what is here is not left behind by one that is there.
    fn goes_on_in(&self, there: &Secondary) -> bool {
        match (self, there) {
            (Secondary::Local { kind, dir }, Secondary::Local { kind: new, dir: other }) => {
                dir == other && takes_over(*kind, *new)
            }
            (Secondary::Topic(own), Secondary::Topic(other)) => {
                own.text_opt("topic") == other.text_opt("topic") && is_same_cluster(own, other)
            }
            _ => false,
        }
    }

    /// Kind and place, in words.
    fn in_words(&self) -> String {
        match self {
            Secondary::Local { kind, dir } => format!("of kind `{}` in {}", kind.word(), dir.display()),
            Secondary::Topic(options) => {
                let topic = options.text_opt("topic").unwrap_or_default();
                let brokers = options.list_opt("brokers").unwrap_or_default().join(", ");
                format!("of kind `kafka` in the topic {topic} of {brokers}")
            }
        }
    }

    /// Whether events go there, or went when the agent ended.
    fn is_open(&self, owner: &Owner<'_>) -> Result<bool, String> {
        let keys = &owner.plan.journal.keys;
        let own = match self {
            Secondary::Local { dir, .. } => return is_open(dir, keys),
            Secondary::Topic(own) => own,
        };
        // The plan until now has the password, and so may one that fails over to the same cluster.
        let plans = owner.before.into_iter().chain([owner.plan]);
        let mut there = plans.flat_map(|plan| &plan.channels).map(|channel| &channel.failover_options);
        let mut options = there.find(|other| is_same_cluster(own, other)).unwrap_or(own).clone();
        options.0.extend(own.0.get_key_value("topic").map(|(name, topic)| (name.clone(), topic.clone())));
        let options = LogOptions::new(owner.agent, &owner.plan.name, &options)
            .map_err(|error| format!("how one logs in there is not all on record ({error})"))?;
        log::is_in_use(&options, keys)
    }

    /// What to do about one that cannot be looked at. `record`: the file that says where it was.
    fn to_look_at(&self, record: &Path) -> String {
        let record = record.display();
        match self {
            Secondary::Local { .. } => format!(
                "bring that directory back; if it is gone for good, with what was in it, remove {record}"
            ),
            Secondary::Topic(_) => format!(
                "bring those brokers back, or give the channel that `failover` again; if the topic is gone for good, with what was in it, or \
                 `flumen status` has said that events go to the channel's own place, remove {record}"
            ),
        }
    }
}

/// Whether two lists of brokers have one in common: brokers come and go, and any tells of the others.
fn is_same_cluster(one: &Options, other: &Options) -> bool {
    let known = other.list_opt("brokers").unwrap_or_default();
    one.list_opt("brokers").unwrap_or_default().iter().any(|broker| known.contains(broker))
}

/// Whether the failover of this plan is the one that is on record.
pub fn goes_on(owner: &Owner<'_>) -> bool {
    let before = read(&owner.dir.join(NAME)).ok().flatten();
    before.zip(Secondary::of(owner)).is_some_and(|(before, now)| before.goes_on_in(&now))
}

/// What a start with this plan would leave behind in the failover that the pipeline had before. With the name of a channel.
pub fn left_behind(owner: &Owner<'_>) -> Option<(String, BuildError)> {
    let record = owner.dir.join(NAME);
    let before = read(&record).ok()??;
    if Secondary::of(owner).is_some_and(|now| before.goes_on_in(&now)) {
        return None;
    }
    let place = before.in_words();
    let (reason, fix) = match before.is_open(owner) {
        Ok(false) => return None,
        Ok(true) => (
            format!("the failover that it had, {place}, holds events and the positions of the sources"),
            "give the channel that `failover` again, and take it out when `flumen status` says that events go to the channel's own place".to_owned(),
        ),
        Err(error) => (
            format!("the failover that it had, {place}, may hold events, and cannot be looked at: {error}"),
            before.to_look_at(&record),
        ),
    };
    let channel = owner.plan.channels.first().map(|channel| channel.name.clone()).unwrap_or_default();
    Some((channel, BuildError::new("failover", reason, fix)))
}

/// Failovers in a topic that another pipeline of the agent has, too: each would take the other's for its own. With the names of pipeline and
/// channel.
pub fn same_topic(agent: &AgentPlan) -> Vec<(String, String, BuildError)> {
    let of = |plan: &PipelinePlan| {
        let owner = Owner { agent: &agent.name, plan, dir: Path::new(""), before: None };
        let topic = Secondary::of(&owner).filter(|found| matches!(found, Secondary::Topic(_)))?;
        let channel = plan.channels.iter().find(|channel| channel.failover.is_some())?;
        Some((plan.name.clone(), channel.name.clone(), topic))
    };
    let all: Vec<_> = agent.pipelines.iter().filter_map(of).collect();
    let clash = |(at, (pipeline, channel, topic)): (usize, &(String, String, Secondary))| {
        let (other, ..) = all.iter().take(at).find(|(_, _, other)| topic.goes_on_in(other))?;
        let reason = format!("it is {}, which pipeline `{other}` has, too", topic.in_words());
        let error = BuildError::new("failover.topic", reason, "give each pipeline a topic of its own");
        Some((pipeline.clone(), channel.clone(), error))
    };
    all.iter().enumerate().filter_map(clash).collect()
}

/// Puts the failover of this plan on record, or takes off that there was one.
pub fn note(owner: &Owner<'_>) -> anyhow::Result<()> {
    let path = owner.dir.join(NAME);
    write(&path, Secondary::of(owner))
        .with_context(|| format!("the record of a failover, {}", path.display()))
}

fn write(path: &Path, now: Option<Secondary>) -> io::Result<()> {
    if read(path)? == now {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let Some(now) = now else {
        step("file.removed", Class::Name, || fs::remove_file(path))?;
        return step("file.removal-synced", Class::Sync, || OsDisk.sync_dir(dir));
    };
    if !dir.is_dir() {
        // Nobody else makes its name durable: the journals find it there.
        step("directory.created", Class::Name, || OsDisk.create_dir(dir))?;
    }
    let fresh = path.with_extension("new");
    let text = to_text(&now);
    let mut file = step("file.created", Class::Name, || File::create(&fresh))?;
    step("file.written", Class::Write, || file.write_all(&text))?;
    step("file.synced", Class::Sync, || file.sync_all())?;
    step("file.named", Class::Name, || fs::rename(&fresh, path))?;
    step("file.name-synced", Class::Sync, || OsDisk.sync_dir(dir))
}

fn to_text(secondary: &Secondary) -> Vec<u8> {
    match secondary {
        Secondary::Local { kind, dir } => {
            [kind.word().as_bytes(), b"\n", dir.as_os_str().as_bytes(), b"\n"].concat()
        }
        Secondary::Topic(options) => {
            let json = |value: &Value| -> Option<serde_json::Value> {
                match value {
                    Value::Text(text) => Some(text.as_str().into()),
                    Value::Bool(flag) => Some((*flag).into()),
                    Value::TextList(texts) => Some(texts.clone().into()),
                    // None of RECORDED.
                    _ => None,
                }
            };
            let known = options.0.iter().filter_map(|(name, value)| Some((name.clone(), json(value)?)));
            let known: serde_json::Map<String, serde_json::Value> = known.collect();
            format!("{}\n{}\n", SecondaryKind::Kafka.word(), serde_json::Value::Object(known)).into_bytes()
        }
    }
}

fn from_text(text: &[u8]) -> Option<Secondary> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut lines = text.splitn(2, |byte| *byte == b'\n');
    let (word, place) = (lines.next()?, lines.next()?);
    if word == SecondaryKind::Kafka.word().as_bytes() {
        let known: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(place).ok()?;
        let value = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => Some(Value::Text(text)),
            serde_json::Value::Bool(flag) => Some(Value::Bool(flag)),
            list => serde_json::from_value(list).ok().map(Value::TextList),
        };
        let options = known.into_iter().filter_map(|(name, known)| Some((name, value(known)?)));
        return Some(Secondary::Topic(Options(options.collect())));
    }
    let kinds = [SecondaryKind::File, SecondaryKind::Memory, SecondaryKind::Spillable];
    let kind = kinds.into_iter().find(|kind| kind.word().as_bytes() == word)?;
    Some(Secondary::Local { kind, dir: PathBuf::from(std::ffi::OsString::from_vec(place.to_vec())) })
}

/// A call of the disk, which a test may refuse or kill behind.
fn step<T>(done: &str, class: Class, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let grows = matches!(done, "directory.created" | "file.created" | "file.written");
    faults::do_step(|| Step { name: format!("{PLACE}.{done}"), class, grows }, call)
}

fn read(path: &Path) -> io::Result<Option<Secondary>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Written over, events in a place that only a newer release knows would stay behind there.
        read => from_text(&read?).map(Some).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not readable: written by a newer release of Flumen; start that one, or, if nothing is in that failover, remove the file",
            )
        }),
    }
}

/// Whether events go to the failover in this directory, or went when its agent ended.
fn is_open(dir: &Path, keys: &Keys) -> Result<bool, String> {
    let files = Inspector::open(Arc::new(OsDisk), dir).map(|files| files.with_keys(keys));
    let present = files.and_then(|files| files.present()).map_err(|error| error.to_string())?;
    Ok(present.positions.contains_key(failover::STATE))
}

#[cfg(test)]
mod tests {
    use flumen_config::{MemoryEnv, load_agent};

    use super::*;
    use crate::registry::registry;

    /// An agent with a pipeline for each `failover`.
    fn agent(failovers: &[&str]) -> AgentPlan {
        let mut env = MemoryEnv::default();
        env.files
            .insert("flumen.toml".into(), b"[agent]\nname = \"a1\"\npipelines = [\"p*.toml\"]\n".to_vec());
        for (at, failover) in failovers.iter().enumerate() {
            let text = format!(
                "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n[sink]\ntype = \"null\"\n[channel]\n{failover}\n"
            );
            env.files.insert(format!("p{at}.toml").into(), text.into_bytes());
        }
        load_agent(&["flumen.toml".into()], &registry(), &env).unwrap().0
    }

    fn of(failover: &str) -> Option<Secondary> {
        let agent = agent(&[failover]);
        let (plan, dir) = (&agent.pipelines[0], Path::new("/data/p0"));
        Secondary::of(&Owner { agent: &agent.name, plan, dir, before: None })
    }

    const LOGIN: &str =
        "sasl = \"plain\", username = \"u\", password = \"hunter22\", tls_key_password = \"hunter23\"";

    fn kafka(more: &str) -> String {
        format!("failover = {{ kind = \"kafka\", brokers = [\"k1:9092\", \"k2:9092\"]{more} }}")
    }

    #[test]
    fn what_is_on_record_is_read_again_and_has_no_secret() {
        let local = |kind: &str| format!("failover = {{ kind = \"{kind}\", dir = \"/b\" }}");
        let login = format!(", topic = \"t\", properties = {{ \"linger.ms\" = \"7\" }}, {LOGIN}");
        let all = [local("file"), local("memory"), local("spillable"), kafka(""), kafka(&login)];
        for failover in all {
            let noted = of(&failover).unwrap();
            let text = to_text(&noted);
            assert_eq!(from_text(&text), Some(noted), "{failover}");
            let shown = String::from_utf8(text).unwrap();
            assert!(!shown.contains("hunter") && !shown.contains("linger"), "{shown}");
            assert_eq!(shown.lines().count(), 2, "{shown}");
        }
        let Some(Secondary::Topic(options)) = of(&kafka("")) else { panic!("no topic") };
        assert_eq!(options.text_opt("topic"), Some("flumen-failover-a1-p0"));
        assert_eq!(of(""), None);
    }

    #[test]
    fn records_of_earlier_releases_are_read() {
        for (text, kind, dir) in [
            (b"file\n/b/web\n".as_slice(), SecondaryKind::File, "/b/web"),
            (b"memory\n/b/odd\nname\n".as_slice(), SecondaryKind::Memory, "/b/odd\nname"),
        ] {
            assert_eq!(from_text(text), Some(Secondary::Local { kind, dir: dir.into() }));
        }
    }

    #[test]
    fn a_record_of_a_newer_release_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(read(&path).unwrap(), None);
        fs::write(&path, "tape\n/b\n").unwrap();
        let error = write(&path, None).unwrap_err().to_string();
        assert!(error.contains("newer release"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"tape\n/b\n");
    }

    #[test]
    fn a_failover_goes_on_in_its_own_place_alone() {
        let local = |kind: &str, dir: &str| {
            of(&format!("failover = {{ kind = \"{kind}\", dir = \"{dir}\" }}")).unwrap()
        };
        let topic = |more: &str| of(&kafka(more)).unwrap();
        assert!(local("file", "/b").goes_on_in(&local("spillable", "/b")));
        assert!(local("spillable", "/b").goes_on_in(&local("memory", "/b")));
        assert!(!local("spillable", "/b").goes_on_in(&local("file", "/b")));
        assert!(!local("file", "/b").goes_on_in(&local("file", "/c")));
        assert!(topic("").goes_on_in(&topic(", topic = \"flumen-failover-a1-p0\"")));
        assert!(!topic("").goes_on_in(&topic(", topic = \"t\"")));
        assert!(!topic("").goes_on_in(&local("file", "/b")) && !local("file", "/b").goes_on_in(&topic("")));
        let moved = kafka("").replace("k1:9092", "k3:9092");
        assert!(topic("").goes_on_in(&of(&moved).unwrap()));
        let elsewhere = moved.replace("k2:9092", "k4:9092");
        assert!(!topic("").goes_on_in(&of(&elsewhere).unwrap()));
    }

    #[test]
    fn two_pipelines_in_one_topic_are_refused() {
        let topic = kafka(", topic = \"t\"");
        assert_eq!(same_topic(&agent(&[&kafka(""), &kafka(""), &topic])).len(), 0);
        let wrong = same_topic(&agent(&[&topic, &kafka(""), &topic]));
        let [(pipeline, channel, error)] = wrong.as_slice() else { panic!("{wrong:?}") };
        assert_eq!(
            (pipeline.as_str(), channel.as_str(), error.option.as_str()),
            ("p2", "main", "failover.topic")
        );
        let words = "in the topic t of k1:9092, k2:9092, which pipeline `p0` has, too";
        assert!(error.reason.contains(words), "{}", error.reason);
    }
}
