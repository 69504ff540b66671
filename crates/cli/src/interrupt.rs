//! Ctrl-C: ends the program, except while an answer is being written, which it stops.
use anyhow::{Context as _, Result};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What Ctrl-C does, and whether it was pressed.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    /// Ctrl-C ends the program at once.
    ends: Arc<AtomicBool>,
    /// Ctrl-C was pressed since [`Interrupt::hold`].
    pressed: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over SIGINT. With `twice_ends`, a second Ctrl-C ends the program in any case.
    pub(crate) fn install(twice_ends: bool) -> Result<Self> {
        let interrupt = Self { ends: Arc::new(true.into()), pressed: Arc::default() };
        // The actions run in this order when the signal comes.
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&interrupt.ends))
            .and_then(|_| {
                if twice_ends {
                    flag::register_conditional_shutdown(SIGINT, 130, interrupt.pressed.clone())?;
                }
                flag::register(SIGINT, Arc::clone(&interrupt.pressed))
            })
            .context("cannot take over Ctrl-C")?;
        Ok(interrupt)
    }

    /// While the guard lives, Ctrl-C does not end the program but is noted.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.pressed.store(false, Ordering::SeqCst);
        self.ends.store(false, Ordering::SeqCst);
        Held(self)
    }
}

/// See [`Interrupt::hold`].
pub(crate) struct Held<'a>(&'a Interrupt);

impl Held<'_> {
    /// Whether Ctrl-C was pressed.
    pub(crate) fn pressed(&self) -> bool {
        self.0.pressed.load(Ordering::SeqCst)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::SeqCst);
    }
}
