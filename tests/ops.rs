//! Every operation: kernels against the f64 reference (outputs poisoned with NaN first, padding must stay zero),
//! gradient rules against central differences.

mod common;

use common::Random;
use common::cases::{plan, plan_of, types};
use engraft::gpu::{BufferSlice, Gpu, GpuError, Work};
use engraft::graph::evaluate::evaluate;
use engraft::graph::layout::{pack, pack_u32, unpack};
use engraft::graph::{
    Case, CaseInput, Choices, Cooperative, DType, DeviceProfile, Dispatch, Graph, Launch, LaunchPlan,
    MatrixShape, Place, ReferenceTensor, ReverseNode, Shape, SharedMatrices, TensorType, Value, View,
};
use engraft::ops::copy::copy;
use engraft::ops::cross_entropy::{LinearCrossEntropy, LinearCrossEntropyGradient};
use engraft::ops::soft_cap::SoftCap;
use engraft::ops::{attention, matmul};
use engraft::plan::{Bindings, Program};
use half::f16;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The inputs of a case: their bytes on the device, and their values as the storage type holds them.
fn stored_inputs(case: &Case, random: &mut Random) -> Vec<(Vec<u8>, ReferenceTensor)> {
    case.inputs
        .iter()
        .map(|input| {
            let values: Vec<f64> = match &input.data {
                Some(data) => data.clone(),
                None => (0..input.ty.shape.elements()).map(|_| random.next() * input.spread).collect(),
            };
            let (bytes, data) = match input.ty.dtype {
                DType::U32 => (pack_u32(&values.iter().map(|&v| v as u32).collect::<Vec<_>>()), values),
                _ => {
                    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                    let bytes = pack(input.ty, &values);
                    let data = unpack(input.ty, &bytes).into_iter().map(f64::from).collect();
                    (bytes, data)
                }
            };
            (bytes, ReferenceTensor { shape: input.ty.shape, data })
        })
        .collect()
}

fn inputs(case: &Case, random: &mut Random) -> Vec<ReferenceTensor> {
    stored_inputs(case, random).into_iter().map(|(_, tensor)| tensor).collect()
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::U32 => 2e-5,
        DType::F16 => 2e-3,
        DType::BF16 => 1.2e-2,
        DType::Nf4 | DType::Nf4Double | DType::Int8 => unreachable!("no kernel writes blocks"),
    }
}

/// Runs the case and gives the worst error of its outputs, relative to the largest value and the tolerance.
fn run(gpu: &Gpu, device: &DeviceProfile, case: &Case, accumulate: bool) -> Result<f64, String> {
    let alone = run_placed(gpu, device, case, accumulate, false)?;
    match (0..types(case).1.len()).any(|o| case.op.may_replace(o).is_some()) {
        true => Ok(alone.max(run_placed(gpu, device, case, accumulate, true)?)),
        false => Ok(alone),
    }
}

/// Runs a launch on the case's inputs, with poisoned outputs, and gives the outputs' bytes.
fn execute(
    gpu: &Gpu,
    case: &Case,
    launch: &LaunchPlan,
    accumulate: bool,
    replace: bool,
) -> Result<Vec<Vec<u8>>, String> {
    let name = format!("{} {}", case.op.name(), case.label);
    let (input_types, output_types) = types(case);
    let stored = stored_inputs(case, &mut Random::new(7));
    let allocate = |size| gpu.allocate(&name, size).map_err(|e| e.to_string()).map(|b| b.whole());
    let mut input_slices: Vec<BufferSlice> = Vec::new();
    for (ty, (bytes, _)) in input_types.iter().zip(&stored) {
        let slice = allocate(ty.bytes())?;
        slice.write(bytes);
        input_slices.push(slice);
    }
    let mut output_slices: Vec<BufferSlice> = Vec::new();
    for (o, ty) in output_types.iter().enumerate() {
        if let Some(input) = case.op.in_place(o).or(case.op.may_replace(o).filter(|_| replace)) {
            output_slices.push(input_slices[input].clone());
            continue;
        }
        let slice = allocate(ty.bytes())?;
        if accumulate && case.op.accumulates(o) {
            slice.write(&pack(*ty, &vec![1.0; ty.shape.elements()]));
        } else {
            slice.write(&vec![0xff; slice.size as usize]);
        }
        output_slices.push(slice);
    }
    let mut workspaces = Vec::new();
    for size in &launch.workspaces {
        let slice = allocate(*size)?;
        slice.write(&vec![0xff; slice.size as usize]);
        workspaces.push(slice);
    }
    let slice = |place| match place {
        Place::Input(i) => BufferSlice::clone(&input_slices[i]),
        Place::Output(o) => output_slices[o].clone(),
        Place::Workspace(w) => workspaces[w].clone(),
    };
    let work = launch.dispatches.iter().map(|dispatch| {
        let buffers = dispatch.bindings.iter().map(|b| slice(b.place)).collect();
        Work { dispatch, buffers, on_host: false }
    });
    let work: Vec<Work<'_>> = work.collect();
    let recording = gpu.record(&work).map_err(|e| format!("{name}: {e}"))?;
    gpu.submit(&[], &[&recording]).map_err(|e| format!("{name}: {e}"))?;
    gpu.read(&output_slices).map_err(|e| format!("{name}: {e}"))
}

/// `replace` puts outputs where the inputs lie that they may replace.
fn run_placed(
    gpu: &Gpu,
    device: &DeviceProfile,
    case: &Case,
    accumulate: bool,
    replace: bool,
) -> Result<f64, String> {
    let name = format!("{} {}", case.op.name(), case.label);
    let (_, output_types) = types(case);
    let launch = plan(case, device, accumulate, replace);
    if launch.dispatches.iter().any(|d| GpuError::of_bindings(d, &gpu.profile()).is_some()) {
        eprintln!("SKIPPED: {name}, whose pieces are more than the device binds at once");
        return Ok(0.0);
    }
    let expected = case.op.reference(&inputs(case, &mut Random::new(7)), &output_types);
    let read = execute(gpu, case, &launch, accumulate, replace)?;
    let mut worst = 0.0f64;
    for (o, (ty, expected)) in output_types.iter().zip(&expected).enumerate() {
        let actual = unpack(*ty, &read[o]);
        let added = if accumulate && case.op.accumulates(o) { 1.0 } else { 0.0 };
        let largest = expected.data.iter().fold(1e-3f64, |m, v| m.max((v + added).abs()));
        for (i, (&a, e)) in actual.iter().zip(&expected.data).enumerate() {
            let error = (f64::from(a) - e - added).abs() / largest / tolerance(ty.dtype);
            if error.is_nan() || error > 1.0 {
                return Err(format!("{name}: output {o} element {i} is {a}, expected {}", e + added));
            }
            worst = worst.max(error);
        }
        let whole = TensorType::new(engraft::graph::Shape::matrix(ty.rows(), ty.cols4() * 4), ty.dtype);
        // vectors of one element per row are written one by one and have no padding to keep
        if ty.rows() > 1 && ty.dtype.is_float() && !["attention"].contains(&case.op.name()) {
            let padded = unpack(whole, &read[o]);
            let clean = padded.chunks(whole.cols()).all(|row| row[ty.cols()..].iter().all(|&v| v == 0.0));
            if !clean && added == 0.0 {
                return Err(format!("{name}: the padding of output {o} is not zero"));
            }
        }
    }
    Ok(worst)
}

/// Runs every case, but for those that `alike` calls to the same kernels as another device has.
fn check_all(gpu: &Gpu, alike: impl Fn(&Case, bool, bool) -> bool) {
    let mut failures = Vec::new();
    let mut worst: HashMap<&str, f64> = HashMap::new();
    for case in engraft::ops::cases() {
        for accumulate in [false, true] {
            let (_, outputs) = types(&case);
            if accumulate && !(0..outputs.len()).any(|o| case.op.accumulates(o)) {
                continue;
            }
            if [false, true].iter().all(|replace| alike(&case, accumulate, *replace)) {
                continue;
            }
            match run(gpu, &gpu.profile(), &case, accumulate) {
                Ok(error) => {
                    let entry = worst.entry(case.op.name()).or_default();
                    *entry = entry.max(error);
                }
                Err(message) => failures.push(message),
            }
        }
    }
    let mut table: Vec<_> = worst.into_iter().collect();
    table.sort_by_key(|(name, _)| *name);
    for (name, error) in table {
        println!("{name:32} worst error {:5.1} % of the tolerance", 100.0 * error);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn kernels_equal_their_references() {
    if let Some(gpu) = common::gpu() {
        check_all(&gpu, |_, _, _| false);
    }
}

#[test]
fn kernels_without_subgroups_equal_their_references() {
    let (Some(gpu), Some(usual)) = (common::gpu_with(true), common::gpu()) else { return };
    let (without, with) = (gpu.profile(), usual.profile());
    let left_out = Cell::new(0);
    check_all(&gpu, |case, accumulate, replace| {
        let kernels = |device| format!("{:?}", plan(case, device, accumulate, replace).dispatches);
        let alike = kernels(&without) == kernels(&with);
        left_out.set(left_out.get() + usize::from(alike));
        alike
    });
    println!("{} launches are those of a device with subgroups", left_out.get());
}

/// What is larger than one binding is bound in pieces, with the bits that it has in one: weights plain and in blocks, activations,
/// gradients, scratch space.
#[test]
fn tensors_in_pieces_give_the_same_bits() {
    let Some(gpu) = common::gpu() else { return };
    let own = gpu.profile();
    let mut pieces: HashMap<&str, usize> = HashMap::new();
    let mut run = |device: &DeviceProfile, case: &Case| {
        let name = format!("{} {}", case.op.name(), case.label);
        let (inputs, outputs) = types(case);
        let accumulate = (0..outputs.len()).any(|o| case.op.accumulates(o));
        // the same kernels with and without the limit, however many buffers they bind
        let whole = DeviceProfile { max_binding: 0, max_storage_buffers: 0, ..device.clone() };
        let largest = inputs.iter().chain(&outputs).map(TensorType::bytes).max().unwrap_or(0);
        // a power of two: every limit makes shaders of its own
        let limit = 1 << (largest / 2).max(256).ilog2();
        let limited = DeviceProfile { max_binding: limit, ..whole.clone() };
        let split = plan(case, &limited, accumulate, false);
        let bindings = split.dispatches.iter().flat_map(|d| &d.bindings);
        let in_ranges = split.dispatches.len() > plan(case, &whole, accumulate, false).dispatches.len();
        let in_pieces = in_ranges || bindings.clone().any(|b| b.piece.is_some());
        let most = split.dispatches.iter().map(|d| d.bindings.len()).max().unwrap_or(0);
        if !in_pieces || most > own.max_storage_buffers as usize {
            return;
        }
        let result = |launch: &LaunchPlan| {
            execute(&gpu, case, launch, accumulate, false).unwrap_or_else(|e| panic!("{e}"))
        };
        let expected = result(&plan(case, &whole, accumulate, false));
        assert!(expected == result(&split), "{name} in pieces of {limit} bytes");
        *pieces.entry(case.op.name()).or_default() += 1;
    };
    let as_gpu = DeviceProfile { cpu: false, ..DeviceProfile::clone(&own) };
    let products = ["33x70x37", "pair bf16 bf16", " on f32", " on bf16", "thin residual", "times 3"];
    let octets = matmul::Variant::all(&own).into_iter().find(matmul::Variant::reads_octets);
    let in_octets = octets.map(|variant| {
        let choices = Arc::new(Choices::forced(variant.to_string()));
        DeviceProfile { choices, ..DeviceProfile::clone(&own) }
    });
    // kernels that software devices compile for minutes, and tensors of gigabytes
    let slow = ["widest head", "folded grid"];
    let one_turned = |c: &Case| !c.label.ends_with(", turned") || c.label == "bf16, turned";
    let cases = engraft::ops::cases().into_iter().filter(one_turned);
    for case in cases.filter(|c| !slow.contains(&c.label.as_str())) {
        let product = case.op.name().starts_with("matmul");
        if !product || products.iter().any(|label| case.label.ends_with(label)) {
            run(&own, &case);
        }
        // on a GPU the run above was as a GPU
        let head = own.cpu && case.op.name().starts_with("linear_cross_entropy");
        if head || product && (case.label.ends_with("33x70x37") || case.inputs[1].ty.dtype.is_quantised()) {
            run(&as_gpu, &case);
        }
        if let Some(device) = in_octets.as_ref().filter(|_| product && case.label.ends_with("33x70x37")) {
            run(device, &case);
        }
    }
    println!("cases in pieces: {pieces:?}");
    for (op, least) in [
        ("matmul", 20),
        ("embedding", 3),
        ("embedding_gradient", 2),
        ("linear_cross_entropy", 3),
        ("linear_cross_entropy_gradient", 3),
        ("lora_linear", 5),
        ("adamw", 2),
        ("sgd", 1),
        ("norm_squared", 1),
        ("attention", 3),
    ] {
        let count = pieces.get(op).copied().unwrap_or(0);
        assert!(count >= least, "{op}: {count} cases in pieces");
    }
}

/// Whichever way a device converts to f16 by itself, gradients that are beyond it must be infinite: a loss scale goes by that.
#[test]
fn f16_is_rounded_to_nearest_and_infinite_beyond_its_range() {
    let Some(gpu) = common::gpu() else { return };
    let tiny = 2f32.powi(-14);
    let step = 2f32.powi(-24);
    let signless = [
        70000.0,
        65504.0,
        65519.0,
        65520.0,
        3e38,
        f32::INFINITY,
        1.0 + 0.75 / 1024.0,
        1.0 + 0.5 / 1024.0,
        1.0 + 1.5 / 1024.0,
        0.1,
        tiny,
        1.9 * tiny,
        2047.5,
        2048.5,
        0.0,
        tiny - 0.4 * step,
        tiny - 0.5 * step,
        tiny - step,
        0.5 * step,
        0.6 * step,
        1.5 * step,
        2.5 * step,
        300.3 * step,
        1e-20,
    ];
    let mut values: Vec<f32> = signless.iter().flat_map(|&v| [v, -v]).collect();
    values.extend([f32::NAN, f32::from_bits(0x7fff_ffff)]);
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::vector(values.len()), DType::F32).unwrap();
    let y = copy(&mut graph, x, DType::F16).unwrap();
    graph.output("y", y);
    let mut bindings = Bindings::new();
    bindings.allocate_inputs(&gpu, &graph).unwrap();
    bindings.leaf("x").unwrap().write(bytemuck::cast_slice(&values));
    let program = Program::compile(&gpu, &graph, &bindings).unwrap();
    gpu.submit(&[], &[program.recording()]).unwrap();
    let bytes = gpu.read(std::slice::from_ref(program.output("y").unwrap())).unwrap().swap_remove(0);
    for (value, stored) in values.iter().zip(bytes.as_chunks::<2>().0) {
        let (expected, stored) = (f16::from_f32(*value), f16::from_le_bytes(*stored));
        assert!(expected == stored || (expected.is_nan() && stored.is_nan()), "{value}: {stored}");
    }
}

/// The whole family behind a product: odd extents, thin sides, pairs, in every layout, added to what is there and not. A
/// CPU device runs the variants of GPUs too.
#[test]
fn every_variant_of_the_product_equals_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let as_gpu = DeviceProfile { cpu: false, ..own.clone() };
    let wanted = [
        "33x70x37",
        "100x8x65",
        "pair bf16 bf16",
        "whole",
        "whole, pair and residual",
        "NT whole, pair, bias and residual",
        "NT thin bias",
    ];
    let cases: Vec<Case> = engraft::ops::cases()
        .into_iter()
        .filter(|c| c.op.name() == "matmul" && wanted.iter().any(|w| c.label.ends_with(w)))
        .collect();
    assert_eq!(cases.len(), 17);
    // weights in blocks: in the tile, and staged before
    let blocks: Vec<Case> = engraft::ops::cases()
        .into_iter()
        .filter(|c| {
            let product = c.op.name() == "matmul" && !c.label.starts_with("gated ");
            product && c.inputs[1].ty.dtype.is_quantised() && c.inputs[0].ty.rows() > 8
        })
        .collect();
    assert_eq!(blocks.len(), 14);
    // stored as the gradients of a gated activation, by every variant: matrix units too
    let stored =
        |c: &Case| c.op.name() == "matmul_gate_gradient" && c.label.ends_with("64x128x48 f16 on f16, pair");
    let gradients: Vec<Case> = engraft::ops::cases().into_iter().filter(stored).collect();
    assert_eq!(gradients.len(), 2);
    // made by the product itself, by some with a weight in blocks as well
    let gated: Vec<Case> =
        engraft::ops::cases().into_iter().filter(|c| c.label.starts_with("gated ")).collect();
    assert_eq!(gated.len(), 6);
    let (plain, in_blocks, gelu) = (&gated[2], &gated[3], &gated[5]);
    assert!(gelu.label.contains("Gelu") && !plain.label.contains("Gelu"));
    assert!(!plain.inputs[1].ty.dtype.is_quantised() && in_blocks.inputs[1].ty.dtype.is_quantised());
    let mut variants = 0;
    if own.cooperative.is_none() {
        eprintln!("SKIPPED: cooperative matrices, which this device has not");
    }
    let staged_units = |v: &matmul::Variant| matches!(v, matmul::Variant::CoopTiled(_));
    for device in [own, as_gpu] {
        for variant in matmul::Variant::all(&device).into_iter().filter(|v| !staged_units(v)) {
            let device =
                DeviceProfile { choices: Arc::new(Choices::forced(variant.to_string())), ..device.clone() };
            let coop = variant.to_string().starts_with("coop");
            // matrix units need whole tiles
            for (i, case) in cases.iter().enumerate().filter(|(_, c)| c.label.contains("whole") == coop) {
                run(&gpu, &device, case, i % 2 == 0).unwrap_or_else(|e| panic!("{variant}: {e}"));
            }
            variants += 1;
            run(&gpu, &device, &gradients[variants % 2], false).unwrap_or_else(|e| panic!("{variant}: {e}"));
            let gating = Choices::forced(format!("gating {variant}"));
            let gating = DeviceProfile { choices: Arc::new(gating), ..device.clone() };
            let served = match variants % 4 {
                0 => vec![plain, in_blocks],
                1 => vec![gelu],
                _ => vec![plain],
            };
            for case in served.into_iter().filter(|_| !coop) {
                let launches = plan(case, &gating, false, false).dispatches.len();
                assert_eq!(launches, 1, "gating {variant}: {}", case.label);
                run(&gpu, &gating, case, false).unwrap_or_else(|e| panic!("gating {variant}: {e}"));
            }
            let staged = Choices::forced(format!("staged {variant}"));
            let staged = DeviceProfile { choices: Arc::new(staged), ..device.clone() };
            for (i, case) in blocks.iter().enumerate() {
                let device = if coop || i % 2 == 0 { &staged } else { &device };
                run(&gpu, device, case, i % 3 == 0).unwrap_or_else(|e| panic!("{variant}: {e}"));
            }
        }
    }
    println!("{variants} variants checked");
    assert!(variants >= 15);
}

/// The last product on matrix units from workgroup memory, whose tile is the smallest, or `None` with a loud word where there is none.
fn smallest_matrix_tiles(gpu: &Gpu, device: &DeviceProfile) -> Option<String> {
    if device.shared_matrices.is_none() {
        eprintln!("SKIPPED: {} has no matrix units that share through workgroup memory", gpu.info().name);
        return None;
    }
    let on_units = |v: &matmul::Variant| matches!(v, matmul::Variant::CoopTiled(_)) && !v.is_running();
    let smallest = matmul::Variant::all(device).into_iter().rfind(on_units);
    Some(smallest.expect("some variant suits every device").to_string())
}

/// Matrix units from workgroup memory, where the device has them: each variant in all products that it can do.
#[test]
fn products_on_matrix_units_from_tiles_equal_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    if own.shared_matrices.is_none() {
        eprintln!("SKIPPED: {} has no matrix units that share through workgroup memory", gpu.info().name);
        return;
    }
    let variants: Vec<String> = matmul::Variant::all(&own)
        .iter()
        .filter(|v| matches!(v, matmul::Variant::CoopTiled(_)) && !v.is_running())
        .map(ToString::to_string)
        .collect();
    // and arrays of elements, as Metal has them: the smallest tile's, and one that turns
    let small = variants.last().expect("some variant suits every device");
    let ahead = variants.iter().find(|v| v.ends_with(" ahead")).expect("one loads ahead");
    let turned: Vec<&String> = variants.iter().filter(|v| v.ends_with(" turned")).take(2).collect();
    assert_eq!(turned.len(), 2, "{variants:?}");
    let of_elements = |name: &String| name.contains(" groups").then(|| name.replacen(" groups", "", 1));
    let elements: Vec<String> = [small, turned[0]].into_iter().filter_map(of_elements).collect();
    let (mut taken, mut gating, mut failures) = (HashMap::<&str, usize>::new(), 0, Vec::new());
    for (variant, shared) in variants
        .iter()
        .map(|v| (v, own.shared_matrices))
        .chain(elements.iter().map(|v| (v, Some(SharedMatrices::Elements))))
    {
        for name in [variant.clone(), format!("gating {variant}")] {
            let choices = Arc::new(Choices::forced(name.clone()));
            let device = DeviceProfile { choices, shared_matrices: shared, ..own.clone() };
            for (i, case) in engraft::ops::cases().iter().enumerate() {
                let accumulate = i % 2 == 0 && case.op.accumulates(0);
                let gates = case.label.starts_with("gated ");
                // software compiles for seconds each: all of them with the smallest tile
                let some = [
                    "NN whole",
                    "NT whole, pair and residual",
                    "NT whole, pair, bias and residual",
                    "NT 64x128x48 nf4 on f16",
                ];
                let turns =
                    turned.contains(&variant) || (variant.ends_with(" turned") && elements.contains(variant));
                let odd = [" pair f16 f16", " f16"].iter().any(|end| case.label.ends_with(end));
                let odd = (odd && (variant == ahead || turns))
                    || (turns && case.label.ends_with(" pair bf16 bf16"))
                    || (variant == ahead && case.label.ends_with(" wide pair bf16"));
                if variant != small && !odd && !some.contains(&case.label.as_str()) {
                    continue;
                }
                let launch = plan(case, &device, accumulate, false);
                if gates == name.starts_with("gating")
                    && launch.dispatches.iter().any(|d| &d.variant == variant)
                {
                    *taken.entry(variant).or_default() += 1;
                    gating += usize::from(gates);
                    let ran = run(&gpu, &device, case, accumulate);
                    failures.extend(ran.err().map(|e| format!("{name}: {e}")));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    println!("{taken:?}");
    assert!(gating > 1 && elements.iter().all(|v| taken[v.as_str()] > 1), "{gating} {taken:?}");
    assert!(taken.len() >= 3 && taken[small.as_str()] > 20 && taken[ahead.as_str()] > 5, "{taken:?}");
    assert!(turned.iter().all(|v| taken[v.as_str()] > 5), "{taken:?}");
}

/// Inner dimensions that several workgroups share, in every kind of product.
#[test]
fn products_in_sections_equal_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    let device = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let variants: Vec<String> = matmul::Variant::all(&device).iter().map(ToString::to_string).collect();
    let of = |family: &str| variants.iter().find(|name| name.starts_with(family));
    let coop = variants.iter().rfind(|name| name.starts_with("coop-tiled") && name.ends_with(" ahead"));
    if coop.is_none() {
        eprintln!("SKIPPED: matrix units, which {} has not", gpu.info().name);
    }
    let names = [of("tiled 64x64"), of("tiled 16x64"), coop];
    let mut shared = HashMap::<&str, usize>::new();
    for name in names.into_iter().flatten() {
        for case in &engraft::ops::cases() {
            // by kernels of the sizes that serve it
            let long = ["long ", "x600 ", "530x600 "].iter().any(|part| case.label.contains(part));
            let stored = case.op.name() == "matmul_gate_gradient"
                && case.label.ends_with("64x128x48 f16 on f16, pair");
            if !case.op.name().starts_with("matmul") || !(long || stored) {
                continue;
            }
            let device = |choices| DeviceProfile { choices: Arc::new(choices), ..device.clone() };
            let device = device(Choices::forced(format!("sections=4 {name}")));
            for accumulate in [false, true].into_iter().filter(|add| !add || case.op.accumulates(0)) {
                let launch = plan(case, &device, accumulate, false);
                if launch.dispatches.iter().any(|d| d.shader.name == "matmul_finish") {
                    let several = launch.dispatches.iter().any(|d| d.variant.contains(" sections, "));
                    *shared.entry(name).or_default() += usize::from(several && !accumulate);
                    run(&gpu, &device, case, accumulate).unwrap_or_else(|e| panic!("{name}: {e}"));
                }
            }
        }
    }
    println!("{shared:?}");
    // six long products with a pair, masks on either operand, two groups
    assert!(
        shared.iter().all(|(name, served)| *served >= if name.starts_with("coop") { 3 } else { 12 }),
        "{shared:?}"
    );
    assert!(shared.len() >= 2);
}

/// What would run for long is cut into dispatches of some workgroups each, with the bits that it has in one.
#[test]
fn long_dispatches_in_parts_give_the_same_bits() {
    let Some(gpu) = common::gpu() else { return };
    let whole = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let mut slow = Choices::default();
    slow.reached(1e-4);
    let slow = DeviceProfile { choices: Arc::new(slow), ..whole.clone() };
    let wanted = [
        ("matmul", "NT 200x260x100 f16"),
        ("matmul", "NN 200x260x100 f16"),
        ("matmul", "TN 33x70x37"),
        ("matmul", "NT 100x8x65"),
        ("matmul", "NN 70x132x256 nf4-dq on bf16"),
        ("attention", "segments, grouped"),
        ("attention_gradient", "bf16, turned"),
        ("linear_cross_entropy_gradient", "70x"),
    ];
    let mut most = 0;
    for (op, label) in wanted {
        let named = |case: &Case| case.op.name() == op && case.label.contains(label);
        let case = engraft::ops::cases().into_iter().find(named).unwrap_or_else(|| panic!("{op} {label}"));
        let accumulate = case.op.accumulates(0);
        let (one, cut) = (plan(&case, &whole, accumulate, false), plan(&case, &slow, accumulate, false));
        assert!(cut.dispatches.len() > one.dispatches.len(), "{op} {label} is not cut");
        most = most.max(cut.dispatches.len() - one.dispatches.len());
        let result =
            |launch| execute(&gpu, &case, launch, accumulate, false).unwrap_or_else(|e| panic!("{e}"));
        assert!(result(&one) == result(&cut), "{op} {label} in {} dispatches", cut.dispatches.len());
    }
    assert!(most > 10, "{most}");
}

/// bf16 has a range that f16 has not, from one row to the next: matrix units lose nothing of it, nor of what it holds.
#[test]
fn rows_in_bf16_of_any_magnitude_reach_matrix_units_as_they_are() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let Some(variant) = smallest_matrix_tiles(&gpu, &own) else { return };
    let device = DeviceProfile { choices: Arc::new(Choices::forced(variant)), ..own };
    let (m, n, k) = (45, 36, 75);
    let mut random = Random::new(3);
    // among them a row of zeros, and one whose values differ as rows do
    let magnitude = |row: usize, column: usize| match row {
        7 => 0.0,
        8 => 2f64.powi(24 - 2 * (column as i32 % 20)),
        _ => 2f64.powi(4 * row as i32 - 90),
    };
    let a: Vec<f64> = (0..m * k).map(|i| random.next() * magnitude(i / k, i % k)).collect();
    // a second pair of more or less than that, beside the row of zeros too: no finer than bf16, or in f32 as adapters are
    let k2 = 40;
    let beside = |row: usize| 2f64.powi(4 * row as i32 - 90 + 5 * (row as i32 % 5 - 2));
    let a2: Vec<f64> = (0..m * k2).map(|i| random.next() * beside(i / k2)).collect();
    let b2: Vec<f64> = (0..n * k2).map(|_| random.next()).collect();
    let coarse =
        |values: &[f64]| values.iter().map(|v| f64::from(half::bf16::from_f64(*v))).collect::<Vec<f64>>();
    let pairs = [None, Some((coarse(&a2), coarse(&b2), 1e-6)), Some((a2, b2, 5e-4))];
    for (layout, pair) in
        [matmul::Layout::NT, matmul::Layout::NN].into_iter().flat_map(|l| pairs.iter().map(move |p| (l, p)))
    {
        let b = |k: usize| if layout == matmul::Layout::NT { [n, k] } else { [k, n] };
        let mut operands =
            vec![CaseInput::values(&[m, k], DType::BF16, a.clone()), CaseInput::random(&b(k), DType::BF16)];
        let mut allowed = 1e-6;
        if let Some((a2, b2, most)) = pair {
            operands.push(CaseInput::values(&[m, k2], DType::F32, a2.clone()));
            operands.push(CaseInput::values(&b(k2), DType::F32, b2.clone()));
            allowed = *most;
        }
        let case =
            Case::new("rows of any magnitude", matmul::Matmul::plain(layout, 1.0, DType::F32), operands);
        let launch = plan(&case, &device, false, false);
        let shaders: Vec<&str> = launch.dispatches.iter().map(|d| d.shader.name).collect();
        assert_eq!(shaders, ["round_rows", "matmul_coop_tiled"]);
        let (_, outputs) = types(&case);
        let read = execute(&gpu, &case, &launch, false, false).unwrap();
        let actual = unpack(outputs[0], &read[0]);
        let expected = &case.op.reference(&inputs(&case, &mut Random::new(7)), &outputs)[0];
        for row in 0..m {
            let largest = expected.row(row).iter().fold(0f64, |most, v| most.max(v.abs()));
            for (a, e) in actual[row * n..(row + 1) * n].iter().zip(expected.row(row)) {
                let error = (f64::from(*a) - e).abs();
                assert!(
                    error <= allowed * largest,
                    "{layout:?} row {row}, to {allowed}: {a} for {e}, of {largest}"
                );
            }
        }
    }
}

/// Rows that a workgroup scales together keep all bits of bf16 where they are 2^20 times smaller than the largest; a pair goes with them,
/// however much larger or smaller it is.
#[test]
fn rows_in_bf16_reach_matrix_units_by_the_largest_that_is_met() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let rows_alone = |v: &String| !v.contains(" 16x") && !v.contains(" 32x");
    let names = running_variants(&gpu, &own);
    let Some(variant) = names.iter().rfind(|v| rows_alone(v)) else { return };
    let device = DeviceProfile { choices: Arc::new(Choices::forced(variant.clone())), ..own.clone() };
    let (m, n, k, k2) = (45, 36, 75, 40);
    // the largest comes last, in row 8 and late
    let power = |row: usize, x: usize| if row == 8 { x as i32 / 3 - 70 } else { row as i32 % 20 - 65 };
    for (layout, beside) in [matmul::Layout::NT, matmul::Layout::NN]
        .into_iter()
        .flat_map(|layout| [None, Some(-60), Some(-46), Some(-30)].map(|beside| (layout, beside)))
    {
        let mut random = Random::new(3);
        let mut random = |count: usize| (0..count).map(|_| random.next()).collect::<Vec<f64>>();
        let scaled = |mut of: Vec<f64>, cols: usize, power: &dyn Fn(usize, usize) -> i32| {
            of.iter_mut().enumerate().for_each(|(i, v)| *v *= 2f64.powi(power(i / cols, i % cols)));
            of
        };
        let a = scaled(random(m * k), k, &power);
        let a2 = scaled(random(m * k2), k2, &|row, _| beside.unwrap_or(0) - row as i32 % 3);
        let (b1, b2) = (random(n * k), random(n * k2));
        let b = |k: usize| if layout == matmul::Layout::NT { [n, k] } else { [k, n] };
        let mut operands = vec![
            CaseInput::values(&[m, k], DType::BF16, a.clone()),
            CaseInput::values(&b(k), DType::BF16, b1.clone()),
        ];
        if beside.is_some() {
            operands.push(CaseInput::values(&[m, k2], DType::F32, a2.clone()));
            operands.push(CaseInput::values(&b(k2), DType::F32, b2.clone()));
        }
        let op = matmul::Matmul::plain(layout, 1.0, DType::F32);
        let case = Case::new(format!("{layout:?}, a pair {beside:?}"), op, operands);
        let launch = plan(&case, &device, false, false);
        let kernels: Vec<&str> = launch.dispatches.iter().map(|d| d.variant.as_str()).collect();
        assert_eq!(kernels, [variant], "no pass before");
        let (_, outputs) = types(&case);
        let read = execute(&gpu, &case, &launch, false, false).unwrap();
        let actual = unpack(outputs[0], &read[0]);
        let expected = &case.op.reference(&inputs(&case, &mut Random::new(7)), &outputs)[0];
        let largest = |of: &[f64]| of.iter().fold(0f64, |most, v| most.max(v.abs()));
        // the rows of a pair have 2^-8 of what its columns have more
        let met = largest(&a).max(if beside.is_some() { largest(&a2) / 256.0 } else { 0.0 });
        // f16's smallest step beside that, or where a GPU flushes, its smallest normal number
        let lost = met * 2f64.powi(if own.cpu { -38 } else { -28 });
        let mut said = 0;
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let sum = |a: &[f64], b: &[f64], k: usize| -> (f64, f64) {
                let at = |x: usize| {
                    if layout == matmul::Layout::NT { b[column * k + x] } else { b[x * n + column] }
                };
                (0..k).fold((0.0, 0.0), |(products, of_b), x| {
                    (products + (a[row * k + x] * at(x)).abs(), of_b + at(x).abs())
                })
            };
            let (products, of_b) = sum(&a, &b1, k);
            let mut bound = 2e-6 * products + lost * of_b;
            if beside.is_some() {
                let (products, of_b2) = sum(&a2, &b2, k2);
                bound += 2f64.powi(-10) * products + 256.0 * lost * of_b2;
            }
            let (a, e) = (f64::from(actual[row * n + column]), expected.row(row)[column]);
            assert!(
                (a - e).abs() <= bound,
                "{}, {row} {column}: {a} for {e}, not within {bound}",
                case.label
            );
            said += usize::from(10.0 * bound < e.abs());
        }
        // beside a pair that is far above everything, rows are what f16 has left
        let most = if own.cpu { 9 } else { 5 };
        assert!(10 * said > most * m * n, "{}: {said} results are more than what is allowed", case.label);
    }
    // and in every kind of product, to what the result is stored in
    let as_gpu = DeviceProfile { cpu: false, ..own };
    let (mut taken, mut expanded) = (HashMap::<&str, usize>::new(), 0);
    // weights in blocks read as they are, and expanded before
    let ways = names.iter().filter(|v| rows_alone(v)).flat_map(|name| ["", "staged "].map(|way| (name, way)));
    for (name, way) in ways {
        let choices = Arc::new(Choices::forced(format!("{way}{name}")));
        let device = DeviceProfile { choices, ..as_gpu.clone() };
        for (i, case) in engraft::ops::cases().iter().enumerate() {
            let accumulate = i % 2 == 0 && case.op.accumulates(0);
            let stored = types(case).1.iter().all(|ty| ty.dtype == DType::BF16);
            // software compiles for seconds each
            let kinds =
                ["NT wide pair bf16", "37x70x50 dropout on the pair bf16", "NT 70x132x256 nf4-dq on bf16"];
            let some = case.label == "NN pair and residual bf16 bf16"
                || (name == variant && kinds.iter().any(|kind| case.label.ends_with(kind)))
                || (name == variant && case.op.name() == "matmul_gate_gradient");
            let launch = plan(case, &device, accumulate, false);
            if some && stored && launch.dispatches.iter().any(|d| &d.variant == name) {
                run(&gpu, &device, case, accumulate).unwrap_or_else(|e| panic!("{way}{name}: {e}"));
                *taken.entry(name).or_default() += 1;
                expanded += usize::from(launch.dispatches.iter().any(|d| d.shader.name == "copy"));
            }
        }
    }
    println!("{taken:?}");
    assert!(taken[variant.as_str()] > 5 && expanded > 0, "{taken:?}, {expanded}");
}

/// A weight's gradient is a sum over rows: both its operands are scaled as a whole, wherever bf16 has them.
#[test]
fn gradients_of_weights_in_bf16_of_any_magnitude_come_from_matrix_units() {
    let Some(gpu) = common::gpu() else { return };
    // sections are for GPUs
    let own = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let Some(variant) = smallest_matrix_tiles(&gpu, &own) else { return };
    let sections = format!("sections=2 {variant}");
    let scaled =
        [(variant.clone(), (-70, 40), 75), (variant.clone(), (30, -20), 75), (sections, (-40, -40), 520)];
    // and scaled by what a workgroup meets
    let running = running_variants(&gpu, &own).into_iter().take(1);
    let running =
        running.flat_map(|v| [(v.clone(), (-70, 40), 75), (format!("sections=2 {v}"), (30, -20), 520)]);
    for (kernel, (dy, x), k) in scaled.into_iter().chain(running) {
        let device = DeviceProfile { choices: Arc::new(Choices::forced(kernel.clone())), ..own.clone() };
        let (m, n) = (45, 36);
        let mut random = Random::new(5);
        // of a gradient, rows and outputs far below the largest; of activations, a channel far above the others
        let below = |i: usize| (i / m % 8 + i % m % 3 * 12) as i32;
        let dy: Vec<f64> = (0..k * m).map(|i| random.next() * 2f64.powi(dy - below(i))).collect();
        let above = |i: usize| if i % n == 3 { 10 } else { 0 };
        let x: Vec<f64> = (0..k * n).map(|i| random.next() * 2f64.powi(x + above(i))).collect();
        let operand = |cols: usize, of: &[f64]| CaseInput::values(&[k, cols], DType::BF16, of.to_vec());
        let op = matmul::Matmul::plain(matmul::Layout::TN, 1.0, DType::F32);
        let case = Case::new("a weight's gradient", op, vec![operand(m, &dy), operand(n, &x)]);
        let launch = plan(&case, &device, false, false);
        let shaders: Vec<&str> = launch.dispatches.iter().map(|d| d.shader.name).collect();
        let copies = ["magnitudes", "round_scaled", "magnitudes", "round_scaled", "matmul_coop_tiled"];
        let made = if kernel.ends_with(" running") { &copies[4..] } else { &copies };
        assert!(shaders.starts_with(made), "{kernel}: {shaders:?}");
        let (_, outputs) = types(&case);
        let read = execute(&gpu, &case, &launch, false, false).unwrap();
        let actual = unpack(outputs[0], &read[0]);
        let expected = &case.op.reference(&inputs(&case, &mut Random::new(7)), &outputs)[0];
        let largest = |of: &[f64]| of.iter().fold(0f64, |most, v| most.max(v.abs()));
        let (most_dy, most_x) = (largest(&dy), largest(&x));
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let (mut products, mut of_dy, mut of_x) = (0.0, 0.0, 0.0);
            for t in 0..k {
                let (dy, x) = (dy[t * m + row].abs(), x[t * n + column].abs());
                (products, of_dy, of_x) = (products + dy * x, of_dy + dy, of_x + x);
            }
            // the sum's order in f32, and what f16 has no place for
            let bound = 1e-6 * products + 2f64.powi(-31) * (most_dy * of_x + most_x * of_dy);
            let (a, e) = (f64::from(actual[row * n + column]), expected.row(row)[column]);
            assert!((a - e).abs() <= bound, "{kernel}, {row} {column}: {a} for {e}, not within {bound}");
        }
    }
}

/// The names of the products' kernels that scale what they meet, with a loud word where the device can have none.
fn running_variants(gpu: &Gpu, device: &DeviceProfile) -> Vec<String> {
    let all = matmul::Variant::all(device).into_iter().filter(matmul::Variant::is_running);
    let names: Vec<String> = all.map(|v| v.to_string()).collect();
    if names.is_empty() {
        eprintln!("SKIPPED: matrix units that scale what they meet, which {} has not", gpu.info().name);
    }
    names
}

/// The products of adapters with activations of 16 bits, in every layout, with parts, masks, sections, and what is there already.
#[test]
fn low_rank_products_on_matrix_units_equal_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    // sections are for GPUs
    let own = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let variants = running_variants(&gpu, &own);
    let names = variants.iter().cloned();
    let sectioned = variants.iter().take(1).map(|name| format!("sections=2 {name}"));
    let mut taken = HashMap::<(String, &str), usize>::new();
    for (n, name) in names.chain(sectioned).enumerate() {
        let device = DeviceProfile { choices: Arc::new(Choices::forced(name.clone())), ..own.clone() };
        for (i, case) in engraft::ops::cases().iter().enumerate() {
            // software compiles for seconds each: all of them with the first and in sections
            let some = [0, variants.len()].contains(&n) || i % variants.len() == n;
            let accumulate = i % 2 == 0 && case.op.accumulates(0);
            let launch = plan(case, &device, accumulate, false);
            let kernel =
                name.strip_prefix("sections=2 ").map_or(name.clone(), |v| format!("2 sections, {v}"));
            let kinds = ["low-rank", "dropout Left", "dropout Right", "thin residual on bf16"];
            let product = case.op.name() == "matmul_group" || kinds.iter().any(|k| case.label.contains(k));
            if !some || !product || launch.dispatches.iter().all(|d| d.variant != kernel) {
                continue;
            }
            let name = format!("{name}, {} {}", case.op.name(), case.label);
            let (_, outputs) = types(case);
            let inputs = inputs(case, &mut Random::new(7));
            let expected = case.op.reference(&inputs, &outputs);
            // what is rounded are factors: each product to f16's bits, wherever a device rounds to, and sums in f32
            let magnitude = |x: &ReferenceTensor| ReferenceTensor {
                data: x.data.iter().map(|v| v.abs()).collect(),
                ..x.clone()
            };
            let magnitudes: Vec<ReferenceTensor> = inputs.iter().map(magnitude).collect();
            let products = case.op.reference(&magnitudes, &outputs);
            let read =
                execute(&gpu, case, &launch, accumulate, false).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (o, ty) in outputs.iter().enumerate() {
                let actual = unpack(*ty, &read[o]);
                let added = if accumulate { 1.0 } else { 0.0 };
                for (at, ((a, e), of)) in
                    actual.iter().zip(&expected[o].data).zip(&products[o].data).enumerate()
                {
                    let error = (f64::from(*a) - e - added).abs();
                    let bound = 2f64.powi(-10) * of.abs() + 1e-6;
                    assert!(error <= bound, "{name}: output {o} element {at} is {a}, expected {}", e + added);
                }
                let whole =
                    TensorType::new(engraft::graph::Shape::matrix(ty.rows(), ty.cols4() * 4), ty.dtype);
                let padded = unpack(whole, &read[o]);
                let padding = padded.chunks(whole.cols()).flat_map(|row| &row[ty.cols()..]);
                assert!(
                    accumulate || padding.copied().all(|v| v == 0.0),
                    "{name}: the padding of output {o}"
                );
            }
            let mut has =
                |what, is: bool| *taken.entry((kernel.clone(), what)).or_default() += usize::from(is);
            has("all", true);
            has("parts", case.op.name() == "matmul_group");
            has("masks", case.label.contains("dropout"));
            has("residual", case.label.contains("residual"));
        }
    }
    println!("{taken:?}");
    let Some(first) = variants.first() else { return };
    let every = variants.iter().map(|name| (name.clone(), "all"));
    let first_ones = ["parts", "masks", "residual"].map(|kind| (first.clone(), kind));
    let in_sections = ["parts", "masks"].map(|kind| (format!("2 sections, {first}"), kind));
    for kind in every.chain(first_ones).chain(in_sections) {
        assert!(taken.get(&kind).is_some_and(|count| *count > 0), "{kind:?}");
    }
}

/// An adapter begins at nothing, and gradients are of any magnitude: each workgroup scales by what it has met so far.
#[test]
fn low_rank_products_of_any_magnitude_come_from_matrix_units() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let variants = running_variants(&gpu, &own);
    let Some(variant) = variants.first() else { return };
    use matmul::Layout::{NN, NT, TN};
    let (t, r, k) = (150, 8, 600);
    // powers of two along the inner dimension: what grows, shrinks, jumps late, is zero at first
    let courses: [fn(usize) -> Option<i32>; 4] = [
        |x| Some(x as i32 / 15),
        |x| Some(x as i32 / -15),
        |x| Some(if x >= 450 { 100 } else { 0 }),
        |x| (x >= 300).then_some(0),
    ];
    // which operand is the adapter's: of TN either
    let products = [(NT, false), (NN, false), (TN, false), (TN, true)].into_iter();
    let products = products.flat_map(|p| [(p, DType::BF16), (p, DType::F16)]);
    for (((layout, adapter_first), dtype), (n, course)) in
        products.flat_map(|p| courses.iter().enumerate().map(move |course| (p, course)))
    {
        let name = if n % 2 == 0 { variant.clone() } else { format!("sections=2 {variant}") };
        let device = DeviceProfile { choices: Arc::new(Choices::forced(name)), ..own.clone() };
        let mut random = Random::new(3);
        let mut values = |rows: usize, inner: bool, course: &dyn Fn(usize) -> Option<i32>| -> Vec<f64> {
            let along = |i: usize| if inner { i % k } else { i / rows };
            (0..rows * k).map(|i| random.next() * course(along(i)).map_or(0.0, |e| 2f64.powi(e))).collect()
        };
        // the activations have the course, and the adapter one that is no wider than f16; of activations in f16, which go as they are, the
        // other way round
        let wide = |x: usize| course(x).map(|e| e - 70);
        let narrow = |x: usize| Some(x as i32 / -60);
        let (of_long, of_thin): (&dyn Fn(usize) -> _, &dyn Fn(usize) -> _) = match dtype {
            DType::BF16 => (&wide, &narrow),
            _ => (&narrow, &wide),
        };
        let (long, thin) = (values(t, layout != TN, of_long), values(r, layout == NT, of_thin));
        let shape = |rows: usize, inner: bool| if inner { [rows, k] } else { [k, rows] };
        let mut operands = vec![
            CaseInput::values(&shape(t, layout != TN), dtype, long.clone()),
            CaseInput::values(&shape(r, layout == NT), DType::F32, thin.clone()),
        ];
        if adapter_first {
            operands.reverse();
        }
        let op = matmul::Matmul { low_rank: true, ..matmul::Matmul::plain(layout, 1.0, DType::F32) };
        let case = Case::new(format!("{layout:?} {dtype} {adapter_first}, course {n}"), op, operands);
        let launch = plan(&case, &device, false, false);
        let shaders: Vec<&str> = launch.dispatches.iter().map(|d| d.shader.name).collect();
        let made: &[&str] =
            if n % 2 == 0 { &["matmul_coop_tiled"] } else { &["matmul_coop_tiled", "matmul_finish"] };
        assert_eq!(shaders, made, "{}", case.label);
        let (_, outputs) = types(&case);
        let read = execute(&gpu, &case, &launch, false, false).unwrap();
        let actual = unpack(outputs[0], &read[0]);
        let expected = &case.op.reference(&inputs(&case, &mut Random::new(7)), &outputs)[0];
        let largest = |of: &[f64]| of.iter().fold(0f64, |most, v| most.max(v.abs()));
        let (most_long, most_thin) = (largest(&long), largest(&thin));
        let at = |of: &[f64], inner: bool, rows: usize, row: usize, x: usize| {
            if inner { of[row * k + x].abs() } else { of[x * rows + row].abs() }
        };
        let mut said = 0;
        for (row, column) in (0..t).flat_map(|row| (0..r).map(move |column| (row, column))) {
            let (mut products, mut of_long, mut of_thin) = (0.0, 0.0, 0.0);
            for x in 0..k {
                let l = at(&long, layout != TN, t, row, x);
                let h = at(&thin, layout == NT, r, column, x);
                (products, of_long, of_thin) = (products + l * h, of_long + l, of_thin + h);
            }
            // f16's bits, and what it has no place for where it flushes
            let bound =
                2f64.powi(-10) * products + 2f64.powi(-28) * (most_long * of_thin + most_thin * of_long);
            let (e_row, e_column) = if adapter_first { (column, row) } else { (row, column) };
            let (a, e) =
                (f64::from(actual[e_row * expected.cols() + e_column]), expected.row(e_row)[e_column]);
            assert!(
                (a - e).abs() <= bound,
                "{}, {row} {column}: {a} for {e}, not within {bound}",
                case.label
            );
            said += usize::from(bound < e.abs());
        }
        assert!(10 * said > 9 * t * r, "{}: {said} results are more than what is allowed", case.label);
    }
}

/// The families behind attention and its gradient: narrow and wide heads, segments, windows. A CPU device runs the variants
/// of GPUs too.
#[test]
fn every_variant_of_attention_equals_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let as_gpu = DeviceProfile { cpu: false, ..own.clone() };
    let wanted = [
        "segments, grouped",
        "bf16",
        "head of 80",
        "window below a tile",
        "window over a cache",
        "capped, window",
    ];
    let gradients =
        ["segments, grouped, turned", "bf16, turned", "head of 80", "window below a tile", "capped, window"];
    let cases: Vec<Case> = engraft::ops::cases()
        .into_iter()
        .filter(|c| match c.op.name() {
            "attention" => wanted.contains(&c.label.as_str()),
            "attention_gradient" => gradients.contains(&c.label.as_str()),
            _ => false,
        })
        .collect();
    assert_eq!(cases.len(), 11);
    let tiles = attention::Variant::all(&as_gpu).len();
    let (mut variants, mut by_head) = (0, 0);
    for device in [own, as_gpu] {
        for kernel in attention::Kernel::all(&device) {
            let choices = Arc::new(Choices::forced(kernel.to_string()));
            let device = DeviceProfile { choices, ..device.clone() };
            for case in &cases {
                let passes = plan(case, &device, false, false).dispatches;
                let summed = passes.iter().any(|pass| pass.shader.name == "attention_sum_heads");
                assert!(kernel.by_head || !summed);
                // but for sums of heads, these are the kernels without them
                if !kernel.by_head || summed {
                    run(&gpu, &device, case, false).unwrap_or_else(|e| panic!("{kernel}: {e}"));
                }
                by_head += usize::from(summed);
            }
            variants += 1;
        }
    }
    println!("{variants} variants checked, {by_head} gradients by head");
    assert!(tiles >= 8, "{tiles}");
    assert!(by_head >= 6, "{by_head} gradients by head");
}

/// Matrix units where the device has them. Software compiles for seconds each, so all cases are met by the first tile that fits, with
/// rows that stay and not; a few by every form, which is how blocks are staged and rows stay, and by head; two by every variant.
#[test]
fn attention_on_matrix_units_equals_the_reference() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    if own.shared_matrices.is_none() {
        eprintln!("SKIPPED: {} has no matrix units that share through workgroup memory", gpu.info().name);
        return;
    }
    let coop = |v: &attention::Variant| matches!(v, attention::Variant::Coop(_));
    let variants: Vec<String> =
        attention::Variant::all(&own).iter().filter(|v| coop(v)).map(ToString::to_string).collect();
    let alone = variants.len();
    let as_gpu = DeviceProfile { cpu: false, ..own.clone() };
    let by_head =
        variants.iter().filter(|name| name.contains(" staged")).map(|name| format!("by head {name}"));
    let variants: Vec<String> = variants.iter().cloned().chain(by_head).collect();
    let cases: Vec<Case> = engraft::ops::cases()
        .into_iter()
        .filter(|c| c.op.name().starts_with("attention") && c.label.starts_with("matrices"))
        .collect();
    let form = |variant: &str| {
        let (_, staging) = variant.split_once(" lanes=").expect("names say the lanes");
        staging.split_once(' ').map_or("", |(_, rest)| rest).to_string()
    };
    let every_variant = ["matrices, turned", "matrices, window"];
    let every_form = ["matrices", "matrices, growing scores", "matrices, bf16, large"];
    let (mut taken, mut failures) = (0, Vec::new());
    // array, by head or not, form, pass and case
    let mut served: HashSet<(SharedMatrices, bool, String, &str, &str)> = HashSet::new();
    // and alone, in few cases, as devices load them that have no groups of four
    let groups = own.shared_matrices == Some(SharedMatrices::Groups);
    let shared = [(own.shared_matrices, true), (Some(SharedMatrices::Elements), groups)];
    for shared in shared.into_iter().filter_map(|(shared, wanted)| shared.filter(|_| wanted)) {
        let as_it_is = own.shared_matrices == Some(shared);
        for (v, variant) in variants.iter().enumerate().filter(|(v, _)| as_it_is || *v < alone) {
            let (own, by_head) = if v < alone { (&own, false) } else { (&as_gpu, true) };
            let choices = Arc::new(Choices::forced(variant.clone()));
            let device = DeviceProfile { choices, shared_matrices: Some(shared), ..own.clone() };
            for case in &cases {
                let label = case.label.as_str();
                let (by_variant, by_form) = (every_variant.contains(&label), every_form.contains(&label));
                if !(as_it_is || by_variant || by_form) {
                    continue;
                }
                let passes = plan(case, &device, false, false).dispatches;
                let passes: Vec<&Dispatch> = passes.iter().filter(|d| &d.variant == variant).collect();
                let kind = match form(variant) {
                    form if by_variant || by_form => form,
                    form if form.ends_with("resident") => "some, resident".into(),
                    _ => "some".into(),
                };
                let served = &mut served;
                let new = passes
                    .iter()
                    .filter(|d| served.insert((shared, by_head, kind.clone(), d.shader.name, &case.label)));
                if new.count() == 0 && (passes.is_empty() || by_head || !(by_variant && as_it_is)) {
                    continue;
                }
                let view = if shared == SharedMatrices::Groups { View::MatrixGroups } else { View::Matrix };
                assert!(passes.iter().all(|d| d.bindings.iter().any(|b| b.view == view)), "{variant}");
                taken += passes.len();
                let ran = run(&gpu, &device, case, false);
                failures.extend(ran.err().map(|e| format!("{shared:?}, {variant}: {e}")));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let own_form = own.shared_matrices.expect("matrix units that share");
    let labels = |pass: &str| {
        let of_pass = served.iter().filter(|(shared, _, _, name, _)| *shared == own_form && *name == pass);
        of_pass.map(|(.., label)| *label).collect::<HashSet<&str>>()
    };
    let (query, key_value) = ("attention_coop_gradient_query", "attention_coop_gradient_key_value");
    for (pass, op) in
        [("attention_coop", "attention"), (query, "attention_gradient"), (key_value, "attention_gradient")]
    {
        let (all, labels) = (cases.iter().filter(|c| c.op.name() == op).count(), labels(pass));
        println!("{pass}: {} of {all} cases", labels.len());
        assert!(2 * labels.len() > all, "{pass} served {labels:?} alone");
    }
    println!("{taken} passes by {variants:?}");
    let met = |shared, by_head, form: &str, pass: &str| {
        served.iter().any(|(s, head, f, p, _)| (*s, *head, f.as_str(), *p) == (shared, by_head, form, pass))
    };
    for form in ["", "staged", "staged resident", "staged both ways", "staged both ways resident"] {
        for pass in ["attention_coop", query, key_value] {
            let never = form.contains("both ways") && pass == "attention_coop";
            assert_eq!(met(own_form, false, form, pass), !never, "{form:?} {pass}");
        }
    }
    let other = if groups { SharedMatrices::Elements } else { own_form };
    for (form, pass) in [("", key_value), ("staged", "attention_coop"), ("staged both ways", key_value)] {
        assert!(met(other, false, form, pass), "{form:?} {pass} of elements");
    }
    assert!(met(own_form, true, "staged both ways", key_value), "by head");
    assert!(taken > 20 && alone > 1 && variants.len() > alone, "{taken} passes by {variants:?}");
}

/// What a GPU takes without a measurement, for every case but products, of which all variants are tried.
#[test]
fn kernels_for_gpus_equal_their_references() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let as_gpu = DeviceProfile { cpu: false, ..own.clone() };
    let dispatches = |case: &Case, device: &DeviceProfile| plan(case, device, false, false).dispatches;
    let differs = |case: &Case| {
        let kernels = dispatches(case, &as_gpu);
        let alone = kernels.iter().all(|d| !d.shader.name.starts_with("matmul"));
        // and with small products, rows of logits that many invocations share
        let long = case.label == "200x36003x4 f32 f16";
        (alone || long) && format!("{kernels:?}") != format!("{:?}", dispatches(case, &own))
    };
    let (mut ran, mut failures) = (HashMap::<&str, usize>::new(), Vec::new());
    for case in engraft::ops::cases().into_iter().filter(differs) {
        *ran.entry(case.op.name()).or_default() += 1;
        failures.extend(run(&gpu, &as_gpu, &case, false).err());
    }
    println!("{ran:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    if own.cpu {
        for name in ["attention", "norm_squared", "rms_norm", "linear_cross_entropy_gradient"] {
            assert!(ran.contains_key(name), "no case of {name} is another for a GPU");
        }
    }
}

/// A device that binds no more buffers than it must: gradients of attention are turned by launches of their own there.
#[test]
fn kernels_do_with_the_storage_buffers_that_every_device_has() {
    let most = engraft::gpu::NEEDED_STORAGE_BUFFERS;
    let least = |device| DeviceProfile { max_storage_buffers: most, ..device };
    let mut on_units = 0;
    for device in DeviceProfile::kinds().map(least).iter().flat_map(with_matrix_units) {
        for case in engraft::ops::cases() {
            for replace in [false, true] {
                for dispatch in plan(&case, &device, false, replace).dispatches {
                    let (bound, kernel) = (dispatch.bindings.len(), dispatch.shader.name);
                    assert!(bound <= most as usize, "{kernel} of {} binds {bound}", case.label);
                    on_units += usize::from(kernel.contains("_coop"));
                }
            }
        }
    }
    assert!(on_units > 100, "{on_units} kernels on matrix units");
    let Some(gpu) = common::gpu() else { return };
    let device = least(DeviceProfile::clone(&gpu.profile()));
    for case in engraft::ops::cases().iter().filter(|c| c.label == "bf16, turned") {
        let launches = plan(case, &device, false, false).dispatches;
        let turns = launches.iter().filter(|d| d.shader.name == "rope").count();
        assert_eq!((launches.len(), turns), (4, 2), "{}", case.label);
        run(&gpu, &device, case, false).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// The device as it is, and with some kernel on matrix units wherever there is one.
fn with_matrix_units(device: &DeviceProfile) -> Vec<DeviceProfile> {
    let tiled = |v: &matmul::Variant| matches!(v, matmul::Variant::CoopTiled(_)) && !v.is_running();
    let products = matmul::Variant::all(device).into_iter().find(tiled).map(|v| v.to_string());
    let coop = |v: &attention::Variant| matches!(v, attention::Variant::Coop(_));
    let attention = attention::Variant::all(device).into_iter().find(coop).map(|v| v.to_string());
    let forced = [products, attention].into_iter().flatten().map(Choices::forced);
    let all = std::iter::once(Choices::default()).chain(forced);
    all.map(|choices| DeviceProfile { choices: Arc::new(choices), ..device.clone() }).collect()
}

/// An adapter that has learned nothing adds nothing, however large what it is multiplied by.
#[test]
fn pairs_beside_f16_may_be_beyond_its_range() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let Some(variant) = smallest_matrix_tiles(&gpu, &own) else { return };
    let device = DeviceProfile { choices: Arc::new(Choices::forced(variant)), ..own };
    for dtype in [DType::F16, DType::BF16] {
        let ones = |shape: &[usize; 2], value| {
            CaseInput::values(shape, DType::F32, vec![value; shape[0] * shape[1]])
        };
        let inputs = vec![
            CaseInput::random(&[40, 64], dtype),
            CaseInput::random(&[36, 64], dtype),
            ones(&[40, 8], 4e5),
            ones(&[36, 8], 0.0),
        ];
        let op = matmul::Matmul::plain(matmul::Layout::NT, 1.0, dtype);
        let case = Case::new(format!("beyond f16, {dtype}"), op, inputs);
        let kernels = plan(&case, &device, false, false).dispatches;
        assert!(kernels.iter().any(|d| d.shader.name == "matmul_coop_tiled"));
        run(&gpu, &device, &case, false).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A network that has come to numbers that are none must show it.
#[test]
fn a_soft_cap_keeps_what_is_no_number() {
    let Some(gpu) = common::gpu() else { return };
    let given = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.5, -f64::NAN, 1e30, -1e30, 0.0];
    let input = CaseInput::values(&[1, 8], DType::F32, given);
    let case = Case::new("no numbers", SoftCap { cap: 30.0 }, vec![input]);
    let device = gpu.profile();
    let launch = plan(&case, &device, false, false);
    let (_, outputs) = types(&case);
    let read = execute(&gpu, &case, &launch, false, false).unwrap();
    let found = unpack(outputs[0], &read[0]);
    assert!(found[0].is_nan() && found[4].is_nan(), "{found:?}");
    assert_eq!([found[1], found[2], found[5], found[6], found[7]], [30.0, -30.0, 30.0, -30.0, 0.0]);
    assert!((found[3] - 30.0 * (0.5f32 / 30.0).tanh()).abs() < 1e-5, "{found:?}");
}

/// Of a frozen head, who makes the gradient of the logits stores it as matrix units take it: probabilities down to what is left of a
/// target that is all but certain.
#[test]
fn gradients_of_logits_are_rounded_where_they_are_made() {
    let Some(gpu) = common::gpu() else { return };
    let own = DeviceProfile::clone(&gpu.profile());
    let Some(variant) = smallest_matrix_tiles(&gpu, &own) else { return };
    let device = DeviceProfile { choices: Arc::new(Choices::forced(variant)), ..own };
    let as_gpu = DeviceProfile { cpu: false, ..device.clone() };
    let mut random = Random::new(11);
    let none = |row: usize| row % 9 == 4;
    for (device, (rows, vocab), (dtype, stored), dloss, soft_cap) in [
        (&device, (70, 131), (DType::BF16, DType::BF16), 2f64.powi(-40), None),
        (&device, (70, 131), (DType::BF16, DType::Nf4), 0.25, None),
        (&device, (70, 131), (DType::F16, DType::F16), 64.0, None),
        // caps that a target's logit reaches
        (&device, (70, 131), (DType::BF16, DType::BF16), 0.25, Some(40.0)),
        (&device, (70, 131), (DType::BF16, DType::BF16), 0.25, Some(20.0)),
        // two chunks on a device in software; one on a GPU, whose rows have many invocations each
        (&device, (500, 36_003), (DType::BF16, DType::BF16), 1.0, None),
        (&as_gpu, (500, 36_003), (DType::BF16, DType::BF16), 1.0, None),
    ] {
        // wide enough that others stay far below the lower cap
        let width = if soft_cap == Some(20.0) { 256 } else { 64 };
        let head: Vec<f64> = (0..vocab * width).map(|_| random.next()).collect();
        let target = |row: usize| row * 7 % vocab;
        // towards the target's row of the head, further and further
        let h: Vec<f64> = (0..rows * width)
            .map(|i| (i / width % 70) as f64 / 24.0 * head[target(i / width) * width + i % width])
            .collect();
        let inputs_of = vec![
            CaseInput::values(&[rows, width], dtype, h.clone()),
            CaseInput::values(&[vocab, width], stored, head.clone()),
            CaseInput::indices((0..rows).map(|row| if none(row) { u32::MAX } else { target(row) as u32 })),
            CaseInput::values(&[1], DType::F32, vec![dloss]),
        ];
        let op =
            LinearCrossEntropyGradient { forward: LinearCrossEntropy { soft_cap, ..Default::default() } };
        let case = Case::new(format!("{dtype} {stored} {soft_cap:?}"), op, inputs_of);
        let launch = plan_of(&case, device, false, false, |output| output < 2);
        let shaders: Vec<&str> = launch.dispatches.iter().map(|d| d.shader.name).collect();
        let after = ["cross_entropy", "matmul_coop_tiled", "sum"];
        assert!(shaders.ends_with(&after), "{}: {shaders:?}", case.label);
        let chunks = shaders.iter().filter(|name| **name == "cross_entropy").count();
        assert_eq!(chunks > 1, rows > 448 && device.cpu, "{chunks}");
        let (_, outputs) = types(&case);
        let read = execute(&gpu, &case, &launch, false, false).unwrap();
        let expected = &case.op.reference(&inputs(&case, &mut Random::new(7)), &outputs);
        let loss = f64::from(unpack(outputs[0], &read[0])[0]);
        assert!((loss / expected[0].data[0] - 1.0).abs() < 2e-5, "{loss} for {}", expected[0].data[0]);
        let actual = unpack(outputs[1], &read[1]);
        let mut smallest = f64::MAX;
        for row in 0..rows {
            let expected = expected[1].row(row);
            let largest = expected.iter().fold(0f64, |most, v| most.max(v.abs()));
            assert_eq!(largest == 0.0, none(row));
            if !none(row) {
                smallest = smallest.min(largest / dloss);
            }
            // a probability beside one is known to 2^-24
            let allowed = tolerance(dtype) * largest + 4e-7 * dloss;
            for (a, e) in actual[row * width..(row + 1) * width].iter().zip(expected) {
                let error = (f64::from(*a) - e).abs();
                assert!(error <= allowed, "{} row {row}: {a} for {e}, of {largest}", case.label);
            }
        }
        assert!(smallest < 1e-5, "{smallest}");
    }
}

/// Whatever the head is stored in, a network in bf16 has no loss scale that would keep them within f16's range.
#[test]
fn gradients_of_logits_in_bf16_reach_matrix_units_scaled() {
    let mut seen = Vec::new();
    for device in DeviceProfile::kinds().iter().flat_map(with_matrix_units) {
        let stored = [None, Some(DType::Nf4), Some(DType::F32)];
        let cases = engraft::ops::cases().into_iter();
        for (mut case, weight) in cases.flat_map(|c| stored.map(|weight| (c.clone(), weight))) {
            let head = case.op.name() == "linear_cross_entropy_gradient";
            // a narrow result is a thin product's
            if !head || case.inputs[0].ty.dtype != DType::BF16 || case.inputs[0].ty.cols() <= 16 {
                continue;
            }
            if let Some(stored) = weight {
                case.inputs[1].ty.dtype = stored;
            }
            let kernels = plan(&case, &device, false, false).dispatches;
            let named = |name| kernels.iter().filter(|d| d.shader.name == name).count();
            let operands = named("round_scaled");
            assert_eq!(named("round_rows") + operands / 2, named("matmul_coop_tiled"), "{}", case.label);
            if named("round_rows") > 0 {
                assert_eq!(named("round_rows"), 2, "logits and their gradient: {}", case.label);
                assert_eq!(operands, 2, "the gradient of the head: {}", case.label);
                seen.push(case.inputs[1].ty.dtype);
            }
        }
    }
    assert!([DType::Nf4, DType::BF16, DType::F32].iter().all(|stored| seen.contains(stored)), "{seen:?}");
}

/// Weights in f32 are rounded for matrix units where rows and result have 16 bits, and nowhere else.
#[test]
fn mixed_precision_reaches_matrix_units_and_single_precision_does_not() {
    let mut taken = 0;
    for device in DeviceProfile::kinds().iter().flat_map(with_matrix_units) {
        for case in engraft::ops::cases() {
            let product = ["matmul", "lora_linear"].contains(&case.op.name());
            if !product || case.inputs[1].ty.dtype != DType::F32 {
                continue;
            }
            let kernels = plan(&case, &device, false, false).dispatches;
            let mixed =
                [" pair bf16 f32", " pair f16 f32", " residual bf16 f32", " residual f16 f32", "16 on f32"];
            if mixed.iter().any(|end| case.label.ends_with(end)) {
                taken += usize::from(kernels.iter().any(|d| d.shader.name == "matmul_coop_tiled"));
            } else {
                let unit = kernels.iter().find(|d| d.shader.name.starts_with("matmul_coop"));
                assert!(unit.is_none(), "{}", case.label);
            }
        }
    }
    assert!(taken > 10, "{taken}");
}

/// Kernels that scale what they meet round an adapter's f32 beside activations of 16 bits, and no activations in f32.
#[test]
fn what_is_rounded_beside_halves_are_no_activations() {
    let running = |device: &DeviceProfile| {
        let found = matmul::Variant::all(device).into_iter().find(matmul::Variant::is_running)?;
        let choices = Arc::new(Choices::forced(found.to_string()));
        Some(DeviceProfile { choices, ..device.clone() })
    };
    let devices: Vec<DeviceProfile> = DeviceProfile::kinds().iter().filter_map(running).collect();
    assert!(!devices.is_empty());
    use matmul::Layout::{NN, NT, TN};
    for device in devices {
        let taken = |layout, (a, b): (DType, DType), n: usize, low_rank: bool| {
            let shapes = match layout {
                NT => [[96, 64], [n, 64]],
                NN => [[96, 64], [64, n]],
                TN => [[64, 96], [64, n]],
            };
            let inputs = shapes.iter().zip([a, b]).map(|(shape, ty)| CaseInput::random(shape, ty)).collect();
            let op = matmul::Matmul { low_rank, ..matmul::Matmul::plain(layout, 1.0, DType::F32) };
            let launch = plan(&Case::new("", op, inputs), &device, false, false);
            launch.dispatches.iter().any(|d| d.variant.ends_with(" running"))
        };
        let (single, half, brain) = (DType::F32, DType::F16, DType::BF16);
        for (layout, n) in [NT, NN, TN].into_iter().flat_map(|layout| [(layout, 8), (layout, 512)]) {
            for narrow in [half, brain] {
                assert!(taken(layout, (narrow, single), n, true), "an adapter's: {layout:?} {narrow}");
                // logits of a head in f32, a weight beside activations in f32, the gradient of either
                for types in [(narrow, single), (single, narrow)] {
                    assert!(!taken(layout, types, n, false), "{layout:?} {types:?}");
                }
            }
            assert!(!taken(layout, (single, single), n, true), "in single precision: {layout:?}");
            let rows = layout != TN && n > 16;
            assert_eq!(taken(layout, (brain, brain), n, false), layout == TN || rows, "{layout:?} {n}");
            assert!(!taken(layout, (half, half), n, false), "f16 goes as it is: {layout:?}");
        }
    }
    // small probabilities beside f16, of a head that is trained
    let heads = engraft::ops::cases().into_iter().filter(|c| c.op.name() == "linear_cross_entropy_gradient");
    let heads: Vec<Case> = heads.filter(|c| c.inputs[0].ty.dtype == DType::F16).collect();
    assert!(!heads.is_empty());
    for case in &heads {
        for device in DeviceProfile::kinds().iter().filter_map(running) {
            let launch = plan(case, &device, false, false);
            assert!(launch.dispatches.iter().all(|d| !d.variant.ends_with(" running")), "{}", case.label);
        }
    }
}

/// The chunks of the head run one after the other: they share the sums of their products on matrix units.
#[test]
fn matrix_units_take_one_scratch_space_for_all_chunks() {
    let device = DeviceProfile {
        cooperative: Some(Cooperative { shape: MatrixShape::square(16), lanes: 32 }),
        max_workgroup_invocations: 256,
        max_workgroup_storage: 32 << 10,
        choices: Arc::new(Choices::forced("coop 32x32 shape=16x16x16 lanes=32")),
        ..DeviceProfile::default()
    };
    let mut graph = Graph::new();
    let (rows, width, vocab) = (1024, 64, 1 << 17);
    let shape = engraft::graph::Shape::matrix;
    let h = graph.input("h", shape(rows, width), DType::F16).unwrap();
    let w = graph.frozen("w", shape(vocab, width), DType::F16).unwrap();
    let targets = graph.input("t", engraft::graph::Shape::vector(rows), DType::U32).unwrap();
    engraft::ops::cross_entropy::linear_cross_entropy(&mut graph, h, w, targets, None).unwrap();
    let node = &graph.nodes()[0];
    let types = |values: &[Value]| values.iter().map(|&v| graph.type_of(v)).collect::<Vec<_>>();
    let launch = Launch {
        device: &device,
        inputs: &types(&node.inputs),
        outputs: &types(&node.outputs),
        accumulate: &vec![false; node.outputs.len()],
        live: &vec![true; node.outputs.len()],
        replaces: &vec![false; node.outputs.len()],
    };
    let plan = launch.plan(&*node.op);
    let products = plan.dispatches.iter().filter(|d| d.shader.name == "matmul_coop").count();
    assert!(products > 1, "{products} chunks");
    assert_eq!(plan.workspaces.len(), 3, "logits, losses, sums: {:?}", plan.workspaces);
    let whole = (rows * vocab * 4) as u64;
    assert!(plan.workspaces.iter().all(|&bytes| bytes < whole), "no tensor of rows times vocabulary");
}

/// `Σ_o Σ_i cotangent_o[i] · output_o[i]` of the case's operation in f64.
fn weighted_sum(
    case: &Case,
    inputs: &[ReferenceTensor],
    outputs: &[TensorType],
    weights: &[ReferenceTensor],
) -> f64 {
    let results = case.op.reference(inputs, outputs);
    results.iter().zip(weights).flat_map(|(r, w)| r.data.iter().zip(&w.data)).map(|(r, w)| r * w).sum()
}

#[test]
fn gradient_rules_equal_central_differences() {
    let mut checked = 0;
    for case in engraft::ops::cases().into_iter().filter(|c| !c.gradients.is_empty()) {
        let name = format!("{} {}", case.op.name(), case.label);
        let (input_types, output_types) = types(&case);
        let random = &mut Random::new(11);
        let inputs = inputs(&case, random);
        let mut graph = Graph::new();
        let values: Vec<Value> = input_types
            .iter()
            .enumerate()
            .map(|(i, ty)| graph.input(format!("x{i}"), ty.shape, ty.dtype).unwrap())
            .collect();
        let outputs = graph.apply(case.op.clone(), &values).unwrap();
        // only the first output carries a gradient: the others are kept for the reverse rule
        let cotangent = ReferenceTensor::from_fn(output_types[0].shape, |_| random.next());
        let dy = graph.input("dy", output_types[0].shape, output_types[0].dtype).unwrap();
        let mut gradients = vec![None; outputs.len()];
        gradients[0] = Some(dy);
        let wanted: Vec<bool> = (0..values.len()).map(|i| case.gradients.contains(&i)).collect();
        let node = ReverseNode { inputs: &values, outputs: &outputs, gradients: &gradients, wanted: &wanted };
        let returned = case.op.reverse(&mut graph, &node).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut leaves: HashMap<Value, ReferenceTensor> =
            values.iter().copied().zip(inputs.clone()).collect();
        leaves.insert(dy, cotangent.clone());
        let evaluated = evaluate(&graph, &leaves);
        let mut weights: Vec<ReferenceTensor> =
            output_types.iter().map(|t| ReferenceTensor::zeros(t.shape)).collect();
        weights[0] = cotangent;
        for &input in &case.gradients {
            let gradient = returned[input].unwrap_or_else(|| panic!("{name}: no gradient for input {input}"));
            let gradient = evaluated[gradient.index()].as_ref().unwrap();
            let step = 1e-5;
            let largest = gradient.data.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for i in 0..gradient.data.len() {
                let at = |delta: f64| {
                    let mut moved = inputs.clone();
                    moved[input].data[i] += delta;
                    weighted_sum(&case, &moved, &output_types, &weights)
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                let error = (difference - gradient.data[i]).abs() / largest;
                assert!(
                    error < 1e-6,
                    "{name}: d input {input} [{i}] is {}, not {difference}",
                    gradient.data[i]
                );
            }
            checked += 1;
        }
    }
    println!("{checked} gradients checked");
    assert!(checked >= 30);
}
