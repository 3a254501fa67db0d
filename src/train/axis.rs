//! Axes of charts: the extent of what is shown, round ticks, and the way from a value to a place.

use super::figures::short;
use serde::Serialize;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Linear from zero on.
    FromZero,
    /// Over the values alone; logarithmic where they are positive and span more than a factor of 30.
    Fitted,
}

/// Extent of a chart in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    /// Logarithmic.
    pub log: bool,
}

/// A label of an axis.
#[derive(Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Percent of the axis from its low end.
    pub at: f64,
    pub text: String,
}

impl Axis {
    /// An axis on which values from `low` to `high`, both finite, are seen with a little room.
    pub fn new(scale: Scale, low: f64, high: f64) -> Self {
        if scale == Scale::Fitted && low > 0.0 && high > 30.0 * low {
            let room = (high / low).powf(0.05);
            return Axis { low: low / room, high: high * room, log: true };
        }
        let low = if scale == Scale::FromZero { low.min(0.0) } else { low };
        let room = if high > low { 0.06 * (high - low) } else { high.abs().max(1.0) * 0.1 };
        // nothing is below a least value of zero
        let below = if low == 0.0 { 0.0 } else { room };
        Axis { low: low - below, high: high + room, log: false }
    }

    /// An axis of steps, without room.
    pub fn whole(low: f64, high: f64) -> Self {
        // a single step stands in the middle
        let room = if high > low { 0.0 } else { 1.0 };
        Axis { low: low - room, high: high + room, log: false }
    }

    /// Where a value is: 0 at the low end, 1 at the high end.
    pub fn share(&self, value: f64) -> f64 {
        match self.log {
            true => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    /// The value at a place: the inverse of [`Axis::share`].
    pub fn value(&self, share: f64) -> f64 {
        match self.log {
            true => self.low * (self.high / self.low).powf(share),
            false => self.low + share * (self.high - self.low),
        }
    }

    /// Round values, about five of them; powers of ten where the axis is logarithmic.
    pub fn ticks(&self) -> Vec<Tick> {
        if self.log {
            return self.powers();
        }
        let step = round_step((self.high - self.low) / 5.0);
        let digits = (-step.log10().floor()).clamp(0.0, 3.0) as usize;
        let text = |value: f64| match value.abs() {
            0.0 => "0".into(),
            size if step < 1e-3 || size >= 1e6 => format!("{value:.1e}"),
            _ => format!("{value:.digits$}"),
        };
        self.multiples(step, text)
    }

    /// Round whole numbers, about six of them.
    pub fn whole_ticks(&self) -> Vec<Tick> {
        let step = round_step((self.high - self.low) / 6.0).max(1.0);
        self.multiples(step, |value| format!("{value:.0}"))
    }

    fn multiples(&self, step: f64, text: impl Fn(f64) -> String) -> Vec<Tick> {
        let first = (self.low / step).ceil() as i64;
        let values = (first..).map(|i| i as f64 * step).take_while(|value| *value <= self.high);
        values.map(|value| self.tick(value, text(value))).collect()
    }

    fn powers(&self) -> Vec<Tick> {
        let (first, last) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
        let every = ((last - first) / 5).max(1);
        let text = |power: i32| match power {
            -3..=-1 => format!("{:.1$}", 10f64.powi(power), power.unsigned_abs() as usize),
            0..=4 => format!("{:.0}", 10f64.powi(power)),
            _ => format!("1e{power}"),
        };
        let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
        powers.map(|power| self.tick(10f64.powi(power), text(power))).collect()
    }

    fn tick(&self, value: f64, text: String) -> Tick {
        Tick { at: (self.share(value) * 1e4).round() / 100.0, text }
    }

    /// The ends and the middle as texts: for charts that cannot place a label freely.
    pub fn thirds(&self) -> [String; 3] {
        [0.0, 0.5, 1.0].map(|share| short(self.value(share)))
    }
}

/// The smallest and the largest of finite values.
pub fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    steps.into_iter().find(|rounded| *rounded >= step * 0.999).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ticks: &[Tick]) -> Vec<&str> {
        assert!(ticks.iter().all(|tick| (0.0..=100.0).contains(&tick.at)), "{ticks:?}");
        ticks.iter().map(|tick| tick.text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(texts(&Axis::new(Scale::Fitted, 1.2, 3.0).ticks()), ["1.5", "2.0", "2.5", "3.0"]);
        let rates = Axis::new(Scale::FromZero, 4e-5, 8e-5).ticks();
        assert_eq!(texts(&rates), ["0", "2.0e-5", "4.0e-5", "6.0e-5", "8.0e-5"]);
        assert_eq!(texts(&Axis::new(Scale::FromZero, 3.0, 9000.0).ticks())[1..3], ["2000", "4000"]);
        assert_eq!(texts(&Axis::new(Scale::FromZero, 0.0, 1e30).ticks())[1], "5.0e29");
        let steps = Axis::whole(1.0, 4.0).whole_ticks();
        assert_eq!(texts(&steps), ["1", "2", "3", "4"]);
        assert_eq!((steps[0].at, steps[3].at), (0.0, 100.0));
        assert_eq!(texts(&Axis::whole(7.0, 7.0).whole_ticks()), ["6", "7", "8"]);
    }

    #[test]
    fn a_wide_span_is_logarithmic_but_for_zero() {
        let axis = Axis::new(Scale::Fitted, 0.002, 14.0);
        assert_eq!(texts(&axis.ticks()), ["0.01", "0.1", "1", "10"]);
        assert!((axis.share(axis.value(0.3)) - 0.3).abs() < 1e-12);
        assert!(!Axis::new(Scale::Fitted, 0.0, 14.0).log, "zero has no logarithm");
        assert_eq!(
            texts(&Axis::new(Scale::Fitted, 1e-9, 1e9).ticks()),
            ["1e-9", "1e-6", "0.001", "1", "1000", "1e6", "1e9"]
        );
    }
}
