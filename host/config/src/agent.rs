//! The agent file `flumen.toml`: the settings that all pipelines share, and where those are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flumen_pipeline::Options;
use globset::GlobBuilder;

use crate::code::Code;
use crate::env::Env;
use crate::report::Report;
use crate::sources::ComponentSpans;
use crate::specs;
use crate::table::{TableReader, check_name};
use crate::tree::{Item, Node, Span};

/// The file name that makes a file an agent file.
pub const AGENT_FILE: &str = "flumen.toml";

/// What the agent file says.
pub(crate) struct AgentSettings {
    pub name: String,
    pub data_dir: PathBuf,
    pub plugin_dir: PathBuf,
    pub drain_timeout: Duration,
    pub watch: bool,
    pub memory_max_bytes: Option<u64>,
    /// Where the settings stand.
    pub places: ComponentSpans,
    /// Pipeline files, patterns and directories as written, each with its place.
    pub pipelines: Vec<(String, Span)>,
}

/// Is it an agent file, by its name or by its `[agent]` table?
pub(crate) fn is_agent_file(path: &Path, root: Option<&Node>) -> bool {
    let table = root.is_some_and(|root| match &root.item {
        Item::Table(entries) => entries.iter().any(|entry| entry.key == "agent"),
        _ => false,
    });
    table || path.file_name().is_some_and(|name| name == AGENT_FILE)
}

/// The settings without an agent file, for pipeline files in `dir`.
pub(crate) fn default_settings(dir: &Path) -> AgentSettings {
    settings(&Options::default(), dir, Vec::new(), ComponentSpans::default())
}

fn settings(
    options: &Options,
    dir: &Path,
    pipelines: Vec<(String, Span)>,
    places: ComponentSpans,
) -> AgentSettings {
    AgentSettings {
        name: options.text_opt("name").unwrap_or("flumen").to_owned(),
        data_dir: dir.join(options.text_opt("data_dir").unwrap_or(".flumen")),
        plugin_dir: dir.join(options.text_opt("plugin_dir").unwrap_or("plugins")),
        drain_timeout: options.duration_opt("drain_timeout").unwrap_or(Duration::from_secs(30)),
        watch: options.flag_opt("watch").unwrap_or(true),
        memory_max_bytes: options.size_opt("memory_max"),
        places,
        pipelines,
    }
}

/// Reads an agent file.
pub(crate) fn read_agent(root: &Node, report: &mut Report<'_>) -> Option<AgentSettings> {
    let mut file = TableReader::new("an agent file", root, report)?;
    let agent = file.get("agent");
    let misplaced = specs::PIPELINE_TABLES.iter().filter_map(|table| file.take_unknown(table));
    for entry in misplaced.collect::<Vec<_>>() {
        let reason = format!("an agent file has no key `{}`: a pipeline is a file of its own", entry.key);
        report.error(Code::UnknownKey, &entry.key_span, reason, "move it to pipelines/NAME.toml");
    }
    file.finish(report);
    let dir = report.file.dir();
    let table = agent.and_then(|agent| TableReader::new("`agent`", &agent.value, report));
    let Some(mut table) = table else {
        let pattern = "pipelines/*.toml".to_owned();
        let pipelines = vec![(pattern, 0..0)];
        return Some(settings(&Options::default(), dir, pipelines, ComponentSpans::default()));
    };
    let checked = table.options(specs::AGENT, report);
    let nodes = match table.get("pipelines").map(|entry| &entry.value.item) {
        Some(Item::List(nodes)) => nodes.as_slice(),
        _ => &[],
    };
    let header = table.span().clone();
    table.finish(report);
    if let (Some(name), Some(span)) = (checked.options.text_opt("name"), checked.spans.get("name")) {
        check_name("agent", name, span, report);
    }
    let patterns = checked.options.list_opt("pipelines").unwrap_or_default();
    let spans = nodes.iter().map(|node| node.span.clone()).chain(std::iter::repeat(header.clone()));
    let pipelines = patterns.iter().cloned().zip(spans).collect();
    let places = ComponentSpans { header, options: checked.spans };
    Some(settings(&checked.options, dir, pipelines, places))
}

/// The pipeline files that one entry of `pipelines` stands for, sorted. A file is taken as it is;
/// of a directory, or by a pattern, `*.toml` but for `flumen.toml` and hidden files.
pub(crate) fn expand(
    pattern: &str,
    span: &Span,
    env: &dyn Env,
    directories: &mut Vec<PathBuf>,
    report: &mut Report<'_>,
) -> Vec<PathBuf> {
    let path = report.file.dir().join(pattern);
    let is_pattern = |part: &str| part.contains(['*', '?', '[', '{']);
    let (parent, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    if is_pattern(parent) {
        let reason = "only the last part of a path can be a pattern";
        report.error(Code::BadPattern, span, reason, "list each directory on its own");
        return Vec::new();
    }
    if is_pattern(name) {
        let glob = match GlobBuilder::new(name).literal_separator(true).build() {
            Ok(glob) => glob.compile_matcher(),
            Err(error) => {
                let reason = format!("the pattern is not understood: {}", error.kind());
                report.error(Code::BadPattern, span, reason, "write, for example, \"pipelines/*.toml\"");
                return Vec::new();
            }
        };
        let dir = path.parent().map(Path::to_owned).unwrap_or_default();
        let files = match toml_files(&dir, env) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => unlisted(&error, span, report),
            files => files.unwrap_or_default(),
        };
        directories.push(dir);
        return files
            .into_iter()
            .filter(|file| file.file_name().is_some_and(|name| glob.is_match(name)))
            .collect();
    }
    if !env.is_dir(&path) {
        return vec![path];
    }
    let files = toml_files(&path, env);
    directories.push(path);
    files.unwrap_or_else(|error| unlisted(&error, span, report))
}

fn unlisted(error: &std::io::Error, span: &Span, report: &mut Report<'_>) -> Vec<PathBuf> {
    let reason = format!("the directory cannot be listed: {error}");
    report.error(Code::FileUnreadable, span, reason, "check who may read it");
    Vec::new()
}

/// The pipeline files of a directory.
pub(crate) fn toml_files(dir: &Path, env: &dyn Env) -> std::io::Result<Vec<PathBuf>> {
    let mut files = env.list(dir)?;
    files.retain(|file| {
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        name.ends_with(".toml") && !name.starts_with('.') && name != AGENT_FILE
    });
    files.sort();
    Ok(files)
}
