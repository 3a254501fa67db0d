//! What the product's kernels are tried on.

use super::{Layout, MaskOn, Masked, Matmul};
use crate::graph::{Case, CaseInput, DType};
use crate::ops::activation::Activation;
use crate::ops::dropout::Dropout;

/// Every layout, in the types and extents that kernels differ for.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        (1, 1, 1),
        (5, 7, 6),
        (33, 70, 37),
        (64, 6, 40),
        (3, 130, 9),
        (100, 8, 65),
        (8, 96, 50),
        (64, 4, 4099),
    ];
    for layout in [Layout::NT, Layout::NN, Layout::TN] {
        let dims = |m: usize, n: usize, k: usize| match layout {
            Layout::NT => ([m, k], [n, k]),
            Layout::NN => ([m, k], [k, n]),
            Layout::TN => ([k, m], [k, n]),
        };
        for (m, n, k) in shapes {
            let (a, b) = dims(m, n, k);
            let inputs = vec![CaseInput::random(&a, DType::F32), CaseInput::random(&b, DType::F32)];
            let op = Matmul::plain(layout, 0.5, DType::F32);
            let case = Case::new(format!("{layout:?} {m}x{n}x{k}"), op, inputs);
            cases.push(if m * n * k < 300 { case.gradients(&[0, 1]) } else { case });
        }
        // several tiles of matrix units, the last ones not whole, and what is no multiple of four
        for (m, n, k) in [(37, 70, 37), (200, 260, 100), (70, 132, 96)] {
            let (a, b) = dims(m, n, k);
            let inputs = vec![CaseInput::random(&a, DType::F16), CaseInput::random(&b, DType::F16)];
            let op = Matmul::plain(layout, 0.5, DType::F16);
            cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} f16"), op, inputs));
        }
        for (dtype, other) in [
            (DType::F16, DType::F16),
            (DType::BF16, DType::BF16),
            (DType::F32, DType::BF16),
            (DType::BF16, DType::F32),
            (DType::F16, DType::F32),
        ] {
            let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 6));
            let inputs = vec![
                CaseInput::random(&a, dtype),
                CaseInput::random(&b, other),
                CaseInput::random(&a2, DType::F32),
                CaseInput::random(&b2, DType::F32),
            ];
            let op = Matmul::plain(layout, 1.0, dtype);
            let mut with = inputs.clone();
            with.push(CaseInput::random(&[35, 44], dtype));
            cases.push(Case::new(format!("{layout:?} pair {dtype} {other}"), op.clone(), inputs));
            let op = Matmul { residual: true, ..op };
            cases.push(Case::new(format!("{layout:?} pair and residual {dtype} {other}"), op, with));
        }
        // adapters of more than a block of the tiles, the last block not whole
        for dtype in [DType::F16, DType::BF16] {
            let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 42));
            let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
            inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
            let op = Matmul::plain(layout, 1.0, dtype);
            cases.push(Case::new(format!("{layout:?} wide pair {dtype}"), op, inputs));
        }
        // an inner dimension that goes in sections
        for (dtype, (m, n, k)) in [(DType::BF16, (35, 44, 1100)), (DType::F16, (40, 70, 600))] {
            let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, 6));
            let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
            inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
            inputs.push(CaseInput::random(&[m, n], dtype));
            let op = Matmul { residual: true, ..Matmul::plain(layout, 0.5, dtype) };
            cases.push(Case::new(format!("{layout:?} long {m}x{n}x{k} {dtype}"), op, inputs));
        }
        let (a, b) = dims(4, 5, 3);
        let (a2, b2) = dims(4, 5, 2);
        let inputs = [a, b, a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
        let mut inputs: Vec<CaseInput> = inputs;
        let op = Matmul::plain(layout, 1.0, DType::F32);
        cases
            .push(Case::new(format!("{layout:?} pair"), op.clone(), inputs.clone()).gradients(&[0, 1, 2, 3]));
        inputs.push(CaseInput::random(&[4, 5], DType::F32));
        let op = Matmul { residual: true, ..op };
        cases.push(Case::new(format!("{layout:?} residual"), op.clone(), inputs).gradients(&[0, 1, 2, 3, 4]));
        // whole tiles of every kernel, those of matrix units among them
        let ((a, b), (a2, b2)) = (dims(64, 128, 48), dims(64, 128, 6));
        let mut whole: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::F16)).collect();
        let op = Matmul::plain(layout, 0.5, DType::F16);
        cases.push(Case::new(format!("{layout:?} whole"), op.clone(), whole.clone()));
        whole.extend([a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)));
        whole.push(CaseInput::random(&[64, 128], DType::F16));
        let op = Matmul { residual: true, ..op };
        cases.push(Case::new(format!("{layout:?} whole, pair and residual"), op.clone(), whole.clone()));
        whole.insert(4, CaseInput::random(&[128], DType::F32));
        let op = Matmul { bias: true, ..op };
        cases.push(Case::new(format!("{layout:?} whole, pair, bias and residual"), op, whole));
        let (a, b) = dims(40, 7, 20);
        let mut thin: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
        thin.push(CaseInput::random(&[7], DType::F32));
        let op = Matmul { bias: true, ..Matmul::plain(layout, 0.5, DType::F32) };
        let label = format!("{layout:?} thin bias");
        cases.push(Case::new(label, op.clone(), thin).gradients(&[0, 1, 2]));
        // in sections, and after a pair with dropout
        let ((a, b), (a2, b2)) = (dims(35, 44, 600), dims(35, 44, 6));
        let mut long: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::BF16)).collect();
        long.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
        long.push(CaseInput::random(&[44], DType::F32));
        let op = Matmul { dtype: DType::BF16, ..op };
        cases.push(Case::new(format!("{layout:?} long bias"), op, long));
        // block-quantised weights: whole tiles, odd ones, a few rows
        if layout != Layout::TN {
            for (stored, dtype, (m, n, k)) in [
                (DType::Nf4, DType::F32, (37, 44, 52)),
                (DType::Nf4Double, DType::BF16, (70, 132, 256)),
                (DType::Int8, DType::F32, (37, 44, 52)),
                (DType::Nf4, DType::F16, (64, 128, 48)),
                (DType::Int8, DType::F16, (70, 132, 64)),
                (DType::Nf4Double, DType::F16, (70, 132, 64)),
                (DType::Nf4Double, DType::F32, (3, 132, 64)),
                (DType::Int8, DType::F16, (1, 68, 64)),
                (DType::Nf4, DType::F32, (40, 8, 64)),
            ] {
                let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, 8));
                let op = Matmul::plain(layout, 1.0, dtype);
                let inputs = vec![
                    CaseInput::random(&a, dtype),
                    CaseInput::random(&b, stored),
                    CaseInput::random(&a2, DType::F32),
                    CaseInput::random(&b2, DType::F32),
                ];
                cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} {stored} on {dtype}"), op, inputs));
            }
        }
        // dropout on each operand, in thin products and in others, and on the second pair's product
        let dropout = Dropout { p: 0.25, key: 5 };
        let rng = CaseInput::indices([7, 1, 4, 0]);
        for (on, (m, n, k)) in [MaskOn::Left, MaskOn::Right].into_iter().flat_map(|on| {
            [(37, 8, 50), (8, 70, 37), (40, 36, 18), (8, 36, 600)].map(|extents| (on, extents))
        }) {
            let (a, b) = dims(m, n, k);
            let mask = Some(Masked { dropout, on });
            let op = Matmul { mask, low_rank: true, ..Matmul::plain(layout, 0.5, DType::F32) };
            let inputs =
                vec![CaseInput::random(&a, DType::BF16), CaseInput::random(&b, DType::F32), rng.clone()];
            cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} dropout {on:?}"), op, inputs));
        }
        for (dtype, (m, n, k, k2)) in [
            (DType::F32, (37, 44, 52, 8)),
            (DType::F32, (19, 5, 6, 2)),
            (DType::F16, (64, 128, 48, 8)),
            (DType::BF16, (37, 70, 50, 6)),
        ] {
            let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, k2));
            let mask = Some(Masked { dropout, on: MaskOn::Pair });
            let op = Matmul { mask, residual: true, ..Matmul::plain(layout, 0.5, dtype) };
            let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
            inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
            inputs.extend([rng.clone(), CaseInput::random(&[m, n], dtype)]);
            cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} dropout on the pair {dtype}"), op, inputs));
        }
        // a gated operand: narrow results too, whose long side would give the columns otherwise
        let (silu, gelu) = (Activation::Silu, Activation::GeluTanh);
        for (activation, dtype, other, (m, n, k)) in [
            (silu, DType::F32, DType::F32, (37, 44, 52)),
            (silu, DType::BF16, DType::BF16, (40, 8, 33)),
            (silu, DType::F16, DType::F16, (64, 128, 48)),
            (silu, DType::BF16, DType::Nf4, (35, 132, 64)),
            (silu, DType::F16, DType::Nf4, (35, 132, 64)),
            (gelu, DType::F16, DType::F16, (64, 128, 48)),
        ] {
            if layout == Layout::NT {
                let (a, b) = dims(m, n, k);
                let gate = CaseInput { spread: 4.0, ..CaseInput::random(&a, dtype) };
                let up = CaseInput::random(&a, dtype);
                let residual = CaseInput::random(&[m, n], dtype);
                let inputs = vec![gate, CaseInput::random(&b, other), up, residual];
                let op =
                    Matmul { gated: Some(activation), residual: true, ..Matmul::plain(layout, 0.5, dtype) };
                cases.push(Case::new(
                    format!("gated {activation:?} {m}x{n}x{k} {other} on {dtype}"),
                    op,
                    inputs,
                ));
            }
        }
        // an adapter's, on either side: thin and not
        for (dtype, (m, n, k)) in
            [(DType::F16, (100, 8, 65)), (DType::BF16, (70, 64, 300)), (DType::BF16, (12, 70, 37))]
        {
            let (a, b) = dims(m, n, k);
            let (of_a, of_b) = if m < n { (DType::F32, dtype) } else { (dtype, DType::F32) };
            let inputs = vec![CaseInput::random(&a, of_a), CaseInput::random(&b, of_b)];
            let op = Matmul { low_rank: true, ..Matmul::plain(layout, 0.5, DType::F32) };
            cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} low-rank {dtype}"), op, inputs));
        }
        let (a, b) = dims(40, 8, 20);
        for (dtype, label) in [(DType::F32, ""), (DType::BF16, " on bf16")] {
            let thin = [(a, dtype), (b, DType::F32), ([40, 8], DType::F32)];
            let thin = thin.iter().map(|(d, dtype)| CaseInput::random(d, *dtype)).collect();
            let op = Matmul { residual: true, low_rank: true, ..Matmul::plain(layout, 1.0, DType::F32) };
            cases.push(Case::new(format!("{layout:?} thin residual{label}"), op, thin));
        }
    }
    cases
}
