//! From paths to a plan: which files are read, as what, and that their names do not collide.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flumen_pipeline::plan::{AgentPlan, BridgePlan, PipelinePlan};

use crate::agent::{self, AGENT_FILE, AgentSettings};
use crate::code::Code;
use crate::diagnostic::Diagnostic;
use crate::env::Env;
use crate::pipeline::read_pipeline;
use crate::registry::Registry;
use crate::report::{Report, UserFile};
use crate::sources::Sources;
use crate::specs;
use crate::table::check_name;
use crate::tables::read_tables;
use crate::tree::{Item, Node};

/// Reads an agent's whole configuration; all errors of all files at once.
///
/// A path is an agent file (by its name `flumen.toml`, or its `[agent]` table), a pipeline file, a bridge file (by
/// its `[bridge]` table; the agent runs it beside its pipelines), or a directory: of one with a `flumen.toml` that file is read, of another all pipeline files. Without an
/// agent file, data lives in `.flumen` and plugins in `plugins`, both beside the first pipeline file.
pub fn load_agent(
    paths: &[PathBuf],
    registry: &Registry,
    env: &dyn Env,
) -> Result<(AgentPlan, Sources), Vec<Diagnostic>> {
    let mut loader = Loader::new(registry, env);
    for path in paths {
        loader.path(path);
    }
    loader.finish(paths)
}

/// Where the agent of these paths keeps its data, as far as it can be told: pipeline files with errors do not hide it.
pub fn find_data_dir(paths: &[PathBuf], registry: &Registry, env: &dyn Env) -> Option<PathBuf> {
    let mut loader = Loader::new(registry, env);
    paths.iter().for_each(|path| loader.path(path));
    match loader.agent {
        Some((_, settings)) => Some(settings.data_dir),
        None => {
            // Without an agent file it is beside the first file that was read.
            let names_agent = |path: &&PathBuf| path.file_name().is_some_and(|name| name == AGENT_FILE);
            let files = loader.sources.files.iter().filter(|path| !names_agent(path));
            let first = loader.pipelines.first().map(|plan| &plan.file).into_iter().chain(files).next()?;
            Some(agent::default_settings(first.parent().unwrap_or(Path::new(""))).data_dir)
        }
    }
}

/// The table that makes a file a bridge.
const BRIDGE_TABLE: &str = "bridge";

struct Loader<'a> {
    registry: &'a Registry,
    env: &'a dyn Env,
    agent: Option<(PathBuf, AgentSettings)>,
    pipelines: Vec<PipelinePlan>,
    bridges: Vec<BridgePlan>,
    seen: BTreeSet<PathBuf>,
    sources: Sources,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Loader<'a> {
    fn new(registry: &'a Registry, env: &'a dyn Env) -> Loader<'a> {
        Loader {
            registry,
            env,
            agent: None,
            pipelines: Vec::new(),
            bridges: Vec::new(),
            seen: BTreeSet::new(),
            sources: Sources::default(),
            diagnostics: Vec::new(),
        }
    }
}

impl Loader<'_> {
    /// A path that the user gave.
    fn path(&mut self, path: &Path) {
        if !self.env.is_dir(path) {
            return self.file(path);
        }
        let agent_file = path.join(AGENT_FILE);
        match self.env.list(path) {
            Ok(files) if files.contains(&agent_file) => return self.file(&agent_file),
            _ => {}
        }
        self.sources.directories.insert(path.to_owned());
        match agent::toml_files(path, self.env) {
            Ok(files) if files.is_empty() => self.diagnostics.push(Diagnostic::whole(
                Code::NoPipeline,
                path,
                "the directory has no pipeline file",
                "add one that ends in .toml",
            )),
            Ok(files) => files.iter().for_each(|file| self.file(file)),
            Err(error) => self.diagnostics.push(Diagnostic::whole(
                Code::FileUnreadable,
                path,
                format!("the directory cannot be listed: {error}"),
                "check who may read it",
            )),
        }
    }

    /// A file of the agent, of a pipeline or of a bridge.
    fn file(&mut self, path: &Path) {
        if !self.seen.insert(path.to_owned()) {
            return;
        }
        match UserFile::read(self.env, path) {
            Ok(file) => self.text(&file),
            Err(error) => self.diagnostics.push(*error),
        }
    }

    fn text(&mut self, file: &UserFile) {
        self.sources.files.insert(file.path.clone());
        let mut report = Report::new(file);
        let root = report.parse(Some(self.env));
        let is_agent = agent::is_agent_file(&file.path, root.as_ref());
        match root {
            Some(root) if is_agent => self.agent(&root, report),
            Some(root) => self.flow(&root, report),
            None => self.done(report),
        }
    }

    fn agent(&mut self, root: &Node, mut report: Report<'_>) {
        let file = report.file;
        let settings = agent::read_agent(root, &mut report);
        let mut files = Vec::new();
        let mut directories = Vec::new();
        for (pattern, span) in settings.iter().flat_map(|settings| &settings.pipelines) {
            for path in agent::expand(pattern, span, self.env, &mut directories, &mut report) {
                files.push((path, span.clone()));
            }
        }
        self.sources.directories.extend(directories);
        let mut read = Vec::new();
        for (path, span) in files {
            if !self.seen.insert(path.clone()) {
                continue;
            }
            match UserFile::read(self.env, &path) {
                Ok(pipeline) => read.push(pipeline),
                // The place of a missing file is the line that names it.
                Err(error) if error.place.is_none() => {
                    report.error(
                        error.code,
                        &span,
                        format!("`{}`: {}", path.display(), error.reason),
                        error.fix,
                    );
                }
                Err(error) => self.diagnostics.push(*error),
            }
        }
        match (&self.agent, settings) {
            (Some((first, _)), _) => {
                let reason = format!("this is a second agent file; the first is `{}`", first.display());
                report.error(Code::TwoAgentFiles, &(0..0), reason, "give one of them only");
            }
            (None, settings) => {
                let places = settings.as_ref().map(|settings| settings.places.clone());
                self.sources.agent = places.map(|places| (file.clone(), places));
                self.agent = settings.map(|settings| (file.path.clone(), settings));
            }
        }
        self.done(report);
        for pipeline in read {
            self.sources.files.insert(pipeline.path.clone());
            let mut report = Report::new(&pipeline);
            match report.parse(Some(self.env)) {
                Some(root) => self.flow(&root, report),
                None => self.done(report),
            }
        }
    }

    /// A pipeline or a bridge, as its tables say.
    fn flow(&mut self, root: &Node, report: Report<'_>) {
        let is_bridge = match &root.item {
            Item::Table(entries) => entries.iter().any(|entry| entry.key == BRIDGE_TABLE),
            _ => false,
        };
        if is_bridge { self.bridge(root, report) } else { self.pipeline(root, report) }
    }

    fn bridge(&mut self, root: &Node, mut report: Report<'_>) {
        let tables =
            read_tables(root, &self.registry.bridge, BRIDGE_TABLE, specs::PIPELINE_TABLES, &mut report);
        let name = report.file.stem();
        check_name("bridge", &name, &(0..0), &mut report);
        self.check_unique(&name, "rename the file", &mut report);
        let file = report.file.path.clone();
        self.bridges.push(BridgePlan { name: name.clone(), file, tables: tables.all_options() });
        self.sources.bridges.insert(name, tables);
        self.done(report);
    }

    fn check_unique(&self, name: &str, fix: &str, report: &mut Report<'_>) {
        let pipelines = self.pipelines.iter().map(|plan| ("pipeline", &plan.name, &plan.file));
        let mut all = pipelines.chain(self.bridges.iter().map(|plan| ("bridge", &plan.name, &plan.file)));
        if let Some((what, _, file)) = all.find(|(_, other, _)| *other == name) {
            let reason = format!("the {what} `{name}` exists already, in `{}`", file.display());
            report.error(Code::DuplicateName, &(0..0), reason, fix);
        }
    }

    fn pipeline(&mut self, root: &Node, mut report: Report<'_>) {
        let Some((plan, spans)) = read_pipeline(root, self.registry, self.env, &mut report) else {
            return self.done(report);
        };
        let fix = "rename the file, or add name = \"…\" to it as the first line";
        self.check_unique(&plan.name, fix, &mut report);
        self.sources.pipelines.insert(plan.name.clone(), spans);
        self.pipelines.push(plan);
        self.done(report);
    }

    fn done(&mut self, mut report: Report<'_>) {
        self.sources.files.extend(std::mem::take(&mut report.value_files));
        self.sources.directories.extend(std::mem::take(&mut report.listed));
        self.diagnostics.extend(report.into_sorted());
    }

    fn finish(mut self, paths: &[PathBuf]) -> Result<(AgentPlan, Sources), Vec<Diagnostic>> {
        if self.pipelines.is_empty() && self.bridges.is_empty() && self.diagnostics.is_empty() {
            let none = PathBuf::new();
            let place = self.agent.as_ref().map(|(path, _)| path).or(paths.first()).unwrap_or(&none);
            self.diagnostics.push(Diagnostic::whole(
                Code::NoPipeline,
                place,
                "there is no pipeline to run",
                "give a pipeline file, or name one in `pipelines` of the agent file",
            ));
        }
        if !self.diagnostics.is_empty() {
            return Err(self.diagnostics);
        }
        let first = self.pipelines.first().map(|plan| &plan.file);
        let first = first.or(self.bridges.first().map(|plan| &plan.file));
        let beside = first.and_then(|file| file.parent()).unwrap_or(Path::new(""));
        let settings =
            self.agent.map(|(_, settings)| settings).unwrap_or_else(|| agent::default_settings(beside));
        let plan = AgentPlan {
            name: settings.name,
            data_dir: settings.data_dir,
            plugin_dir: settings.plugin_dir,
            drain_timeout: settings.drain_timeout,
            watch: settings.watch,
            memory_max_bytes: settings.memory_max_bytes,
            pipelines: self.pipelines,
            bridges: self.bridges,
        };
        Ok((plan, self.sources))
    }
}
