//! A product as operations launch it.

use super::Layout;
use super::candidates::Running;
use super::kernel::{
    Kernel, PAIR_FACTORS, Scratch, Sections, Shared, gated, rounded_rows, rounded_whole, staged,
};
use super::operand::{Gate, MaskOn, Masked, Operand, Oriented, Terms, Unscale};
use super::variant::{FINISH, Variant};
use crate::graph::{
    Alternative, Alternatives, Class, DType, Dispatch, Launch, LaunchPlan, Place, Shape, TensorType, View,
    rounded,
};
use crate::ops::glu;

/// A product as other operations launch it.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f64,
    pub accumulate: bool,
    /// More than one: products that share an operand, made by one kernel. m (TN, sharing B) or n (NT, sharing A) is the sum of
    /// theirs, equal multiples of four; the other operand and the result are that many tensors.
    pub parts: usize,
}

impl Product {
    /// Appends what makes `out (+)= alpha * (a·b + a2·b2) + bias + residual`, or the gradients that are made of such a product alone.
    pub fn launch(
        &self,
        launch: &Launch<'_>,
        plan: &mut LaunchPlan,
        (a, b): (Operand, Operand),
        terms: Terms,
        out: Operand,
    ) {
        let sums = terms.residual.is_some() || terms.bias.is_some();
        debug_assert!(terms.gradient_of.is_none() || (!sums && !self.accumulate));
        debug_assert!(self.parts == 1 || terms.bias.is_none());
        let oriented = self.orient(a, b, terms, out);
        let choices = &launch.device.choices;
        let mut kernels = Kernel::candidates(launch.device, &oriented);
        if !choices.allows_scratch() {
            // every device has a kernel that reads its operands as they are
            kernels.retain(|kernel| !kernel.needs_scratch(&oriented));
        }
        let class = self.class(&oriented);
        let fitting = |name| {
            let kernel = Kernel::parse(name)?;
            let sections = if choices.is_whole() { 1 } else { kernel.sections };
            let kernel = Kernel { sections, staged: kernel.staged && !choices.is_direct(), ..kernel };
            kernel.fits(launch.device, &oriented).then_some(kernel)
        };
        // of more tokens, where its tiles are not too large for so few
        let along = || choices.along(&class).filter_map(fitting).find(|kernel| kernel.suits(&oriented));
        let measured = choices.variant(&class).and_then(fitting).or_else(along);
        let mut scratch = Scratch { shared: plan.shared, next: plan.workspaces.len(), used: Vec::new() };
        let chosen = measured.unwrap_or(kernels[0]);
        let mut dispatches = self.with(chosen, &oriented, &mut scratch);
        let speed = choices.speed(&class, &chosen.to_string());
        // but for what comes before and after
        dispatches.iter_mut().filter(|d| !d.variant.is_empty()).for_each(|d| d.speed = speed);
        let flops: f64 = dispatches.iter().map(|d| d.cost.flops).sum();
        if choices.wants(&class, kernels.len(), flops) {
            // whoever measures compares results: of tensors that are not overwritten
            let mut beside = oriented;
            if let Some(gate) = &mut beside.terms.gradient_of {
                gate.replaces = [false; 2];
            }
            let alternative = |kernel: &Kernel| {
                let mut own = Scratch { used: Vec::new(), ..scratch };
                let dispatches = self.with(*kernel, &beside, &mut own);
                Alternative { name: kernel.to_string(), dispatches, workspaces: own.used }
            };
            let variants = kernels.iter().map(alternative).collect();
            // what comes before and after a product is little work
            let most = dispatches.iter_mut().max_by(|a, b| a.cost.flops.total_cmp(&b.cost.flops));
            if let Some(main) = most {
                // what is rounded to f16 is small: who flushes subnormal numbers must be found out
                let mut small = vec![oriented.r, oriented.c];
                small.retain(|operand| operand.rounds);
                if !small.is_empty() {
                    // what is added must not hide the product
                    small.extend([oriented.terms.bias, oriented.terms.residual].into_iter().flatten());
                }
                let spreads = small.iter().map(|operand| (operand.place, 2f32.powi(-15))).collect();
                let indices = vec![];
                main.alternatives = Some(Box::new(Alternatives { class, variants, indices, spreads }));
            }
        }
        plan.dispatches.extend(dispatches);
        for &(place, bytes) in &scratch.used {
            if let Place::Workspace(w) = place {
                plan.workspaces.resize(plan.workspaces.len().max(w + 1), 0);
                plan.workspaces[w] = plan.workspaces[w].max(bytes);
            }
        }
        plan.shared = scratch.shared;
    }

    fn orient(&self, a: Operand, b: Operand, terms: Terms, out: Operand) -> Oriented {
        let swapped = match (self.parts, self.layout) {
            (1, _) => {
                let bare = !terms.masks(MaskOn::Pair) && terms.up.is_none() && terms.gradient_of.is_none();
                self.n <= 16 && self.m > self.n && bare
            }
            (_, layout) => layout == Layout::NT,
        };
        let (a_inner, b_inner) = (self.layout != Layout::TN, self.layout == Layout::NT);
        let ((r, r_inner, rows), (c, c_inner, cols), terms) = match swapped {
            true => {
                let pair = terms.pair.map(|(a2, b2, k2)| (b2, a2, k2));
                ((b, b_inner, self.n), (a, a_inner, self.m), Terms { pair, ..terms })
            }
            false => ((a, a_inner, self.m), (b, b_inner, self.n), terms),
        };
        let (k, parts, unscale, running) = (self.k, self.parts, None, Running::Neither);
        let oriented =
            Oriented { swapped, rows, cols, k, parts, r_inner, c_inner, r, c, terms, out, unscale, running };
        Oriented { running: oriented.can_run(), ..oriented }
    }

    fn class(&self, o: &Oriented) -> Class {
        let side = |inner: bool, operand: Operand| {
            let rounds = if operand.rounds { " as f16" } else { "" };
            format!("{}{rounds}{}", operand.dtype, if inner { "" } else { "ᵀ" })
        };
        let pair = o.terms.pair.map_or(String::new(), |(r2, c2, _)| format!(" + {}·{}", r2.dtype, c2.dtype));
        let mask = match o.terms.mask {
            Some((Masked { on: MaskOn::Pair, .. }, _)) => " dropout on sum",
            Some(_) => " dropout",
            None => "",
        };
        let parts = if self.parts > 1 { format!("{} times ", self.parts) } else { String::new() };
        let gate = if o.gated() { "glu " } else { "" };
        let made = if o.terms.gradient_of.is_some() { "glu gradients " } else { "" };
        let low_rank = if o.terms.low_rank { "low-rank " } else { "" };
        let family = format!(
            "matmul {low_rank}{parts}{gate}{}·{}{pair}{mask} -> {made}{}{}",
            side(o.r_inner, o.r),
            side(o.c_inner, o.c),
            o.out.dtype,
            if o.swapped { "ᵀ" } else { "" },
        );
        let k2 = o.terms.pair.map_or(0, |(_, _, k2)| rounded(k2));
        Class { family, extents: vec![rounded(o.rows), rounded(o.cols), rounded(self.k), k2] }
    }

    /// The dispatches of a kernel, and the scratch space that they use.
    fn with(&self, kernel: Kernel, o: &Oriented, scratch: &mut Scratch) -> Vec<Dispatch> {
        let mut o = *o;
        let mut dispatches = Vec::new();
        if kernel.rounds_rows(&o) {
            let with_rows = o.terms.pair.filter(|_| kernel.sums_pair(&o)).map(|(r2, _, k2)| (r2, k2));
            let (r, unscale, made) = rounded_rows(&o, with_rows, scratch);
            dispatches.push(made);
            let unscale = Some(Unscale::Rows(unscale));
            o = Oriented { r, unscale, terms: Terms { up: None, ..o.terms }, ..o };
        } else if kernel.rounds_whole(&o) {
            let (rows, cols) =
                ((Shared::Rounded, Shared::Unscale), (Shared::RoundedColumns, Shared::UnscaleColumns));
            let (r, unscale_r, made) = rounded_whole(o.r, o.r_shape(), rows, scratch);
            let (c, unscale_c, made_c) = rounded_whole(o.c, o.c_shape(), cols, scratch);
            dispatches.extend(made.into_iter().chain(made_c));
            o = Oriented { r, c, unscale: Some(Unscale::Operands(unscale_r, unscale_c)), ..o };
        } else if let Some(up) = o.terms.up.filter(|_| !kernel.gates) {
            let (r, made) = gated(&o, up, scratch);
            dispatches.push(made);
            o = Oriented { r, terms: Terms { up: None, ..o.terms }, ..o };
        }
        if kernel.staged {
            let (r, copy) = staged(o.r, o.r_plain(), scratch);
            // rows that are scaled as they are met become f16, whatever they are stored in
            let c_plain = match kernel.variant.is_running() {
                true => TensorType { dtype: DType::F16, ..o.c_plain() },
                false => o.c_plain(),
            };
            let (c, copy_c) = staged(o.c, c_plain, scratch);
            dispatches.extend(copy.into_iter().chain(copy_c));
            o = Oriented { r, c, ..o };
        }
        match kernel.sections {
            1 => dispatches.extend(self.dispatches(kernel.variant, &o, None, scratch)),
            most => dispatches.extend(self.in_sections(kernel.variant, &o, o.sections(most), scratch)),
        }
        dispatches
    }

    /// The sums of each section, and the dispatch that adds them up and stores the result.
    fn in_sections(
        &self,
        variant: Variant,
        o: &Oriented,
        sections: Sections,
        scratch: &mut Scratch,
    ) -> Vec<Dispatch> {
        let bytes = 16 * (sections.count * sections.out4) as u64;
        let sums = Operand::new(scratch.take(Shared::Sums, bytes), DType::F32).range(0, bytes);
        // dropout lies on an operand, and goes with the sums, or on the second pair
        let (on_pair, on_operand) = match o.terms.masks(MaskOn::Pair) {
            true => (o.terms.mask, None),
            false => (None, o.terms.mask),
        };
        let Terms { up, activation, .. } = o.terms;
        let terms = Terms { mask: on_operand, up, activation, ..Terms::default() };
        let each = Product { alpha: 1.0, accumulate: false, ..*self };
        let mut dispatches =
            each.dispatches(variant, &Oriented { terms, out: sums, ..*o }, Some(sections), scratch);
        let k2 = o.terms.pair.map_or(0, |(_, _, k2)| k2);
        let after = Oriented { terms: Terms { mask: on_pair, up: None, ..o.terms }, ..*o };
        let stored = self.out_bytes(o) as f64 * if o.terms.gradient_of.is_some() { 4.0 } else { 1.0 };
        let flops = (sections.count * 4 * sections.out4) as f64;
        let finish = self.finish(&after, sums, Some(sections), k2).cost(flops, bytes as f64 + stored);
        dispatches.push(finish);
        dispatches
    }

    fn out_bytes(&self, o: &Oriented) -> u64 {
        TensorType::new(Shape::matrix(self.m, self.n), o.out.dtype).bytes()
    }

    fn dispatches(
        &self,
        variant: Variant,
        o: &Oriented,
        sections: Option<Sections>,
        scratch: &mut Scratch,
    ) -> Vec<Dispatch> {
        let (tile_rows, tile_cols) = variant.tile();
        let col_tiles = o.cols.div_ceil(tile_cols);
        let tiles = o.rows.div_ceil(tile_rows) * col_tiles;
        let k2 = o.terms.pair.map_or(0, |(_, _, k2)| k2);
        let elements = |x: usize, y: usize, t: DType| TensorType::new(Shape::matrix(x, y), t).bytes() as f64;
        let rows = elements(o.rows, self.k, o.r.dtype);
        let out = elements(self.m, self.n, o.out.dtype);
        let mut flops = 2.0 * self.m as f64 * self.n as f64 * (self.k + k2) as f64;
        let mut bytes = rows + elements(o.cols, self.k, o.c.dtype) + out;
        if o.gated() {
            flops += glu::FLOPS * (o.rows * self.k) as f64;
            bytes += rows;
        }
        if o.terms.gradient_of.is_some() {
            flops += glu::GRADIENT_FLOPS * (self.m * self.n) as f64;
            bytes += 3.0 * out;
        }
        let widened = if k2 == 0 { String::new() } else { format!("+{k2}") };
        let parts = if self.parts > 1 { format!(" in {}", self.parts) } else { String::new() };
        let detail = format!("{:?} {}x{}x{}{widened}{parts}", self.layout, self.m, self.n, self.k);

        let count = sections.map_or(1, |sections| sections.count);
        let shared = if count > 1 { format!("{count} sections, ") } else { String::new() };
        let mut main = variant
            .define(Dispatch::new(variant.shader(), tiles * count))
            .flag("SECTIONED", sections.is_some())
            .flag("R_INNER", o.r_inner)
            .flag("C_INNER", o.c_inner)
            .param("tiles", tiles)
            .param("col_tiles", col_tiles)
            .param("rows", o.rows)
            .param("cols", o.cols)
            .param("k", self.k)
            .detail(detail)
            .variant(format!("{shared}{variant}"));
        if let Some(Sections { count, k4, out4 }) = sections {
            main = main.param("sections", count).param("section_k4", k4).param("section_out4", out4);
        }
        if let Variant::Coop { .. } = variant {
            let sums = elements(o.rows, o.cols, DType::F32);
            let scratch = scratch.take(Shared::Sums, sums as u64);
            let main = main
                .bind(o.r.binding("r", View::Matrix, false))
                .bind(o.c.binding("c", View::Matrix, false))
                .bind(Operand::new(scratch, DType::F32).binding("sums", View::Matrix, true))
                .cost(flops, bytes + sums);
            let stored = if o.terms.gradient_of.is_some() { 4.0 * out } else { out };
            let sums_of = Operand::new(scratch, DType::F32);
            let finish = self.finish(o, sums_of, None, k2).cost(0.0, sums + stored);
            return vec![main, finish];
        }
        let octets = |inner: bool, operand: Operand| {
            inner && variant.reads_octets() && self.parts == 1 && !operand.dtype.is_quantised()
        };
        let (r_octets, c_octets) = (octets(o.r_inner, o.r) && !o.gated(), octets(o.c_inner, o.c));
        let view = |octets: bool| if octets { View::Octet } else { View::Vec4 };
        let main = (0..self.parts)
            .fold(main, |main, part| main.bind(o.r.part(part).binding("r", view(r_octets), false)));
        let mut main = main
            .bind(o.c.binding("c", view(c_octets), false))
            .flag("R_OCTETS", r_octets)
            .flag("C_OCTETS", c_octets)
            .define("PARTS", self.parts as u32)
            .flag("R_GATED", o.gated())
            .flag("R_MASKED", o.masks_rows())
            .flag("C_MASKED", o.masks_cols())
            .param("rows4", o.rows.div_ceil(4))
            .param("cols4", o.cols.div_ceil(4))
            .param("k_4", self.k.div_ceil(4))
            .flag("TRANSPOSED", o.swapped)
            .flag("AHEAD", o.c_inner && variant.loads_ahead() && !o.c.dtype.is_quantised() && !o.masks_cols())
            .flag(
                "NF4_TABLE",
                matches!(variant, Variant::Tiled { .. } | Variant::CoopTiled { .. }) && o.nf4(),
            )
            .cost(flops, bytes);
        if let Variant::CoopTiled(tile) = variant {
            let blocks = |k: usize| k.next_multiple_of(tile.shape.k as usize) as u32;
            let pair_depth = if o.can_sum_pair() { tile.depth.min(blocks(k2)) } else { 0 };
            let raw = |operand: Operand| matches!(operand.dtype, DType::F16 | DType::BF16);
            // what dropout has made larger may be beyond f16
            let runs = |x: Operand, masked: bool| tile.running && (x.dtype != DType::F16 || masked);
            let both = o.running == Running::Both;
            main = main
                .flag("R_RAW", raw(o.r) && !o.gated() && !o.masks_rows())
                .flag("C_RAW", raw(o.c) && !o.masks_cols())
                .flag("R_RUNS", runs(o.r, o.masks_rows()))
                .flag("C_RUNS", both && runs(o.c, o.masks_cols()))
                .flag("R_F16", o.r.dtype == DType::F16)
                .flag("C_F16", o.c.dtype == DType::F16)
                .flag("WHOLE", self.k.is_multiple_of(tile.depth as usize))
                .define("PAIR_DEPTH", pair_depth)
                .define("PAIR_FACTOR", PAIR_FACTORS[usize::from(o.unscale.is_some() || tile.running)])
                .flag("SCALED", o.unscale.is_some())
                .flag("SCALED_WHOLE", matches!(o.unscale, Some(Unscale::Operands(..))));
            if let Some(Unscale::Rows(unscale) | Unscale::Operands(unscale, _)) = o.unscale {
                main = main.read_scalar("unscale", unscale, DType::F32);
            }
            if let Some(Unscale::Operands(_, unscale)) = o.unscale {
                main = main.read_scalar("unscale_columns", unscale, DType::F32);
            }
        }
        if let Some(up) = o.terms.up {
            main = main.bind(up.binding("r_up", View::Vec4, false));
        }
        if k2 > 0 {
            main = main.param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        if self.parts > 1 {
            let rows = o.rows / self.parts;
            // groups of four in one part: lines along the other extent, or along the rows
            let part = |along_other: bool, other: usize| match along_other {
                true => rows * other.div_ceil(4),
                false => other * rows / 4,
            };
            main = main
                .param("part_rows4", rows / 4)
                .param("r_part", part(o.r_inner, self.k))
                .param("out_part", part(!o.swapped, o.cols));
        }
        // sums of all parts lie one after the other
        let outs = if sections.is_some() { 1 } else { self.parts };
        vec![self.store(main, o, outs)]
    }

    /// The dispatch that stores the sums of a product on matrix units, or of one in sections.
    fn finish(&self, o: &Oriented, sums: Operand, sections: Option<Sections>, k2: usize) -> Dispatch {
        let out4 = o.sections(1).out4;
        let mut finish = Dispatch::new(FINISH, out4.div_ceil(64))
            .flag("R_INNER", o.r_inner)
            .flag("C_INNER", o.c_inner)
            .flag("SECTIONED", false)
            .flag("SECTIONS", sections.is_some())
            .param("count", out4)
            .param("rows", o.rows)
            .param("cols", o.cols)
            .param("cols4", o.cols.div_ceil(4))
            .bind(sums.binding("sums", View::Vec4, false))
            .detail(format!("{}x{}", o.rows, o.cols));
        if let Some(Sections { count, .. }) = sections {
            finish = finish.param("sections", count);
        }
        if self.parts > 1 {
            finish = finish.param("out_part", out4 / self.parts);
        }
        if k2 > 0 {
            finish = finish.param("rows4", o.rows.div_ceil(4)).param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        self.store(finish, o, self.parts)
    }

    /// What every kernel that stores the result, in so many tensors, has.
    fn store(&self, dispatch: Dispatch, o: &Oriented, outs: usize) -> Dispatch {
        let mut dispatch = dispatch
            .flag("PAIR", o.terms.pair.is_some())
            .flag("PAIR_MASKED", o.terms.masks(MaskOn::Pair))
            .flag("BIAS", o.terms.bias.is_some())
            .flag("RESIDUAL", o.terms.residual.is_some())
            .flag("ACCUMULATE", self.accumulate)
            .flag("GATE_GRADIENT", o.terms.gradient_of.is_some())
            .param_f32("alpha", self.alpha);
        dispatch = o.terms.activation.define(dispatch);
        if let Some((r2, c2, _)) = o.terms.pair {
            dispatch =
                dispatch.bind(r2.binding("r2", View::Vec4, false)).bind(c2.binding("c2", View::Vec4, false));
        }
        if let Some(bias) = o.terms.bias {
            let stored = if o.swapped { o.rows } else { o.cols };
            dispatch =
                dispatch.param("bias4", stored.div_ceil(4)).bind(bias.binding("bias", View::Vec4, false));
        }
        if let Some(residual) = o.terms.residual {
            dispatch = dispatch.bind(residual.binding("residual", View::Vec4, false));
        }
        if let Some((Masked { dropout, .. }, rng)) = o.terms.mask {
            dispatch = dropout.mask(dispatch, rng);
        }
        let Some(Gate { gate, up, d_up, replaces }) = o.terms.gradient_of else {
            return (0..outs)
                .fold(dispatch, |d, part| d.bind(o.out.part(part).binding("out", View::Vec4, true)));
        };
        let sources = [gate.binding("gate", View::Vec4, false), up.binding("up", View::Vec4, false)];
        dispatch = glu::sources(dispatch, sources, replaces);
        dispatch.bind(o.out.binding("dgate", View::Vec4, true)).bind(d_up.binding("dup", View::Vec4, true))
    }
}
