//! A pass' kernel: a variant, and how the query heads of a KV head share it.

use super::candidates::Extents;
use super::strips::{Staging, Strips};
use super::variant::{Pass, Variant};
use crate::graph::{DType, DeviceProfile, Dispatch, Place, Shader, TensorType};
use crate::ops::{BUSY, elementwise};
use std::fmt;

pub(super) const SUM_HEADS: Shader = crate::shader!("attention_sum_heads");

/// A variant, and whether each query head has workgroups of its own in [`Pass::GradientKeyValue`].
///
/// A key's gradient is a sum over the query heads that share its KV head. Made by one workgroup, which walks them one after the other,
/// it needs no scratch space; but of few KV heads and few rows there are too few workgroups to keep a large GPU busy. Of each
/// head `by_head`, the sums lie in scratch space in f32, and another dispatch adds them in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub variant: Variant,
    pub by_head: bool,
}

/// How many of the candidates are measured by head too.
const BY_HEAD: usize = 3;

/// The same on matrix units, of those with staged blocks: two tiles, as a tile comes in four forms.
const UNITS_BY_HEAD: usize = 6;

/// Whether it may be by head, and how many KV heads there are then.
pub(super) type KvHeads = Option<usize>;

impl Kernel {
    /// Every kernel that some pass takes on such a device, for tests that run them all.
    pub fn all(device: &DeviceProfile) -> Vec<Kernel> {
        let variants = Variant::all(device);
        let by_head = if device.cpu { vec![] } else { by_head(&variants, |_| true) };
        variants.into_iter().map(Kernel::of).chain(by_head).collect()
    }

    /// What the device can run; the default first.
    pub fn candidates(device: &DeviceProfile, extents: &Extents, kv_heads: KvHeads) -> Vec<Kernel> {
        let mut all: Vec<Kernel> = Variant::candidates(device, extents).into_iter().map(Kernel::of).collect();
        if let Some(kv_heads) = kv_heads {
            let few = |variant: Variant| {
                let by_head = Kernel { variant, by_head: true };
                tiles(variant, extents, kv_heads) < BUSY && by_head.fits(device, extents, Some(kv_heads))
            };
            // what adds the heads up turns their sum
            let alone = Variant::candidates(device, &Extents { turned: false, ..*extents });
            // early in the list, as measuring ends after a while
            let others = by_head(&alone, few);
            all.splice(1..1, others);
        }
        all
    }

    fn of(variant: Variant) -> Kernel {
        Kernel { variant, by_head: false }
    }

    /// Whether the device can run it for such a head, and what was measured for fewer rows does not take scratch space in vain.
    pub fn fits(&self, device: &DeviceProfile, extents: &Extents, kv_heads: KvHeads) -> bool {
        // what adds the heads up turns their sum
        let extents = Extents { turned: extents.turned && !self.by_head, ..*extents };
        let shares = matches!(self.variant, Variant::Tiled { .. } | Variant::Coop(_));
        let few = kv_heads.is_some_and(|heads| tiles(self.variant, &extents, heads) <= 2 * BUSY);
        let whole = !self.by_head || (shares && extents.pass == Pass::GradientKeyValue && few);
        whole && self.variant.fits(device, &extents)
    }

    /// Reads a name; `None` where it names no kernel of this version.
    pub fn parse(name: &str) -> Option<Kernel> {
        let (name, by_head) = name.strip_prefix("by head ").map_or((name, false), |rest| (rest, true));
        Some(Kernel { variant: Variant::parse(name)?, by_head })
    }
}

/// Workgroups where each walks the query heads of a KV head.
fn tiles(variant: Variant, extents: &Extents, kv_heads: usize) -> usize {
    kv_heads * extents.rows.div_ceil(variant.rows() as usize)
}

fn by_head(all: &[Variant], wanted: impl Fn(Variant) -> bool) -> Vec<Kernel> {
    let of_kind = |units: bool| {
        let variants = all.iter().copied().filter(|variant| match variant {
            Variant::Coop(Strips { staging, .. }) => units && *staging != Staging::None,
            Variant::Tiled { .. } => !units,
            _ => false,
        });
        let most = if units { UNITS_BY_HEAD } else { BY_HEAD };
        variants.filter(|variant| wanted(*variant)).take(most).collect::<Vec<_>>()
    };
    let variants = [of_kind(true), of_kind(false)].concat();
    variants.into_iter().map(|variant| Kernel { variant, by_head: true }).collect()
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.by_head { "by head " } else { "" }, self.variant)
    }
}

/// The gradients of each query head, in scratch spaces from `first` on, and what adds them up.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadSums {
    pub first: usize,
    pub head_dim: usize,
    pub q: TensorType,
    pub k: TensorType,
}

impl HeadSums {
    /// Of dk, or of dv.
    pub fn ty(q: TensorType) -> TensorType {
        TensorType::new(q.shape, DType::F32)
    }

    /// Where the kernel writes a gradient of this name instead.
    pub fn place(&self, name: &str) -> Option<Place> {
        let names = ["dk", "dv"];
        names.iter().position(|n| *n == name).map(|n| Place::Workspace(self.first + n))
    }

    pub fn workspaces(&self) -> Vec<(Place, u64)> {
        let bytes = HeadSums::ty(self.q).bytes();
        (0..2).map(|n| (Place::Workspace(self.first + n), bytes)).collect()
    }

    /// Writes dk and dv, the gradient's second and third output; `turn` binds positions and angles where dk is turned back.
    pub fn dispatch(&self, turn: Option<&dyn Fn(Dispatch) -> Dispatch>) -> Dispatch {
        let HeadSums { first, head_dim, q, k } = *self;
        let (heads, kv_heads) = (q.cols() / head_dim, k.cols() / head_dim);
        let owned = if turn.is_some() { 2 } else { 1 };
        let bytes = 2.0 * (HeadSums::ty(q).bytes() + k.bytes()) as f64;
        let dispatch = elementwise(SUM_HEADS, k.rows() * k.cols4() / owned)
            .define("HEAD4", head_dim as u32 / 4)
            .define("KV_HEADS", kv_heads as u32)
            .define("GROUP", (heads / kv_heads) as u32)
            .flag("TURNED", turn.is_some())
            .read("dk_heads", Place::Workspace(first), DType::F32)
            .read("dv_heads", Place::Workspace(first + 1), DType::F32)
            .write("dk", Place::Output(1), k.dtype)
            .write("dv", Place::Output(2), k.dtype)
            .detail(format!("{heads} heads to {kv_heads}"))
            .cost(2.0 * q.shape.elements() as f64, bytes);
        match turn {
            Some(bind) => bind(dispatch),
            None => dispatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_few_keys_may_be_made_by_head() {
        let device = DeviceProfile::typical_gpu();
        let extents = |pass, rows| Extents { pass, head_dim: 64, rows, turned: true, matrix: None };
        let count = |extents: &Extents, kv_heads| {
            let kernels = Kernel::candidates(&device, extents, kv_heads);
            assert!(!kernels[0].by_head, "what nobody measured needs no scratch space");
            assert!(kernels.iter().all(|kernel| Kernel::parse(&kernel.to_string()) == Some(*kernel)));
            kernels.iter().filter(|kernel| kernel.by_head).count()
        };
        let few = extents(Pass::GradientKeyValue, 512);
        assert_eq!(count(&few, Some(2)), BY_HEAD);
        assert_eq!(count(&few, None), 0);
        assert_eq!(count(&extents(Pass::GradientKeyValue, 8192), Some(8)), 0, "there are enough workgroups");
        // names come from files
        let kernel = Kernel::parse("by head tiled 32x32 per=4x4 depth=16").unwrap();
        assert!(kernel.fits(&device, &few, Some(2)) && !kernel.fits(&device, &few, None));
        assert!(!kernel.fits(&device, &extents(Pass::GradientQuery, 512), Some(2)));
        assert!(
            !kernel.fits(&device, &extents(Pass::GradientKeyValue, 32_768), Some(2)),
            "as many as keep it busy"
        );
        assert!(!Kernel::parse("by head rows").unwrap().fits(&device, &few, Some(2)));
        assert_eq!(Kernel::parse("by head"), None);
    }
}
