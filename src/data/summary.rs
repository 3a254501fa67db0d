//! What a dataset amounts to, as a table to read before a run and as JSON to keep with it.

use std::fmt;

use serde::Serialize;

use super::store::RowEntry;

/// One part of a dataset in figures. `samples` and `without_label` together are its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SplitSummary {
    /// Samples that are used: those with at least one label.
    pub samples: usize,
    /// Their tokens, after truncation.
    pub tokens: usize,
    /// Their tokens that carry a label.
    pub label_tokens: usize,
    /// Tokens of the longest of them, after truncation.
    pub longest: usize,
    /// Tokens of the longest row before truncation, used or not.
    pub longest_untruncated: usize,
    /// How many of the samples were cut.
    pub truncated: usize,
    /// Rows that are left out because no label was left.
    pub without_label: usize,
}

impl SplitSummary {
    pub(super) fn add(&mut self, row: &RowEntry) {
        let (tokens, full_length) = (row.tokens as usize, row.full_length as usize);
        self.longest_untruncated = self.longest_untruncated.max(full_length);
        if row.label_tokens == 0 {
            self.without_label += 1;
            return;
        }
        self.samples += 1;
        self.tokens += tokens;
        self.label_tokens += row.label_tokens as usize;
        self.longest = self.longest.max(tokens);
        self.truncated += usize::from(tokens < full_length);
    }
}

/// A dataset in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DataSummary {
    pub max_seq_length: Option<usize>,
    pub train: SplitSummary,
    pub validation: SplitSummary,
}

impl fmt::Display for DataSummary {
    /// A table of one line per part, and a line for each loss that the user should know of. No newline at the
    /// end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.train, &self.validation];
        let cells = parts.map(|part| part.columns().map(grouped));
        let width = |i: usize| cells.iter().map(|row| row[i].len()).fold(COLUMNS[i].len(), usize::max);
        write!(f, "{:10}", "")?;
        for (i, name) in COLUMNS.iter().enumerate() {
            write!(f, "  {name:>width$}", width = width(i))?;
        }
        for (name, row) in ["training", "validation"].iter().zip(&cells) {
            write!(f, "\n{name:10}")?;
            for (i, cell) in row.iter().enumerate() {
                write!(f, "  {cell:>width$}", width = width(i))?;
            }
        }
        if let Some(max) = self.max_seq_length
            && parts.iter().any(|part| part.truncated > 0)
        {
            let longest = parts.map(|part| part.longest_untruncated);
            write!(
                f,
                "\ntruncated: cut after {} tokens (max_seq_length); the longest has {}",
                grouped(max),
                grouped(longest[0].max(longest[1]))
            )?;
        }
        if parts.iter().any(|part| part.without_label > 0) {
            write!(f, "\nno label: left out, because no token of the answer is left after the prompt")?;
        }
        Ok(())
    }
}

const COLUMNS: [&str; 6] = ["samples", "tokens", "label tokens", "longest", "truncated", "no label"];

impl SplitSummary {
    /// The figures under [`COLUMNS`].
    fn columns(&self) -> [usize; 6] {
        [self.samples, self.tokens, self.label_tokens, self.longest, self.truncated, self.without_label]
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_aligned_and_says_what_was_lost() {
        let mut summary = DataSummary {
            max_seq_length: Some(1024),
            train: SplitSummary {
                samples: 450,
                tokens: 1_112_331,
                label_tokens: 98_765,
                longest: 1024,
                longest_untruncated: 1300,
                truncated: 12,
                without_label: 3,
            },
            validation: SplitSummary {
                samples: 50,
                tokens: 9_999,
                label_tokens: 1_000,
                longest: 700,
                longest_untruncated: 700,
                truncated: 0,
                without_label: 0,
            },
        };
        let expected = [
            "            samples     tokens  label tokens  longest  truncated  no label",
            "training        450  1,112,331        98,765    1,024         12         3",
            "validation       50      9,999         1,000      700          0         0",
            "truncated: cut after 1,024 tokens (max_seq_length); the longest has 1,300",
            "no label: left out, because no token of the answer is left after the prompt",
        ];
        assert_eq!(summary.to_string(), expected.join("\n"));
        summary.train.truncated = 0;
        summary.train.without_label = 0;
        assert_eq!(summary.to_string().lines().count(), 3);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        let all = [0, 999, 1_000, 12_345, 123_456, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "12,345", "123,456", "1,234,567"]);
    }
}
