//! `metrics.csv`: a row per step and per evaluation, each with the columns that it has filled.

use super::appended::Appended;
use super::{MetricsError, Record, Sink};
use serde_json::Value;
use std::io;
use std::path::Path;

pub(super) const CSV_FILE: &str = "metrics.csv";

/// Columns in order, by their keys in `metrics.jsonl`.
const COLUMNS: [&str; 11] = [
    "step",
    "epoch",
    "loss",
    "val_loss",
    "val_ppl",
    "learning_rate",
    "grad_norm",
    "tokens",
    "label_tokens",
    "tokens_per_s",
    "elapsed_s",
];

pub(super) struct Csv(Appended);

impl Csv {
    /// Starts the file with the rows of these records.
    pub fn create(out_dir: &Path, records: &[Record]) -> Result<Self, MetricsError> {
        let path = out_dir.join(CSV_FILE);
        let mut text = COLUMNS.join(",").into_bytes();
        text.push(b'\n');
        for record in records {
            text.extend(row(record).map_err(MetricsError::write(&path))?);
        }
        Ok(Csv(Appended::create(path, &text)?))
    }
}

impl Sink for Csv {
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let row = row(record).map_err(MetricsError::write(self.0.path()))?;
        self.0.append(&row)
    }
}

/// The row of a record; nothing where it has no number beside its step.
fn row(record: &Record) -> io::Result<Vec<u8>> {
    let cells = COLUMNS.map(|column| match record.get(column) {
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    });
    if cells[1..].iter().all(String::is_empty) {
        return Ok(Vec::new());
    }
    let mut row = csv::Writer::from_writer(Vec::new());
    row.write_record(&cells)?;
    row.into_inner().map_err(|error| error.into_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn rows_follow_the_lines() {
        let folder = tempfile::tempdir().unwrap();
        let record = |line: &str| Record::parse(line).unwrap();
        let step = record(
            r#"{"step":1,"epoch":0.5,"loss":2.25,"grad_norm":null,"learning_rate":0.0003,"tokens":9,"label_tokens":4,"tokens_per_s":8.5,"elapsed_s":1.0}"#,
        );
        let mut csv = Csv::create(folder.path(), &[step]).unwrap();
        csv.write(&record(r#"{"step":1,"val_loss":0.0,"val_ppl":1.0}"#)).unwrap();
        csv.write(&record(r#"{"step":1,"prompt":"a, b","text":"c"}"#)).unwrap();
        let expected = "step,epoch,loss,val_loss,val_ppl,learning_rate,grad_norm,tokens,label_tokens,tokens_per_s,elapsed_s\n\
                        1,0.5,2.25,,,0.0003,,9,4,8.5,1.0\n\
                        1,,,0.0,1.0,,,,,,\n";
        assert_eq!(fs::read_to_string(folder.path().join("metrics.csv")).unwrap(), expected);
    }
}
