//! What a micro-batch moves between host and device memory, and how much of the time that takes is hidden.

use crate::gpu::{DispatchTime, Transfers};
use serde::Serialize;
use std::fmt;

/// What travels in one micro-batch, forward and reverse.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransferReport {
    pub weights: Option<WeightTransfers>,
    pub activations: Option<ActivationTransfers>,
}

/// Weights of `--offload`, which are uploaded beside the dispatches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightTransfers {
    pub mb: f64,
    /// The uploads by themselves.
    pub ms: f64,
    /// The dispatches without them, and with them.
    pub kernels_ms: f64,
    pub together_ms: f64,
    /// By how much the two fastest runs of one kind differ.
    pub noise_ms: f64,
    /// The share of `ms` by which the two together are shorter than one after the other; none where that is within the noise.
    pub hidden: Option<f64>,
}

/// Activations of `--offload_activations`, which kernels write to host memory and read from there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActivationTransfers {
    pub mb: f64,
    /// Those kernels, in turn with all others: nothing of it is hidden.
    pub ms: f64,
}

impl TransferReport {
    /// `None` where everything lies on the device.
    pub fn new(weights: Option<&Transfers>, dispatches: &[DispatchTime]) -> Option<Self> {
        let weights = weights.map(|t| WeightTransfers {
            mb: t.bytes as f64 / 1e6,
            ms: t.uploads * 1e3,
            kernels_ms: t.dispatches * 1e3,
            together_ms: t.together * 1e3,
            noise_ms: t.noise * 1e3,
            hidden: t.hidden(),
        });
        let moved = || dispatches.iter().filter(|d| d.on_host);
        let activations = moved().next().map(|_| ActivationTransfers {
            // each is read on one side and written on the other
            mb: moved().map(|d| d.cost.bytes).sum::<f64>() / 2e6,
            ms: moved().map(|d| d.seconds).sum::<f64>() * 1e3,
        });
        (weights.is_some() || activations.is_some()).then_some(TransferReport { weights, activations })
    }
}

impl fmt::Display for TransferReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(WeightTransfers { mb, ms, kernels_ms, together_ms, noise_ms, hidden }) = self.weights {
            let hidden = match hidden {
                Some(share) => format!("{:.0} % of it hidden", 100.0 * share),
                None => format!("how much of it is hidden is lost in noise of {noise_ms:.0} ms"),
            };
            writeln!(
                f,
                "weights from host memory: {mb:.1} MB in {ms:.2} ms by themselves, {hidden} ({kernels_ms:.2} ms of kernels take \
                 {together_ms:.2} ms with them)",
            )?;
        }
        if let Some(ActivationTransfers { mb, ms }) = self.activations {
            writeln!(
                f,
                "activations to host memory and back: {mb:.1} MB in {ms:.2} ms, nothing of it hidden"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Cost;

    #[test]
    fn what_is_hidden_is_what_both_together_save() {
        let with =
            |together| Transfers { bytes: 2_000_000, uploads: 0.04, dispatches: 0.1, together, noise: 0.002 };
        for (together, hidden) in [(0.1, 1.0), (0.11, 0.75), (0.14, 0.0), (0.2, 0.0), (0.09, 1.0)] {
            assert!((with(together).hidden().unwrap() - hidden).abs() < 1e-9, "{together}");
        }
        let noisy = Transfers { noise: 0.02, ..with(0.11) };
        assert!(
            TransferReport::new(Some(&noisy), &[]).unwrap().to_string().contains("lost in noise of 20 ms")
        );
        let dispatch = |on_host, seconds| DispatchTime {
            kernel: "copy",
            detail: String::new(),
            variant: String::new(),
            on_host,
            start: 0.0,
            seconds,
            cost: Cost { flops: 0.0, bytes: 8e6 },
        };
        let dispatches = [dispatch(true, 0.002), dispatch(false, 1.0), dispatch(true, 0.003)];
        assert_eq!(TransferReport::new(None, &dispatches[1..2]), None);
        let said = TransferReport::new(Some(&with(0.11)), &dispatches).unwrap().to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].contains("2.0 MB in 40.00 ms by themselves, 75 % of it hidden"), "{said}");
        assert!(lines[1].contains("8.0 MB in 5.00 ms"), "{said}");
    }
}
