//! The folder that a run writes into: what must not be there, and where the run goes that was there before.
//!
//! A folder holds one run. What an earlier one left is moved to `previous/` in it as the next one begins, so that nobody meets the
//! adapter of one run beside the settings of another, whenever the later one ends.

use super::logging::{self, METRICS_FILE};
use super::options::FinetuneOptions;
use super::report::REPORT_FILE;
use super::resume::{self, FINISHED_FILE, holds_result, run_in};
use super::run_folder::{HYPERPARAMETERS_FILE, RUN_FILE, read_json};
use super::saver::remove;
use crate::checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, COMPANIONS, MODEL_WEIGHTS, atomic};
use crate::data::PROMPT_FILE;
use crate::error::Error;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where the earlier run is.
pub const PREVIOUS: &str = "previous";

/// What tells that a folder is somebody's work, where no run of engraft left it.
const WORK: [&str; 9] = [
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "adapter_model.bin",
    "config.json",
    MODEL_WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    METRICS_FILE,
    HYPERPARAMETERS_FILE,
];
/// The folders of a run's steps.
const STEPS: [&str; 2] = ["step-", "best-"];

/// Refuses a folder that is an input, no folder, or somebody else's; gives what the user should know of what was there before. The
/// run goes on from the step in `from`, where that is given.
///
/// # Errors
/// [`Error::Input`], with another folder as the way out.
pub(super) fn check(options: &FinetuneOptions, from: Option<&Path>) -> Result<Option<String>, Error> {
    let out = &options.out_dir;
    let said = |reason: &str| Error::input(format!("--out_dir {}: {reason}", out.display()));
    if let Some(file) = out.ancestors().find(|p| p.exists() && !p.is_dir()) {
        let file = file.display();
        return Err(said(&format!("{file} is a file, not a folder; choose another")));
    }
    let Ok(whole) = out.canonicalize() else { return Ok(None) };
    let canonical = |input: &Path| input.canonicalize().ok();
    let starts = [Some(options.model_dir.as_path()), options.init_adapter.as_deref(), from];
    let starts = || starts.into_iter().flatten().filter_map(|input| Some((input, canonical(input)?)));
    if starts().any(|(_, input)| input == whole) {
        return Err(said("the run would overwrite what it starts from; choose another folder"));
    }
    if !is_run(out) {
        return match WORK.iter().find(|name| out.join(name).exists()) {
            Some(name) => Err(said(&format!(
                "holds {name}, which no run of engraft left there, and a run never writes over what others made; choose \
                 another folder"
            ))),
            None => Ok(None),
        };
    }
    // a step that tells no run is refused when it is read, with what is wrong with it
    if from.is_some_and(|from| resume::run_of(from).is_none_or(|run| run_in(out) == Some(run))) {
        return Ok(None);
    }
    let out_name = out.display();
    if !holds_trained(out) {
        return Ok(Some(format!(
            "{out_name} holds the logs of a run that saved nothing, which this one replaces"
        )));
    }
    if let Some((input, _)) = starts().find(|(_, input)| is_moved(input.strip_prefix(&whole).ok())) {
        return Err(said(&format!(
            "the run starts from {}, which belongs to the run that it would replace; choose another folder",
            input.display()
        )));
    }
    let previous = out.join(PREVIOUS);
    let name = previous.display();
    match previous.exists() {
        false => Ok(Some(format!("{out_name} holds an earlier run, which is moved to {name}"))),
        true if is_run(&previous) => {
            Ok(Some(format!("{out_name} holds an earlier run, which replaces the one before it in {name}")))
        }
        true => Err(said(&format!(
            "holds an earlier run, which would replace {name}, and that is no run's; rename it, or choose another folder"
        ))),
    }
}

/// Moves the run that is in the folder to `previous`, unless it is this one or has saved nothing: then its logs are written over.
///
/// # Errors
/// A file that cannot be moved.
pub(super) fn set_aside(out_dir: &Path, run: &str) -> Result<(), Error> {
    if !is_run(out_dir) || !holds_trained(out_dir) || run_in(out_dir).is_some_and(|earlier| earlier == run) {
        return Ok(());
    }
    let previous = out_dir.join(PREVIOUS);
    remove(&previous)?;
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Write { path, source }
    };
    fs::create_dir_all(&previous).map_err(failed(&previous))?;
    let steps = STEPS.iter().flat_map(|prefix| resume::numbered(out_dir, prefix)).map(|(_, path)| path);
    // what says whose they are goes last: where the program is killed in between, the rest is moved the next time or written over
    let named = [ADAPTER_WEIGHTS, ADAPTER_CONFIG, MODEL_WEIGHTS, PROMPT_FILE].into_iter().chain(COMPANIONS);
    let of_run = [RUN_FILE, REPORT_FILE, FINISHED_FILE, "hyperparameters.yaml", HYPERPARAMETERS_FILE];
    let files = named.map(|name| out_dir.join(name)).chain(logging::files(out_dir));
    for from in steps.chain(files).chain(of_run.map(|name| out_dir.join(name))) {
        if let Some(name) = from.file_name().filter(|_| from.exists()) {
            atomic::rename(&from, &previous.join(name)).map_err(failed(&from))?;
        }
    }
    Ok(())
}

/// Whether a run of engraft has written into a folder.
fn is_run(folder: &Path) -> bool {
    read_json(&folder.join(HYPERPARAMETERS_FILE)).is_some_and(|all| all["engraft_version"].is_string())
}

/// Whether there is anything that was trained.
fn holds_trained(folder: &Path) -> bool {
    holds_result(folder) || STEPS.iter().any(|prefix| !resume::numbered(folder, prefix).is_empty())
}

/// Whether a path within the folder is one that [`set_aside`] would take away.
fn is_moved(within: Option<&Path>) -> bool {
    let first: Option<PathBuf> = within.and_then(|path| path.components().next()).map(|c: Component| {
        let name: &Path = c.as_ref();
        name.to_path_buf()
    });
    let Some(first) = first.as_deref().and_then(Path::to_str) else { return false };
    first == PREVIOUS || STEPS.iter().any(|prefix| first.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(folder: &Path, name: &str) {
        write(
            &folder.join(HYPERPARAMETERS_FILE),
            &format!(r#"{{"run": "{name}", "engraft_version": "0.1.0"}}"#),
        );
        write(&folder.join(METRICS_FILE), name);
    }

    fn options(out: &Path) -> FinetuneOptions {
        FinetuneOptions { out_dir: out.to_path_buf(), ..FinetuneOptions::default() }
    }

    #[test]
    fn an_earlier_run_is_moved_as_a_whole_and_replaces_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let names = |folder: &Path| {
            let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        for name in ["a", "b"] {
            run(out, name);
            write(&out.join(ADAPTER_WEIGHTS), name);
            write(&out.join(PROMPT_FILE), name);
            write(&out.join("notes.txt"), "mine");
        }
        write(&out.join("step-000003/x"), "");
        set_aside(out, "b").unwrap();
        assert!(!out.join(PREVIOUS).exists(), "its own");
        let said = check(&options(out), None).unwrap().unwrap();
        assert!(said.contains("is moved to") && said.ends_with(PREVIOUS), "{said}");
        set_aside(out, "c").unwrap();
        assert_eq!(names(out), ["notes.txt", PREVIOUS]);
        let moved = [ADAPTER_WEIGHTS, HYPERPARAMETERS_FILE, METRICS_FILE, PROMPT_FILE, "step-000003"];
        assert_eq!(names(&out.join(PREVIOUS)), moved);
        // one that has saved nothing does not drive out what was saved
        run(out, "c");
        assert!(check(&options(out), None).unwrap().unwrap().contains("saved nothing"));
        set_aside(out, "d").unwrap();
        assert_eq!(fs::read_to_string(out.join(PREVIOUS).join(METRICS_FILE)).unwrap(), "b");
        write(&out.join("best-000001/x"), "");
        assert!(check(&options(out), None).unwrap().unwrap().contains("replaces the one before it"));
        set_aside(out, "d").unwrap();
        assert_eq!(fs::read_to_string(out.join(PREVIOUS).join(METRICS_FILE)).unwrap(), "c");
    }

    #[test]
    fn what_no_run_left_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        assert_eq!(check(&options(out), None).unwrap(), None);
        write(&out.join("notes.txt"), "mine");
        assert_eq!(check(&options(out), None).unwrap(), None);
        for name in WORK {
            write(&out.join(name), "{}");
            let error = check(&options(out), None).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("choose another folder"), "{error}");
            fs::remove_file(out.join(name)).unwrap();
        }
        run(out, "a");
        write(&out.join(ADAPTER_WEIGHTS), "");
        write(&out.join(PREVIOUS).join("photo.jpg"), "");
        let error = check(&options(out), None).unwrap_err().to_string();
        assert!(error.contains("that is no run's"), "{error}");
    }

    #[test]
    fn what_the_run_starts_from_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        run(out, "a");
        for within in ["step-000003", "best-000003", "previous"] {
            write(&out.join(within).join(ADAPTER_CONFIG), "{}");
        }
        for within in ["step-000003", "best-000003", "previous/step-000003"] {
            let start = FinetuneOptions { init_adapter: Some(out.join(within)), ..options(out) };
            fs::create_dir_all(out.join(within)).unwrap();
            let error = check(&start, None).unwrap_err().to_string();
            assert!(error.contains(within) && error.contains("choose another folder"), "{error}");
        }
        run(&out.join(PREVIOUS), "z");
        write(&out.join("model/config.json"), "{}");
        let beside = FinetuneOptions { model_dir: out.join("model"), ..options(out) };
        assert!(check(&beside, None).unwrap().is_some());
        // a step of the run that is there goes on in its place, one of another run does not
        for (name, expected) in [("a", true), ("b", false)] {
            write(&out.join("step-000003/training_state.json"), &format!(r#"{{"run": "{name}"}}"#));
            let found = check(&options(out), Some(&out.join("step-000003")));
            assert_eq!(found.is_ok_and(|note| note.is_none()), expected, "{name}");
        }
    }
}
