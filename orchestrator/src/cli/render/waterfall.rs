//! Where the time went, drawn: one row a phase, below it its spans, a bar each on one time axis.
//!
//! ```text
//! phases and spans ─► rows (a tree, flattened in order of time) ─► lines of at most 100 characters
//! ```
//!
//! The freeze is the span named `freeze`: its columns are shaded through the whole picture, so that what happened
//! while nobody ran the pod is seen at a glance. A trace without it is drawn unshaded. A span whose parent isn't in
//! the trace (a repeated step may have pushed it out) hangs below its phase; none is left out.

use super::{Ink, units};
use crate::cli::verdict;
use crate::k8s::resource::{PodMigrationStatus, StatusSpan};

/// Columns: 29 + 1 + 12 + 2 + 36 + 2 + 8 + 1 + 9 = 100 characters; "orchestrator" has 12.
const NAME_CHARS: usize = 29;
const PLACE_CHARS: usize = 12;
const BAR_CHARS: usize = 36;
const DURATION_CHARS: usize = 8;
const BYTES_CHARS: usize = 9;
/// Deeper spans are drawn at this depth: names need the room.
const DEPTH_MAX: usize = 5;
/// A label of the axis and a gap take about 9 characters: 36 / 9.
const TICKS_MAX: u64 = 4;
/// Phases are stamped by the leader in whole milliseconds, spans by workers whose clocks are corrected to a few.
const CLOCK_SLACK_MICROS: u64 = 5_000;
/// The span that is the freeze.
const FREEZE: &str = "freeze";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Freeze,
    Phase,
    /// The phase it ended in: a moment.
    End,
    Span,
}

#[derive(Clone, Debug)]
struct Row {
    kind: Kind,
    depth: usize,
    name: String,
    place: String,
    start: u64,
    end: u64,
    bytes: Option<u64>,
}

/// The picture; "" when there is nothing to draw.
pub fn waterfall(status: &PodMigrationStatus, ink: Ink) -> String {
    let rows = rows(status);
    let Some(begin) = rows.iter().map(|row| row.start).min() else {
        return String::new();
    };
    let end = rows.iter().map(|row| row.end).max().unwrap_or(begin);
    let scale = Scale {
        begin,
        span: (end - begin).max(1),
    };
    let frozen = rows
        .iter()
        .find(|row| row.kind == Kind::Freeze)
        .map(|row| scale.cells(row.start, row.end));
    let mut text = axis(scale);
    for row in &rows {
        text.push_str(&line(row, scale, frozen, ink));
        text.push('\n');
    }
    text
}

#[derive(Clone, Copy)]
struct Scale {
    begin: u64,
    span: u64,
}

impl Scale {
    /// Cells from..to of the bar; at least one.
    fn cells(self, start: u64, end: u64) -> (usize, usize) {
        let bar = BAR_CHARS as u64;
        let cell = |at: u64| at.saturating_sub(self.begin).saturating_mul(bar);
        let from = (cell(start) / self.span).min(bar - 1);
        let to = cell(end).div_ceil(self.span).clamp(from + 1, bar);
        (as_cells(from), as_cells(to))
    }
}

fn as_cells(count: u64) -> usize {
    usize::try_from(count).unwrap_or(BAR_CHARS)
}

/// Phases with their spans below them, in order of time; the freeze on top.
fn rows(status: &PodMigrationStatus) -> Vec<Row> {
    let phases: Vec<(&str, u64)> = status
        .phases
        .iter()
        .filter_map(|entry| Some((entry.phase.as_str(), units::unix_micros(&entry.entered)?)))
        .collect();
    let mut spans: Vec<&StatusSpan> = status.trace.iter().collect();
    // A parent comes before its children in this order, which is also what keeps the tree free of circles.
    spans.sort_by_key(|span| (span.start_micros, std::cmp::Reverse(span.end_micros)));
    let last = spans
        .iter()
        .map(|span| span.end_micros)
        .chain(phases.iter().map(|phase| phase.1))
        .max();

    let mut rows = Vec::new();
    for freeze in spans.iter().filter(|span| span.name == FREEZE) {
        rows.push(Row {
            kind: Kind::Freeze,
            ..span_row(freeze, 0)
        });
    }
    spans.retain(|span| span.name != FREEZE);
    let phase_of = |span: &StatusSpan| {
        phases.iter().rposition(|(_, entered)| {
            *entered <= span.start_micros.saturating_add(CLOCK_SLACK_MICROS)
        })
    };
    push_tree(&mut rows, &of_phase(&spans, phase_of, None), None, 0);
    for (index, (name, entered)) in phases.iter().enumerate() {
        let ended =
            verdict::phase_named(name).is_some_and(orchestrator_core::migration::Phase::ended);
        let until = phases
            .get(index + 1)
            .map(|next| next.1)
            .or(if ended { None } else { last });
        rows.push(Row {
            kind: if ended { Kind::End } else { Kind::Phase },
            depth: 0,
            name: (*name).to_owned(),
            place: String::new(),
            start: *entered,
            end: until.unwrap_or(*entered).max(*entered),
            bytes: None,
        });
        push_tree(&mut rows, &of_phase(&spans, phase_of, Some(index)), None, 1);
    }
    rows
}

fn of_phase<'a>(
    spans: &[&'a StatusSpan],
    phase_of: impl Fn(&StatusSpan) -> Option<usize>,
    phase: Option<usize>,
) -> Vec<(&'a StatusSpan, Option<usize>)> {
    let group: Vec<&StatusSpan> = spans
        .iter()
        .filter(|span| phase_of(span) == phase)
        .copied()
        .collect();
    group
        .iter()
        .enumerate()
        .map(|(index, span)| (*span, parent_of(&group, index)))
        .collect()
}

/// The latest span before it of the parent's name, at the same place.
fn parent_of(group: &[&StatusSpan], index: usize) -> Option<usize> {
    let span = group[index];
    group[..index].iter().rposition(|other| {
        !span.parent.is_empty() && other.name == span.parent && other.place == span.place
    })
}

fn push_tree(
    rows: &mut Vec<Row>,
    group: &[(&StatusSpan, Option<usize>)],
    below: Option<usize>,
    depth: usize,
) {
    for (index, (span, parent)) in group.iter().enumerate() {
        if *parent == below {
            rows.push(span_row(span, depth));
            push_tree(rows, group, Some(index), depth + 1);
        }
    }
}

fn span_row(span: &StatusSpan, depth: usize) -> Row {
    let StatusSpan {
        name,
        place,
        parent: _,
        start_micros,
        end_micros,
        attributes,
    } = span;
    Row {
        kind: Kind::Span,
        depth: depth.min(DEPTH_MAX),
        name: name.clone(),
        place: place.clone(),
        start: *start_micros,
        end: (*end_micros).max(*start_micros),
        bytes: attributes.get("bytes").and_then(|bytes| bytes.parse().ok()),
    }
}

fn line(row: &Row, scale: Scale, frozen: Option<(usize, usize)>, ink: Ink) -> String {
    let name = cut(
        &format!("{}{}", "  ".repeat(row.depth), row.name),
        NAME_CHARS,
    );
    let name = match row.kind {
        Kind::Phase | Kind::End => ink.loud(&name),
        Kind::Freeze => ink.cold(&name),
        Kind::Span => name,
    };
    let place = cut(&row.place, PLACE_CHARS);
    let duration = match row.kind {
        Kind::End => String::new(),
        Kind::Phase | Kind::Freeze | Kind::Span => units::micros(row.end - row.start),
    };
    let bytes = row.bytes.map(units::bytes).unwrap_or_default();
    let bar = bar(row, scale, frozen, ink);
    format!("{name} {place} |{bar}| {duration:>DURATION_CHARS$} {bytes:>BYTES_CHARS$}")
        .trim_end()
        .to_owned()
}

fn bar(row: &Row, scale: Scale, frozen: Option<(usize, usize)>, ink: Ink) -> String {
    let (from, to) = scale.cells(row.start, row.end);
    let mark = match row.kind {
        Kind::Freeze => '▓',
        Kind::Phase => '━',
        Kind::End => '◆',
        Kind::Span => '█',
    };
    let shaded = |cell: usize| frozen.is_some_and(|(from, to)| (from..to).contains(&cell));
    // Cells of one look are painted together, so that colour costs few bytes.
    let mut text = String::new();
    let mut cell = 0;
    while cell < BAR_CHARS {
        let look = |cell: usize| ((from..to).contains(&cell), shaded(cell));
        let run = (cell..BAR_CHARS)
            .take_while(|next| look(*next) == look(cell))
            .count();
        let (filled, cold) = look(cell);
        let glyph = match (filled, cold) {
            (true, _) => mark,
            (false, true) => '░',
            (false, false) => ' ',
        };
        let painted: String = std::iter::repeat_n(glyph, run).collect();
        text.push_str(&if cold { ink.cold(&painted) } else { painted });
        cell += run;
    }
    text
}

/// `0    500ms   1.00s`, each label beginning at its place.
fn axis(scale: Scale) -> String {
    let step = tick_step(scale.span);
    let mut cells: Vec<char> = vec![' '; BAR_CHARS];
    let mut free_from = 0;
    let mut tick = 0;
    while tick <= scale.span {
        let (at, _) = scale.cells(scale.begin + tick, scale.begin + tick);
        let label: Vec<char> = units::micros(tick).chars().collect();
        if at >= free_from && at + label.len() <= BAR_CHARS {
            cells[at..at + label.len()].copy_from_slice(&label);
            free_from = at + label.len() + 1;
        }
        tick += step;
    }
    let labels: String = cells.into_iter().collect();
    format!(
        "{:width$}{}\n",
        "",
        labels.trim_end(),
        width = NAME_CHARS + 1 + PLACE_CHARS + 2
    )
}

/// The least of 1, 2, 5, 10, 20 … microseconds that makes no more than [`TICKS_MAX`] ticks.
fn tick_step(span: u64) -> u64 {
    (0..=18)
        .flat_map(|zeros| [1, 2, 5].map(|digit| digit * 10_u64.pow(zeros)))
        .find(|step| span / step <= TICKS_MAX)
        .unwrap_or(span)
}

/// Exactly so many characters.
fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return format!("{text:<chars$}");
    }
    let kept: String = text.chars().take(chars - 1).collect();
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn no_line_is_wider_than_a_hundred_columns_and_no_span_is_left_out() {
        let status = verdict::status(&golden::recorded("succeeded"));
        let text = waterfall(&status, Ink::Plain);
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        // The axis, each phase, each span (the freeze among them).
        assert_eq!(
            text.lines().count(),
            1 + status.phases.len() + status.trace.len()
        );
    }

    #[test]
    fn spans_that_name_each_other_as_parents_are_still_drawn() {
        let span = |name: &str, parent: &str| StatusSpan {
            name: name.to_owned(),
            parent: parent.to_owned(),
            start_micros: 10,
            end_micros: 20,
            ..Default::default()
        };
        let status = PodMigrationStatus {
            trace: vec![
                span("a", "b"),
                span("b", "a"),
                span("c", "c"),
                span("d", "gone"),
            ],
            ..Default::default()
        };
        assert_eq!(waterfall(&status, Ink::Plain).lines().count(), 5);
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        assert_eq!(waterfall(&PodMigrationStatus::default(), Ink::Plain), "");
    }

    #[test]
    fn colour_changes_no_character() {
        let status = verdict::status(&golden::recorded("succeeded"));
        let mut coloured = waterfall(&status, Ink::Colour);
        assert!(coloured.contains("\x1b[36m"));
        for code in ["\x1b[36m", "\x1b[1m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, waterfall(&status, Ink::Plain));
    }
}
