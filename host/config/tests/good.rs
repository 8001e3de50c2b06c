//! Right files give the plans that they mean.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{load, pipeline, registry};
use flumen_config::{Code, MemoryEnv, SystemEnv, load_agent, render};
use flumen_pipeline::limits::KEEP_ALIVE;
use flumen_pipeline::plan::{
    Balance, BatchPlan, ChannelKind, ChannelPlan, Compression, ErrorPlan, GroupKind, GroupPlan,
    InterceptorPlan, JournalPlan, Key, KeyId, OnError, OnReject, PluginLimits, SelectorPlan, SelectorRule,
    SourcePlan,
};
use flumen_pipeline::reliability::{MEMORY_BYTES, MEMORY_EVENTS};
use flumen_pipeline::{BuildError, ComponentKind, Options, Value};

const MINIMAL: &str = "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n[sink]\ntype = \"file\"\npath = \"/b\"\n";

#[test]
fn six_lines_are_a_pipeline() {
    let plan = pipeline(MINIMAL);
    assert_eq!(plan.name, "test");
    assert_eq!(plan.file, PathBuf::from("test.toml"));
    assert_eq!(plan.interceptor_threads, 1);
    assert_eq!((plan.batch, plan.journal), (BatchPlan::default(), JournalPlan::default()));
    let (capacity_events, capacity_bytes) = (10_000_000, 8 << 30);
    let channel = ChannelPlan {
        name: "main".into(),
        capacity_events,
        capacity_bytes,
        keep_alive: KEEP_ALIVE,
        kind: ChannelKind::File,
        failover: None,
        failover_options: Options::default(),
    };
    assert_eq!(plan.channels, [channel]);
    let [source] = plan.sources.as_slice() else { panic!("{:?}", plan.sources) };
    assert_eq!((source.name.as_str(), source.kind.as_str()), ("main", "tail"));
    assert_eq!(source.options.list("paths").unwrap(), ["/a"]);
    assert_eq!(source.options.size("max_line").unwrap(), 1 << 20);
    assert_eq!(source.options.text_opt("multiline_start"), None);
    let [sink] = plan.sinks.as_slice() else { panic!("{:?}", plan.sinks) };
    assert_eq!((sink.name.as_str(), sink.kind.as_str(), sink.channel.as_str()), ("main", "file", "main"));
    assert_eq!(sink.options.duration("roll_interval").unwrap(), Duration::from_secs(3_600));
}

#[test]
fn the_defaults_of_a_table_are_those_of_the_plan() {
    let tables =
        "[batch]\n[journal]\n[channel]\ncapacity = {}\n[[interceptor]]\nplugin = \"a\"\nlimits = {}\n";
    let plan = pipeline(&format!("{tables}{MINIMAL}"));
    let plain = pipeline(MINIMAL);
    assert_eq!((plan.batch, plan.journal), (plain.batch, plain.journal));
    assert_eq!(plan.channels, plain.channels);
    assert_eq!(plan.interceptors[0].limits, PluginLimits::default());

    let mut env = MemoryEnv::default();
    env.files.insert("etc/p.toml".into(), MINIMAL.into());
    env.files.insert("etc/flumen.toml".into(), b"[agent]\npipelines = [\"p.toml\"]".to_vec());
    let (without, _) = load_agent(&["etc/p.toml".into()], &registry(), &env).unwrap();
    let (with, _) = load_agent(&["etc".into()], &registry(), &env).unwrap();
    assert_eq!(with, without);
    assert_eq!(with.name, "flumen");
    assert_eq!(with.data_dir, PathBuf::from("etc/.flumen"));
    assert_eq!(with.plugin_dir, PathBuf::from("etc/plugins"));
    assert_eq!(with.drain_timeout, Duration::from_secs(30));
}

#[test]
fn kinds_of_channels_and_words_of_reliability() {
    let of = |text: &str| {
        let ChannelPlan { capacity_events, capacity_bytes, kind, .. } =
            pipeline(&format!("{text}\n{MINIMAL}")).channels.remove(0);
        (capacity_events, capacity_bytes, kind)
    };
    let memory = |drop_after| ChannelKind::Memory { drop_after };
    let spillable = |memory_events, memory_bytes| ChannelKind::Spillable { memory_events, memory_bytes };
    let (file, room) = ((10_000_000, 8 << 30), (1_000_000, 256 << 20));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(of("reliability = \"end-to-end\""), (file.0, file.1, ChannelKind::File));
    assert_eq!(of("reliability = \"store-on-failure\""), (file.0, file.1, spillable(room.0, room.1)));
    assert_eq!(of("reliability = \"best-effort\""), (room.0, room.1, memory(seconds(3))));
    assert_eq!(of("[channel]\nkind = \"memory\""), (room.0, room.1, memory(None)));
    assert_eq!(of("[channel]\nkind = \"source-backed\""), (room.0, room.1, ChannelKind::SourceBacked));
    let text =
        "reliability = \"end-to-end\"\n[channel]\nkind = \"source-backed\"\ncapacity = { events = 9_000 }";
    assert_eq!(of(text), (9_000, room.1, ChannelKind::SourceBacked));
    let text =
        "reliability = \"best-effort\"\n[channel]\ncapacity = { bytes = \"8 MiB\" }\ndrop_after = \"9s\"";
    assert_eq!(of(text), (room.0, 8 << 20, memory(seconds(9))));
    let text =
        "[channel]\nkind = \"spillable\"\ncapacity = { events = 50_000 }\nmemory = { events = 10_000 }";
    assert_eq!(of(text), (50_000, file.1, spillable(10_000, room.1)));
}

#[test]
fn everything_that_can_be_said() {
    let plan = pipeline(
        r#"
        name = "web"
        interceptor_threads = 4

        [source.access]
        type = "tail"
        paths = ["/var/log/nginx/**/access*.log"]
        start = "end"
        headers = { team = "web", host = "${env:HOST}" }

        [source.access.codec]
        plugin = "records"
        name = "reader"
        config = { kind = "x" }

        [source.load]
        type = "generator"
        rate = "${env:RATE}"
        size = 4096

        [[interceptor]]
        plugin = "access-log"
        on_reject = "drop"

        [[interceptor]]
        plugin = "./team/filter.wasm"
        name = "second"
        config = { z = 1, a = { list = [1.5, true, "x"], at = 2026-01-01T00:00:00Z }, host = "${env:HOST}" }
        grant = ["metrics", "log", "log"]
        on_error = "stop"
        error_budget = { events_percent = 0, window = "10s", events_min = 1 }
        limits = { time = "250ms", memory = "16 MiB", answer = "1 MB", log_lines_per_s = 0, metric_calls_per_s = 7, host_call_bytes = 5, recycle_batches = 2, recycle_memory_percent = 50 }

        [channel.fast]
        capacity = { events = 100_000, bytes = "2 GiB" }
        [channel.slow]
        kind = "file"

        [sink.archive]
        type = "file"
        channel = "slow"
        path = "/srv/{header.host}/{time:%Y-%m-%d/%H}.log"
        codec = { plugin = "records", on_reject = "drop" }
        [[sink.archive.interceptor]]
        plugin = "redact"

        [sink.show]
        type = "console"
        channel = "fast"

        [batch]
        rows = 1_000
        bytes = "256 KiB"
        linger = "5ms"

        [journal]
        durability = "os"
        segment = "16 MiB"
        memory = "8 MiB"
        compression = "zstd"
        [[journal.key]]
        id = "2026-11"
        secret = "${file:secrets/new.key}"
        [[journal.key]]
        id = "2025"
        secret = "${env:OLD_KEY}"
        "#,
    );
    assert_eq!((plan.name.as_str(), plan.interceptor_threads), ("web", 4));
    let [access, SourcePlan { name, options, .. }] = plan.sources.as_slice() else { panic!() };
    assert_eq!(access.options.map("headers").unwrap()["host"], "web1");
    assert_eq!((name.as_str(), options.integer("rate"), options.size("size")), ("load", Ok(250), Ok(4096)));
    let limits = PluginLimits {
        time: Duration::from_millis(250),
        memory_bytes: 16 << 20,
        answer_bytes: 1_000_000,
        log_lines_per_s: 0,
        metric_calls_per_s: 7,
        host_call_bytes: 5,
        recycle_batches: 2,
        recycle_memory_percent: 50,
        ..PluginLimits::default()
    };
    let interceptor = |name: &str, plugin: &str| InterceptorPlan {
        name: name.into(),
        plugin: plugin.into(),
        config: "{}".into(),
        grants: Vec::new(),
        on_reject: OnReject::Quarantine,
        errors: ErrorPlan::default(),
        limits: PluginLimits::default(),
        egress: None,
    };
    let first = InterceptorPlan { on_reject: OnReject::Drop, ..interceptor("access-log", "access-log") };
    let records = interceptor("reader", "records");
    assert_eq!(access.codec, Some(InterceptorPlan { config: r#"{"kind":"x"}"#.into(), ..records }));
    let records = interceptor("records", "records");
    let codecs: Vec<_> = plan.sinks.iter().map(|sink| sink.codec.clone()).collect();
    assert_eq!(codecs, [Some(InterceptorPlan { on_reject: OnReject::Drop, ..records }), None]);
    let second = InterceptorPlan {
        config: r#"{"a":{"at":"2026-01-01T00:00:00Z","list":[1.5,true,"x"]},"host":"web1","z":1}"#.into(),
        grants: vec!["log".into(), "metrics".into()],
        limits,
        errors: ErrorPlan {
            action: OnError::Stop,
            events_percent: 0,
            batches_percent: 50,
            window: Duration::from_secs(10),
            events_min: 1,
        },
        ..interceptor("second", "./team/filter.wasm")
    };
    assert_eq!(plan.interceptors, [first, second]);
    let channels: Vec<_> = plan
        .channels
        .iter()
        .map(|channel| (channel.name.as_str(), channel.capacity_events, channel.capacity_bytes))
        .collect();
    assert_eq!(channels, [("fast", 100_000, 2 << 30), ("slow", 10_000_000, 8 << 30)]);
    let [archive, show] = plan.sinks.as_slice() else { panic!() };
    assert_eq!((archive.channel.as_str(), show.channel.as_str()), ("slow", "fast"));
    assert_eq!(archive.interceptors, [interceptor("redact", "redact")]);
    assert_eq!(plan.batch, BatchPlan { rows: 1_000, bytes: 256 << 10, linger: Duration::from_millis(5) });
    let journal = JournalPlan {
        durable: false,
        segment_bytes: 16 << 20,
        window_bytes: 8 << 20,
        compression: Compression::Zstd,
        keys: [("2026-11", [0xa5; 32]), ("2025", [0x5a; 32])]
            .map(|(id, secret)| Key::new(KeyId::new(id).unwrap(), secret))
            .into_iter()
            .collect(),
    };
    assert_eq!(plan.journal, journal);
    assert!(format!("{plan:?}").contains("Keys([Key(2026-11), Key(2025)])"));
}

#[test]
fn substitutions() {
    for (text, expected) in [
        ("${env:HOST}", "web1"),
        ("a${env:HOST}b${env:HOST}", "aweb1bweb1"),
        ("${env:NOT_SET:-none}", "none"),
        ("${env:NOT_SET:-}x", "x"),
        ("${env:EMPTY:-none}", "none"),
        ("x${env:EMPTY}", "x"),
        ("${env:NOT_SET:-a:-b}", "a:-b"),
        ("${file:secrets/password}", "hunter22"),
        ("$${env:HOST}", "${env:HOST}"),
        ("$$${env:HOST}", "$${env:HOST}"),
        ("$5 {env:HOST}", "$5 {env:HOST}"),
        ("${env:NOT_SET:-$}{env:HOST}", "${env:HOST}"),
    ] {
        let text = format!("[source]\ntype = \"stdin\"\n[sink]\ntype = \"file\"\npath = '{text}'\n");
        assert_eq!(pipeline(&text).sinks[0].options.text("path"), Ok(expected), "{text}");
    }
    // Keys are never replaced.
    let key =
        pipeline(&format!("{MINIMAL}[[interceptor]]\nplugin = \"a\"\nconfig = {{ \"${{env:HOST}}\" = 1 }}"));
    assert_eq!(key.interceptors[0].config, r#"{"${env:HOST}":1}"#);
}

#[test]
fn an_agent_finds_its_pipelines() {
    let mut env = MemoryEnv::default();
    for file in ["c/p/b.toml", "c/p/a.toml", "c/p/.hidden.toml", "c/p/notes.md", "c/q/d.toml", "c/e.toml"] {
        env.files.insert(file.into(), MINIMAL.into());
    }
    env.files.insert("key".into(), b"/b\n".to_vec());
    let agent = "[agent]\nname = \"a1\"\ndata_dir = \"/var/lib/flumen\"\nplugin_dir = \"../lib\"\n\
                 drain_timeout = \"5s\"\npipelines = [\"p/*.toml\", \"q\", \"e.toml\", \"p/b.toml\"]\n";
    env.files.insert("c/other-name.toml".into(), agent.into());
    let (plan, sources) = load_agent(&["c/other-name.toml".into()], &registry(), &env).unwrap();
    let names: Vec<_> = plan.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "d", "e"]);
    assert_eq!((plan.name.as_str(), plan.drain_timeout), ("a1", Duration::from_secs(5)));
    assert_eq!(plan.data_dir, PathBuf::from("/var/lib/flumen"));
    assert_eq!(plan.plugin_dir, PathBuf::from("c/../lib"));
    assert_eq!(sources.files().count(), 5);
    assert_eq!(sources.directories().map(|dir| dir.to_str().unwrap()).collect::<Vec<_>>(), ["c/p", "c/q"]);
}

#[test]
fn a_memory_budget_has_a_place() {
    let mut env = MemoryEnv::default();
    env.files.insert("c/a.toml".into(), MINIMAL.into());
    let agent = "[agent]\nname = \"a1\"\nmemory_max = \"512 MiB\"\npipelines = [\"a.toml\"]\n";
    env.files.insert("c/flumen.toml".into(), agent.into());
    let (plan, sources) = load_agent(&["c".into()], &registry(), &env).unwrap();
    assert_eq!(plan.memory_max_bytes, Some(512 << 20));
    let error = sources.memory_max_diagnostic("too much", "less");
    assert_eq!((error.code, error.file.to_str()), (Code::MemoryMax, Some("c/flumen.toml")));
    let place = error.place.unwrap();
    assert_eq!((place.line, place.column, place.text.as_str()), (3, 14, "memory_max = \"512 MiB\""));

    let (plan, sources) = load_agent(&["c/a.toml".into()], &registry(), &env).unwrap();
    assert_eq!(plan.memory_max_bytes, None);
    assert_eq!(sources.memory_max_diagnostic("too much", "less").place, None);

    for (value, code) in [("1024", Code::OutOfRange), ("\"much\"", Code::BadSize), ("true", Code::WrongType)]
    {
        let agent = format!("[agent]\nmemory_max = {value}\npipelines = [\"a.toml\"]\n");
        env.files.insert("c/flumen.toml".into(), agent.into_bytes());
        let errors = load_agent(&["c".into()], &registry(), &env).unwrap_err();
        assert_eq!(errors.iter().map(|error| error.code).collect::<Vec<_>>(), [code], "{value}");
        assert_eq!(errors[0].place.as_ref().map(|place| place.line), Some(2));
    }
}

#[test]
fn collisions_between_files() {
    let mut env = MemoryEnv::default();
    env.files.insert("p/a.toml".into(), MINIMAL.into());
    env.files.insert("q/a.toml".into(), MINIMAL.into());
    env.files.insert("x/flumen.toml".into(), b"[agent]\npipelines = []".to_vec());
    env.files.insert("y/flumen.toml".into(), b"[agent]\npipelines = []".to_vec());
    let codes = |paths: &[&str]| -> Vec<Code> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let loaded = load_agent(&paths, &registry(), &env);
        loaded.map_or_else(|errors| errors.iter().map(|error| error.code).collect(), |_| Vec::new())
    };
    assert_eq!(codes(&["p", "q"]), [Code::DuplicateName]);
    assert_eq!(codes(&["p", "p/a.toml"]), []);
    assert_eq!(codes(&["p", "x"]), []);
    assert_eq!(codes(&["p", "x", "y"]), [Code::TwoAgentFiles]);
    assert_eq!(codes(&["x"]), [Code::NoPipeline]);
    assert_eq!(codes(&[]), [Code::NoPipeline]);
    assert_eq!(codes(&["z"]), [Code::FileNotFound]);
}

#[test]
fn a_component_that_cannot_be_built_gets_its_place() {
    let text = "[source]\ntype = \"tail\"\npaths = [\"${env:PASSWORD}\"]\n\n[[interceptor]]\nplugin = \"filter\"\n\
                config = { x = 1 }\n[sink]\ntype = \"null\"\n";
    let (_, sources) = load(text).unwrap();
    let show = |kind, name: &str, option: &str, reason: &str| {
        sources.diagnostic_for("test", kind, name, &BuildError::new(option, reason, "mend it")).to_string()
    };
    let all = [
        show(ComponentKind::Source, "main", "paths", "cannot use `hunter22`"),
        show(ComponentKind::Source, "main", "start", "not given in the file"),
        show(ComponentKind::Sink, "main", "", "does not work at all"),
        show(ComponentKind::Interceptor, "filter", "config", "unknown key `x`"),
        show(ComponentKind::Sink, "other", "path", "is unknown here"),
        sources.diagnostic_for("no", ComponentKind::Sink, "a", &BuildError::new("b", "c", "d")).to_string(),
    ];
    insta::assert_snapshot!("late", all.join("\n\n"));
    assert!(!format!("{sources:?}").contains("hunter22"));
}

#[test]
fn the_examples_are_right() {
    let config = common::here("../../config");
    let loaded = load_agent(&[config.join("flumen.toml")], &registry(), &SystemEnv);
    let (plan, _) = loaded.unwrap_or_else(|errors| panic!("{}", render(&errors)));
    assert_eq!(plan.pipelines.len(), 4);
    let minimal = std::fs::read_to_string(config.join("pipelines/minimal.toml")).unwrap();
    let lines = minimal.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(lines, 6);
}

#[test]
fn numbers_may_be_text_only_if_substituted() {
    let generator = |rate: &str| {
        load(&format!("[source]\ntype = \"generator\"\nrate = \"{rate}\"\n[sink]\ntype = \"null\""))
    };
    let rate = |rate| generator(rate).unwrap().0.pipelines[0].sources[0].options.0["rate"].clone();
    assert_eq!(rate("${env:RATE}"), Value::Integer(250));
    assert_eq!(rate("${env:NOT_SET:-7}"), Value::Integer(7));
    assert_eq!(generator("250").unwrap_err()[0].code, Code::WrongType);
}

#[test]
fn a_file_with_a_bridge_table_is_a_bridge() {
    use flumen_pipeline::{ComponentSpec, component::option};
    const OPTIONS: [flumen_pipeline::OptionSpec; 1] =
        [option("path", flumen_pipeline::OptionKind::Text, Some("\"/x\""), "Where.")];
    let bridge = vec![ComponentSpec { kind: "bridge", about: "A bridge.", options: &OPTIONS }];
    let registry = flumen_config::Registry { bridge, ..registry() };
    let mut env = MemoryEnv::default();
    env.files.insert("c/flumen.toml".into(), b"[agent]\npipelines = [\"p/*.toml\"]\n".to_vec());
    env.files.insert("c/p/a.toml".into(), MINIMAL.into());
    env.files.insert("c/p/hours.toml".into(), b"[bridge]\npath = \"/h\"\n".to_vec());
    let (plan, sources) = load_agent(&["c/flumen.toml".into()], &registry, &env).unwrap();
    let [bridge] = plan.bridges.as_slice() else { panic!("{:?}", plan.bridges) };
    assert_eq!((plan.pipelines.len(), bridge.name.as_str()), (1, "hours"));
    assert_eq!(bridge.tables["bridge"].text("path").unwrap(), "/h");
    let error = BuildError::new("path", "is wrong", "mend it");
    assert_eq!(sources.bridge_diagnostic_for("hours", "bridge", &error).place.unwrap().line, 2);

    let (plan, _) = load_agent(&["c/p/hours.toml".into()], &registry, &env).unwrap();
    assert_eq!((plan.pipelines.len(), plan.data_dir), (0, PathBuf::from("c/p/.flumen")));

    // One name is one line in `status`, whatever has it.
    env.files.insert("d/a.toml".into(), b"[bridge]\n".to_vec());
    let wrong = load_agent(&["c/p/a.toml".into(), "d/a.toml".into()], &registry, &env).unwrap_err();
    assert_eq!(wrong[0].code, Code::DuplicateName);
    assert!(wrong[0].reason.contains("the pipeline `a` exists already"), "{}", wrong[0].reason);
}

/// A directory of interceptors: behind those of the file, in the order of the names, and watched.
#[test]
fn a_directory_of_interceptors_is_read_in_order() {
    let text = "interceptors_from = \"web.d/\"\n[source]\ntype = \"generator\"\n[sink]\ntype = \"null\"\n[[interceptor]]\nplugin = \"first\"\n";
    let env = |names: &[&str]| {
        let mut env = MemoryEnv::default();
        env.files.insert("/c/web.toml".into(), text.into());
        for name in names {
            env.files.insert(format!("/c/web.d/{name}").into(), Vec::new());
        }
        env
    };
    let load = |env: &MemoryEnv| load_agent(&["/c/web.toml".into()], &registry(), env);
    let (plan, sources) = load(&env(&["20-b.wasm", "10-a.wasm", ".30-c.wasm", "README.md"])).unwrap();
    let chain: Vec<_> = plan.pipelines[0].interceptors.iter().map(|it| (&*it.name, &*it.plugin)).collect();
    assert_eq!(chain, [("first", "first"), ("10-a", "/c/web.d/10-a.wasm"), ("20-b", "/c/web.d/20-b.wasm")]);
    assert!(sources.directories().any(|dir| dir.ends_with("web.d")));
    let wrong = load(&env(&[])).unwrap_err();
    assert!(wrong[0].to_string().contains("there is no directory"), "{}", wrong[0]);
    let wrong = load(&env(&["first.wasm"])).unwrap_err();
    assert!(wrong[0].to_string().contains("a second interceptor has the name"), "{}", wrong[0]);
}

/// Beside a component of the directory a file says what else can be said of an interceptor; errors are told at their place in it.
#[test]
fn a_directory_of_interceptors_with_settings() {
    let text = "interceptors_from = \"web.d\"\n[source]\ntype = \"generator\"\n[sink]\ntype = \"null\"\n";
    let settings = "grant = [\"log\"]\non_reject = \"drop\"\non_error = \"stop\"\nconfig = { level = 3 }\nlimits = { time = \"2s\" }\n";
    let load = |settings: &str| {
        let mut env = MemoryEnv::default();
        env.files.insert("/c/web.toml".into(), text.into());
        for (name, text) in [("a.wasm", ""), ("b.wasm", ""), ("b.toml", settings), ("c.toml", "it waits")] {
            env.files.insert(format!("/c/web.d/{name}").into(), text.into());
        }
        load_agent(&["/c/web.toml".into()], &registry(), &env)
    };
    let (plan, sources) = load(settings).unwrap();
    let [plain, set] = plan.pipelines[0].interceptors.as_slice() else { panic!("{plan:#?}") };
    assert_eq!((&*plain.name, &*plain.config, plain.grants.len()), ("a", "{}", 0));
    assert_eq!((&*set.name, &*set.plugin, &*set.config), ("b", "/c/web.d/b.wasm", r#"{"level":3}"#));
    assert_eq!((set.grants.as_slice(), set.on_reject), (&["log".to_owned()][..], OnReject::Drop));
    assert_eq!((set.errors.action, set.limits.time), (OnError::Stop, Duration::from_secs(2)));
    assert!(sources.files().any(|file| file.ends_with("web.d/b.toml")), "an edit of it is seen");
    // What the plugin says against it later has its place in that file.
    let error = BuildError::new("config", "is too loud", "lower it");
    let told = sources.diagnostic_for("web", ComponentKind::Interceptor, "b", &error);
    let place = told.place.as_ref().map(|place| (place.line, place.column));
    assert_eq!((told.file.as_path(), place), (Path::new("/c/web.d/b.toml"), Some((4, 1))), "{told}");

    for (settings, line, reason) in [
        ("\ngrand = []", 2, "did you mean `grant`"),
        ("plugin = \"x\"", 1, "an interceptor has no key `plugin`"),
        ("grant = [\"fire\"]", 1, "nothing named `fire`"),
        ("on_reject = \"keep\"", 1, "on_reject"),
        ("[[", 1, ""),
    ] {
        let wrong = load(settings).unwrap_err();
        assert_eq!((wrong.len(), wrong[0].file.as_path()), (1, Path::new("/c/web.d/b.toml")), "{wrong:#?}");
        assert_eq!(wrong[0].place.as_ref().map(|place| place.line), Some(line), "{}", wrong[0]);
        assert!(wrong[0].to_string().contains(reason), "{}", wrong[0]);
    }
}

#[test]
fn plugins_before_a_kafka_channel_keep_state_with_failover_too() {
    let text = "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n[[interceptor]]\nplugin = \"dedup\"\ngrant = [\"state\"]\n\
                [channel]\nkind = \"kafka\"\nbrokers = [\"k:9092\"]\n";
    for more in ["", "failover = {}\n"] {
        let plan = pipeline(&format!("{text}{more}"));
        assert!(plan.interceptors[0].keeps_state() && plan.channels[0].is_shared());
    }
}

#[test]
fn selectors_say_which_channels_get_what() {
    let channels = "[channel.web]\n[channel.db]\nkeep_alive = \"250ms\"\n";
    let sinks = "[sink.a]\ntype = \"null\"\nchannel = \"web\"\n[sink.b]\ntype = \"null\"\nchannel = \"db\"\n";
    let with = |selector: &str| {
        let text = format!("[source.s]\ntype = \"stdin\"\n{selector}\n{channels}{sinks}");
        pipeline(&text)
    };
    let names =
        |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<std::collections::BTreeSet<_>>();
    let selector = |text: &str| with(text).sources.remove(0).selector;
    assert_eq!(selector(""), SelectorPlan::default());
    assert_eq!(selector("selector = { kind = \"replicating\" }"), SelectorPlan::default());
    assert_eq!(with("").channels[1].keep_alive, Duration::from_millis(250));
    assert_eq!(
        selector("selector = { kind = \"replicating\", optional = [\"db\"] }").optional,
        names(&["db"])
    );
    assert_eq!(
        selector("selector = { kind = \"load-balancing\", header = \"host\" }").rule,
        SelectorRule::LoadBalancing { channels: names(&[]), header: Some("host".into()) }
    );
    let text = "[source.s.selector]\nkind = \"multiplexing\"\nheader = \"h\"\ndefault = []\nmapping = { x = \"web\", y = [\"db\", \"web\"] }";
    let mapping = [("x".to_owned(), names(&["web"])), ("y".to_owned(), names(&["db", "web"]))].into();
    assert_eq!(
        selector(text).rule,
        SelectorRule::Multiplexing { header: "h".into(), mapping, default: names(&[]) }
    );
}

#[test]
fn groups_say_who_reads_as_one() {
    let sinks = ["a", "b", "c"].map(|name| format!("[sink.{name}]\ntype = \"null\"\n")).concat();
    let text = |group: &str| format!("[source]\ntype = \"stdin\"\n{sinks}[group.all]\n{group}");
    let plan = pipeline(&text("kind = \"failover\"\nsinks = [\"b\", \"a\"]"));
    let wanted = GroupPlan {
        name: "all".into(),
        channel: "main".into(),
        sinks: vec!["b".into(), "a".into()],
        kind: GroupKind::Failover,
        penalty: Duration::from_secs(1),
        penalty_max: Duration::from_secs(30),
    };
    assert_eq!(plan.groups, [wanted]);
    assert_eq!(plan.readers("main"), ["all", "c"]);
    for (word, balance) in [
        ("", Balance::RoundRobin),
        ("balance = \"random\"", Balance::Random),
        ("balance = \"least-in-flight\"", Balance::LeastInFlight),
    ] {
        let plan = pipeline(&text(&format!("kind = \"load-balancing\"\nsinks = [\"a\", \"b\"]\n{word}")));
        assert_eq!(plan.groups[0].kind, GroupKind::LoadBalancing(balance));
    }
}

#[test]
fn a_channel_of_any_kind_fails_over() {
    use flumen_pipeline::plan::{FailoverPlan, SecondaryKind};
    let channel = |text: &str| pipeline(&format!("[channel]\n{text}\n{MINIMAL}")).channels.remove(0);
    let of = |text: &str| channel(text).failover;
    assert_eq!(of(""), None);
    let plan = of("failover = { dir = \"/mnt/b\", fail_after = 2 }").unwrap();
    assert_eq!((plan.kind, plan.dir.as_deref()), (SecondaryKind::File, Some(Path::new("/mnt/b"))));
    assert_eq!((plan.fail_after, plan.return_after, plan.check_interval), (2, 3, Duration::from_secs(5)));
    let here = ["file", "memory", "spillable", "source-backed"].map(|kind| format!("kind = \"{kind}\"\n"));
    let shared = "kind = \"kafka\"\nbrokers = [\"k:9092\"]\n";
    for kind in &here {
        let plan =
            of(&format!("{kind}failover = {{ kind = \"memory\", dir = \"/mnt/b\", events = 20_000 }}"));
        assert!(matches!(
            plan,
            Some(FailoverPlan { kind: SecondaryKind::Memory, capacity_events: 20_000, memory_events: 0, .. })
        ));
        let to_kafka =
            "failover = { kind = \"kafka\", brokers = [\"k:9093\"], topic = \"t\", return_after = 9 }";
        let channel = channel(&format!("{kind}{to_kafka}"));
        let plan = channel.failover.unwrap();
        assert_eq!((plan.kind, plan.dir, plan.return_after), (SecondaryKind::Kafka, None, 9));
        let options = &channel.failover_options;
        assert_eq!(options.list_opt("brokers").unwrap(), ["k:9093"]);
        assert_eq!((options.text_opt("topic"), options.0.len()), (Some("t"), 2));
    }
    for (kind, dir) in here.iter().map(|kind| (kind.as_str(), "dir = \"/mnt/b\", ")).chain([(shared, "")]) {
        let plan =
            of(&format!("{kind}failover = {{ {dir}kind = \"spillable\", memory = {{ events = 9_000 }} }}"));
        let plan = plan.unwrap();
        assert_eq!((plan.kind, plan.dir.is_some()), (SecondaryKind::Spillable, !dir.is_empty()));
        assert_eq!((plan.memory_events, plan.memory_bytes), (9_000, MEMORY_BYTES));
        assert_eq!((plan.capacity_events, plan.capacity_bytes), (10_000_000, 8 << 30));
        let unsaid = of(&format!("{kind}failover = {{ {dir}kind = \"spillable\" }}")).unwrap();
        assert_eq!(unsaid.memory_events, MEMORY_EVENTS);
    }
    let plan = of(&format!("{shared}failover = {{ kind = \"memory\" }}")).unwrap();
    assert_eq!((plan.kind, plan.dir), (SecondaryKind::Memory, None));
}

#[test]
fn what_is_wrong_with_the_options_of_a_failover_is_shown_there() {
    for kind in ["file", "memory", "source-backed"] {
        let text = format!(
            "{MINIMAL}[channel]\nkind = \"{kind}\"\nfailover = {{ kind = \"kafka\", brokers = [\"k\"] }}\n"
        );
        let (plan, files) = load(&text).unwrap();
        let error = BuildError::new("failover.brokers", "\"k\" has no port", "write it");
        let name = &plan.pipelines[0].name;
        let shown = files.diagnostic_for(name, ComponentKind::Channel, "main", &error);
        assert_eq!(shown.reason, "`failover.brokers` of channel `main`: \"k\" has no port");
        let place = shown.place.unwrap();
        assert!(place.text.starts_with("failover") && place.column == 40, "{place:?}");
    }
}

#[test]
fn channels_of_one_pipeline_fail_over_to_one_topic() {
    let text = |topic: &str| {
        let failover = |topic: &str| {
            format!("failover = {{ kind = \"kafka\", brokers = [\"k:9092\"], topic = \"{topic}\" }}\n")
        };
        let channels = format!("[channel.a]\n{}[channel.b]\n{}", failover("t"), failover(topic));
        let sinks = ["a", "b"].map(|name| format!("[sink.{name}]\ntype = \"null\"\nchannel = \"{name}\"\n"));
        format!("[source]\ntype = \"stdin\"\n{channels}{}", sinks.concat())
    };
    assert!(load(&text("t")).is_ok());
    let wrong = load(&text("other")).unwrap_err();
    assert!(wrong.len() == 1 && wrong[0].reason.contains("differ in `failover`"), "{wrong:?}");
}
