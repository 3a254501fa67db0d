//! Amounts of memory as people write them: `8GiB`, `7.5GB`, `512MiB`.

use thiserror::Error;

/// Text that is no amount of memory.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}; write an amount such as 6GiB (6 times 2^30 bytes), 7.5GB (7.5 times 10^9) or 512MiB")]
pub struct MemorySizeError(String);

const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

/// Bytes of an amount with its unit, in any case, with or without a space; at least one byte.
///
/// # Errors
/// A missing or unknown unit, a number that is none, an amount of zero or beyond 2^63 bytes.
pub fn parse_memory_size(text: &str) -> Result<u64, MemorySizeError> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (number, unit) = (lower[..digits].trim(), &lower[digits..]);
    let said = |reason: &str| MemorySizeError(format!("{text:?} {reason}"));
    let value: f64 = number.parse().map_err(|_| said("begins with no number"))?;
    let factor = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => return Err(said("has no unit")),
        None => return Err(said("has a unit that is not known")),
    };
    let bytes = value * factor as f64;
    // also refuses what is not a number
    if !(1.0..=i64::MAX as f64).contains(&bytes) {
        return Err(said("is not a possible amount"));
    }
    Ok(bytes as u64)
}

/// Bytes to read: MiB below a GiB, GiB from there on.
pub fn memory_text(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_every_spelling() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("7.5GB", 7_500_000_000),
            ("512 mib", 512 << 20),
            (" 1tb ", 1_000_000_000_000),
            ("64kib", 64 << 10),
            ("4096B", 4096),
        ] {
            assert_eq!(parse_memory_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_said_with_an_example() {
        for (text, said) in [
            ("8", "no unit"),
            ("8G", "unit that is not known"),
            ("GiB", "no number"),
            ("", "no number"),
            ("-1GiB", "not a possible amount"),
            ("0GiB", "not a possible amount"),
            ("1e30GiB", "unit that is not known"),
            ("nanGiB", "no number"),
            ("99999999999TiB", "not a possible amount"),
        ] {
            let error = parse_memory_size(text).unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("6GiB") && error.contains(text),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(memory_text(16 << 20), "16.0 MiB");
        assert_eq!(memory_text(3 << 29), "1.50 GiB");
    }
}
