//! Names of GPT-NeoX's head: `embed_out` in files, and in modules of transformers 4; `lm_head` in modules of transformers 5, and of
//! PEFT with it. engraft has the newer.

use super::adapter::{AdapterTensor, SavedModule};
use super::adapter_config::{AdapterConfig, TargetModules};

const IN_FILES: &str = "embed_out";
const MODULE: &str = "lm_head";

/// The name of the head, or of what belongs to it, by that of its module; `None` for all else.
pub(super) fn newer(name: &str) -> Option<String> {
    let rest = name.strip_prefix(IN_FILES).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
    Some(format!("{MODULE}{rest}"))
}

/// What files of a GPT-NeoX call a tensor.
pub fn in_neox_files(name: &str) -> String {
    match name.strip_prefix(MODULE).filter(|rest| rest.starts_with('.')) {
        Some(rest) => format!("{IN_FILES}{rest}"),
        None => name.to_owned(),
    }
}

/// An adapter's settings, of modules that are named anew, and in order again.
pub(super) fn with_newer_names(
    mut config: AdapterConfig,
    tensors: &mut [AdapterTensor],
    saved: &mut [SavedModule],
) -> AdapterConfig {
    let mut found = false;
    let mut rename = |module: &mut String| {
        if let Some(name) = newer(module) {
            *module = name;
            found = true;
        }
    };
    tensors.iter_mut().map(|tensor| &mut tensor.module).for_each(&mut rename);
    saved.iter_mut().map(|saved| &mut saved.module).for_each(&mut rename);
    config.modules_to_save.iter_mut().flatten().for_each(&mut rename);
    for modules in [Some(&mut config.target_modules), config.exclude_modules.as_mut()].into_iter().flatten() {
        if let TargetModules::Names(names) = modules {
            names.iter_mut().for_each(&mut rename);
        }
    }
    tensors.sort_by(|a, b| a.module.cmp(&b.module));
    saved.sort_by(|a, b| a.module.cmp(&b.module));
    if found && matches!(config.target_modules, TargetModules::Pattern(_)) {
        // an expression was for the older names
        config.target_modules =
            TargetModules::Names(tensors.iter().map(|tensor| tensor.module.clone()).collect());
        config.exclude_modules = None;
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_alone_has_two_names() {
        for (file, module) in
            [("embed_out.weight", "lm_head.weight"), ("embed_out.weight.absmax", "lm_head.weight.absmax")]
        {
            assert_eq!(newer(file).as_deref(), Some(module));
            assert_eq!(in_neox_files(module), file);
        }
        assert_eq!(newer("embed_out").as_deref(), Some("lm_head"));
        for other in ["embed_output.weight", "gpt_neox.embed_in.weight"] {
            assert_eq!((newer(other), in_neox_files(other)), (None, other.to_owned()));
        }
    }

    #[test]
    fn settings_of_an_older_head_name_the_newer() {
        let tensor = |module: &str| AdapterTensor {
            module: module.into(),
            a: vec![0.5; 4],
            b: vec![0.5; 4],
            r: 2,
            inputs: 2,
            outputs: 2,
        };
        let renamed = |targets: &str| {
            let json =
                format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": {targets}}}"#);
            let config = AdapterConfig::parse(&json, std::path::Path::new("adapter_config.json")).unwrap();
            let mut tensors = [tensor("embed_out"), tensor("gpt_neox.layers.0.attention.dense")];
            let config = with_newer_names(config, &mut tensors, &mut []);
            (config.target_modules, tensors.map(|tensor| tensor.module))
        };
        let all = ["gpt_neox.layers.0.attention.dense", "lm_head"].map(str::to_owned);
        let names = |names: [&str; 2]| TargetModules::Names(names.map(str::to_owned).to_vec());
        assert_eq!(renamed(r#"["embed_out", "dense"]"#), (names(["lm_head", "dense"]), all.clone()));
        assert_eq!(renamed(r#"".*(embed_out|dense)""#), (TargetModules::Names(all.to_vec()), all));
    }
}
