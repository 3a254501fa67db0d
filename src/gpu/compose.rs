//! Shader composition: a template of `shaders/`, a dispatch's definitions and generated declarations become WGSL.
//!
//! Templates are Jinja (minijinja): `{% if %}`, `{% for %}`, macros and `{{ }}` over the definitions. A line
//! `{% include "shared/…" %}` takes in the text itself, so its macros and variables are the includer's own.

use super::GpuError;
use crate::graph::{Binding, DType, Define, Dispatch, FIRST_GROUP, MatrixShape, Param, Shader, View};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior};
use std::collections::BTreeMap;
use std::fmt::Write;

const COMMON: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/common.wgsl"));
const WIDE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/wide.wgsl"));
const QUANTISED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/quantised.wgsl"));
/// A text comes before those that it includes.
const SHARED: [(&str, &str); 18] = [
    (
        "shared/operands.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/operands.wgsl")),
    ),
    (
        "shared/dropout.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/dropout.wgsl")),
    ),
    ("shared/pair.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/pair.wgsl"))),
    ("shared/result.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/result.wgsl"))),
    (
        "shared/glu_gradient.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/glu_gradient.wgsl")),
    ),
    ("shared/glu.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/glu.wgsl"))),
    (
        "shared/clipped.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/clipped.wgsl")),
    ),
    (
        "shared/column_sum.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/column_sum.wgsl")),
    ),
    (
        "shared/whole_row.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/whole_row.wgsl")),
    ),
    ("shared/rows.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/rows.wgsl"))),
    (
        "shared/power_of_two.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/power_of_two.wgsl")),
    ),
    (
        "shared/section.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/section.wgsl")),
    ),
    (
        "shared/tile_order.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/tile_order.wgsl")),
    ),
    (
        "shared/attention.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/attention.wgsl")),
    ),
    (
        "shared/attention_tiled.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/attention_tiled.wgsl")),
    ),
    (
        "shared/attention_coop.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/attention_coop.wgsl")),
    ),
    ("shared/matrix.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/matrix.wgsl"))),
    (
        "shared/soft_cap.wgsl",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/soft_cap.wgsl")),
    ),
];

/// What decides the code of a kernel beside its own text and definitions: the shared texts, how accessors are generated and SPIR-V is
/// completed, and this crate's version, which stands for that of the shader compiler too.
pub fn sources() -> impl Iterator<Item = &'static str> {
    let here = [include_str!("compose.rs"), include_str!("spirv.rs"), env!("CARGO_PKG_VERSION")];
    [COMMON, WIDE, QUANTISED].into_iter().chain(SHARED.map(|(_, text)| text)).chain(here)
}

/// What one composed shader depends on: dispatches with equal keys share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShaderKey {
    pub shader: Shader,
    defines: Vec<(&'static str, Define)>,
    bindings: Vec<BindingKey>,
    params: Vec<(&'static str, bool)>,
}

/// What a shader knows of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct BindingKey {
    name: &'static str,
    dtype: DType,
    view: View,
    write: bool,
    piece: Option<u32>,
}

impl ShaderKey {
    pub fn of(dispatch: &Dispatch) -> Self {
        let binding = |b: &Binding| {
            let Binding { name, dtype, view, write, piece, .. } = *b;
            BindingKey { name, dtype, view, write, piece }
        };
        ShaderKey {
            shader: dispatch.shader,
            defines: dispatch.defines.clone(),
            bindings: dispatch.bindings.iter().map(binding).collect(),
            params: dispatch.params.iter().map(|(name, p)| (*name, matches!(p, Param::F32(_)))).collect(),
        }
    }

    /// Whether the shader reads parameters, from binding 0.
    pub fn has_params(&self) -> bool {
        !self.params.is_empty()
    }

    /// Whether each storage binding may be written, in order.
    pub fn writes(&self) -> impl Iterator<Item = bool> + '_ {
        self.bindings.iter().map(|b| b.write)
    }

    /// Whether it has cooperative matrices, so that a Vulkan device gets [`ShaderKey::spirv`].
    pub fn has_matrices(&self) -> bool {
        has_matrices(&expand_includes(self.shader.source))
    }

    /// What a Vulkan device gets of a kernel with [`ShaderKey::has_matrices`]; `checked` keeps indices within their arrays,
    /// `divided` serves a device whose subgroups are a fraction of those that the kernel expects.
    ///
    /// # Errors
    /// As [`ShaderKey::compose`], and what naga objects to.
    pub fn spirv(&self, checked: bool, divided: bool) -> Result<Vec<u32>, GpuError> {
        let text = match self.integer("LANES") {
            Some(lanes) if divided => super::spirv::in_divided_subgroups(&self.compose(false)?, lanes),
            _ => self.compose(false)?,
        };
        let params = self.has_params().then_some(0);
        let bindings = params.into_iter().chain(1..=self.bindings.len() as u32);
        super::spirv::compile(&text, self.matrix_shape()?, checked, bindings)
            .map_err(|reason| GpuError::Shader { shader: self.shader.name.into(), reason })
    }

    fn integer(&self, wanted: &str) -> Option<u32> {
        match self.defines.iter().find(|(name, _)| *name == wanted) {
            Some((_, Define::Int(value))) => Some(*value),
            _ => None,
        }
    }

    /// The shape of a kernel's cooperative matrices.
    fn matrix_shape(&self) -> Result<MatrixShape, GpuError> {
        let shape = self.integer("M").zip(self.integer("N")).zip(self.integer("K"));
        let shape = shape.map(|((m, n), k)| MatrixShape { m, n, k }).filter(MatrixShape::is_known);
        let reason = || "M, N and K are no shape of its matrices".into();
        shape.ok_or_else(|| GpuError::Shader { shader: self.shader.name.into(), reason: reason() })
    }

    /// The WGSL text. `wide` moves every group of four in 64-bit words: llvmpipe loads and stores lane by lane and
    /// element by element, so half as many elements are almost half the time.
    ///
    /// # Errors
    /// A template that does not render: a mistake in `shaders/`.
    pub fn compose(&self, wide: bool) -> Result<String, GpuError> {
        let template = expand_includes(self.shader.source);
        // made for GPUs, and compiled for Vulkan without 64-bit words
        let wide = wide && !has_matrices(&template);
        let error = |reason: String| GpuError::Shader { shader: self.shader.name.into(), reason };
        let halves = has_matrices(&template);
        let enable = if halves { "enable f16;\nenable wgpu_cooperative_matrix;\n" } else { "" };
        let mut text = format!("{enable}{}", self.declarations(wide, halves));
        text.push_str(COMMON);
        text.push_str(&self.group_index());
        text.push('\n');
        if wide {
            text.push_str(WIDE);
            text.push('\n');
        }
        let quantised = self.bindings.iter().any(|b| b.dtype.is_quantised());
        let mut environment = Environment::new();
        environment.set_syntax(syntax().map_err(|e| error(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut context: BTreeMap<&str, Value> = self
            .defines
            .iter()
            .map(|(name, define)| {
                let value = match define {
                    Define::Int(v) => Value::from(*v),
                    Define::Flag(v) => Value::from(*v),
                    Define::Text(v) => Value::from(*v),
                };
                (*name, value)
            })
            .collect();
        context.entry("NF4_TABLE").or_insert(Value::from(false));
        let mut render = |template: &str| {
            let body = environment.render_str(template, &context);
            body.map(|body| text.push_str(&body)).map_err(|e| error(format!("{e:#}")))
        };
        if quantised {
            render(QUANTISED)?;
        }
        render(&template)?;
        Ok(text)
    }

    /// The function that gives a workgroup's place in the grid, which was folded to two dimensions, or is a part of a larger one.
    fn group_index(&self) -> String {
        let part = self.params.iter().any(|(name, _)| *name == FIRST_GROUP);
        let first = if part { format!(" + params.{FIRST_GROUP}") } else { String::new() };
        format!(
            "\nfn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 {{\n    \
             return group.y * groups.x + group.x{first};\n}}\n"
        )
    }

    /// The bindings with their accessors; `halves`: what is read in f16 is declared so, and needs no conversion to be an operand of
    /// matrix units.
    fn declarations(&self, wide: bool, halves: bool) -> String {
        let mut text = String::new();
        let mut line = |s: std::fmt::Arguments<'_>| {
            // writing to a String cannot fail
            let _ = text.write_fmt(s);
            text.push('\n');
        };
        if !self.params.is_empty() {
            line(format_args!("struct Params {{"));
            for (name, float) in &self.params {
                line(format_args!("    {name}: {},", if *float { "f32" } else { "u32" }));
            }
            line(format_args!("}}\n@group(0) @binding(0) var<uniform> params: Params;"));
        }
        let mut first = 0;
        while first < self.bindings.len() {
            let BindingKey { name, dtype, view, write, piece } = self.bindings[first];
            let count = self.bindings[first..].iter().take_while(|b| b.name == name).count();
            let access = if write { "read_write" } else { "read" };
            let half = halves && dtype == DType::F16 && view == View::Vec4 && !write;
            let element = if half { "vec4<f16>" } else { element(dtype, view, wide) };
            for part in 0..count {
                line(format_args!(
                    "@group(0) @binding({}) var<storage, {access}> {}: array<{element}>;",
                    first + part + 1,
                    part_name(name, part),
                ));
            }
            let parts = Parts { name, count, piece };
            match view {
                View::Vec4 if half => line(format_args!("{}", half_accessors(&parts))),
                View::Vec4 => line(format_args!("{}", accessors(&parts, dtype, write, wide))),
                View::Octet => line(format_args!("{}", octet_accessors(&parts, dtype, wide))),
                View::Scalar | View::Matrix | View::MatrixGroups => {}
            }
            first += count;
        }
        text
    }
}

/// Element type of a binding's array.
fn element(dtype: DType, view: View, wide: bool) -> &'static str {
    match (dtype, view) {
        (DType::U32 | DType::Nf4 | DType::Nf4Double | DType::Int8, _) => "u32",
        (DType::F16, View::Matrix) => "f16",
        (DType::F16, View::MatrixGroups) => "vec4<f16>",
        (_, View::Scalar | View::Matrix | View::MatrixGroups) => "f32",
        (DType::F32, View::Octet) if wide => "vec4<u64>",
        (DType::F32, View::Octet) => "mat2x4<f32>",
        (DType::F16 | DType::BF16, View::Octet) if wide => "vec2<u64>",
        (DType::F16 | DType::BF16, View::Octet) => "vec4<u32>",
        (DType::F32, View::Vec4) if wide => "vec2<u64>",
        (DType::F32, View::Vec4) => "vec4<f32>",
        (DType::F16 | DType::BF16, View::Vec4) if wide => "u64",
        (DType::F16 | DType::BF16, View::Vec4) => "vec2<u32>",
    }
}

/// The arrays behind one name: one, or several that hold the elements of a tensor one after the other.
struct Parts {
    name: &'static str,
    count: usize,
    /// Elements of a part; `None` where `params.name_part` says it.
    piece: Option<u32>,
}

impl Parts {
    /// A function's text: `body` of the array that holds the element `at_`, and of the element's index there.
    fn find(&self, body: &dyn Fn(&str, &str) -> String) -> String {
        let Parts { name, count, piece } = self;
        let start = |part: usize| match piece {
            Some(piece) => format!("{}u", part as u64 * u64::from(*piece)),
            None => format!("{part}u * params.{name}_part"),
        };
        let within = |part: usize| match part {
            0 => body(name, "at_"),
            _ => body(&part_name(name, part), &format!("at_ - {}", start(part))),
        };
        let earlier =
            (0..count - 1).map(|part| format!("if (at_ < {}) {{ {} }} ", start(part + 1), within(part)));
        earlier.collect::<String>() + &within(count - 1)
    }
}

/// `load_name` of a block-quantised weight, laid out as in [`crate::graph::blocks`]. The header is in the first part.
fn quantised_accessor(parts: &Parts, dtype: DType) -> String {
    let name = parts.name;
    let word = |at: &str| match parts.count {
        1 => format!("{name}[{at}]"),
        _ => format!("word_{name}({at})"),
    };
    let float = |at: &str| format!("bitcast<f32>({})", word(at));
    let nf4 = format!("nf4(({} >> ((at_ & 1u) * 16u)) & 0xffffu)", word("4u + (at_ >> 1u)"));
    let body = match dtype {
        DType::Int8 => {
            let (code, scale) = (word("4u + at_"), float(&format!("{name}[0] + at_ / {name}[3]")));
            format!("return int8({code}) * {scale};")
        }
        DType::Nf4Double => format!(
            "let block_ = at_ >> 4u; \
             let code_ = ({} >> ((block_ & 3u) * 8u)) & 0xffu; \
             let scale_ = fma({}, {}, {}); return {nf4} * scale_;",
            word(&format!("{name}[0] + (block_ >> 2u)")),
            float(&format!("{name}[2] + 1u + code_")),
            float(&format!("{name}[1] + (block_ >> 8u)")),
            float(&format!("{name}[2]")),
        ),
        _ => format!("return {nf4} * {};", float(&format!("{name}[0] + (at_ >> 4u)"))),
    };
    let load = format!("fn load_{name}(at_: u32) -> vec4<f32> {{ {body} }}");
    match parts.count {
        1 => load,
        _ => {
            let found = parts.find(&|array, at| format!("return {array}[{at}];"));
            format!("fn word_{name}(at_: u32) -> u32 {{ {found} }}\n{load}")
        }
    }
}

fn part_name(name: &str, part: usize) -> String {
    if part == 0 { name.to_string() } else { format!("{name}_{part}") }
}

/// The functions that make four elements of what is stored, and the reverse.
fn conversions(dtype: DType, wide: bool) -> (&'static str, &'static str) {
    match (dtype, wide) {
        (DType::F16, false) => ("unpack_f16", "pack_f16"),
        (DType::BF16, false) => ("unpack_bf16", "pack_bf16"),
        (DType::F16, true) => ("unpack_f16_wide", "pack_f16_wide"),
        (DType::BF16, true) => ("unpack_bf16_wide", "pack_bf16_wide"),
        (_, true) => ("unpack_f32_wide", "pack_f32_wide"),
        (_, false) => ("", ""),
    }
}

fn raw_accessor(parts: &Parts, element: &str) -> String {
    let found = parts.find(&|array, at| format!("return {array}[{at}];"));
    format!("fn raw_{}(at_: u32) -> {element} {{ {found} }}", parts.name)
}

/// `load_name`, its halves `raw_name` and `decode_name`, and `store_name`; of a tensor in parts by the index that it would
/// have in one piece.
fn accessors(parts: &Parts, dtype: DType, write: bool, wide: bool) -> String {
    if dtype.is_quantised() {
        return quantised_accessor(parts, dtype);
    }
    let (unpack, pack) = conversions(dtype, wide);
    let name = parts.name;
    let element = element(dtype, View::Vec4, wide);
    let raw = raw_accessor(parts, element);
    let mut text = format!(
        "{raw}\n\
         fn decode_{name}(raw_: {element}) -> vec4<f32> {{ return {unpack}(raw_); }}\n\
         fn load_{name}(at_: u32) -> vec4<f32> {{ return decode_{name}(raw_{name}(at_)); }}"
    );
    if write {
        let stored = parts.find(&|array, at| format!("{array}[{at}] = {pack}(quad_); return;"));
        let _ = write!(text, "\nfn store_{name}(at_: u32, quad_: vec4<f32>) {{ {stored} }}");
    }
    text
}

/// `load_name`, `raw_name` and `decode_name` of a tensor declared in f16.
fn half_accessors(parts: &Parts) -> String {
    let name = parts.name;
    let raw = raw_accessor(parts, "vec4<f16>");
    format!(
        "{raw}\n\
         fn decode_{name}(raw_: vec4<f16>) -> vec4<f32> {{ return vec4<f32>(raw_); }}\n\
         fn load_{name}(at_: u32) -> vec4<f32> {{ return decode_{name}(raw_{name}(at_)); }}"
    )
}

/// `raw_name` of groups of eight, and their halves `low_name` and `high_name`.
fn octet_accessors(parts: &Parts, dtype: DType, wide: bool) -> String {
    let (low, high) = match (dtype, wide) {
        (DType::F16 | DType::BF16, true) => (".x", ".y"),
        (DType::F32, false) => ("[0]", "[1]"),
        _ => (".xy", ".zw"),
    };
    let (unpack, _) = conversions(dtype, wide);
    let name = parts.name;
    let element = element(dtype, View::Octet, wide);
    let raw = raw_accessor(parts, element);
    format!(
        "{raw}\n\
         fn low_{name}(raw_: {element}) -> vec4<f32> {{ return {unpack}(raw_{low}); }}\n\
         fn high_{name}(raw_: {element}) -> vec4<f32> {{ return {unpack}(raw_{high}); }}"
    )
}

/// Where parameters of a dispatch may begin in a buffer that many share: the largest offset alignment that WebGPU lets a device ask
/// for.
pub const PARAM_ALIGNMENT: u64 = 256;

/// Bytes that a dispatch's parameters take in the buffer of a recording.
pub fn param_space(dispatch: &Dispatch) -> u64 {
    (param_bytes(dispatch).len() as u64).next_multiple_of(PARAM_ALIGNMENT)
}

/// A dispatch's parameters as its uniform binding holds them, padded to 16 bytes.
pub(super) fn param_bytes(dispatch: &Dispatch) -> Vec<u8> {
    let mut bytes: Vec<u8> = dispatch
        .params
        .iter()
        .flat_map(|(_, p)| match p {
            Param::U32(v) => v.to_le_bytes(),
            Param::F32(v) => v.to_le_bytes(),
        })
        .collect();
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes
}

/// Lines that hold only a template statement leave nothing behind.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn has_matrices(template: &str) -> bool {
    template.contains("coopLoad")
}

fn expand_includes(source: &str) -> String {
    SHARED.iter().fold(source.to_string(), |text, (name, shared)| {
        text.replace(&format!("{{% include \"{name}\" %}}"), shared)
    })
}
