//! Which kernel of a family serves a launch, where it was measured.
//!
//! An operation with several kernels for the same work names the [`Class`] of its launch and looks it up here; without an
//! entry it takes its own default. Names are plain text: they stand in the cache file as they are.

use super::{Dispatch, Place};
use std::fmt;

/// Launches that one measurement speaks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// The operation and what its shader depends on: layouts and storage types.
    pub family: String,
    /// The sizes that decide which kernel is best, [`rounded`].
    pub extents: Vec<usize>,
}

/// Measured choices of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    measured: Vec<Measured>,
    /// FLOP/s of the fastest kernel that is not on matrix units, in whole ones.
    fastest: u64,
    forced: Option<String>,
    list_alternatives: bool,
    without_scratch: bool,
    uncut: bool,
    whole: bool,
    direct: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Measured {
    class: Class,
    variant: String,
    /// FLOP/s, in whole ones; 0 where they are not known.
    speed: u64,
}

/// The other kernels for the work of a dispatch, for who measures them.
#[derive(Clone, Debug)]
pub struct Alternatives {
    pub class: Class,
    /// The default first, which binds what all others bind but for scratch space of their own.
    pub variants: Vec<Alternative>,
    /// What a measurement writes to the u32 inputs; all others get random numbers.
    pub indices: Vec<(Place, Vec<u32>)>,
    /// How far the random numbers of a tensor spread, where not from -1/2 to 1/2: how many times as far.
    pub spreads: Vec<(Place, f32)>,
}

/// One kernel, or a few in order, that could do the work.
#[derive(Clone, Debug)]
pub struct Alternative {
    pub name: String,
    pub dispatches: Vec<Dispatch>,
    /// Scratch space that they alone need, in bytes.
    pub workspaces: Vec<(Place, u64)>,
}

impl Class {
    /// How far apart two classes of one family are: the sum over extents of the absolute log2 of their ratio.
    fn distance(&self, other: &Class) -> Option<f64> {
        if self.family != other.family || self.extents.len() != other.extents.len() {
            return None;
        }
        let log = |a: usize, b: usize| ((a.max(1) as f64) / (b.max(1) as f64)).log2().abs();
        Some(self.extents.iter().zip(&other.extents).map(|(&a, &b)| log(a, b)).sum())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extents: Vec<String> = self.extents.iter().map(usize::to_string).collect();
        write!(f, "{} {}", self.family, extents.join("x"))
    }
}

/// A class without a measurement takes that of its family's nearest one, if all extents together differ by no more than
/// this factor's log2.
const NEAR: f64 = 1.0;

/// Launches below this many FLOPs keep their default kernel: the launch costs more than a wrong choice.
const MEASURED_FLOPS: f64 = 4e6;

impl Choices {
    /// One variant for every class that has it, measured or not.
    pub fn forced(variant: impl Into<String>) -> Self {
        Choices { forced: Some(variant.into()), ..Choices::default() }
    }

    /// Built-in kernels alone, of which none needs scratch space.
    pub fn without_scratch() -> Self {
        Choices { without_scratch: true, ..Choices::default() }
    }

    /// The same choices, for kernels that are not made in parts which another dispatch adds up.
    pub fn whole(&self) -> Self {
        Choices { whole: true, ..self.clone() }
    }

    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// And that read weights in blocks as they are.
    pub fn direct(&self) -> Self {
        Choices { direct: true, ..self.whole() }
    }

    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether kernels may need scratch space of their own.
    pub fn allows_scratch(&self) -> bool {
        !self.without_scratch
    }

    /// The same choices, for a plan whose launches of unmeasured classes carry [`Alternatives`].
    pub fn listing(&self) -> Self {
        Choices { list_alternatives: true, ..self.clone() }
    }

    /// Whether a launch of this class should carry its [`Alternatives`]: somebody measures, the class is unknown, there is
    /// more than one kernel, and enough work that the choice matters.
    pub fn wants(&self, class: &Class, kernels: usize, flops: f64) -> bool {
        self.list_alternatives && kernels > 1 && flops >= MEASURED_FLOPS && !self.knows(class)
    }

    /// The variant to take for a class: its own, or that of one nearby.
    pub fn variant(&self, class: &Class) -> Option<&str> {
        self.forced.as_deref().or_else(|| self.near(class).map(|near| near.variant.as_str()))
    }

    /// FLOP/s that this variant reached for the class, or for one nearby.
    pub fn speed(&self, class: &Class, variant: &str) -> Option<f64> {
        let near = self.near(class).filter(|near| near.speed > 0 && near.variant == variant);
        near.map(|near| near.speed as f64)
    }

    /// What was measured of a class or of one nearby.
    fn near(&self, class: &Class) -> Option<&Measured> {
        let near = self.measured.iter().filter_map(|m| Some((m.class.distance(class)?, m)));
        let best = near.min_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(distance, _)| *distance <= NEAR).map(|(_, measured)| measured)
    }

    /// The variants of classes that differ in one extent alone, however far, the nearest first: in the number of tokens, most often, of
    /// which a run has many and measures few. Whether a kernel suits is for its family to say.
    pub fn along<'a>(&'a self, class: &Class) -> impl Iterator<Item = &'a str> {
        let one =
            |other: &Class| class.extents.iter().zip(&other.extents).filter(|(a, b)| a != b).count() == 1;
        let near = self.measured.iter().filter(|m| one(&m.class));
        let mut near: Vec<(f64, &str)> =
            near.filter_map(|m| Some((m.class.distance(class)?, m.variant.as_str()))).collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.into_iter().map(|(_, variant)| variant)
    }

    /// Whether this very class was measured.
    pub fn knows(&self, class: &Class) -> bool {
        self.forced.is_some() || self.measured.iter().any(|m| m.class == *class)
    }

    pub fn insert(&mut self, class: Class, variant: impl Into<String>) {
        self.insert_timed(class, variant, 0.0);
    }

    /// With the GFLOP/s that it reached.
    pub fn insert_timed(&mut self, class: Class, variant: impl Into<String>, gflops: f64) {
        self.measured.retain(|m| m.class != class);
        let speed = (gflops * 1e9) as u64;
        self.measured.push(Measured { class, variant: variant.into(), speed });
    }

    /// Takes note of what a measured kernel reached that is not on matrix units.
    pub fn reached(&mut self, gflops: f64) {
        self.fastest = self.fastest.max((gflops * 1e9) as u64);
    }

    /// The same choices, for dispatches that are not cut however long they run.
    pub fn uncut(self) -> Self {
        Choices { uncut: true, ..self }
    }

    pub fn is_uncut(&self) -> bool {
        self.uncut
    }

    /// The same choices for a device as fast as these others say.
    pub fn as_fast_as(self, other: &Choices) -> Self {
        Choices { fastest: other.fastest, ..self }
    }

    /// FLOP/s of the fastest such kernel.
    pub fn fastest(&self) -> Option<f64> {
        (self.fastest > 0).then_some(self.fastest as f64)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Class, &str)> {
        self.measured.iter().map(|m| (&m.class, m.variant.as_str()))
    }

    /// GFLOP/s of the classes of which they are known.
    pub fn speeds(&self) -> impl Iterator<Item = (&Class, f64)> {
        let known = self.measured.iter().filter(|m| m.speed > 0);
        known.map(|m| (&m.class, m.speed as f64 / 1e9))
    }
}

/// An extent as classes hold it: rounded up to a power of two, or to one and a half of one.
pub fn rounded(extent: usize) -> usize {
    let power = extent.max(1).next_power_of_two();
    if power >= 4 && extent <= power / 4 * 3 { power / 4 * 3 } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(family: &str, extents: &[usize]) -> Class {
        Class { family: family.into(), extents: extents.to_vec() }
    }

    #[test]
    fn extents_round_up_by_less_than_half() {
        for (extent, expected) in [(1, 1), (8, 8), (9, 12), (512, 512), (513, 768), (768, 768), (769, 1024)] {
            assert_eq!(rounded(extent), expected);
        }
        assert!((2..5000).all(|n| rounded(n) >= n && 2 * rounded(n) <= 3 * n + 2));
    }

    #[test]
    fn a_class_takes_its_own_measurement_or_one_nearby() {
        let mut choices = Choices::default();
        choices.insert(class("a", &[512, 64]), "large");
        choices.insert(class("a", &[128, 64]), "small");
        let variant = |family: &str, extents: &[usize]| choices.variant(&class(family, extents));
        assert_eq!(variant("a", &[512, 64]), Some("large"));
        assert_eq!(variant("a", &[384, 64]), Some("large"));
        assert_eq!(variant("a", &[64, 64]), Some("small"));
        assert_eq!(variant("a", &[512, 256]), None);
        assert_eq!(variant("b", &[512, 64]), None);
        assert!(choices.knows(&class("a", &[512, 64])) && !choices.knows(&class("a", &[384, 64])));
    }

    #[test]
    fn a_speed_is_that_of_the_variant_that_was_measured() {
        let mut choices = Choices::default();
        choices.insert_timed(class("a", &[512, 64]), "large", 1.5);
        choices.insert(class("b", &[512, 64]), "of no known speed");
        assert_eq!(choices.speed(&class("a", &[384, 64]), "large"), Some(1.5e9));
        assert_eq!(choices.speed(&class("a", &[512, 64]), "default"), None);
        assert_eq!(choices.speed(&class("b", &[512, 64]), "of no known speed"), None);
        assert_eq!(choices.speeds().collect::<Vec<_>>(), [(&class("a", &[512, 64]), 1.5)]);
        choices.insert(class("a", &[512, 64]), "another");
        assert_eq!(choices.speeds().count(), 0);
    }

    #[test]
    fn classes_of_other_numbers_of_tokens_serve_one() {
        let mut choices = Choices::default();
        choices.insert(class("a", &[4096, 64]), "far");
        choices.insert(class("a", &[2048, 64]), "nearer");
        choices.insert(class("a", &[128, 128]), "of other columns");
        choices.insert(class("b", &[128, 64]), "of another family");
        assert_eq!(choices.variant(&class("a", &[128, 64])), Some("of other columns"));
        assert_eq!(choices.along(&class("a", &[256, 64])).collect::<Vec<_>>(), ["nearer", "far"]);
    }

    #[test]
    fn a_forced_variant_goes_before_a_measured_one() {
        assert_eq!(Choices::forced("x").variant(&class("a", &[1])), Some("x"));
    }
}
