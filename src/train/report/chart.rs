//! Line charts as SVG paths, with ticks for labels in HTML.
//!
//! Paths live in a box of 1000 by 300 that is stretched to the width of the page; labels are no part of it, so that they keep their
//! size on a phone.

use crate::train::axis::{Axis, Scale, Tick, range};
use crate::train::figures::{short, thinned};
use serde::Serialize;
use std::fmt::Write;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;
/// Buckets that a long series is thinned to.
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

impl Chart {
    /// `None` where no series has a finite point.
    pub fn new(title: &'static str, wide: bool, scale: Scale, series: Vec<Series>) -> Option<Self> {
        let series: Vec<Series> = series.into_iter().filter(|s| finite(s).next().is_some()).collect();
        let (left, right) = range(series.iter().flat_map(finite).map(|[x, _]| x))?;
        let (low, high) = range(series.iter().flat_map(finite).map(|[_, y]| y))?;
        let x = Axis::whole(left, right);
        let y = Axis::new(scale, low, high);
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
        let thin: Vec<Series> = series.iter().map(thin).collect();
        let lines = thin.iter().map(|series| Line {
            label: series.label,
            class: series.class,
            path: path(&series.points, place),
            dots: (series.dots || series.points.len() == 1).then(|| dots(&series.points, place)),
        });
        Some(Chart {
            title,
            note: if y.log { "logarithmic" } else { "" },
            label,
            wide,
            lines: lines.collect(),
            x_ticks: x.whole_ticks(),
            y_ticks: y.ticks(),
            values: values(&thin, &x),
        })
    }
}

fn finite(series: &Series) -> impl DoubleEndedIterator<Item = [f64; 2]> + '_ {
    series.points.iter().copied().filter(|[_, y]| y.is_finite())
}

fn thin(series: &Series) -> Series {
    Series { points: thinned(&series.points, BUCKETS), ..series.clone() }
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
}
