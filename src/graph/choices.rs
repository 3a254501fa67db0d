//! Which kernel of a family serves a launch, where it was measured.
//!
//! An operation with several kernels for the same work names the class of its launch (the family, what the shader depends
//! on, and extents rounded so that few measurements serve a model) and looks it up here; without an entry it takes its own
//! default. Names are plain text: they stand in the cache file as they are.

use super::Dispatch;
use std::collections::BTreeMap;

/// Measured choices of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    by_class: BTreeMap<String, String>,
    forced: Option<String>,
    list_alternatives: bool,
}

/// The other kernels for the work of a dispatch, for who measures them.
#[derive(Clone, Debug)]
pub struct Alternatives {
    pub class: String,
    /// Name and dispatch of each variant, the default first. All have the bindings of the dispatch they stand for.
    pub variants: Vec<(String, Dispatch)>,
}

impl Choices {
    /// One variant for every class that has it, measured or not.
    pub fn forced(variant: impl Into<String>) -> Self {
        Choices { forced: Some(variant.into()), ..Choices::default() }
    }

    /// The same choices, for a plan whose launches of unmeasured classes carry [`Alternatives`].
    pub fn listing(&self) -> Self {
        Choices { list_alternatives: true, ..self.clone() }
    }

    pub fn lists_alternatives(&self) -> bool {
        self.list_alternatives
    }

    /// The variant to take for a class.
    pub fn variant(&self, class: &str) -> Option<&str> {
        self.forced.as_ref().or_else(|| self.by_class.get(class)).map(String::as_str)
    }

    pub fn insert(&mut self, class: impl Into<String>, variant: impl Into<String>) {
        self.by_class.insert(class.into(), variant.into());
    }

    /// Classes with their variants, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_class.iter().map(|(class, variant)| (class.as_str(), variant.as_str()))
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

    #[test]
    fn extents_round_up_by_less_than_half() {
        for (extent, expected) in [(1, 1), (8, 8), (9, 12), (512, 512), (513, 768), (768, 768), (769, 1024)] {
            assert_eq!(rounded(extent), expected);
        }
        assert!((2..5000).all(|n| rounded(n) >= n && 2 * rounded(n) <= 3 * n + 2));
    }

    #[test]
    fn a_forced_variant_goes_before_a_measured_one() {
        let mut choices = Choices::default();
        choices.insert("a", "fast");
        assert_eq!((choices.variant("a"), choices.variant("b")), (Some("fast"), None));
        assert_eq!(Choices::forced("x").variant("a"), Some("x"));
    }
}
