//! The keys of a configuration file, read with errors that name file and key.

use super::ConfigError;
use serde_json::{Map, Value};
use std::path::Path;

/// Sizes beyond this are a broken file; products of two of them still fit in 64 bits.
pub(super) const MAX_SIZE: u64 = 1 << 31;

/// The object of a file (or one within it) with errors that name file and key.
pub(super) struct Keys<'a> {
    pub file: &'a Path,
    pub object: &'a Map<String, Value>,
    pub prefix: String,
}

impl<'a> Keys<'a> {
    /// `null` is the same as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub fn optional<T>(
        &self,
        key: &str,
        read: fn(&Self, &str) -> Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(key).map(|_| read(self, key)).transpose()
    }

    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.required(key)?;
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(size as usize),
            _ => Err(self.wrong(key, value, format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    /// A whole number from 0 on.
    pub fn count(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.required(key)?;
        match value.as_u64() {
            Some(count @ 0..=MAX_SIZE) => Ok(count as usize),
            _ => Err(self.wrong(key, value, format!("a whole number from 0 to {MAX_SIZE}"))),
        }
    }

    pub fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.required(key)?;
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= MAX_SIZE as f64 => Ok(number),
            _ => Err(self.wrong(key, value, format!("a number above 0, at most {MAX_SIZE}"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.required(key)?;
        value.as_f64().ok_or_else(|| self.wrong(key, value, "a number".into()))
    }

    pub fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        let value = self.required(key)?;
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false".into()))
    }

    pub fn text(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.required(key)?;
        value.as_str().ok_or_else(|| self.wrong(key, value, "a text".into()))
    }

    /// An object within; one without entries is the same as absent.
    pub fn inner(&self, key: &str, prefix: &str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) if object.is_empty() => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Keys { file: self.file, object, prefix: self.full(prefix) }))
            }
            Some(value) => Err(self.wrong(key, value, "an object".into())),
        }
    }

    pub fn required(&self, key: &str) -> Result<&'a Value, ConfigError> {
        let missing = || ConfigError::KeyMissing { file: self.file.to_path_buf(), key: self.full(key) };
        self.get(key).ok_or_else(missing)
    }

    pub fn wrong(&self, key: &str, value: &Value, expected: String) -> ConfigError {
        ConfigError::Value {
            file: self.file.to_path_buf(),
            key: self.full(key),
            value: short(value),
            expected,
        }
    }

    pub fn refused(&self, key: &str, value: &Value, reason: &'static str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_path_buf(),
            key: self.full(key),
            value: short(value),
            reason,
        }
    }

    pub fn inconsistent(&self, reason: String) -> ConfigError {
        ConfigError::Inconsistent { file: self.file.to_path_buf(), reason }
    }

    pub fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// Equal, with whole numbers and floats compared by value.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// A value for a message: its beginning, should it be long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
