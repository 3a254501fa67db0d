//! One pass of attention as the operations launch it: the kernel of its family, and the others for who measures them.

use super::candidates::Extents;
use super::halves::Halves;
use super::variant::{Pass, Variant};
use crate::graph::{
    Alternative, Alternatives, Class, DType, DeviceProfile, Dispatch, LaunchPlan, Place, TensorType, rounded,
};

/// Tensors of a pass and where the ranges of its rows lie.
pub(super) struct Walk {
    pub pass: Pass,
    pub head_dim: usize,
    pub q: TensorType,
    pub k: TensorType,
    /// `starts`, `ends` and `query_ends`, as far as the pass reads them.
    pub starts: Option<Place>,
    pub ends: Option<Place>,
    pub query_ends: Option<Place>,
    /// Positions and rotary angles by which its gradient is turned back.
    pub turn: Option<Turn>,
    /// Copies for matrix units, where they need them.
    pub halves: Halves,
}

#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub positions: Place,
    pub table: Place,
    /// Rows of the table.
    pub angles: usize,
}

impl Walk {
    /// Adds the kernel of the device's choice to a plan, after what makes copies for matrix units where no pass before did; `bind` adds
    /// what every variant has.
    pub fn launch(&self, device: &DeviceProfile, plan: &mut LaunchPlan, bind: impl Fn(Dispatch) -> Dispatch) {
        let extents = Extents {
            pass: self.pass,
            head_dim: self.head_dim,
            rows: self.rows(),
            turned: self.turn.is_some(),
            matrix: self.matrix(device),
        };
        let candidates = Variant::candidates(device, &extents);
        let (choices, class) = (&device.choices, self.class(extents.matrix));
        let fitting = |name| Variant::parse(name).filter(|variant| variant.fits(device, &extents));
        let measured =
            choices.variant(&class).and_then(fitting).or_else(|| choices.along(&class).find_map(fitting));
        let with = |variant: Variant| {
            let mut dispatch = bind(self.common(variant));
            let copied = self.copies(variant);
            let halves = dispatch.bindings.iter_mut().filter_map(|b| Some((self.halves.place(b.name)?, b)));
            for (copy, binding) in halves {
                binding.view = variant.view();
                if copied {
                    (binding.place, binding.dtype) = (copy, DType::F16);
                }
            }
            let Variant::Coop { .. } = variant else { return dispatch };
            let scaled = copied && self.halves.d_o.is_some();
            dispatch = dispatch.flag("SCALED", scaled);
            if scaled {
                dispatch = dispatch.read_scalar("unscale", self.halves.unscale(), DType::F32);
            }
            dispatch
        };
        let chosen = measured.unwrap_or(candidates[0]);
        let mut dispatch = with(chosen);
        if choices.wants(&class, candidates.len(), dispatch.cost.flops) {
            let alternative = |variant: &Variant| Alternative {
                name: variant.to_string(),
                dispatches: self.before(*variant).into_iter().chain([with(*variant)]).collect(),
                workspaces: if self.copies(*variant) { self.halves.workspaces() } else { vec![] },
            };
            let variants = candidates.iter().map(alternative).collect();
            // scores whose largest grows along a row, as they do in models; backwards they would have to fit lse
            let large = (self.pass == Pass::Forward).then_some((Place::Input(0), 64.0));
            let (indices, spreads) = (self.causal(), large.into_iter().collect());
            dispatch.alternatives = Some(Box::new(Alternatives { class, variants, indices, spreads }));
        }
        if self.copies(chosen) && plan.workspaces.len() == self.halves.first {
            plan.workspaces.extend(self.halves.workspaces().into_iter().map(|(_, bytes)| bytes));
            plan.dispatches.extend(self.before(chosen));
        }
        plan.dispatches.push(dispatch);
    }

    /// Whether the kernel reads copies.
    fn copies(&self, variant: Variant) -> bool {
        matches!(variant, Variant::Coop { .. }) && self.q.dtype != DType::F16
    }

    /// What makes them.
    fn before(&self, variant: Variant) -> Vec<Dispatch> {
        if self.copies(variant) { self.halves.dispatches() } else { vec![] }
    }

    /// See [`Extents::matrix`].
    fn matrix(&self, device: &DeviceProfile) -> Option<usize> {
        // with what scales a gradient
        let buffers = match self.pass {
            Pass::Forward => 7,
            Pass::GradientQuery => 11,
            Pass::GradientKeyValue => 10,
        };
        let buffers = if self.turn.is_some() { buffers + 2 } else { buffers };
        let copied = device.choices.allows_scratch() && device.binds(buffers);
        let read = |ty: &TensorType| ty.dtype == DType::F16 || (ty.dtype == DType::BF16 && copied);
        let plain = |ty: &TensorType| read(ty) && device.piece(ty.bytes()).is_none();
        let divides = |n: &usize| self.q.rows().is_multiple_of(*n) && self.k.rows().is_multiple_of(*n);
        let whole = device.shared_matrices.is_some() && [&self.q, &self.k].into_iter().all(plain);
        [16, 8].into_iter().find(|n| whole && divides(n))
    }

    fn rows(&self) -> usize {
        if self.pass == Pass::GradientKeyValue { self.k.rows() } else { self.q.rows() }
    }

    fn heads(&self) -> (usize, usize) {
        (self.q.cols() / self.head_dim, self.k.cols() / self.head_dim)
    }

    fn class(&self, matrix: Option<usize>) -> Class {
        let pass = match self.pass {
            Pass::Forward => "attention",
            Pass::GradientQuery => "attention gradient q",
            Pass::GradientKeyValue => "attention gradient kv",
        };
        let turned = if self.turn.is_some() { " turned" } else { "" };
        // what matrix units can take is a class of its own
        let whole = matrix.map_or(String::new(), |size| format!(" by {size}"));
        let (heads, kv_heads) = self.heads();
        let (rows, keys) = (self.q.rows(), self.k.rows());
        Class {
            family: format!("{pass} {}{turned}{whole} head_dim={}", self.q.dtype, self.head_dim),
            // training has as many keys as rows: they count once
            extents: vec![rounded(rows), rounded(keys.div_ceil(rows)), heads, kv_heads],
        }
    }

    /// Ranges for a measurement: one causal segment, whose last row sees the last key, at positions that have angles.
    fn causal(&self) -> Vec<(Place, Vec<u32>)> {
        let (rows, keys) = (self.q.rows() as u32, self.k.rows() as u32);
        let before = keys.saturating_sub(rows);
        let mut indices = Vec::new();
        indices.extend(self.starts.map(|place| (place, vec![0; rows as usize])));
        indices
            .extend(self.ends.map(|place| (place, (0..rows).map(|t| (before + t + 1).min(keys)).collect())));
        indices.extend(self.query_ends.map(|place| (place, vec![rows; rows as usize])));
        let positions = |turn: Turn| (0..rows).map(|t| t % turn.angles as u32).collect();
        indices.extend(self.turn.map(|turn| (turn.positions, positions(turn))));
        indices
    }

    fn common(&self, variant: Variant) -> Dispatch {
        let (heads, kv_heads) = self.heads();
        let walked = if self.pass == Pass::GradientKeyValue { kv_heads } else { heads };
        let row_tiles = self.rows().div_ceil(variant.rows() as usize);
        let mut dispatch = Dispatch::new(variant.shader(self.pass), walked * row_tiles)
            .param("tiles", walked * row_tiles)
            .param("row_tiles", row_tiles)
            .param("rows", self.rows())
            .param("q_stride", self.q.cols4())
            .param("kv_stride", self.k.cols4())
            .param("group", heads / kv_heads)
            .param_f32("scale", 1.0 / (self.head_dim as f64).sqrt())
            .variant(variant.to_string())
            .read("q", Place::Input(0), self.q.dtype)
            .read("k", Place::Input(1), self.k.dtype)
            .read("v", Place::Input(2), self.k.dtype);
        if let Variant::Tiled { .. } | Variant::Coop { .. } = variant {
            dispatch = dispatch.param("heads", walked);
        }
        if self.pass != Pass::GradientKeyValue {
            dispatch = dispatch.param("keys", self.k.rows());
        }
        let ranges = [("starts", self.starts), ("ends", self.ends), ("query_ends", self.query_ends)];
        for (name, place) in ranges {
            if let Some(place) = place {
                dispatch = dispatch.read_scalar(name, place, DType::U32);
            }
        }
        if let Some(Turn { positions, table, .. }) = self.turn {
            dispatch =
                dispatch.read_scalar("positions", positions, DType::U32).read("table", table, DType::F32);
        }
        let turned = self.turn.is_some();
        variant.define(dispatch.flag("TURNED", turned), self.head_dim, turned)
    }
}
