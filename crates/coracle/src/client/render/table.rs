//! Tables for people: columns as wide as their widest cell, two spaces between, nothing else.
//!
//! What a cell holds was written by others, so characters that would steer a terminal are shown as `?`.

use std::io::{self, Write};

/// Rows beneath their heads.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table with these heads and no rows.
    pub(crate) fn new(heads: [&str; COLUMNS]) -> Self {
        Self { rows: vec![heads.map(String::from)] }
    }

    /// Adds a row at the end.
    pub(crate) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()));
    }

    /// Writes it; lines do not end in spaces.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let widths = self.widths();
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn widths(&self) -> [usize; COLUMNS] {
        let mut widths = [0; COLUMNS];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<const COLUMNS: usize>(table: &Table<COLUMNS>) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["ID", "NAME", "AGE"]);
        table.row(["0123".into(), "é".into(), "3m".into()]);
        table.row(["1".into(), "longer".into(), String::new()]);
        assert_eq!(text(&table), "ID    NAME    AGE\n0123  é       3m\n1     longer\n");
    }

    #[test]
    fn an_empty_table_is_its_heads() {
        assert_eq!(text(&Table::new(["A", "B"])), "A  B\n");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["x\x1b[2J\ny".into()]);
        assert_eq!(text(&table), "A\nx?[2J?y\n");
    }
}
