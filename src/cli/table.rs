//! Tables for people: one line a row, fitted to the terminal.

use crate::domain::text::escaped;
use console::{Style, Term, measure_text_width, truncate_str};

/// The narrowest terminal that a table is fitted to.
const NARROW: usize = 40;
/// Columns up to this width are shown whole, or not at all.
const WHOLE: usize = 19;
/// What others are cut to at most.
const LEAST: usize = 12;
/// Columns that are never left out: what tells rows apart, and how they stand.
const KEPT: [&str; 5] = ["", "ID", "NAME", "AGENT", "STATUS"];
/// Columns that are left out when nothing else helps.
const WANTED: [&str; 2] = ["OUTPUT", "ERROR"];
/// Spaces between columns.
const GAP: usize = 2;

/// Rows under a header. Control characters are escaped. On a terminal, columns for which there is no room are left out,
/// long cells are cut, and states have colours.
pub(super) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let terminal = Term::stdout();
    let width = terminal.size_checked().map(|(_, columns)| usize::from(columns)).filter(|columns| *columns > 0);
    lay_out(header, rows, width.map(|columns| columns.max(NARROW)), console::colors_enabled())
}

fn lay_out(header: &[String], rows: &[Vec<String>], width: Option<usize>, has_colours: bool) -> String {
    let shown = |row: &[String]| row.iter().map(|cell| escaped(cell).into_owned()).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).map(shown).collect();
    let natural =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| measure_text_width(cell)).max();
    let natural: Vec<usize> = (0..header.len()).map(|column| natural(column).unwrap_or_default()).collect();
    let is_filled =
        |column: usize| lines.iter().skip(1).any(|line| line.get(column).is_some_and(|cell| !cell.is_empty()));
    let is_filled: Vec<bool> = (0..header.len()).map(is_filled).collect();
    let columns = columns(header, &natural, &is_filled, width);
    let text = |(number, line): (usize, &Vec<String>)| {
        let mut text = String::new();
        for (column, width) in &columns {
            let cell = line.get(*column).map(String::as_str).unwrap_or_default();
            let cut = truncate_str(cell, *width, "…");
            let room = " ".repeat(width - measure_text_width(&cut) + GAP);
            let colour = colour(cell).filter(|_| number > 0 && header[*column] == "STATUS");
            match colour {
                Some(style) => text.push_str(&style.force_styling(has_colours).apply_to(cut).to_string()),
                None => text.push_str(&cut),
            }
            text.push_str(&room);
        }
        text.truncate(text.trim_end().len());
        text
    };
    lines.iter().enumerate().map(text).collect::<Vec<_>>().join("\n")
}

/// The columns that are shown, each with its width.
fn columns(header: &[String], natural: &[usize], is_filled: &[bool], width: Option<usize>) -> Vec<(usize, usize)> {
    let mut columns: Vec<(usize, usize)> = natural.iter().copied().enumerate().collect();
    let Some(width) = width else { return columns };
    let is_whole = |column: usize| natural[column] <= WHOLE || header[column] == "ID";
    for (column, width) in &mut columns {
        if !is_whole(*column) {
            *width = LEAST;
        }
    }
    let taken =
        |columns: &[(usize, usize)]| columns.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP);
    let is_kept = |column: usize| KEPT.contains(&header[column].as_str());
    let is_wanted = |column: usize| is_filled[column] && WANTED.contains(&header[column].as_str());
    while taken(&columns) > width && columns.len() > 1 {
        let last = columns.iter().rposition(|(column, _)| !is_kept(*column) && !is_wanted(*column));
        let widest = columns.iter().enumerate().max_by_key(|(_, (_, width))| *width).map_or(0, |(at, _)| at);
        if let Some(last) = last {
            columns.remove(last);
        } else if columns[widest].1 > LEAST {
            columns[widest].1 -= 1;
        } else if let Some(last) = columns.iter().rposition(|(column, _)| !is_kept(*column)) {
            columns.remove(last);
        } else {
            break;
        }
    }
    let mut room = width.saturating_sub(taken(&columns));
    for (column, width) in &mut columns {
        let more = (natural[*column] - *width).min(room);
        *width += more;
        room -= more;
    }
    columns
}

/// The colour of a state.
fn colour(state: &str) -> Option<Style> {
    match state {
        "succeeded" | "completed" | "online" => Some(Style::new().green()),
        "failed" | "timed_out" | "undeliverable" => Some(Style::new().red()),
        "expired" | "cancelled" | "paused" | "offline" => Some(Style::new().yellow()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn a_row_is_one_line_without_spaces_at_its_end() {
        let rows = [texts(&["1", "a\nb\u{1b}[2J"]), texts(&["22", ""])];
        assert_eq!(lay_out(&texts(&["ID", "NAME"]), &rows, None, false), "ID  NAME\n1   a\\nb\\u{1b}[2J\n22");
    }

    #[test]
    fn a_narrow_terminal_shows_fewer_columns_and_cuts_long_names() {
        let header = texts(&["NAME", "STATUS", "TRANSPORT", "LABELS"]);
        let rows = [texts(&["web-1.berlin.example.com", "succeeded", "stream", "{\"role\":\"web\"}"])];
        let wide = lay_out(&header, &rows, Some(80), false);
        assert!(wide.contains("web-1.berlin.example.com  succeeded  stream     {"), "{wide}");
        let narrow = lay_out(&header, &rows, Some(40), false);
        assert_eq!(narrow, "NAME                STATUS     TRANSPORT\nweb-1.berlin.exam…  succeeded  stream");
    }

    #[test]
    fn outputs_and_errors_are_left_out_last() {
        let header = texts(&["AGENT", "STATUS", "RUNS", "TOOK", "OUTPUT", "ERROR"]);
        let row = |output, error| [texts(&["web-1.example.com", "failed", "1", "0.1s", output, error])];
        let narrow = |output, error| lay_out(&header, &row(output, error), Some(40), false);
        assert_eq!(
            narrow("Linux web-1 6.1.0", ""),
            "AGENT            STATUS  OUTPUT\nweb-1.example.…  failed  Linux web-1 6.…"
        );
        assert_eq!(
            narrow("", "exit code 1"),
            "AGENT              STATUS  ERROR\nweb-1.example.com  failed  exit code 1"
        );
        let both = narrow("some long output", "some long error");
        assert_eq!(both, "AGENT              STATUS  OUTPUT\nweb-1.example.com  failed  some long ou…");
    }

    #[test]
    fn states_have_colours_where_they_are_wanted() {
        let (header, rows) = (texts(&["STATUS", "OUTPUT"]), [texts(&["failed", "failed"])]);
        assert_eq!(lay_out(&header, &rows, None, true), "STATUS  OUTPUT\n\u{1b}[31mfailed\u{1b}[0m  failed");
        assert!(!lay_out(&header, &rows, None, false).contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal_unless_names_alone_are(
            cells in prop::collection::vec(prop::collection::vec("[a-zü你]{0,40}", 5), 0..4),
            width in NARROW..200_usize,
        ) {
            let header = texts(&["AGENT", "STATUS", "RUNS", "OUTPUT", "ERROR"]);
            for line in lay_out(&header, &cells, Some(width), false).lines() {
                prop_assert!(measure_text_width(line) <= width, "{line}");
            }
        }
    }
}
