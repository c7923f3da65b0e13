//! What is new since the last look at a migration, as lines. Statuses may be skipped between two looks (a watch
//! coalesces), so what happened is read from the list of phases and not from the looks.

use std::collections::BTreeSet;

use super::{table::sentence, units};
use crate::{
    cli::verdict::{self, Standing},
    k8s::resource::{PodMigration, StatusFinding, StatusProgress},
};

/// Remembers what was told.
#[derive(Debug, Default)]
pub struct News {
    phases_told: usize,
    told: BTreeSet<String>,
}

impl News {
    /// The lines that are new. Asked twice with the same object, the second answer is empty.
    pub fn of(&mut self, object: &PodMigration) -> Vec<String> {
        let status = verdict::status(object);
        let mut lines = Vec::new();
        let began = status
            .phases
            .first()
            .and_then(|first| units::unix_micros(&first.entered));
        for entered in status.phases.iter().skip(self.phases_told) {
            let since = match (began, units::unix_micros(&entered.entered)) {
                (Some(began), Some(at)) => format!("{:.2}s", seconds(at.saturating_sub(began))),
                (None, _) | (_, None) => "?".to_owned(),
            };
            let what = verdict::phase_named(&entered.phase).map_or("", verdict::explained);
            lines.push(
                format!("[{since:>7}] {:<10} {what}", entered.phase)
                    .trim_end()
                    .to_owned(),
            );
        }
        self.phases_told = self.phases_told.max(status.phases.len());
        for warning in &status.warnings {
            self.once(&mut lines, "warning", warning);
        }
        if let Some(doubt) = &status.in_doubt {
            self.once(
                &mut lines,
                &format!("in doubt since {}", doubt.since),
                &doubt.what,
            );
        }
        if let Some(stuck) = &status.stuck {
            self.once(&mut lines, "asked again after", stuck);
        }
        lines
    }

    fn once(&mut self, lines: &mut Vec<String>, label: &str, finding: &StatusFinding) {
        let mut line = format!("          {label}: {}", sentence(finding));
        if !finding.remedy.is_empty() {
            line.push_str(&format!(" -> {}", finding.remedy));
        }
        if self.told.insert(line.clone()) {
            lines.push(line);
        }
    }
}

/// The one line that is overwritten on a terminal.
pub fn live(object: &PodMigration) -> String {
    let status = verdict::status(object);
    let doubt = if status.in_doubt.is_some() {
        " (in doubt)"
    } else {
        ""
    };
    let progress = status.progress.as_ref().map(moved).unwrap_or_default();
    match verdict::standing(&status) {
        Standing::Asked => "waiting to be taken up".to_owned(),
        Standing::In(phase) => {
            format!("{phase}{doubt}: {}{progress}", verdict::explained(phase))
        }
        Standing::Unreadable(word) => format!("{word}{doubt}"),
    }
}

fn moved(progress: &StatusProgress) -> String {
    let StatusProgress {
        what,
        done_bytes,
        total_bytes,
    } = progress;
    let of = match total_bytes {
        0 => String::new(),
        total => format!(" of {}", units::bytes(*total)),
    };
    format!(" ({what}: {}{of})", units::bytes(*done_bytes))
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn the_live_line_says_how_far_a_step_has_come() {
        let mut object = golden::recorded("in-doubt");
        let progress = |total_bytes| StatusProgress {
            what: "save".to_owned(),
            done_bytes: 2048,
            total_bytes,
        };
        let mut line = |progress| {
            if let Some(status) = &mut object.status {
                status.progress = Some(progress);
            }
            live(&object)
        };
        let known = line(progress(4096));
        assert!(known.ends_with(" (save: 2.0KiB of 4.0KiB)"), "{known}");
        let unknown = line(progress(0));
        assert!(unknown.ends_with(" (save: 2.0KiB)"), "{unknown}");
    }

    #[test]
    fn nothing_is_told_twice_and_nothing_is_skipped() {
        let end = golden::recorded("succeeded");
        let mut early = end.clone();
        if let Some(status) = &mut early.status {
            status.phases.truncate(2);
            status.warnings.clear();
        }
        let mut news = News::default();
        let first = news.of(&early);
        let second = news.of(&end);
        assert_eq!(first.len(), 2);
        assert_eq!(news.of(&end), Vec::<String>::new());
        assert_eq!([first, second].concat(), News::default().of(&end));
    }
}
