//! Exit codes, and failures that know theirs.

use std::process::ExitCode;

use flumen_config::Diagnostic;

/// Something failed.
pub const FAILED: u8 = 1;
/// Wrong arguments.
pub const USAGE: u8 = 2;
/// `flumen plan --exit-code`: something would change.
pub const DIFFERS: u8 = 3;
/// The data directory is in use by another agent (`EX_TEMPFAIL`).
pub const LOCKED: u8 = 75;
/// What was asked for is not there yet; try again later (`EX_TEMPFAIL`).
pub const LATER: u8 = 75;
/// Nobody reads the standard output any more; what a shell shows for SIGPIPE.
pub const CLOSED_PIPE: u8 = 141;
/// The configuration is wrong (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Wrong configuration: everything that is wrong with it.
    Config(Vec<Diagnostic>),
    /// Wrong configuration that is not at one place of a file (a plugin that does not load).
    Unfit(Vec<String>),
    /// The data directory is in use.
    Locked(String),
    /// Anything else.
    Other(anyhow::Error),
    /// Already reported; only the code is left to say.
    Reported(u8),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

impl Failure {
    /// Prints it for a person and gives the exit code.
    pub fn report(self) -> ExitCode {
        if !matches!(self, Failure::Reported(_)) && !self.is_closed_pipe() {
            let (_, text) = self.text();
            match self {
                // Their text ends with the sentence of the program.
                Failure::Config(_) | Failure::Unfit(_) => eprintln!("{text}"),
                _ => eprintln!("flumen: {text}"),
            }
        }
        ExitCode::from(self.code())
    }

    /// The exit code, and what a person reads.
    pub fn text(&self) -> (u8, String) {
        let text = match self {
            Failure::Config(diagnostics) => {
                let all: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n\n")).collect();
                format!("{all}flumen: {} in the configuration", counted(diagnostics.len(), "error"))
            }
            Failure::Unfit(reasons) => {
                let all: String = reasons.iter().map(|reason| format!("error: {reason}\n")).collect();
                format!("{all}flumen: {}", counted(reasons.len(), "error"))
            }
            Failure::Locked(reason) => reason.clone(),
            Failure::Other(error) => format!("{error:#}"),
            Failure::Reported(_) => String::new(),
        };
        (self.code(), text)
    }

    fn code(&self) -> u8 {
        match self {
            Failure::Config(_) | Failure::Unfit(_) => CONFIG,
            Failure::Locked(_) => LOCKED,
            Failure::Other(_) if self.is_closed_pipe() => CLOSED_PIPE,
            Failure::Other(_) => FAILED,
            Failure::Reported(code) => *code,
        }
    }

    fn is_closed_pipe(&self) -> bool {
        matches!(self, Failure::Other(error) if is_closed_pipe(error))
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `1 error`, `2 errors`.
pub fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
