//! Pipelines that a reload has stopped, and that could not start again when it was taken back: their disk is away, or something is in their
//! place. They are tried until they start, with their plan of before, by the thread that reloads: nobody has to ask for it.
//!
//! One that has failed by itself is none of them, nor one with a part that still hangs: nothing may take its place. When no pipeline can go on the
//! agent ends, and whoever started it does so again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::agent::Agent;
use crate::exit::Failure;
use crate::running::{Again, RunningPipeline};

/// The pause between two tries: that of `RestartSec` in `examples/flumen.service`.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

impl RunningPipeline {
    /// It could not be started again, and is to be later; the reason in words.
    pub(super) fn starts_later(&self, failure: &Failure, again: Again) -> String {
        let (_, why) = failure.text();
        let pause_s = PAUSE.as_secs();
        let name = self.pipeline.plan().name.clone();
        let reason = format!("pipeline {name} does not start again, and is tried every {pause_s} s: {why}");
        *self.broken.lock() = Some(reason.clone());
        *self.again.lock() = Some(again);
        reason
    }

    fn is_to_start(&self) -> bool {
        self.again.lock().is_some()
    }
}

impl Agent {
    /// Tries each of them once.
    pub(super) fn start_again(&self) {
        if !self.pipelines().iter().any(|running| running.is_to_start()) {
            return;
        }
        let _alone = self.changing.lock();
        self.is_changing.store(true, Ordering::Release);
        // The agent may have been stopped meanwhile, and they with it.
        for running in self.pipelines().iter().filter(|running| running.is_to_start()) {
            self.try_again(running);
        }
        self.is_changing.store(false, Ordering::Release);
    }

    fn try_again(&self, running: &Arc<RunningPipeline>) {
        let Some(again) = running.again.lock().clone() else { return };
        let (plan, files, own) = (self.plan(), self.files.lock().clone(), running.pipeline.plan());
        let (plugins, generation) =
            (running.plugins.lock().clone(), running.generation.load(Ordering::Acquire));
        let plans = (&*own, again.before.as_ref());
        match RunningPipeline::start(&plan, plans, plugins, &files, self.memory(), generation) {
            Ok(fresh) => {
                if let Some(known) =
                    self.pipelines.lock().iter_mut().find(|known| Arc::ptr_eq(known, running))
                {
                    *known = fresh;
                }
                tracing::info!(pipeline = own.name, "it was stopped for a reload, and runs again");
            }
            Err(failure) => {
                let reason = running.starts_later(&failure, again);
                tracing::error!("{reason}");
            }
        }
    }
}
