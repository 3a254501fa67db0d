//! Where downloaded models are kept, and how a command's word for a model becomes a folder.

use super::client::{Client, HubOptions};
use super::download::{Download, DownloadEvent, Record, WeightFiles};
use super::{HubError, RepoName};
use std::path::{Path, PathBuf};

/// The folder of all models: `ENGRAFT_MODELS`, or `engraft/models` in the system's folder for caches.
///
/// # Errors
/// The system has no such folder.
pub fn models_folder() -> Result<PathBuf, HubError> {
    match std::env::var_os("ENGRAFT_MODELS") {
        Some(folder) if !folder.is_empty() => Ok(PathBuf::from(folder)),
        _ => Ok(dirs::cache_dir().ok_or(HubError::NoPlace)?.join("engraft").join("models")),
    }
}

/// The folder of a model that is on this machine, whole.
pub fn downloaded(models: &Path, name: &RepoName) -> Option<PathBuf> {
    let folder = models.join(name.folder());
    Record::read(&folder)?.is_whole(&folder).then_some(folder)
}

/// The folder of the model of this name, where it is on this machine: what an adapter calls its base may be one.
pub fn downloaded_model(name: &str) -> Option<PathBuf> {
    downloaded(&models_folder().ok()?, &name.parse().ok()?)
}

/// Whether `model` is no folder but a name, of a model that is not on this machine yet, or not whole.
///
/// # Errors
/// The system has no folder for models.
pub fn is_remote(model: &Path) -> Result<bool, HubError> {
    match name_of(model) {
        Some(name) => Ok(downloaded(&models_folder()?, &name).is_none()),
        None => Ok(false),
    }
}

fn name_of(model: &Path) -> Option<RepoName> {
    model.to_str().and_then(|text| text.parse().ok()).filter(|_| !model.exists())
}

/// So alike names are of one thing.
const ALIKE: f64 = 0.85;
/// And so many of them are shown.
const SHOWN: usize = 5;

/// What is meant by `model` where the folder in which it would be is here, holds no models, and either nothing else or what is spelled
/// nearly so, or adapters: nobody means the Hub then.
fn near(model: &Path) -> Option<Vec<PathBuf>> {
    let folders = std::fs::read_dir(model.parent()?).ok()?.flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    // an organisation's folder has models in it
    let is_model = |folder: &PathBuf| {
        folder.join("config.json").is_file() && !folder.join("adapter_config.json").is_file()
    };
    if folders.iter().any(is_model) {
        return None;
    }
    let empty = folders.is_empty();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    folders.retain(|folder| {
        strsim::jaro_winkler(&name(folder), &name(model)) > ALIKE
            || folder.join("adapter_config.json").is_file()
    });
    folders.truncate(SHOWN);
    (empty || !folders.is_empty()).then_some(folders)
}

/// The folder that is meant by `model`: itself where it is one, or else that of the model of this name, which is
/// downloaded where it is not here yet. What is neither is given back as it is. `found` hears of a name
/// that is taken from this machine (true) or has to be downloaded (false).
///
/// # Errors
/// As [`Download::run`].
pub fn model_folder(
    model: &Path,
    weights: WeightFiles,
    found: &mut dyn FnMut(&RepoName, &Path, bool),
    tell: &(dyn Fn(DownloadEvent) + Sync),
) -> Result<PathBuf, HubError> {
    let Some(name) = name_of(model) else { return Ok(model.to_owned()) };
    let models = models_folder()?;
    if let Some(folder) = downloaded(&models, &name) {
        found(&name, &folder, true);
        return Ok(folder);
    }
    if let Some(near) = near(model) {
        return Err(HubError::Misspelt { model: model.to_owned(), near });
    }
    let folder = models.join(name.folder());
    let options = HubOptions::from_environment()?;
    if options.offline {
        return Err(HubError::Offline { name, folder });
    }
    found(&name, &folder, false);
    // it may be a misspelt path, on a machine that is offline
    let options = HubOptions { unanswered: 2, ..options };
    Download { name, folder: folder.clone(), weights }.run(&Client::new(options), tell)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_misspelt_folder_is_no_name_on_the_hub() {
        let here = tempfile::tempdir().unwrap();
        let at = |path: &str| here.path().join(path);
        fs::create_dir_all(at("runs/step-000010")).unwrap();
        fs::create_dir_all(at("meta-llama/Llama-3.2-1B")).unwrap();
        fs::write(at("meta-llama/Llama-3.2-1B/config.json"), "{}").unwrap();
        assert_eq!(near(&at("runs/step-00010")), Some(vec![at("runs/step-000010")]));
        assert_eq!(near(&at("runs/step-000010/last")), Some(vec![]));
        assert_eq!(near(&at("meta-llama/Llama-3.2-3B")), None, "an organisation with another model");
        assert_eq!(near(&at("Qwen/Qwen2.5-0.5B")), None);
        fs::create_dir_all(at("microsoft/DeepSpeed/.git")).unwrap();
        assert_eq!(near(&at("microsoft/phi-2")), None, "an organisation's other things");
        fs::create_dir_all(at("mine/poems")).unwrap();
        fs::write(at("mine/poems/adapter_config.json"), "{}").unwrap();
        assert_eq!(near(&at("mine/letters")), Some(vec![at("mine/poems")]));
        let said = HubError::Misspelt { model: "runs/x".into(), near: vec!["runs/step-000010".into()] };
        assert!(said.to_string().starts_with("runs/x is no folder, there are runs/step-000010;"), "{said}");
    }
}
