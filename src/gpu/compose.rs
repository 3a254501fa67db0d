//! Shader composition: a template of `shaders/`, a dispatch's definitions and generated declarations become WGSL.
//!
//! Templates are Jinja (minijinja): `{% if %}`, `{% for %}`, macros and `{{ }}` over the definitions. A line
//! `{% include "shared/…" %}` takes in the text itself, so its macros and variables are the includer's own.

use super::GpuError;
use crate::graph::{Binding, DType, Define, Dispatch, Param, Shader, View};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior};
use std::collections::BTreeMap;
use std::fmt::Write;

const COMMON: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/common.wgsl"));
const WIDE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/wide.wgsl"));
const SHARED: [(&str, &str); 4] = [
    ("shared/rows.wgsl", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/rows.wgsl"))),
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
];

/// What one composed shader depends on: dispatches with equal keys share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShaderKey {
    pub shader: Shader,
    defines: Vec<(&'static str, Define)>,
    bindings: Vec<(&'static str, DType, View, bool)>,
    params: Vec<(&'static str, bool)>,
}

impl ShaderKey {
    pub fn of(dispatch: &Dispatch) -> Self {
        let binding = |b: &Binding| (b.name, b.dtype, b.view, b.write);
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
        self.bindings.iter().map(|b| b.3)
    }

    /// The WGSL text. `wide` moves every group of four in 64-bit words: llvmpipe loads and stores lane by lane and
    /// element by element, so half as many elements are almost half the time.
    ///
    /// # Errors
    /// A template that does not render: a mistake in `shaders/`.
    pub fn compose(&self, wide: bool) -> Result<String, GpuError> {
        let error = |reason: String| GpuError::Shader { shader: self.shader.name.into(), reason };
        let matrix = self.bindings.iter().any(|b| b.2 == View::Matrix);
        let enable = if matrix { "enable f16;\nenable wgpu_cooperative_matrix;\n" } else { "" };
        let mut text = format!("{enable}{}", self.declarations(wide));
        text.push_str(COMMON);
        text.push('\n');
        if wide {
            text.push_str(WIDE);
            text.push('\n');
        }
        let mut environment = Environment::new();
        environment.set_syntax(syntax().map_err(|e| error(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let context: BTreeMap<&str, Value> = self
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
        let body = environment
            .render_str(&expand_includes(self.shader.source), context)
            .map_err(|e| error(format!("{e:#}")))?;
        text.push_str(&body);
        Ok(text)
    }

    fn declarations(&self, wide: bool) -> String {
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
        for (i, (name, dtype, view, write)) in self.bindings.iter().enumerate() {
            let access = if *write { "read_write" } else { "read" };
            let element = match (dtype, view) {
                (DType::U32, _) => "u32",
                (DType::F16, View::Matrix) => "f16",
                (_, View::Scalar | View::Matrix) => "f32",
                (DType::F32, View::Vec4) if wide => "vec2<u64>",
                (DType::F32, View::Vec4) => "vec4<f32>",
                (DType::F16 | DType::BF16, View::Vec4) if wide => "u64",
                (DType::F16 | DType::BF16, View::Vec4) => "vec2<u32>",
            };
            line(format_args!(
                "@group(0) @binding({}) var<storage, {access}> {name}: array<{element}>;",
                i + 1
            ));
            if *view != View::Vec4 {
                continue;
            }
            let (unpack, pack) = match (dtype, wide) {
                (DType::F16, false) => ("unpack_f16", "pack_f16"),
                (DType::BF16, false) => ("unpack_bf16", "pack_bf16"),
                (DType::F16, true) => ("unpack_f16_wide", "pack_f16_wide"),
                (DType::BF16, true) => ("unpack_bf16_wide", "pack_bf16_wide"),
                (DType::F32 | DType::U32, true) => ("unpack_f32_wide", "pack_f32_wide"),
                (DType::F32 | DType::U32, false) => ("", ""),
            };
            line(format_args!("fn load_{name}(at_: u32) -> vec4<f32> {{ return {unpack}({name}[at_]); }}"));
            if *write {
                line(format_args!(
                    "fn store_{name}(at_: u32, quad_: vec4<f32>) {{ {name}[at_] = {pack}(quad_); }}"
                ));
            }
        }
        text
    }
}

/// Bytes of a dispatch's parameters as the uniform buffer holds them, padded to 16.
pub fn param_bytes(dispatch: &Dispatch) -> Vec<u8> {
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

fn expand_includes(source: &str) -> String {
    SHARED.iter().fold(source.to_string(), |text, (name, shared)| {
        text.replace(&format!("{{% include \"{name}\" %}}"), shared)
    })
}
