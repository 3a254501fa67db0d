//! One pass of attention as the operations launch it: the kernel of its family, and the others for who measures them.

use super::Scoring;
use super::candidates::Extents;
use super::halves::Halves;
use super::kernel::{HeadSums, Kernel, KvHeads};
use super::variant::{Pass, Variant};
use crate::graph::{
    Alternative, Alternatives, Class, DType, DeviceProfile, Dispatch, LaunchPlan, Place, SharedMatrices,
    TensorType, rounded,
};

/// Tensors of a pass and where the ranges of its rows lie.
pub(super) struct Walk {
    pub pass: Pass,
    pub scoring: Scoring,
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

impl Turn {
    fn bind(self, dispatch: Dispatch) -> Dispatch {
        let dispatch = dispatch.read_scalar("positions", self.positions, DType::U32);
        dispatch.read("table", self.table, DType::F32)
    }
}

impl Walk {
    /// Adds the kernel of the device's choice to a plan, after what makes copies for matrix units where no pass before did; `bind` adds
    /// what every variant has.
    pub fn launch(&self, device: &DeviceProfile, plan: &mut LaunchPlan, bind: impl Fn(Dispatch) -> Dispatch) {
        let extents = Extents {
            pass: self.pass,
            head_dim: self.scoring.head_dim,
            rows: self.rows(),
            turned: self.turn.is_some(),
            matrix: self.matrix(device),
        };
        let kv_heads = self.adds_heads(device);
        let candidates = Kernel::candidates(device, &extents, kv_heads);
        let (choices, class) = (&device.choices, self.class(extents.matrix));
        let fitting = |name| {
            let kernel = Kernel::parse(name)?;
            let alone = Kernel { by_head: false, ..kernel };
            let kernels = if choices.is_whole() { [alone; 2] } else { [kernel, alone] };
            kernels.into_iter().find(|kernel| kernel.fits(device, &extents, kv_heads))
        };
        let measured =
            choices.variant(&class).and_then(fitting).or_else(|| choices.along(&class).find_map(fitting));
        // `scratch`: the first free scratch space, behind copies
        let with = |kernel: Kernel, scratch: usize| {
            let Kernel { variant, by_head } = kernel;
            let mut dispatch = bind(self.common(kernel, device.shared_matrices));
            let copied = self.copies(variant);
            let halves = dispatch.bindings.iter_mut().filter_map(|b| Some((self.halves.place(b.name)?, b)));
            for (copy, binding) in halves {
                binding.view = variant.view(device.shared_matrices);
                if copied {
                    (binding.place, binding.dtype) = (copy, DType::F16);
                }
            }
            if let Variant::Coop(_) = variant {
                let scaled = copied && self.halves.d_o.is_some();
                dispatch = dispatch.flag("SCALED", scaled);
                if scaled {
                    dispatch = dispatch.read_scalar("unscale", self.halves.unscale(), DType::F32);
                }
            }
            let after = by_head.then(|| self.by_head(&mut dispatch, scratch));
            [Some(dispatch), after].into_iter().flatten().collect::<Vec<_>>()
        };
        let chosen = measured.unwrap_or(candidates[0]);
        let copied = self.copies(chosen.variant) && plan.workspaces.len() == self.halves.first;
        if copied {
            plan.workspaces.extend(self.halves.workspaces().into_iter().map(|(_, bytes)| bytes));
            plan.dispatches.extend(self.halves.dispatches());
        }
        let mut dispatches = with(chosen, plan.workspaces.len());
        dispatches[0].speed = choices.speed(&class, &chosen.to_string());
        if choices.wants(&class, candidates.len(), dispatches[0].cost.flops) {
            let alternative = |kernel: &Kernel| {
                let mut workspaces =
                    if self.copies(kernel.variant) { self.halves.workspaces() } else { vec![] };
                let before = if workspaces.is_empty() { vec![] } else { self.halves.dispatches() };
                let scratch = self.halves.first + workspaces.len();
                if kernel.by_head {
                    workspaces.extend(self.head_sums(scratch).workspaces());
                }
                let dispatches = before.into_iter().chain(with(*kernel, scratch)).collect();
                Alternative { name: kernel.to_string(), dispatches, workspaces }
            };
            let variants = candidates.iter().map(alternative).collect();
            // scores whose largest grows along a row, as they do in models; backwards they would have to fit lse
            let large = (self.pass == Pass::Forward).then_some((Place::Input(0), 64.0));
            let (indices, spreads) = (self.causal(), large.into_iter().collect());
            dispatches[0].alternatives = Some(Box::new(Alternatives { class, variants, indices, spreads }));
        }
        if chosen.by_head {
            let sums = self.head_sums(plan.workspaces.len());
            plan.workspaces.extend(sums.workspaces().into_iter().map(|(_, bytes)| bytes));
        }
        plan.dispatches.extend(dispatches);
    }

    /// The KV heads, where the gradients of their query heads may be made by themselves.
    fn adds_heads(&self, device: &DeviceProfile) -> KvHeads {
        let (heads, kv_heads) = self.heads();
        let sums = device.piece(HeadSums::ty(self.q).bytes()).is_none();
        let may = self.pass == Pass::GradientKeyValue && heads > kv_heads && !device.cpu;
        (may && sums && device.choices.allows_scratch()).then_some(kv_heads)
    }

    fn head_sums(&self, first: usize) -> HeadSums {
        HeadSums { first, head_dim: self.scoring.head_dim, q: self.q, k: self.k }
    }

    /// Makes the kernel write the gradients of its head to scratch space from `scratch` on, and gives what adds them up.
    fn by_head(&self, kernel: &mut Dispatch, scratch: usize) -> Dispatch {
        let sums = self.head_sums(scratch);
        for binding in &mut kernel.bindings {
            if let Some(place) = sums.place(binding.name) {
                (binding.place, binding.dtype) = (place, DType::F32);
            }
        }
        let turn = self.turn.map(|turn| move |dispatch| turn.bind(dispatch));
        sums.dispatch(turn.as_ref().map(|bind| bind as &dyn Fn(Dispatch) -> Dispatch))
    }

    /// Whether the kernel reads copies.
    fn copies(&self, variant: Variant) -> bool {
        matches!(variant, Variant::Coop(_)) && self.q.dtype != DType::F16
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
        (self.q.cols() / self.scoring.head_dim, self.k.cols() / self.scoring.head_dim)
    }

    fn class(&self, matrix: Option<usize>) -> Class {
        let pass = match self.pass {
            Pass::Forward => "attention",
            Pass::GradientQuery => "attention gradient q",
            Pass::GradientKeyValue => "attention gradient kv",
        };
        let turned = if self.turn.is_some() { " turned" } else { "" };
        let capped = if self.scoring.soft_cap.is_some() { " capped" } else { "" };
        // what matrix units can take is a class of its own
        let whole = matrix.map_or(String::new(), |size| format!(" by {size}"));
        let (heads, kv_heads) = self.heads();
        let (rows, keys) = (self.q.rows(), self.k.rows());
        Class {
            family: format!(
                "{pass} {}{turned}{capped}{whole} head_dim={}",
                self.q.dtype, self.scoring.head_dim
            ),
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

    fn common(&self, kernel: Kernel, shared: Option<SharedMatrices>) -> Dispatch {
        let Kernel { variant, by_head } = kernel;
        let (heads, kv_heads) = self.heads();
        let walked = if self.pass == Pass::GradientKeyValue && !by_head { kv_heads } else { heads };
        let row_tiles = self.rows().div_ceil(variant.rows() as usize);
        let mut dispatch = Dispatch::new(variant.shader(self.pass), walked * row_tiles)
            .param("tiles", walked * row_tiles)
            .param("row_tiles", row_tiles)
            .param("rows", self.rows())
            .param("q_stride", self.q.cols4())
            .param("kv_stride", self.k.cols4())
            .param("group", heads / kv_heads)
            .param_f32("scale", self.scoring.scale)
            .flag("CAPPED", self.scoring.soft_cap.is_some())
            .variant(kernel.to_string())
            .read("q", Place::Input(0), self.q.dtype)
            .read("k", Place::Input(1), self.k.dtype)
            .read("v", Place::Input(2), self.k.dtype);
        if let Variant::Tiled { .. } | Variant::Coop(_) = variant {
            dispatch = dispatch.param("heads", walked).flag("BY_HEAD", by_head);
        }
        if let Some(cap) = self.scoring.soft_cap {
            dispatch = dispatch.param_f32("cap", cap);
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
        let turn = self.turn.filter(|_| !by_head);
        if let Some(turn) = turn {
            dispatch = turn.bind(dispatch);
        }
        let turned = turn.is_some();
        variant.define(dispatch.flag("TURNED", turned), self.scoring.head_dim, turned, shared)
    }
}
