//! A file of a few flat tables, for a command that is no pipeline: each table is checked against a spec.

use std::collections::BTreeMap;
use std::path::Path;

use flumen_pipeline::{BuildError, ComponentSpec, Options};

use crate::code::Code;
use crate::diagnostic::Diagnostic;
use crate::env::Env;
use crate::report::{Report, UserFile};
use crate::sources::ComponentSpans;
use crate::substitute::redact;
use crate::table::TableReader;
use crate::tree::Node;

/// The tables that a file has, checked, and where they stood.
pub struct Tables {
    file: UserFile,
    secrets: Vec<String>,
    tables: BTreeMap<&'static str, (Options, ComponentSpans)>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Texts and secrets stay inside.
        f.debug_struct("Tables").field("file", &self.file.path).finish_non_exhaustive()
    }
}

/// Reads a file whose tables are named by the specs' `kind`; `needed` must be there. All errors at once.
pub fn load_tables(
    path: &Path,
    specs: &'static [ComponentSpec],
    needed: &str,
    env: &dyn Env,
) -> Result<Tables, Vec<Diagnostic>> {
    let file = UserFile::read(env, path).map_err(|error| vec![*error])?;
    let mut report = Report::new(&file);
    let tables = report.parse(Some(env)).map(|root| read_tables(&root, specs, needed, &[], &mut report));
    let wrong = report.into_sorted();
    match tables {
        Some(tables) if wrong.is_empty() => Ok(tables),
        _ => Err(wrong),
    }
}

/// Reads the tables of a file. If the report has errors afterwards, they are not to be used. `foreign`: tables of files of
/// another kind, which have an error of their own.
pub(crate) fn read_tables(
    root: &Node,
    specs: &[ComponentSpec],
    needed: &str,
    foreign: &[&str],
    report: &mut Report<'_>,
) -> Tables {
    let mut tables = BTreeMap::new();
    if let Some(mut reader) = TableReader::new("the file", root, report) {
        for entry in foreign.iter().filter_map(|table| reader.take_unknown(table)).collect::<Vec<_>>() {
            let reason = format!("a file with [{needed}] is no pipeline and has no key `{}`", entry.key);
            report.error(Code::UnknownKey, &entry.key_span, reason, "make two files of it");
        }
        for spec in specs {
            let Some(entry) = reader.get(spec.kind) else {
                if spec.kind == needed {
                    let (reason, fix) =
                        (format!("the file has no [{needed}]"), format!("add it: {}", spec.about));
                    report.error(Code::MissingKey, &(0..0), reason, fix);
                }
                continue;
            };
            let what = format!("`[{}]`", spec.kind);
            let Some(mut table) = TableReader::new(what, &entry.value, report) else { continue };
            let checked = table.options(spec.options, report);
            table.finish(report);
            let spans = ComponentSpans { header: entry.key_span.clone(), options: checked.spans };
            tables.insert(spec.kind, (checked.options, spans));
        }
        reader.finish(report);
    }
    Tables { file: report.file.clone(), secrets: report.secrets.clone(), tables }
}

impl Tables {
    /// The options of a table; `None`: the file does not have it.
    pub fn options(&self, table: &str) -> Option<&Options> {
        self.tables.get(table).map(|(options, _)| options)
    }

    /// The options of all tables that the file has.
    pub(crate) fn all_options(&self) -> BTreeMap<&'static str, Options> {
        self.tables.iter().map(|(table, (options, _))| (*table, options.clone())).collect()
    }

    /// An error that was found in checked options, with the caret at the option.
    pub fn diagnostic_for(&self, table: &str, error: &BuildError) -> Diagnostic {
        let reason = match error.option.as_str() {
            "" => error.reason.clone(),
            option => format!("`{option}` of `[{table}]`: {}", error.reason),
        };
        let (reason, fix) = (redact(&reason, &self.secrets), redact(&error.fix, &self.secrets));
        let spans = self.tables.get(table).map(|(_, spans)| spans);
        match spans.map(|spans| spans.options.get(&error.option).unwrap_or(&spans.header)) {
            Some(span) => {
                Diagnostic::at(Code::BadOption, &self.file.path, &self.file.text, span, reason, fix)
            }
            None => Diagnostic::whole(Code::BadOption, &self.file.path, reason, fix),
        }
    }
}
