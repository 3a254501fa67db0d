//! Operands of matrix units in f16, where they are stored in bf16: copies in scratch space.
//!
//! f16 has bf16's precision and more, and its range is wide enough for q, k and v as they are. The gradient of the result can lie
//! anywhere, so it is scaled by a power of two on the way, the same for all rows: those of dk and dv are sums over them.

use crate::graph::{Binding, DType, Dispatch, Place, TensorType, View};
use crate::ops::copy::SHADER as COPY;
use crate::ops::elementwise;
use crate::ops::scaled_half::{LARGEST_BYTES, UNSCALE_BYTES, scaled_half};

/// Where the copies lie: in scratch spaces from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halves {
    pub first: usize,
    pub q: TensorType,
    pub k: TensorType,
    /// Input of the gradient of the result, which is of q's type.
    pub d_o: Option<usize>,
}

impl Halves {
    /// The copy of a binding of the kernels.
    pub fn place(&self, name: &str) -> Option<Place> {
        let names = ["q", "k", "v", "d_o"];
        names.iter().position(|n| *n == name).map(|n| Place::Workspace(self.first + n))
    }

    fn magnitudes(&self) -> Place {
        Place::Workspace(self.first + 4)
    }

    /// What scaled gradients are multiplied by, one number.
    pub fn unscale(&self) -> Place {
        Place::Workspace(self.first + 5)
    }

    fn copies(&self) -> [(&'static str, TensorType); 3] {
        [("q", self.q), ("k", self.k), ("v", self.k)]
    }

    /// The scratch spaces with their bytes, in order.
    pub fn workspaces(&self) -> Vec<(Place, u64)> {
        let bytes = |ty: TensorType| TensorType::new(ty.shape, DType::F16).bytes();
        let mut all: Vec<u64> = self.copies().map(|(_, ty)| bytes(ty)).into();
        if self.d_o.is_some() {
            all.extend([bytes(self.q), LARGEST_BYTES, UNSCALE_BYTES]);
        }
        all.into_iter().enumerate().map(|(n, bytes)| (Place::Workspace(self.first + n), bytes)).collect()
    }

    /// What makes the copies.
    pub fn dispatches(&self) -> Vec<Dispatch> {
        let sized = |ty: TensorType| ty.rows() * ty.cols4();
        let traffic = |ty: TensorType| 2.0 * ty.bytes() as f64;
        let place = |n: usize| Place::Workspace(self.first + n);
        let mut all: Vec<Dispatch> = Vec::new();
        for (n, (name, ty)) in self.copies().into_iter().enumerate() {
            let copy = elementwise(COPY, sized(ty)).flag("ACCUMULATE", false);
            let copy = copy.read("x", Place::Input(n), ty.dtype).write("y", place(n), DType::F16);
            all.push(copy.detail(format!("{name} {ty} as f16")).cost(0.0, traffic(ty)));
        }
        if let Some(input) = self.d_o {
            let ty = self.q;
            let x = Binding::new("x", Place::Input(input), ty.dtype, View::Vec4, false);
            let y = Binding::new("y", place(3), DType::F16, View::Vec4, true);
            let detail = format!("do {ty} as f16");
            all.extend(scaled_half(ty, x, y, self.magnitudes(), self.unscale(), detail));
        }
        all
    }
}
