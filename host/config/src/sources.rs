//! Where everything stood: errors that are found later still get their file, line and caret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use flumen_pipeline::{BuildError, ComponentKind};

use crate::agent::AGENT_FILE;
use crate::code::Code;
use crate::diagnostic::Diagnostic;
use crate::report::UserFile;
use crate::substitute::redact;
use crate::tables::Tables;
use crate::tree::Span;

/// The files of a plan and the places of its components.
#[derive(Default)]
pub struct Sources {
    /// The agent's file, and where its settings stand.
    pub(crate) agent: Option<(UserFile, ComponentSpans)>,
    pub(crate) pipelines: BTreeMap<String, PipelineSpans>,
    pub(crate) bridges: BTreeMap<String, Tables>,
    pub(crate) files: BTreeSet<PathBuf>,
    pub(crate) directories: BTreeSet<PathBuf>,
}

/// The places of one pipeline's components.
pub(crate) struct PipelineSpans {
    pub file: UserFile,
    /// What `${…}` brought in: not to be printed.
    pub secrets: Vec<String>,
    components: BTreeMap<(&'static str, String), ComponentSpans>,
    /// Interceptors that a directory brought in, and that have a file of settings there.
    own_files: BTreeMap<String, OwnFile>,
}

/// A file of settings of one interceptor.
pub(crate) struct OwnFile {
    pub file: UserFile,
    pub secrets: Vec<String>,
    /// What brought it in.
    pub from: Span,
}

/// The places of one component.
#[derive(Debug, Clone, Default)]
pub(crate) struct ComponentSpans {
    pub header: Span,
    pub options: BTreeMap<String, Span>,
}

impl PipelineSpans {
    pub fn new(file: UserFile) -> Self {
        PipelineSpans { file, secrets: Vec::new(), components: BTreeMap::new(), own_files: BTreeMap::new() }
    }

    /// An interceptor whose places are in a file of its own.
    pub fn add_own_file(&mut self, name: &str, file: OwnFile) {
        self.own_files.insert(name.to_owned(), file);
    }

    fn own_file(&self, kind: ComponentKind, name: &str) -> Option<&OwnFile> {
        self.own_files.get(name).filter(|_| kind == ComponentKind::Interceptor)
    }

    /// Where an option of a component stands in the pipeline's file, or what brought the component in.
    pub fn option(&self, kind: ComponentKind, name: &str, option: &str) -> Span {
        if let Some(own) = self.own_file(kind, name) {
            return own.from.clone();
        }
        let found = self.components.get(&(kind.word(), name.to_owned()));
        found.and_then(|found| found.options.get(option)).cloned().unwrap_or(0..0)
    }

    pub fn add(&mut self, kind: ComponentKind, name: &str, spans: ComponentSpans) {
        self.components.insert((kind.word(), name.to_owned()), spans);
    }
}

impl Sources {
    /// The error of a component that could not be built, with the caret at the option; at the
    /// component's header if the file does not have the option.
    ///
    /// For an interceptor the options are `plugin`, `name`, `config`, `grant` and `on_reject`.
    pub fn diagnostic_for(
        &self,
        pipeline: &str,
        kind: ComponentKind,
        component: &str,
        error: &BuildError,
    ) -> Diagnostic {
        let what = format!("{} `{component}`", kind.word());
        let Some(spans) = self.pipelines.get(pipeline) else {
            let reason = format!("pipeline `{pipeline}`, {what}: {error}");
            return Diagnostic::whole(Code::BadOption, Path::new(pipeline), reason, &error.fix);
        };
        let found = spans.components.get(&(kind.word(), component.to_owned()));
        let span = found.map(|found| found.options.get(&error.option).unwrap_or(&found.header));
        let reason = match error.option.as_str() {
            "" => format!("{what}: {}", error.reason),
            option => format!("`{option}` of {what}: {}", error.reason),
        };
        let own = spans.own_file(kind, component).map(|own| (&own.file, &own.secrets));
        let (file, secrets) = own.unwrap_or((&spans.file, &spans.secrets));
        let (reason, fix) = (redact(&reason, secrets), redact(&error.fix, secrets));
        match span {
            Some(span) => Diagnostic::at(Code::BadOption, &file.path, &file.text, span, reason, fix),
            None => Diagnostic::whole(Code::BadOption, &file.path, reason, fix),
        }
    }

    /// The error of a bridge that could not be built, with the caret at the option of one of its tables.
    pub fn bridge_diagnostic_for(&self, bridge: &str, table: &str, error: &BuildError) -> Diagnostic {
        match self.bridges.get(bridge) {
            Some(tables) => tables.diagnostic_for(table, error),
            None => {
                let reason = format!("bridge `{bridge}`, [{table}]: {error}");
                Diagnostic::whole(Code::BadOption, Path::new(bridge), reason, &error.fix)
            }
        }
    }

    /// Pipelines may take more memory than the agent, with the caret at `memory_max` of the agent's file.
    pub fn memory_max_diagnostic(&self, reason: &str, fix: &str) -> Diagnostic {
        match &self.agent {
            Some((file, places)) => {
                let span = places.options.get("memory_max").unwrap_or(&places.header);
                Diagnostic::at(Code::MemoryMax, &file.path, &file.text, span, reason, fix)
            }
            None => Diagnostic::whole(Code::MemoryMax, Path::new(AGENT_FILE), reason, fix),
        }
    }

    /// Every file that was read, those of `${file:…}` too: a change of one changes the plan.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    /// Directories whose files were listed: a new file in one may change the plan.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(PathBuf::as_path)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Texts and secrets stay inside.
        f.debug_struct("Sources").field("files", &self.files).finish_non_exhaustive()
    }
}
