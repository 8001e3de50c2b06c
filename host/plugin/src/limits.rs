//! Named limits of the plugin host, each with the reason for its number. Limits that a user may change are in
//! [`flumen_pipeline::plan::PluginLimits`].

use std::time::Duration;

/// How often running guests are asked whether their time is over: the grain of every deadline. A wake-up of the
/// ticker costs microseconds, and 5 ms is short beside the shortest useful deadline.
pub const EPOCH_TICK: Duration = Duration::from_millis(5);

/// Instances of all plugins at once. Each reserves 4 GiB of address space (no memory) so that guests need no bounds
/// checks: 512 GiB in all, which every 64-bit kernel grants. When all are taken, idle ones are given up.
pub const INSTANCES_MAX: u32 = 128;

/// How long a batch waits for one of [`INSTANCES_MAX`] when none is idle. A call ends by its deadline, so this is
/// reached only when very many threads share the sandbox.
pub const INSTANCE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Core instances in one plugin: a Python component holds more than 32.
pub const CORE_INSTANCES_PER_PLUGIN: u32 = 64;

/// Linear memories in one plugin. All of them count towards the one memory limit.
pub const MEMORIES_PER_PLUGIN: u32 = 4;

/// Tables in one plugin.
pub const TABLES_PER_PLUGIN: u32 = 64;

/// Tables in one core module: that of its functions, and those through which what was put together in it is linked.
pub const TABLES_PER_MODULE: u32 = 4;

/// Elements of one table: the functions of an interpreter such as CPython's are some tens of thousands.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Bytes of a plugin's file. A Python component has 18 MB.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Components in components. Tools that put components together make a few levels; the compiler takes time that grows
/// with the square of the depth: 15 s for 20,000 levels in 260 KB.
pub const NESTED_COMPONENTS_MAX: usize = 32;

/// Packages of interface types in a module: its own, and those of WASI, which are a dozen. They are followed by recursion.
pub const PACKAGES_MAX: usize = 128;

/// Bytes of all compiled plugins in the cache; the oldest go first. A compiled Python component has some 60 MB.
pub const CACHE_BYTES_MAX: u64 = 1 << 30;

/// Hashes of files that are remembered: more than the plugins of an agent, their compiled forms and the versions before them.
pub const HASHES_MAX: usize = 256;

/// How long a file has to be left alone before its hash is remembered: longer than the grain of times on any file system.
pub const HASH_SETTLES: Duration = Duration::from_secs(2);

/// Idle instances that one version keeps: more than the threads of one chain.
pub const IDLE_INSTANCES_MAX: usize = 16;

/// An instance that takes longer to make and open than this is made before it is needed: Rust and C take a fifth of it, languages with
/// a large runtime several times as long.
pub const SPARE_WORTH: Duration = Duration::from_micros(250);

/// Versions that wait for a spare instance: more than an agent has.
pub const SPARES_WANTED_MAX: usize = 128;

/// Guilty rows that are looked for in one batch, one by one. A batch with more of them is not a batch with a few bad
/// events but a plugin that fails: what then still fails is quarantined in whole segments.
pub const GUILTY_ROWS_MAX: u32 = 16;

/// Guilty ranges that are looked for one after the other, without an input that is decoded well between them. Each costs
/// some twenty calls in instances that are made for it: this many take a second.
pub const GUILTY_RANGES_MAX: u32 = 64;

/// Time that failed calls of one batch may take before the search for guilty rows ends, as a multiple of the
/// plugin's time limit. One row that never returns costs about 4.3 limits in a batch of 8,192: two for the batch, a
/// tenth for each of 13 halvings, one to be sure; the next one 2.3. So three such rows are found, and failed calls of the
/// worst batch take less than [`ISOLATION_TIME_FACTOR`] + 4 limits.
pub const ISOLATION_TIME_FACTOR: u32 = 10;

/// While a batch is bisected, a segment has the plugin's time limit divided by this. A slow segment is only split further;
/// a single row is found guilty only after it had the whole limit.
pub const SUSPECT_TIME_DIVISOR: u32 = 10;

/// The least time of such a segment: four ticks.
pub const SUSPECT_TIME_MIN: Duration = Duration::from_millis(20);

/// Bytes of a line that a plugin writes to the agent's log; promised in the WIT.
pub const LOG_LINE_BYTES_MAX: usize = 1_024;

/// Names of counters and gauges of one plugin; promised in the WIT.
pub const METRIC_NAMES_MAX: usize = 64;

/// Bytes of such a name; promised in the WIT.
pub const METRIC_NAME_BYTES_MAX: usize = 64;

/// Bytes of the JSON Schema in which a plugin describes its options.
pub const OPTIONS_SCHEMA_BYTES_MAX: usize = 64 << 10;

/// Bytes that are kept of a plugin's version and of its summary.
pub const DESCRIPTION_BYTES_MAX: usize = 256;

/// Bytes of a cursor that a destination gives back; promised in the WIT.
pub const CURSOR_BYTES_MAX: usize = 256;

/// Schemas that are held against values of one configuration: a long one has some thousands, a bomb of references millions.
pub const OPTION_STEPS_MAX: usize = 100_000;

/// Schemas within each other: what is deeper leads back to itself.
pub const OPTION_DEPTH_MAX: usize = 128;

/// Errors of one configuration that are told at once.
pub const OPTION_ERRORS_MAX: usize = 20;

/// Random bytes of one call; promised in the WIT.
pub const RANDOM_BYTES_MAX: usize = 65_536;

/// Bytes of one read of a connection: more waits for the next one.
pub const TCP_READ_BYTES_MAX: usize = 1 << 20;

/// Bytes of a reason or error text of a guest that are kept where no other limit is named.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// How often plugin files are looked at even if the kernel reports nothing (network file systems, replaced directories).
pub const WATCH_POLL: Duration = Duration::from_secs(1);

/// A changed file is read when nothing happened to its directory for this long: most writers are done then.
pub const WATCH_QUIET: Duration = Duration::from_millis(150);

/// A directory that never becomes quiet does not keep changes waiting for longer than this.
pub const WATCH_QUIET_MAX: Duration = Duration::from_secs(1);

/// Longest wait for a plugin file that is being copied while the agent starts, and the age from which a damaged file is no
/// longer taken for one. Copies take milliseconds, but on a disk that syncs without a break they were seen to take over a second.
pub const START_WAIT_MAX: Duration = Duration::from_secs(10);

/// Events by which a version's cost is known well enough to compare another with it: some batches.
pub const COST_EVENTS_MIN: u64 = 2_000;

/// Batches of a version on probation before its cost is judged: the first ones make instances and warm caches.
pub const COST_BATCHES_MIN: u64 = 5;

/// Batches by whose median a version's cost is told: enough that slow ones are few, few enough that what it costs now counts.
pub const COST_BATCHES_KEPT: usize = 64;

/// An event that costs less than this is cheap, however much cheaper it was before.
pub const COST_FLOOR_NS: u64 = 1_000;

/// Batches that wait for a version that runs beside the flow; those that come meanwhile are left out.
pub const SHADOW_QUEUE: usize = 4;
