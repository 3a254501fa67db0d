//! A line of `metrics.jsonl`, which is what every other log is made of.

use serde::Serialize;
use serde_json::{Map, Value};

/// One line of `metrics.jsonl`: a step, an evaluation, or what else a run writes down, by the keys of the file.
///
/// All logs are fed with lines instead of with what they were made from, so that a log which is made again from the file is the
/// log that was written first.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(Map<String, Value>);

impl Record {
    /// The line that a record becomes. Numbers that are not finite are `null`.
    ///
    /// # Errors
    /// What is not written as an object.
    pub fn new(record: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(record)?).map(Record)
    }

    /// `None` for what is no JSON object, such as a line that was cut.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().map(Record)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The optimiser step it belongs to.
    pub fn step(&self) -> Option<u64> {
        self.get("step")?.as_u64()
    }

    /// A number of the line; NaN where it was not finite.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Null => Some(f64::NAN),
            value => value.as_f64(),
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The line with its newline.
    pub fn to_line(&self) -> String {
        let mut line = Value::Object(self.0.clone()).to_string();
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_same_after_it_was_read() {
        let line = r#"{"step":1,"epoch":0.011851851851851851,"loss":14.866047106291118,"learning_rate":0.00008,"x":null}"#;
        let record = Record::parse(line).unwrap();
        assert_eq!(record.to_line().trim_end(), line);
        assert_eq!((record.step(), record.number("learning_rate")), (Some(1), Some(8e-5)));
        assert!(record.number("x").unwrap().is_nan() && record.number("y").is_none());
        assert_eq!(Record::parse(&line[..40]), None);
        assert_eq!(Record::parse("7"), None);
    }
}
