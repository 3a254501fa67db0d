//! An adapter as a GGUF file, laid out as llama.cpp's `convert_lora_to_gguf.py` does.

use super::names::{architecture, gguf_name, reordered, row_order};
use super::{ExportError, GgufOptions, GgufReport, folder_name, general, written};
use crate::checkpoint::gguf::{GgmlType, GgufTensor, GgufValue, write_gguf};
use crate::error::Error;
use crate::export::AdapterFolder;
use crate::export::weights::check_range;
use crate::models::ModelConfig;
use crate::train::adapter::spec_of_adapter;
use std::collections::HashMap;
use std::path::Path;

/// Writes an adapter for `llama-cli --lora FILE`: `blk.N.attn_q.weight.lora_a` `[r, inputs]` and `.lora_b` `[outputs, r]`.
///
/// llama.cpp scales by `adapter.lora.alpha / r`, so that of a rank-stabilised adapter is written as `alpha·√r`.
///
/// # Errors
/// An adapter that is broken or of another model, a file that is in the way or cannot be written.
pub fn export_adapter(
    model_dir: &Path,
    folder: &AdapterFolder,
    options: &GgufOptions,
) -> Result<GgufReport, Error> {
    options.check()?;
    let config = ModelConfig::read(model_dir)?;
    let (blocks, on_head) = folder.without_head(&config)?;
    let spec = spec_of_adapter(&config, &blocks)?;
    if !spec.saved.is_empty() {
        return Err(ExportError::SavedModules { modules: spec.saved.join(", ") }.into());
    }
    if on_head && config.tied_head {
        return Err(ExportError::TiedHead { model_dir: model_dir.to_path_buf() }.into());
    }
    let settings = &folder.adapter.config;
    let name = options.name.clone().unwrap_or_else(|| folder_name(&folder.path));
    let mut metadata = general(architecture(&config), "adapter", &name, options.ty);
    let alpha = settings.scale() * settings.r as f64;
    metadata.push(("adapter.type".into(), GgufValue::Text("lora".into())));
    metadata.push(("adapter.lora.alpha".into(), GgufValue::F32(alpha as f32)));

    let (mut tensors, mut values) = (Vec::new(), HashMap::new());
    for tensor in &folder.adapter.tensors {
        let weight = format!("{}.weight", tensor.module);
        let name = gguf_name(&config, &weight)?;
        let b = reordered(&tensor.b, row_order(&config, &weight), tensor.r);
        for (part, rows, columns, data) in
            [("lora_a", tensor.r, tensor.inputs, tensor.a.clone()), ("lora_b", tensor.outputs, tensor.r, b)]
        {
            let name = format!("{name}.{part}");
            let ty = options.type_of(columns);
            tensors.push(GgufTensor { name: name.clone(), ty, shape: vec![rows, columns] });
            values.insert(name, data);
        }
    }
    write_gguf(&options.path, &metadata, &tensors, &mut |tensor, out| {
        let values = values.remove(&tensor.name).unwrap_or_default();
        if matches!(tensor.ty, GgmlType::F16 | GgmlType::Q8_0) {
            check_range(&tensor.name, &values)?;
        }
        let mut bytes = Vec::new();
        tensor.ty.encode(&values, &mut bytes);
        out.write_all(&bytes)
    })
    .map_err(written)?;
    options.report(&tensors, &config, folder.notes.clone())
}
