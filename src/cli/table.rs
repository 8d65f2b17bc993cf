//! Tables for people: aligned columns without lines, no wider than the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::out;

/// A narrower terminal is taken for this: below it no arrangement helps.
const NARROWEST: u16 = 60;

/// A table with these headings; those that start with `>` are aligned to the right.
pub(super) fn new(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(NARROWEST));
    }
    table.set_header(headings.iter().map(|h| h.trim_start_matches('>')));
    for (i, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(i) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// A cell of text that may come from the cluster; `-` where there is none.
pub(super) fn cell(text: &str) -> Cell {
    Cell::new(if text.is_empty() { "-".to_owned() } else { out::plain(text) })
}

/// The table's text without blanks at line ends.
pub(super) fn text(table: &Table) -> String {
    table.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// A byte count for people: `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// An age for people: its two largest units at most.
pub(super) fn age(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default().as_secs();
    let text = humantime::format_duration(std::time::Duration::from_secs(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 1_048_575, 1 << 30, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "16.0 EiB"]);
        let shown: Vec<String> = [0.4, 61.0, 90_061.0, -1.0, f64::NAN].map(age).into();
        assert_eq!(shown, ["0s", "1m 1s", "1day 1h", "0s", "0s"]);
    }

    #[test]
    fn what_comes_from_outside_cannot_steer_the_terminal() {
        assert_eq!(cell("\u{1b}[2Jred").content(), " [2Jred");
        assert_eq!(cell("").content(), "-");
    }
}
