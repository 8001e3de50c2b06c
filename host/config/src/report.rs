//! One file being read: its text, and the errors found so far.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::code::Code;
use crate::diagnostic::Diagnostic;
use crate::env::Env;
use crate::limits;
use crate::substitute::{quote, redact, substitute};
use crate::tree::{self, Node, Span};

/// A file as it was read.
#[derive(Debug, Clone)]
pub(crate) struct UserFile {
    pub path: PathBuf,
    pub text: Arc<str>,
}

impl UserFile {
    /// Reads a file; an error has no place, unless the text is not UTF-8.
    pub fn read(env: &dyn Env, path: &Path) -> Result<UserFile, Box<Diagnostic>> {
        let wrong = |code, reason: String, fix: &str| Box::new(Diagnostic::whole(code, path, reason, fix));
        let bytes = env.read(path, limits::FILE_BYTES_MAX).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                wrong(Code::FileNotFound, "no such file".into(), "check the path")
            }
            _ => {
                let fix = "check that it is a file and who may read it";
                wrong(Code::FileUnreadable, format!("the file cannot be read: {error}"), fix)
            }
        })?;
        if bytes.len() as u64 > limits::FILE_BYTES_MAX {
            let reason = format!("the file has more than {} bytes", limits::FILE_BYTES_MAX);
            return Err(wrong(Code::FileTooLarge, reason, "check that it is the right file"));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(UserFile { path: path.to_owned(), text: text.into() }),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes());
                let reason = format!("the byte at offset {at} is not UTF-8");
                let fix = "save the file as UTF-8";
                Err(Box::new(Diagnostic::at(Code::NotUtf8, path, &text, &(at..at), reason, fix)))
            }
        }
    }

    /// The directory that relative paths in the file start from.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The file's name without `.toml`.
    pub fn stem(&self) -> String {
        self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The errors of one file, in the order in which they were found.
pub(crate) struct Report<'a> {
    pub file: &'a UserFile,
    pub diagnostics: Vec<Diagnostic>,
    /// Errors beyond the limit.
    not_shown: usize,
    /// Values that `${…}` brought in.
    pub secrets: Vec<String>,
    /// Files that were read beside: those of `${file:…}`, and others that this one brought in.
    pub value_files: Vec<PathBuf>,
    /// Directories whose files were listed.
    pub listed: Vec<PathBuf>,
    /// Errors of files that this one brought in, each sorted.
    of_others: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub fn new(file: &'a UserFile) -> Self {
        Report {
            file,
            diagnostics: Vec::new(),
            not_shown: 0,
            secrets: Vec::new(),
            value_files: Vec::new(),
            listed: Vec::new(),
            of_others: Vec::new(),
        }
    }

    /// Takes over what became of a file that this one brought in.
    pub fn take_in(&mut self, mut other: Report<'_>) {
        self.value_files.push(other.file.path.clone());
        self.value_files.append(&mut other.value_files);
        self.of_others.extend(other.into_sorted());
    }

    /// A file that this one brought in cannot be read.
    pub fn unreadable(&mut self, error: Diagnostic) {
        self.value_files.push(error.file.clone());
        self.of_others.push(error);
    }

    /// Adds an error.
    pub fn error(&mut self, code: Code, span: &Span, reason: impl Into<String>, fix: impl Into<String>) {
        if self.is_full() {
            self.not_shown += 1;
            return;
        }
        let diagnostic = Diagnostic::at(code, &self.file.path, &self.file.text, span, reason, fix);
        self.diagnostics.push(diagnostic);
    }

    /// Further errors are only counted: whoever makes costly ones may save the work.
    pub fn is_full(&self) -> bool {
        self.diagnostics.len() >= limits::DIAGNOSTICS_PER_FILE_MAX
    }

    /// Text to tree, `${…}` replaced. `None`: the text is not TOML, which has been reported.
    /// Without an `env`, `${…}` stays as it is.
    pub fn parse(&mut self, env: Option<&dyn Env>) -> Option<Node> {
        match tree::parse(&self.file.text) {
            Ok(mut root) => {
                if let Some(env) = env {
                    substitute(&mut root, env, self);
                }
                Some(root)
            }
            Err(errors) => {
                for error in errors {
                    let fix = error.fix();
                    self.error(Code::Syntax, &error.span, error.message, fix);
                }
                None
            }
        }
    }

    /// A value of the user in an error: without what `${…}` brought in, and cut if long.
    pub fn quote(&self, value: &str) -> String {
        quote(&redact(value, &self.secrets))
    }

    /// The errors in the order of the text, not more than a person reads.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|diagnostic| diagnostic.place.as_ref().map(|place| place.start));
        self.diagnostics.dedup();
        if self.not_shown > 0 {
            let reason = format!("{} more errors in this file", self.not_shown);
            let fix = "mend these first";
            self.diagnostics.push(Diagnostic::whole(Code::TooManyErrors, &self.file.path, reason, fix));
        }
        self.diagnostics.append(&mut self.of_others);
        self.diagnostics
    }
}
