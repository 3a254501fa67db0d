//! Fusions: rewrites of a finished graph into one with fewer, larger operations. Each has its own switch, so that its gain
//! can be measured and its result compared.
//!
//! Two fusions are not rewrites but operations of their own: the adapter in its layer's product
//! ([`crate::ops::lora_linear`], switched where the layer is built), and gather, head and cross-entropy by chunks
//! ([`crate::ops::cross_entropy`], which has no other form).

mod residual;

use crate::graph::{Graph, GraphError};

/// Which fusions are on: all, unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusions {
    /// A low-rank adapter widens its layer's product, forward and reverse, instead of a product and a sum of its own.
    pub adapter: bool,
    /// A sum with the result of a product is made where the product is stored: residual connections, and gradients that
    /// meet.
    pub residual: bool,
}

impl Fusions {
    pub const NAMES: [&'static str; 2] = ["adapter", "residual"];

    /// All but the named ones.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn without<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let mut fusions = Fusions::default();
        for name in names {
            *fusions.switch(name.as_ref()).ok_or_else(|| name.as_ref().to_owned())? = false;
        }
        Ok(fusions)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "adapter" => Some(&mut self.adapter),
            "residual" => Some(&mut self.residual),
            _ => None,
        }
    }
}

impl Default for Fusions {
    fn default() -> Self {
        Fusions { adapter: true, residual: true }
    }
}

/// Applies what is switched on.
///
/// # Errors
/// A rewrite that does not fit its graph: a mistake in this room.
pub fn fuse(graph: Graph, fusions: Fusions) -> Result<Graph, GraphError> {
    if fusions.residual { residual::fuse(graph) } else { Ok(graph) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_switches_one_off() {
        for name in Fusions::NAMES {
            assert_ne!(Fusions::without(&[name]), Ok(Fusions::default()));
        }
        assert_eq!(Fusions::without(&Fusions::NAMES), Ok(Fusions { adapter: false, residual: false }));
        assert_eq!(Fusions::without(&["speed"]), Err("speed".into()));
    }
}
