//! Line charts as SVG paths, with ticks for labels in HTML.
//!
//! Paths live in a box of 1000 by 300 that is stretched to the width of the page; labels are no part of it, so that they keep their
//! size on a phone.

use crate::train::figures::short;
use serde::Serialize;
use std::fmt::Write;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;
/// Buckets that a long series is thinned to; each keeps its smallest and largest value.
const BUCKETS: usize = 500;

/// A line of a chart: `[step, value]` in order of steps.
#[derive(Clone, Debug)]
pub struct Series {
    pub label: &'static str,
    /// Class in the style sheet, which gives the colour.
    pub class: &'static str,
    pub points: Vec<[f64; 2]>,
    /// A dot at each point, and the line.
    pub dots: bool,
}

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Linear from zero on.
    FromZero,
    /// Over the values alone; logarithmic where they are positive and span more than a factor of 30.
    Fitted,
}

/// A chart as the page needs it.
#[derive(Debug, Serialize)]
pub struct Chart {
    title: &'static str,
    /// What is said beside the title.
    note: &'static str,
    /// What a screen reader says.
    label: String,
    wide: bool,
    lines: Vec<Line>,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    /// For the values under the pointer: JSON that is safe inside a script element.
    values: String,
}

#[derive(Debug, Serialize)]
struct Line {
    label: &'static str,
    class: &'static str,
    path: String,
    dots: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Tick {
    /// Percent of the width from the left, or of the height from the bottom.
    at: f64,
    text: String,
}

impl Chart {
    /// `None` where no series has a finite point.
    pub fn new(title: &'static str, wide: bool, scale: Scale, series: Vec<Series>) -> Option<Self> {
        let series: Vec<Series> = series.into_iter().filter(|s| finite(s).next().is_some()).collect();
        let (left, right) = range(series.iter().flat_map(finite).map(|[x, _]| x))?;
        let (low, high) = range(series.iter().flat_map(finite).map(|[_, y]| y))?;
        let log = scale == Scale::Fitted && low > 0.0 && high > 30.0 * low;
        let x = Axis::over(left, right);
        let y = match (log, scale) {
            (true, _) => Axis::logarithmic(low, high),
            (false, Scale::FromZero) => Axis::linear(low.min(0.0), high),
            (false, _) => Axis::linear(low, high),
        };
        let place = |[at, value]: [f64; 2]| [x.share(at) * WIDTH, HEIGHT - y.share(value) * HEIGHT];
        let first = &series[0];
        let ends = (finite(first).next()?, finite(first).last()?);
        let label = format!(
            "{title}: {} at step {}, {} at step {}",
            short(ends.0[1]),
            ends.0[0],
            short(ends.1[1]),
            ends.1[0]
        );
        let thin: Vec<Series> = series.iter().map(thinned).collect();
        let lines = thin.iter().map(|series| Line {
            label: series.label,
            class: series.class,
            path: path(&series.points, place),
            dots: (series.dots || series.points.len() == 1).then(|| dots(&series.points, place)),
        });
        Some(Chart {
            title,
            note: if log { "logarithmic" } else { "" },
            label,
            wide,
            lines: lines.collect(),
            x_ticks: whole_ticks(&x),
            y_ticks: y.ticks(),
            values: values(&thin, &x),
        })
    }
}

fn finite(series: &Series) -> impl DoubleEndedIterator<Item = [f64; 2]> + '_ {
    series.points.iter().copied().filter(|[_, y]| y.is_finite())
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// Extent of a chart in one direction.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn over(low: f64, high: f64) -> Self {
        // a single point stands in the middle
        let room = if high > low { 0.0 } else { 1.0 };
        Axis { low: low - room, high: high + room, log: false }
    }

    /// With a little room above and below, but none below a least value of zero.
    fn linear(low: f64, high: f64) -> Self {
        let room = if high > low { 0.06 * (high - low) } else { high.abs().max(1.0) * 0.1 };
        let below = if low == 0.0 { 0.0 } else { room };
        Axis { low: low - below, high: high + room, log: false }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let room = (high / low).powf(0.05);
        Axis { low: low / room, high: high * room, log: true }
    }

    /// 0 at the low end, 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        match self.log {
            true => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    fn tick(&self, value: f64, text: String) -> Tick {
        Tick { at: (self.share(value) * 1e4).round() / 100.0, text }
    }

    fn ticks(&self) -> Vec<Tick> {
        if self.log {
            let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            let every = ((last - first) / 5).max(1);
            let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
            let texts = powers.map(|power| (10f64.powi(power), power));
            let inside = texts.filter(|(value, _)| (self.low..=self.high).contains(value));
            let text = |value: f64, power: i32| match power {
                -3..=-1 => format!("{value:.0$}", power.unsigned_abs() as usize),
                0..=4 => format!("{value:.0}"),
                _ => format!("1e{power}"),
            };
            return inside.map(|(value, power)| self.tick(value, text(value, power))).collect();
        }
        let step = round_step((self.high - self.low) / 5.0);
        let digits = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let text = |value: f64| match (step < 1e-3, value == 0.0) {
            (true, true) => "0".into(),
            (true, false) => format!("{value:.1e}"),
            (false, _) => format!("{value:.digits$}"),
        };
        let first = (self.low / step).ceil() as i64;
        let values = (first..).map(|i| i as f64 * step).take_while(|value| *value <= self.high);
        values.map(|value| self.tick(value, text(value))).collect()
    }
}

/// Ticks at whole steps.
fn whole_ticks(axis: &Axis) -> Vec<Tick> {
    let step = round_step((axis.high - axis.low) / 6.0).max(1.0);
    let first = (axis.low / step).ceil() as i64;
    let values = (first..).map(|i| i as f64 * step).take_while(|value| *value <= axis.high);
    values.map(|value| axis.tick(value, format!("{value:.0}"))).collect()
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    steps.into_iter().find(|rounded| *rounded >= step * 0.999).unwrap_or(10.0 * power)
}

/// A long series with the smallest and the largest value of each bucket, so that no spike is lost.
fn thinned(series: &Series) -> Series {
    if series.points.len() <= 2 * BUCKETS {
        return series.clone();
    }
    let size = series.points.len().div_ceil(BUCKETS);
    let mut points = Vec::with_capacity(2 * BUCKETS);
    for bucket in series.points.chunks(size) {
        let by_value = |a: &&[f64; 2], b: &&[f64; 2]| a[1].total_cmp(&b[1]);
        let inside = || bucket.iter().filter(|point| point[1].is_finite());
        let mut ends: Vec<[f64; 2]> =
            inside().min_by(by_value).into_iter().chain(inside().max_by(by_value)).copied().collect();
        ends.sort_by(|a, b| a[0].total_cmp(&b[0]));
        ends.dedup();
        points.extend(ends);
    }
    Series { points, ..series.clone() }
}

/// A line through the points, interrupted where a value is not finite.
fn path(points: &[[f64; 2]], place: impl Fn([f64; 2]) -> [f64; 2]) -> String {
    let mut path = String::new();
    let mut draws = false;
    for &point in points {
        let [x, y] = place(point);
        draws = if point[1].is_finite() {
            let _ = write!(path, "{}{x:.1} {y:.1}", if draws { "L" } else { "M" });
            true
        } else {
            false
        };
    }
    path
}

/// Lines of no length, whose round ends are dots of a size that does not stretch.
fn dots(points: &[[f64; 2]], place: impl Fn([f64; 2]) -> [f64; 2]) -> String {
    let mut path = String::new();
    for [x, y] in points.iter().filter(|point| point[1].is_finite()).map(|&point| place(point)) {
        let _ = write!(path, "M{x:.1} {y:.1}h0");
    }
    path
}

/// What the script reads: extent of the steps, and of each line its label, class and points as texts.
fn values(series: &[Series], x: &Axis) -> String {
    let lines: Vec<serde_json::Value> = series
        .iter()
        .map(|series| {
            let points: Vec<(f64, String)> = finite(series).map(|[x, y]| (x, short(y))).collect();
            serde_json::json!({ "label": series.label, "class": series.class, "points": points })
        })
        .collect();
    let all = serde_json::json!({ "low": x.low, "high": x.high, "lines": lines });
    all.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let points = values.iter().enumerate().map(|(i, y)| [i as f64 + 1.0, *y]).collect();
        Series { label: "loss", class: "train", points, dots: false }
    }

    fn texts(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let chart = Chart::new("Loss", true, Scale::Fitted, vec![series(&[3.0, 2.1, 1.4, 1.2])]).unwrap();
        assert_eq!(texts(&chart.y_ticks), ["1.5", "2.0", "2.5", "3.0"]);
        assert_eq!(texts(&chart.x_ticks), ["1", "2", "3", "4"]);
        assert_eq!((chart.x_ticks[0].at, chart.x_ticks[3].at), (0.0, 100.0));
        assert!(chart.y_ticks.iter().all(|tick| (0.0..=100.0).contains(&tick.at)));
        assert_eq!(chart.label, "Loss: 3.000 at step 1, 1.200 at step 4");
    }

    #[test]
    fn a_wide_span_is_drawn_logarithmically() {
        let chart = Chart::new("Loss", true, Scale::Fitted, vec![series(&[14.0, 0.5, 0.02, 0.002])]).unwrap();
        assert_eq!((chart.note, texts(&chart.y_ticks)), ("logarithmic", vec!["0.01", "0.1", "1", "10"]));
        let chart = Chart::new("Loss", true, Scale::Fitted, vec![series(&[14.0, 0.0])]).unwrap();
        assert_eq!(chart.note, "", "zero has no logarithm");
        let chart = Chart::new("Rate", false, Scale::FromZero, vec![series(&[4e-5, 8e-5])]).unwrap();
        assert_eq!(texts(&chart.y_ticks), ["0", "2.0e-5", "4.0e-5", "6.0e-5", "8.0e-5"]);
    }

    #[test]
    fn lines_are_interrupted_where_a_value_is_not_finite() {
        let chart =
            Chart::new("Loss", true, Scale::Fitted, vec![series(&[1.0, 2.0, f64::NAN, 1.5, 1.0])]).unwrap();
        assert_eq!(chart.lines[0].path.matches('M').count(), 2);
        assert!(!chart.lines[0].path.contains("NaN") && !chart.values.contains("null"));
        assert!(Chart::new("Loss", true, Scale::Fitted, vec![series(&[f64::NAN])]).is_none());
        assert!(Chart::new("Loss", true, Scale::Fitted, Vec::new()).is_none());
    }

    #[test]
    fn one_point_and_equal_points_are_inside() {
        for values in [&[2.0][..], &[2.0, 2.0, 2.0], &[0.0]] {
            let chart = Chart::new("Loss", true, Scale::Fitted, vec![series(values)]).unwrap();
            let numbers: Vec<f64> = chart.lines[0]
                .path
                .split(['M', 'L', ' '])
                .filter(|t| !t.is_empty())
                .map(|t| t.parse().unwrap())
                .collect();
            assert!(numbers.iter().all(|n| (0.0..=WIDTH).contains(n)), "{numbers:?}");
        }
    }

    #[test]
    fn long_series_keep_their_spikes() {
        let mut values = vec![1.0; 100_000];
        values[77_777] = 9.0;
        values[5] = -3.0;
        let thin = thinned(&series(&values));
        assert!(thin.points.len() <= 2 * BUCKETS);
        assert!(thin.points.contains(&[77_778.0, 9.0]) && thin.points.contains(&[6.0, -3.0]));
        assert!(thin.points.is_sorted_by(|a, b| a[0] < b[0]));
    }
}
