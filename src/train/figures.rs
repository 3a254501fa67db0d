//! Numbers as people read them, in the report and on the terminal.

/// Four significant digits: `14.87`, `0.01427`, `8.0e-5`, `105858`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "not finite".into()
    } else if size == 0.0 {
        "0".into()
    } else if size >= 1e7 {
        format!("{value:.2e}")
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 1e-3 {
        let digits = (3 - size.log10().floor() as i32).max(0) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.1e}")
    }
}

/// At most `2 * buckets` points: the smallest and the largest value of each bucket of neighbours, so that no spike is lost.
pub fn thinned(points: &[[f64; 2]], buckets: usize) -> Vec<[f64; 2]> {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let mut thin = Vec::with_capacity(2 * buckets);
    for bucket in points.chunks(points.len().div_ceil(buckets.max(1))) {
        let by_value = |a: &&[f64; 2], b: &&[f64; 2]| a[1].total_cmp(&b[1]);
        let inside = || bucket.iter().filter(|point| point[1].is_finite());
        let mut ends: Vec<[f64; 2]> =
            inside().min_by(by_value).into_iter().chain(inside().max_by(by_value)).copied().collect();
        ends.sort_by(|a, b| a[0].total_cmp(&b[0]));
        ends.dedup();
        thin.extend(ends);
    }
    thin
}

/// Exponential moving average without the pull of its start (Kingma & Ba 2015, section 3), over about `span` values. Values that
/// are not finite are left out.
pub fn smoothed(points: &[[f64; 2]], span: f64) -> Vec<[f64; 2]> {
    let decay = 1.0 - 1.0 / span.max(1.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    let smooth = |&[x, y]: &[f64; 2]| {
        mean = decay * mean + (1.0 - decay) * y;
        weight = decay * weight + (1.0 - decay);
        [x, mean / weight]
    };
    points.iter().filter(|[_, y]| y.is_finite()).map(smooth).collect()
}

/// How many steps to smooth over in a run that has done so many.
pub fn smoothing_span(steps: usize) -> f64 {
    (steps as f64 / 60.0).clamp(1.0, 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_enough() {
        let texts = [14.866_047, 1.0, 0.014_268, 8e-5, 105_858.4, 0.0, -2.5, 999.96, f64::NAN].map(short);
        let expected =
            ["14.87", "1.000", "0.01427", "8.0e-5", "105858", "0", "-2.500", "1000.0", "not finite"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn long_series_keep_their_spikes() {
        let mut points: Vec<[f64; 2]> = (0..100_000).map(|step| [f64::from(step), 1.0]).collect();
        points[77_777][1] = 9.0;
        points[5][1] = -3.0;
        points[6][1] = f64::NAN;
        let thin = thinned(&points, 500);
        assert!(thin.len() <= 1000 && thin.contains(&[77_777.0, 9.0]) && thin.contains(&[5.0, -3.0]));
        assert!(thin.is_sorted_by(|a, b| a[0] < b[0]));
        assert_eq!(thinned(&points[..7], 500).len(), 7, "short ones stay as they are");
    }

    #[test]
    fn an_average_of_equal_values_is_that_value_from_the_start() {
        let flat: Vec<[f64; 2]> = (0..9).map(|x| [f64::from(x), 3.0]).collect();
        assert!(smoothed(&flat, 4.0).iter().all(|[_, y]| (y - 3.0).abs() < 1e-12));
        let step = smoothed(&[[0.0, 0.0], [1.0, f64::NAN], [2.0, 1.0]], 2.0);
        assert_eq!(step, [[0.0, 0.0], [2.0, 0.5 / 0.75]]);
        assert_eq!(smoothed(&[[0.0, 1.0], [1.0, 5.0]], 1.0), [[0.0, 1.0], [1.0, 5.0]]);
    }
}
