//! How long a step may go on when the pipeline stops: a commit that is nearly there is better than the same work again.

use std::sync::OnceLock;
use std::time::Instant;

use flumen_pipeline::source::Wake;

use crate::sinks::limits;

/// Made at the begin of a step.
pub(super) struct Patience {
    wake: Wake,
    stopping_since: OnceLock<Instant>,
}

impl Patience {
    pub fn new(wake: Wake) -> Patience {
        Patience { wake, stopping_since: OnceLock::new() }
    }

    /// False: give up.
    pub fn go_on(&self) -> bool {
        !self.wake.stopping()
            || self.stopping_since.get_or_init(Instant::now).elapsed() < limits::KAFKA_STOP_GRACE
    }

    /// The pipeline stops.
    pub fn is_stopping(&self) -> bool {
        self.wake.stopping()
    }
}
