//! Tables. Pure.

use std::fmt::Write as _;

/// A table: a heading and rows, columns as wide as they need; those after the first `left` stand to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    /// A table with this heading, whose first `left` columns stand to the left.
    pub(crate) fn new(heading: &[&str], left: usize) -> Self {
        Self { rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()], left }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines, each indented and ended.
    pub(crate) fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max())
            .map(|width| width.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column > 0 { "  " } else { "" };
                let (before, after) = if column < self.left { ("", space) } else { (space.as_str(), String::new()) };
                // Writing to a String does not fail.
                if write!(line, "{gap}{before}{cell}{after}").is_err() {
                    return text;
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn a_table_is_as_wide_as_it_needs_to_be() {
        let mut table = Table::new(&["NAME", "READY"], 1);
        table.row(vec!["a_long_name".to_owned(), "1".to_owned()]);
        table.row(vec!["é".to_owned(), "1,000".to_owned()]);
        assert_eq!(table.render("  "), "  NAME         READY\n  a_long_name      1\n  é            1,000\n");
    }
}
