//! `engraft tune`: measures the kernels of a model's training step ahead of a run.

use super::args::TuneCommandArgs;
use super::bench::reporter;
use super::download::settings_folder;
use crate::error::Error;
use crate::fuse::Fusions;
use crate::gpu::Gpu;
use crate::models::{ModelConfig, Network};
use crate::nn::{PlainLayers, WeightMode};
use crate::train::adapter::spec_of_targets;
use crate::train::options::Precision;
use crate::train::quantize::QuantizeOptions;
use crate::train::trainer::{Capacity, TrainerError, training_graph};
use crate::train::tuning::{Tuner, default_file};
use std::time::Duration;

/// Measures and fills the cache.
///
/// # Errors
/// No model or shape, no device, and what the device reports.
pub fn run(mut args: TuneCommandArgs, quiet: bool) -> Result<(), Error> {
    args.model_dir = args.model_dir.map(|model| settings_folder(&model, quiet)).transpose()?;
    let config = args.config()?;
    let gpu = Gpu::open(&args.device.options())?;
    let precisions = match args.all {
        true => vec![Precision::BF16True, Precision::F16True, Precision::F32True],
        false => vec![args.precision.precision],
    };
    let quantize = args.precision.quantize().complete()?;
    let tokens = if args.all { vec![256, 512, 1024, 2048] } else { vec![args.tokens] };
    // nothing is left for later: that is what the command is for
    let tuner = Tuner { budget: Duration::MAX, ..Tuner::new(args.tune) };
    tuner.readable().map_err(Error::input)?;
    let (mut measured, mut seconds) = (0, 0.0);
    for precision in precisions {
        for &tokens in &tokens {
            let network = network(&config, (precision, quantize), args.rank, tokens)?;
            let capacity = Capacity { tokens, labels: tokens };
            let graph = training_graph(&network, capacity).map_err(TrainerError::from)?;
            let report = tuner.prepare(&gpu, &graph, &mut reporter(quiet))?;
            if let Some(trouble) = report.trouble {
                return Err(Error::input(trouble));
            }
            measured += report.measured;
            seconds += report.seconds;
        }
    }
    let file = default_file().map_or("nowhere".into(), |f| f.display().to_string());
    println!(
        "{} | {}: {measured} classes measured in {seconds:.0} s, kept in {file}",
        gpu.info().name,
        gpu.info().driver
    );
    Ok(())
}

/// One block of the network: all blocks have the same products.
fn network(
    config: &ModelConfig,
    (precision, quantize): (Precision, QuantizeOptions),
    rank: usize,
    tokens: usize,
) -> Result<Network, Error> {
    let config = ModelConfig { layers: 1, ..config.clone() };
    let adapter = spec_of_targets(&config, &[], rank, 2.0 * rank as f64, 0.0)?;
    Ok(Network {
        config,
        weights: WeightMode::Frozen(quantize.storage(precision)),
        plain_layers: PlainLayers::default(),
        activations: precision.activations(),
        adapter: Some(adapter),
        recompute: crate::autograd::Recompute::None,
        positions: tokens,
        fusions: Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
    })
}
