//! SPIR-V of kernels with cooperative matrices, for Vulkan.
//!
//! Cooperative matrices bring Vulkan's memory model, in which only accesses that say so (`NonPrivatePointer`) take part in
//! synchronisation, and only barriers that say so make writes available and visible. naga 30 leaves both out
//! (gfx-rs/wgpu#8805), so what it writes is completed here and passed to the driver past wgpu's own compiler. The strides that naga
//! gives to arrays in workgroup memory are left out, as Vulkan has none there. And it is of version 1.3, in which subgroups have
//! the size that the device names (`gpu/subgroups.rs`): in wgpu's, of the device's newest version, they need not.
//!
//! Vulkan's devices also have matrices that are not square, Intel's no others. WGSL does not name them, naga's types have rows and
//! columns of their own, and get them here.

use crate::graph::MatrixShape;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{CooperativeRole, CooperativeSize, Expression, Handle, Module, Type, TypeInner};
use std::collections::{HashMap, HashSet};
use std::iter;

/// Compiles the WGSL of a kernel whose cooperative matrices, written there as square ones, are of `shape`, and whose storage and
/// uniform bindings are `bindings` of group 0, in order. `checked` keeps indices within their arrays.
///
/// # Errors
/// What the validator or the writer objects to, in words.
pub fn compile(
    source: &str,
    shape: MatrixShape,
    checked: bool,
    bindings: impl IntoIterator<Item = u32>,
) -> Result<Vec<u32>, String> {
    let mut module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    reshape(&mut module, shape)?;
    let info = Validator::new(
        ValidationFlags::all(),
        Capabilities::SHADER_FLOAT16
            | Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SUBGROUP
            | Capabilities::COOPERATIVE_MATRIX,
    )
    .subgroup_stages(ShaderStages::COMPUTE)
    .subgroup_operations(SubgroupOperationSet::all())
    .validate(&module)
    .map_err(|e| e.emit_to_string(source))?;
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    // wgpu numbers the bindings of a layout from zero on
    let numbered = bindings.into_iter().enumerate().map(|(place, binding)| {
        let from = naga::ResourceBinding { group: 0, binding };
        (from, spv::BindingInfo { descriptor_set: 0, binding: place as u32, binding_array_size: None })
    });
    let options = spv::Options {
        // what the extension asks for, in its revision 10
        lang_version: (1, 3),
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: policy,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        binding_map: numbered.collect(),
        fake_missing_bindings: false,
        // no kernel passes f16 between stages, and not every device could
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
    let words = spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|e| e.to_string())?;
    synchronised(&words).ok_or_else(|| "its SPIR-V is not as expected".into())
}

/// The WGSL of a kernel whose subgroups of `lanes` invocations are several of the device's: each of those does the whole work of the
/// subgroup on matrices, so that their results are equal, and what invocations do by themselves is shared as on a device with
/// subgroups of that size.
pub fn in_divided_subgroups(source: &str, lanes: u32) -> String {
    let mut place = String::from(") {\n");
    let mut text = source.to_string();
    for (builtin, name, value) in [
        ("subgroup_id", "subgroup_id", format!("lane / {lanes}u")),
        ("subgroup_invocation_id", "in_subgroup", format!("lane % {lanes}u")),
    ] {
        let declared = format!("@builtin({builtin}) {name}: u32,");
        if text.contains(&declared) {
            text = text.replace(&declared, "");
            place.push_str(&format!("    let {name} = {value};\n"));
        }
    }
    let (before, main) = text.split_once("fn main(").unwrap_or((&text, ""));
    // no part can ask the others, and none may miss what they found
    let main = main.replacen(") {\n", &place, 1).replace("subgroupAny(", "(true || ");
    format!("{before}fn main({main}")
}

/// Gives every cooperative matrix the rows and columns of its role in products of `shape`. A role has one size in a kernel.
fn reshape(module: &mut Module, shape: MatrixShape) -> Result<(), String> {
    let size = |extent| if extent == 8 { CooperativeSize::Eight } else { CooperativeSize::Sixteen };
    let (m, n, k) = (size(shape.m), size(shape.n), size(shape.k));
    let of_role = |role| match role {
        CooperativeRole::A => (m, k),
        CooperativeRole::B => (k, n),
        CooperativeRole::C => (m, n),
    };
    let changed = |(handle, ty): (Handle<Type>, &Type)| {
        let TypeInner::CooperativeMatrix { columns, rows, scalar, role } = ty.inner else { return None };
        let (wanted_rows, wanted_columns) = of_role(role);
        let inner = TypeInner::CooperativeMatrix { columns: wanted_columns, rows: wanted_rows, scalar, role };
        let ty = Type { name: ty.name.clone(), inner };
        ((rows, columns) != (wanted_rows, wanted_columns)).then_some((handle, ty))
    };
    let changed: Vec<_> = module.types.iter().filter_map(changed).collect();
    for (handle, ty) in changed {
        if module.types.get(&ty).is_some() {
            return Err("its cooperative matrices of one role differ in size".into());
        }
        module.types.replace(handle, ty);
    }
    let entry_points = module.entry_points.iter_mut().map(|entry| &mut entry.function);
    let functions = module.functions.iter_mut().map(|(_, function)| function).chain(entry_points);
    for (_, expression) in functions.flat_map(|function| function.expressions.iter_mut()) {
        if let Expression::CooperativeLoad { columns, rows, role, .. } = expression {
            (*rows, *columns) = of_role(*role);
        }
    }
    Ok(())
}

/// Opcodes, of the SPIR-V specification 1.6 and SPV_KHR_cooperative_matrix.
mod op {
    pub const TYPE_POINTER: u32 = 32;
    pub const CONSTANT: u32 = 43;
    pub const FUNCTION: u32 = 54;
    pub const DECORATE: u32 = 71;
    pub const FUNCTION_PARAMETER: u32 = 55;
    pub const VARIABLE: u32 = 59;
    pub const LOAD: u32 = 61;
    pub const STORE: u32 = 62;
    pub const COPY_MEMORY: u32 = 63;
    pub const ACCESS_CHAIN: u32 = 65;
    pub const IN_BOUNDS_ACCESS_CHAIN: u32 = 66;
    pub const CONTROL_BARRIER: u32 = 224;
    pub const MEMORY_BARRIER: u32 = 225;
    #[cfg(test)]
    pub const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
    pub const COOPERATIVE_MATRIX_LOAD: u32 = 4457;
    pub const COOPERATIVE_MATRIX_STORE: u32 = 4458;
}

/// Decoration of an array with its stride.
const ARRAY_STRIDE: u32 = 6;
/// Storage class of workgroup memory.
const WORKGROUP: u32 = 4;
/// Memory operand of an access that synchronisation orders.
const NON_PRIVATE_POINTER: u32 = 0x20;
/// Memory semantics of a barrier that makes what was written before it visible after it.
const MAKE_AVAILABLE_AND_VISIBLE: u32 = 0x2000 | 0x4000;

/// Memory semantics of storage buffers and images.
const OTHER_MEMORY: u32 = 0x40 | 0x800;

const HEADER: usize = 5;

/// Opcode and words of each instruction.
fn instructions(words: &[u32]) -> impl Iterator<Item = Option<(u32, &[u32])>> {
    let mut rest = words.get(HEADER..).unwrap_or_default();
    iter::from_fn(move || {
        let first = *rest.first()?;
        let count = (first >> 16) as usize;
        if count == 0 || count > rest.len() {
            rest = &[];
            return Some(None);
        }
        let (instruction, after) = rest.split_at(count);
        rest = after;
        Some(Some((first & 0xffff, instruction)))
    })
}

/// The module with the memory operands that order its accesses to workgroup memory; `None` where it is none, or none of
/// naga's: an access that has memory operands already, or a barrier whose semantics are no constant; or where more than workgroup
/// memory is shared within a dispatch, which no kernel does.
fn synchronised(words: &[u32]) -> Option<Vec<u32>> {
    let all: Vec<(u32, &[u32])> = instructions(words).collect::<Option<_>>()?;
    let mut pointers = HashMap::new();
    let mut shared = HashSet::new();
    // of each value that can be a pointer, its type
    let mut types = HashMap::new();
    // type and value of each constant of one word
    let mut constants = HashMap::new();
    for &(opcode, at) in &all {
        match opcode {
            op::TYPE_POINTER => {
                pointers.insert(*at.get(1)?, *at.get(2)?);
                if at[2] == WORKGROUP {
                    shared.insert(*at.get(3)?);
                }
            }
            op::CONSTANT if at.len() == 4 => drop(constants.insert(at[2], (at[1], at[3]))),
            op::VARIABLE | op::FUNCTION_PARAMETER | op::ACCESS_CHAIN | op::IN_BOUNDS_ACCESS_CHAIN => {
                types.insert(*at.get(2)?, *at.get(1)?);
            }
            _ => {}
        }
    }
    let class = |pointer: u32| types.get(&pointer).and_then(|ty| pointers.get(ty)).copied();
    let mut bound = *words.get(3)?;
    // constants of the barriers' semantics
    let mut added: Vec<u32> = Vec::new();
    let mut completed: HashMap<u32, u32> = HashMap::new();
    let mut body: Vec<u32> = Vec::with_capacity(words.len());
    let mut first_function = None;
    for &(opcode, at) in &all {
        if opcode == op::FUNCTION && first_function.is_none() {
            first_function = Some(body.len());
        }
        if opcode == op::DECORATE && at.get(2) == Some(&ARRAY_STRIDE) && shared.contains(&at[1]) {
            continue;
        }
        // where the pointer is, and how many words there are without memory operands
        let access = match opcode {
            op::LOAD => Some((3, 4)),
            op::STORE => Some((1, 3)),
            op::COOPERATIVE_MATRIX_LOAD => Some((3, 6)),
            op::COOPERATIVE_MATRIX_STORE => Some((1, 5)),
            _ => None,
        };
        if let Some((pointer, plain)) = access
            && class(*at.get(pointer)?)? == WORKGROUP
        {
            if at.len() != plain {
                return None;
            }
            body.push((plain as u32 + 1) << 16 | opcode);
            body.extend(&at[1..]);
            body.push(NON_PRIVATE_POINTER);
            continue;
        }
        if opcode == op::COPY_MEMORY && [class(*at.get(1)?), class(*at.get(2)?)].contains(&Some(WORKGROUP)) {
            return None;
        }
        let start = body.len();
        body.extend(at);
        if matches!(opcode, op::CONTROL_BARRIER | op::MEMORY_BARRIER) {
            let semantics = *at.last()?;
            let &(ty, value) = constants.get(&semantics)?;
            if value & OTHER_MEMORY != 0 {
                return None;
            }
            let id = *completed.entry(semantics).or_insert_with(|| {
                added.extend([4 << 16 | op::CONSTANT, ty, bound, value | MAKE_AVAILABLE_AND_VISIBLE]);
                bound += 1;
                bound - 1
            });
            body[start + at.len() - 1] = id;
        }
    }
    let mut result = words[..HEADER].to_vec();
    result[3] = bound;
    let (declarations, functions) = body.split_at(first_function?);
    result.extend(declarations);
    result.extend(added);
    result.extend(functions);
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "enable f16;
        enable wgpu_cooperative_matrix;
        @group(0) @binding(1) var<storage, read> x: array<f16>;
        @group(0) @binding(2) var<storage, read_write> y: array<f32>;
        var<workgroup> shared_sums: array<f32, 64>;
        @compute @workgroup_size(32)
        fn main(@builtin(local_invocation_index) lane: u32) {
            let a = coopLoadT<coop_mat8x8<f16, A>>(&x[0], 8u);
            let b = coopLoadT<coop_mat8x8<f16, B>>(&x[64], 8u);
            var c = coop_mat8x8<f32, C>();
            c = coopMultiplyAdd(a, b, c);
            coopStore(c, &shared_sums[0], 8u);
            workgroupBarrier();
            shared_sums[lane] *= 2.0;
            workgroupBarrier();
            y[lane] = shared_sums[lane];
        }";

    const SQUARE: MatrixShape = MatrixShape::square(8);

    fn nth_words(words: &[u32], opcode: u32, plain: usize) -> Vec<Option<u32>> {
        let all = instructions(words).map(|i| i.expect("whole instructions"));
        all.filter(|(op, _)| *op == opcode).map(|(_, at)| at.get(plain).copied()).collect()
    }

    #[test]
    fn accesses_to_workgroup_memory_and_barriers_are_ordered() {
        let words = compile(KERNEL, SQUARE, false, [1, 2]).unwrap();
        assert_eq!(nth_words(&words, op::COOPERATIVE_MATRIX_STORE, 5), [Some(NON_PRIVATE_POINTER)]);
        // those of storage are ordered by the barriers between dispatches
        assert_eq!(nth_words(&words, op::COOPERATIVE_MATRIX_LOAD, 6), [None, None]);
        let loads = nth_words(&words, op::LOAD, 4);
        assert_eq!(loads.iter().flatten().count(), 2, "{loads:?}");
        let stores = nth_words(&words, op::STORE, 3);
        assert_eq!(stores.iter().flatten().count(), 1, "{stores:?}");
        let strides = nth_words(&words, op::DECORATE, 2);
        // of the two arrays in storage
        assert_eq!(strides.iter().filter(|decoration| **decoration == Some(ARRAY_STRIDE)).count(), 2);
        let constants: HashMap<u32, u32> = instructions(&words)
            .flatten()
            .filter(|(opcode, at)| *opcode == op::CONSTANT && at.len() == 4)
            .map(|(_, at)| (at[2], at[3]))
            .collect();
        let barriers: Vec<u32> = instructions(&words)
            .flatten()
            .filter(|(opcode, _)| *opcode == op::CONTROL_BARRIER)
            .map(|(_, at)| constants[&at[3]])
            .collect();
        // acquire and release, of workgroup memory
        assert_eq!(barriers, [0x8 | 0x100 | MAKE_AVAILABLE_AND_VISIBLE; 2]);
    }

    #[test]
    fn matrices_have_the_rows_and_columns_of_their_role() {
        let wide = KERNEL.replace("coop_mat8x8", "coop_mat16x16");
        let shapes = [(8, 16, 16), (8, 8, 16), (16, 16, 16), (8, 8, 8)];
        for (m, n, k) in shapes {
            let words = compile(&wide, MatrixShape { m, n, k }, false, [1, 2]).unwrap();
            let all = || instructions(&words).map(|i| i.expect("whole instructions"));
            let constants: HashMap<u32, u32> = all()
                .filter(|(opcode, at)| *opcode == op::CONSTANT && at.len() == 4)
                .map(|(_, at)| (at[2], at[3]))
                .collect();
            // of each type: rows, columns, use
            let mut types: Vec<[u32; 3]> = all()
                .filter(|(opcode, _)| *opcode == op::TYPE_COOPERATIVE_MATRIX)
                .map(|(_, at)| [at[4], at[5], at[6]].map(|id| constants[&id]))
                .collect();
            types.sort_by_key(|[_, _, role]| *role);
            assert_eq!(types, [[m, k, 0], [k, n, 1], [m, n, 2]], "one type for each role");
        }
    }

    #[test]
    fn modules_ask_for_what_the_device_was_asked_for() {
        let words = compile(KERNEL, SQUARE, false, [1, 2]).unwrap();
        let mut capabilities: Vec<u32> = nth_words(&words, 17, 1).into_iter().flatten().collect();
        capabilities.sort_unstable();
        // Shader, Float16, StorageBuffer16BitAccess, UniformAndStorageBuffer16BitAccess, VulkanMemoryModel, CooperativeMatrixKHR
        assert_eq!(capabilities, [1, 9, 4433, 4434, 5345, 6022]);
        // wgpu numbers from zero: x, y
        let all = instructions(&words).map(Option::unwrap);
        let decorated = all.filter(|(opcode, at)| *opcode == op::DECORATE && at[2] == 33);
        assert_eq!(decorated.map(|(_, at)| at[3]).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn what_shares_storage_within_a_dispatch_is_refused() {
        let storage = KERNEL.replacen("workgroupBarrier", "storageBarrier", 1);
        assert!(compile(&storage, SQUARE, false, [1, 2]).is_err());
    }

    #[test]
    fn words_that_are_no_module_are_refused() {
        let words = compile(KERNEL, SQUARE, false, [1, 2]).unwrap();
        // a second time there are memory operands already
        assert_eq!(synchronised(&words), None);
        assert_eq!(synchronised(&words[..words.len() - 1]), None);
        assert_eq!(synchronised(&[]), None);
        assert!(compile("fn main() {", SQUARE, false, []).is_err());
        let more = "workgroupBarrier(); var d = coop_mat16x16<f32, C>();";
        let mixed = KERNEL.replacen("workgroupBarrier();", more, 1);
        assert!(compile(&mixed, SQUARE, false, [1, 2]).unwrap_err().contains("differ in size"));
    }
}
