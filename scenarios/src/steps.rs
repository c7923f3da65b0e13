//! Progress: what is being done, for how long, and how it ended.
//!
//! Steps run side by side and report to one thread, which alone prints and alone knows what is running. A step that
//! takes long is named again now and then, with its time so far: a lab that downloads for two minutes must not look
//! like one that hangs.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the running steps are named again.
const REMIND_EVERY: Duration = Duration::from_secs(15);

enum Event {
    Started(&'static str),
    Ended { step: &'static str, done: bool },
    Note(String),
}

/// Where steps report; ends, with everything printed, when dropped.
pub struct Steps {
    events: Option<Sender<Event>>,
    printer: Option<JoinHandle<()>>,
}

impl Steps {
    /// Starts the printing thread.
    pub fn start() -> Self {
        let (events, inbox) = mpsc::channel();
        let printer = thread::spawn(move || {
            let mut running: Vec<(&'static str, Instant)> = Vec::new();
            loop {
                match inbox.recv_timeout(REMIND_EVERY) {
                    Ok(Event::Started(step)) => running.push((step, Instant::now())),
                    Ok(Event::Ended { step, done }) => {
                        let began = running
                            .iter()
                            .position(|(name, _)| *name == step)
                            .map(|at| running.remove(at).1);
                        let seconds = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
                        eprintln!(
                            "{} {step} ({seconds:.1} s)",
                            if done { "  done" } else { "FAILED" }
                        );
                    }
                    Ok(Event::Note(text)) => eprintln!("       {text}"),
                    Err(RecvTimeoutError::Timeout) => {
                        for (step, began) in &running {
                            eprintln!("   ...  {step}, {} s so far", began.elapsed().as_secs());
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self {
            events: Some(events),
            printer: Some(printer),
        }
    }

    /// Does one step and reports its start and its end.
    pub fn run<T>(
        &self,
        step: &'static str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.report(Event::Started(step));
        let result = work();
        self.report(Event::Ended {
            step,
            done: result.is_ok(),
        });
        result.map_err(|error| error.context(step))
    }

    /// Prints a line between the steps.
    pub fn note(&self, text: impl Into<String>) {
        self.report(Event::Note(text.into()));
    }

    fn report(&self, event: Event) {
        if let Some(events) = &self.events {
            // The printer ends only when this sender is dropped; were it gone, the work still matters more than its report.
            let _ = events.send(event);
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.events = None;
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
    }
}
