//! Tables for people: columns as wide as what stands in them, whatever the alphabet; nothing is cut off.

use crate::human;
use std::fmt;
use unicode_width::UnicodeWidthStr as _;

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A head that ends with `>` stands over numbers, which are set flush right.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; what is empty shows as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells =
            cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { human::safe(&cell) });
        self.rows.push(cells.collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<String> =
            self.heads.iter().map(|head| head.trim_end_matches('>').to_string()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).chain(heads.get(column));
            cells.map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), head) in row.iter().zip(&widths).zip(&self.heads) {
                let space = " ".repeat(width.saturating_sub(cell.width()));
                let (before, after) =
                    if head.ends_with('>') { (space, String::new()) } else { (String::new(), space) };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up_in_any_alphabet() {
        let mut table = Table::new(&["NAME", "SIZE>"]);
        table.row(["写真".into(), "1 B".into()]);
        table.row(["a b".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME  SIZE\n写真   1 B\na b      -\n");
    }
}
