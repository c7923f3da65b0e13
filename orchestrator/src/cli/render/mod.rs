//! Text for people, from values alone: no clock, no cluster, no terminal is asked here, so that recorded objects give
//! the same text always (`golden` compares).

pub mod describe;
pub mod news;
pub mod summary;
pub mod table;
pub mod units;
pub mod waterfall;

/// Whether colour is wanted. Meaning never depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Plain text: files, pipes, NO_COLOR.
    Plain,
    /// A terminal.
    Colour,
}

impl Ink {
    /// What this process's stdout wants.
    pub fn of_stdout() -> Self {
        use std::io::IsTerminal;
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !refused {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    /// For what the pod's users felt.
    pub fn cold(self, text: &str) -> String {
        self.with("36", text)
    }

    /// For what wants attention.
    pub fn loud(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour if text.is_empty() => String::new(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}
