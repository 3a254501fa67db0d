//! A micro-batch on its way into the input buffers of a graph.

use super::host_embedding::HostEmbedding;
use super::trainer::{Capacity, TrainerError};
use crate::data::MicroBatch;
use crate::graph::layout::pack_u32;
use crate::models::{EMBEDDED, WINDOW};
use crate::ops::cross_entropy::NO_TARGET;
use crate::ops::embedding::token_order;
use crate::ops::gather_rows::NO_ROW;
use crate::plan::Bindings;

/// Uploads a micro-batch padded to its buckets, and gives these: [`write_padded`].
///
/// # Errors
/// A micro-batch over `capacity`, which is what the input buffers were allocated for.
pub(super) fn write_batch(
    bindings: &Bindings,
    embedding: Option<&HostEmbedding>,
    batch: &MicroBatch,
    window: u32,
    capacity: Capacity,
) -> Result<Capacity, TrainerError> {
    let size = Capacity { tokens: batch.tokens_len(), labels: batch.label_count() }.padded();
    if size.tokens > capacity.tokens || size.labels > capacity.labels {
        return Err(TrainerError::TooLarge {
            tokens: batch.tokens_len(),
            labels: batch.label_count(),
            max_tokens: capacity.tokens,
            max_labels: capacity.labels,
        });
    }
    write_padded(bindings, embedding, batch, window, size);
    Ok(size)
}

/// Uploads a micro-batch padded to a size. `embedding` looks up its tokens where the graph does not; padding tokens are samples
/// of their own without a label; in layers with a window each token sees the last `window` of its sample. Inputs that the
/// bindings lack are those that the graph does not have.
pub(super) fn write_padded(
    bindings: &Bindings,
    embedding: Option<&HostEmbedding>,
    batch: &MicroBatch,
    window: u32,
    size: Capacity,
) {
    let write = |name: &str, values: &[u32]| {
        if let Some(slice) = bindings.leaf(name) {
            slice.write(&pack_u32(values));
        }
    };
    let (real, tokens) = (batch.tokens_len() as u32, size.tokens as u32);
    let padded = |values: &[u32], pad: &dyn Fn(u32) -> u32| -> Vec<u32> {
        values.iter().copied().chain((real..tokens).map(pad)).collect()
    };
    let ids = padded(&batch.tokens, &|_| 0);
    write("positions", &padded(&batch.positions, &|_| 0));
    let at = || 0..real;
    write("ends", &(1..=tokens).collect::<Vec<_>>());
    for (prefix, window) in [("", u32::MAX), (WINDOW, window)] {
        // no layer of most networks is of the one kind or of the other
        if bindings.leaf(&format!("{prefix}starts")).is_none() {
            continue;
        }
        let starts =
            batch.segment_start.iter().zip(at()).map(|(&start, t)| start.max((t + 1).saturating_sub(window)));
        let query_ends =
            batch.segment_end.iter().zip(at()).map(|(&end, t)| end.min(t.saturating_add(window)));
        write(&format!("{prefix}starts"), &padded(&starts.collect::<Vec<_>>(), &|t| t));
        write(&format!("{prefix}query_ends"), &padded(&query_ends.collect::<Vec<_>>(), &|t| t + 1));
    }
    if bindings.leaf("order").is_some() {
        write("order", &token_order(&ids));
    }
    write("tokens", &ids);
    if let (Some(embedding), Some(slice)) = (embedding, bindings.leaf(EMBEDDED)) {
        slice.write(&embedding.rows(&ids));
    }
    let mut inverse = vec![NO_ROW; size.tokens];
    for (i, &row) in batch.label_rows.iter().enumerate() {
        inverse[row as usize] = i as u32;
    }
    write("label_inverse", &inverse);
    let mut rows = batch.label_rows.clone();
    rows.resize(size.labels, NO_ROW);
    write("label_rows", &rows);
    let mut targets = batch.targets.clone();
    targets.resize(size.labels, NO_TARGET);
    write("targets", &targets);
}
