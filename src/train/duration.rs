//! Spans of time as people write them: `2h`, `90m`, `1h30m`, `45s`, or a number of seconds.

use thiserror::Error;

/// Text that is no span of time.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no span of time; write one such as 2h, 90m, 1h30m or 45s, or a number of seconds")]
pub struct DurationError(String);

/// Seconds of a span: numbers with `d`, `h`, `m` or `s`, the larger first, or a plain number of seconds; above zero.
///
/// # Errors
/// Text that is none, a span of zero.
pub fn parse_duration(text: &str) -> Result<f64, DurationError> {
    let unknown = || DurationError(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let seconds = match lower.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let mut units = [('d', 86_400.0), ('h', 3_600.0), ('m', 60.0), ('s', 1.0)].into_iter();
            let (mut rest, mut total) = (lower.as_str(), 0.0);
            while !rest.is_empty() {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(unknown)?;
                let number: f64 = rest[..end].trim().parse().map_err(|_| unknown())?;
                let unit = rest[end..].chars().next().ok_or_else(unknown)?;
                let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(unknown)?;
                total += number * factor;
                rest = rest[end + 1..].trim_start();
            }
            total
        }
    };
    // also refuses what is not a number
    match (0.001..1e9).contains(&seconds) {
        true => Ok(seconds),
        false => Err(unknown()),
    }
}

/// `5s`, `2m 05s`, `3h 07m`.
pub fn duration_text(seconds: f64) -> String {
    let total = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m {seconds:02}s"),
        _ => format!("{hours}h {minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_in_every_spelling() {
        for (text, seconds) in [
            ("2h", 7_200.0),
            ("90m", 5_400.0),
            ("1h30m", 5_400.0),
            ("1d 2h", 93_600.0),
            (" 45 s", 45.0),
            ("3600", 3_600.0),
            ("0.5", 0.5),
            ("1.5h", 5_400.0),
        ] {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_said_with_an_example() {
        for text in ["", "h", "2x", "2h3", "30m1h", "0", "-1h", "nan", "inf", "1e400"] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("90m"), "{text}: {error}");
        }
    }

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [(4.6, "5s"), (125.0, "2m 05s"), (11_240.0, "3h 07m"), (f64::NAN, "0s")] {
            assert_eq!(duration_text(seconds), text);
        }
    }
}
