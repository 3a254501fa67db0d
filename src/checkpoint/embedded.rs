//! Names of a language model that is a part of one that sees images too.
//!
//! engraft names its parts as if it stood alone: `model.layers.0...`, `lm_head`. Files have `language_model.` before that, and
//! transformers (since 4.52, and PEFT with it) `language_model` behind `model`.

use super::adapter_config::{AdapterConfig, TargetModules};

const IN_FILES: &str = "language_model.";
const IN_MODULES: &str = "model.language_model.";
/// The parts that are no language model have linear layers of the same last names.
const OTHERS: &str = ".*vision_tower.*";

/// The name that a tensor or module has where the language model stands alone; `None` for all that are not its part.
pub(super) fn alone(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix(IN_MODULES) {
        return Some(format!("model.{rest}"));
    }
    name.strip_prefix(IN_FILES).map(str::to_owned)
}

/// Whether a tensor of this name in files is of such a part.
pub(super) fn is_part(name: &str) -> bool {
    alone(name).is_some()
}

/// The name of a tensor in files of the whole.
pub(super) fn in_files(name: &str) -> String {
    format!("{IN_FILES}{name}")
}

/// The name of a module as transformers and PEFT have it in the whole.
pub(super) fn in_modules(name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("{IN_MODULES}{rest}"),
        None => name.to_owned(),
    }
}

/// The settings of an adapter of such a language model as PEFT has them in the whole: last names reach the layers of the part that
/// sees too, which are left out, and modules that are trained in full need all of theirs, as nothing leaves those out.
pub(super) fn settings_in_modules(config: &AdapterConfig, layers: &[&str], saved: &[&str]) -> AdapterConfig {
    let named = |names: &[&str]| names.iter().map(|name| in_modules(name)).collect();
    let (target_modules, exclude_modules) = match (&config.target_modules, &config.exclude_modules) {
        (TargetModules::Names(names), None) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            (TargetModules::Names(named(&names)), Some(TargetModules::Pattern(OTHERS.into())))
        }
        // what was given was for other names
        _ => (TargetModules::Names(named(layers)), None),
    };
    AdapterConfig {
        target_modules,
        exclude_modules,
        modules_to_save: config.modules_to_save.as_ref().map(|_| named(saved)),
        ..config.clone()
    }
}

/// [`settings_in_modules`] taken back.
pub(super) fn settings_alone(config: AdapterConfig) -> AdapterConfig {
    let named = |names: Vec<String>| names.into_iter().map(|name| alone(&name).unwrap_or(name)).collect();
    AdapterConfig {
        target_modules: match config.target_modules {
            TargetModules::Names(names) => TargetModules::Names(named(names)),
            other => other,
        },
        exclude_modules: config
            .exclude_modules
            .filter(|others| *others != TargetModules::Pattern(OTHERS.into())),
        modules_to_save: config.modules_to_save.map(named),
        ..config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_that_of_the_model_alone() {
        let plain = "model.layers.0.mlp.up_proj";
        assert_eq!(alone(&in_files(plain)).as_deref(), Some(plain));
        assert_eq!(alone(&in_modules(plain)).as_deref(), Some(plain));
        assert_eq!(alone("language_model.lm_head.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(in_modules("lm_head"), "lm_head");
        for other in [plain, "lm_head.weight", "vision_tower.encoder.layers.0.mlp.fc1.weight"] {
            assert_eq!(alone(other), None, "{other}");
        }
    }
}
