//! `engraft tune`: measures the kernels of a model's training step ahead of a run.

use super::args::TuneCommandArgs;
use super::bench::reporter;
use super::download::settings_folder;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::models::ModelConfig;
use crate::stop::StopFlag;
use crate::train::options::{FinetuneOptions, Precision};
use crate::train::run_plan::planned_network;
use crate::train::trainer::{Capacity, TrainerError, training_graph};
use crate::train::tuning::{Tuner, default_file};

/// Measures and fills the cache.
///
/// # Errors
/// No model or shape, options out of range, no device, and what the device reports.
pub fn run(mut args: TuneCommandArgs, quiet: bool) -> Result<(), Error> {
    args.model_dir = args.model_dir.map(|model| settings_folder(&model, quiet)).transpose()?;
    let config = args.config()?;
    let (device, mode) = (args.device.options(), args.tune);
    let graphs = graphs(args, &config)?;
    let gpu = Gpu::open(&device)?;
    // nothing is left for later: that is what the command is for
    let tuner = Tuner::thorough(mode);
    tuner.readable().map_err(Error::input)?;
    let report = tuner.prepare_all(&gpu, &graphs, &mut reporter(quiet), &StopFlag::default())?;
    super::say_notes(&report.left_out, quiet);
    if let Some(trouble) = report.trouble {
        return Err(Error::input(trouble));
    }
    let file = default_file().map_or("nowhere".into(), |f| f.display().to_string());
    println!(
        "{} | {}: {} classes measured in {:.0} s, kept in {file}",
        gpu.info().name,
        gpu.info().driver,
        report.measured,
        report.seconds
    );
    Ok(())
}

/// The training steps that kernels are measured for.
///
/// # Errors
/// Options out of range, an adapter that does not fit the model.
fn graphs(args: TuneCommandArgs, config: &ModelConfig) -> Result<Vec<Graph>, Error> {
    let precisions = match args.all {
        true => vec![Precision::BF16True, Precision::F16True, Precision::F32True],
        false => vec![args.precision.precision],
    };
    let sizes = if args.all { vec![256, 512, 1024, 2048] } else { vec![args.tokens] };
    let labels = args.labels;
    let options = args.resolve()?;
    let mut graphs = Vec::new();
    for precision in precisions {
        for &tokens in &sizes {
            let mut options = FinetuneOptions { precision, ..options.clone() };
            let network = planned_network(&mut options, config, tokens)?;
            let capacity = Capacity { tokens, labels: labels.unwrap_or(tokens) };
            graphs.push(training_graph(&network, capacity).map_err(TrainerError::from)?);
        }
    }
    Ok(graphs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::graph::DeviceProfile;
    use crate::plan::tune::unmeasured;
    use clap::Parser;
    use std::collections::BTreeSet;

    fn args(options: &str) -> TuneCommandArgs {
        let words = format!("engraft tune --shape qwen2.5-0.5b {options}");
        match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
            Command::Tune(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn classes(options: &str) -> BTreeSet<String> {
        let args = args(options);
        // all blocks have the same products but where an option names some of them
        let config = ModelConfig { layers: 2, ..args.config().unwrap() };
        let graphs = graphs(args, &config).unwrap();
        let device = DeviceProfile::typical_gpu();
        graphs.iter().flat_map(|g| unmeasured(g, &device)).map(|c| c.class.to_string()).collect()
    }

    /// Each option that a run may have brings kernels that the run without it has not.
    #[test]
    fn what_changes_a_runs_kernels_changes_what_is_measured() {
        let plain = classes("");
        for options in [
            "--lora_targets q_proj",
            "--lora_query true",
            "--lora_layers last-1",
            "--freeze model.layers.0.*",
            "--lora_dropout 0.1",
            "--lora_rank 64",
            "--rank 64",
            "--mlp_chunks 4",
            "--labels 32",
            "--quantize nf4",
            "--modules_to_save lm_head",
        ] {
            let changed = classes(options);
            assert!(!changed.is_subset(&plain), "{options}: nothing that {plain:?} has not");
        }
        assert_eq!(classes("--labels 512 --lora_alpha 3"), plain);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for (options, said) in [
            ("--labels 513", "--labels 513: must be at most --tokens (512)"),
            ("--lora_rank 0", "--lora_rank"),
            ("--mlp_chunks 0", "--mlp_chunks"),
            ("--lora_dropout 1", "--lora_dropout"),
        ] {
            let error = args(options).resolve().unwrap_err().to_string();
            assert!(error.contains(said), "{options}: {error}");
        }
        let words = "engraft tune --shape qwen2.5-0.5b --all --labels 8".split(' ');
        assert!(Cli::try_parse_from(words).is_err());
    }
}
