//! Which rows are validation rows, and in which order training rows are seen.
//!
//! Both are functions of (count, seed) alone and are part of what a resumed run must find unchanged: the
//! tests pin them. The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014), which needs no state beyond one u64, and the shuffle is Fisher and Yates's.

use super::DataError;

/// Divides `count` rows into (training, validation), each in ascending order.
///
/// `round(fraction · count)` rows are for validation: a seeded random choice with `shuffle`, the last ones
/// without. A fraction of 0 gives no validation rows.
///
/// # Errors
/// A fraction that is NaN, negative or at least 1; no training rows left; a fraction above 0 that rounds to
/// no row.
pub fn split(
    count: usize,
    fraction: f64,
    seed: u64,
    shuffle: bool,
) -> Result<(Vec<usize>, Vec<usize>), DataError> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(DataError::Fraction { fraction });
    }
    let held_out = (fraction * count as f64).round() as usize;
    if held_out >= count {
        return Err(DataError::NoTrainRows { count, fraction });
    }
    if held_out == 0 && fraction > 0.0 {
        return Err(DataError::NoValidationRows { count, fraction });
    }
    let order = if shuffle { permutation(count, seed, Stream::Split) } else { (0..count).collect() };
    let (train, validation) = order.split_at(count - held_out);
    let sorted = |rows: &[usize]| {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows
    };
    Ok((sorted(train), sorted(validation)))
}

/// The order in which the `count` training rows are seen in `epoch` (counted from 0): ascending without
/// `shuffle`, else a permutation that differs from epoch to epoch.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    if shuffle { permutation(count, seed, Stream::Epoch(epoch)) } else { (0..count).collect() }
}

/// `take` of `count` rows, ascending, by a seeded choice that is each file's own.
pub(super) fn subset(count: usize, take: usize, seed: u64, file: u64) -> Vec<usize> {
    if take == 0 {
        return Vec::new();
    }
    let mut rows = permutation(count, seed, Stream::Subset(file));
    rows.truncate(take);
    rows.sort_unstable();
    rows
}

/// What a permutation is for: different purposes must not share random numbers.
enum Stream {
    Split,
    Epoch(u64),
    /// Of a file, counted from 0.
    Subset(u64),
}

fn permutation(count: usize, seed: u64, stream: Stream) -> Vec<usize> {
    let stream = match stream {
        Stream::Split => 0,
        Stream::Epoch(epoch) => epoch.wrapping_add(1),
        Stream::Subset(file) => u64::MAX - file,
    };
    // Seed and stream are mixed one after the other, so that (seed 1, epoch 0) and (seed 0, epoch 1) do not
    // meet.
    let mut random = SplitMix64(SplitMix64(seed).next() ^ stream);
    random.0 = random.next();
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`. The bias of the multiplication is below bound / 2^64: nothing that data could
    /// show.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_gives_the_published_values() {
        let mut random = SplitMix64(1_234_567);
        let values: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(values, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn split_is_a_partition_of_the_rounded_size() {
        for count in [2, 3, 10, 175, 1000] {
            for fraction in [0.0, 0.25, 0.5, 0.333] {
                for shuffle in [false, true] {
                    let (train, validation) = split(count, fraction, 7, shuffle).unwrap();
                    assert_eq!(validation.len(), (fraction * count as f64).round() as usize);
                    assert!(train.is_sorted() && validation.is_sorted());
                    let mut all = [train, validation].concat();
                    all.sort_unstable();
                    assert!(all.into_iter().eq(0..count));
                }
            }
        }
    }

    #[test]
    fn split_without_shuffle_takes_the_last_rows() {
        let (train, validation) = split(10, 0.3, 99, false).unwrap();
        assert_eq!(train, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(validation, [7, 8, 9]);
    }

    #[test]
    fn split_depends_on_the_seed_alone() {
        let rows = |seed| split(100, 0.2, seed, true).unwrap();
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
        assert_ne!(rows(1).1, (80..100).collect::<Vec<_>>());
    }

    #[test]
    fn orders_stay_as_they_were_released() {
        assert_eq!(split(12, 0.25, 1337, true).unwrap().1, [2, 3, 4]);
        assert_eq!(epoch_order(8, 1337, 0, true), [7, 1, 2, 0, 4, 6, 3, 5]);
        assert_eq!(epoch_order(8, 1337, 1, true), [0, 6, 3, 7, 4, 1, 2, 5]);
    }

    #[test]
    fn fractions_that_cannot_be_are_refused_with_advice() {
        for fraction in [f64::NAN, -0.1, 1.0, 1.5, f64::INFINITY] {
            let message = split(10, fraction, 0, true).unwrap_err().to_string();
            assert_eq!(
                message,
                format!(
                    "--data.val_split_fraction {fraction} is out of range: it must be at least 0 (no validation) \
                     and below 1"
                )
            );
        }
        assert_eq!(
            split(3, 0.1, 0, true).unwrap_err().to_string(),
            "--data.val_split_fraction 0.1 of 3 records rounds to no validation record: raise it to 0.17, or set it \
             to 0 to train without validation"
        );
        assert_eq!(split(3, 0.17, 0, true).unwrap().1.len(), 1);
        assert_eq!(
            split(1, 0.9, 0, true).unwrap_err().to_string(),
            "--data.val_split_fraction 0.9 of 1 record leaves none to train on: lower it, or add records"
        );
        assert!(matches!(split(0, 0.0, 0, false), Err(DataError::NoTrainRows { count: 0, .. })));
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let order = |seed, epoch| epoch_order(50, seed, epoch, true);
        assert_eq!(order(3, 0), order(3, 0));
        assert_ne!(order(3, 0), order(3, 1));
        assert_ne!(order(3, 0), order(4, 0));
        assert_ne!(order(1, 0), order(0, 1));
        let mut sorted = order(3, 5);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..50));
        assert!(epoch_order(5, 3, 2, false).into_iter().eq(0..5));
        assert!(epoch_order(0, 3, 2, true).is_empty());
    }
}
