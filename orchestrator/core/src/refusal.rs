//! Reasons, word for word. A refusal is not an error: it is the planner's answer, given before anything is frozen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing found: a reason not to migrate, or something that will be different afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// CamelCase like the reason of a Kubernetes condition, stable: scripts may match it.
    pub code: String,
    /// One sentence for the user.
    pub message: String,
    /// What to do about it; "" when there is nothing.
    pub remedy: String,
}

impl Finding {
    /// A finding from its three parts.
    pub fn new(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}
