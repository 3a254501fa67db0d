//! What a run writes, against the room where it writes it. Sizes follow from what is trained, so a disk that is too full is known
//! before the first step.

use super::optimiser::moment_names;
use super::options::{FinetuneOptions, Method};
use super::save::stored_dtype;
use crate::checkpoint::COMPANIONS;
use crate::graph::Graph;
use crate::memory_size::memory_text;
use crate::models::ModelConfig;
use crate::plan::ParameterSpace;
use std::path::PathBuf;
use thiserror::Error;

/// Bytes of the logs per step, about, in all formats together; and of what is written once.
const LOGGED: u64 = 1 << 10;
const ONCE: u64 = 64 << 10;

/// A disk without room for what a run would write.
#[derive(Clone, Debug, Error, PartialEq)]
#[error(
    "--out_dir {}: {} are free there, and the run writes {}: {what}; free some, or choose another folder{}",
    out_dir.display(), memory_text(*free), memory_text(*needed),
    if *fewer { ", or keep fewer saved steps (--keep_last)" } else { "" }
)]
pub struct NoRoom {
    pub out_dir: PathBuf,
    pub free: u64,
    pub needed: u64,
    /// What it consists of.
    what: String,
    /// Whether fewer saved steps would help.
    fewer: bool,
}

/// Bytes of what a run saves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SaveSizes {
    /// The adapter, or the model.
    pub result: u64,
    /// The same with the state to go on from.
    pub step: u64,
}

impl SaveSizes {
    /// Those of a run on a graph of the network.
    pub fn of(options: &FinetuneOptions, config: &ModelConfig, graph: &Graph) -> Self {
        let trained: u64 = ParameterSpace::of(graph).entries().iter().map(|(_, ty, _)| ty.bytes()).sum();
        let result = match options.method {
            Method::Lora => trained,
            Method::Full { .. } => {
                let files = COMPANIONS.iter().map(|name| options.model_dir.join(name));
                let beside: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
                config.parameter_count() * stored_dtype(&options.model_dir).size() as u64 + beside
            }
        };
        let states = 1 + moment_names(options.optimizer).len() as u64;
        SaveSizes { result, step: result + states * trained }
    }

    /// Refuses a run that is known to need more than is `free`; gives what the user should know. `steps` are still to make.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn check(
        &self,
        options: &FinetuneOptions,
        steps: usize,
        free: Option<u64>,
    ) -> Result<Option<String>, NoRoom> {
        let Some(free) = free else { return Ok(None) };
        let SaveSizes { result, step } = *self;
        // where something else than the steps may end the run, it is not known how many are saved
        let certain = options.early_stopping_patience.is_none() && options.max_time.is_none();
        let saves = options.save_interval.map_or(0, |n| steps / n);
        let saves = if certain { saves } else { saves.min(1) };
        // an old one goes when the new one is there
        let kept = options.keep_last.map_or(saves, |keep| saves.min(keep + 1)) as u64;
        let bests = match (options.keeps_best(), options.eval_interval) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => 2,
        };
        let needed = ONCE + LOGGED * steps as u64 + result * (1 + bests) + step.saturating_mul(kept);
        if free < needed {
            let mut what = format!("the result {}", memory_text(result));
            if bests > 0 {
                what += &format!(", {bests} times the same for the best");
            }
            if kept > 0 {
                what += &format!(", {kept} saved steps of {}", memory_text(step));
            }
            let out_dir = options.out_dir.clone();
            return Err(NoRoom { out_dir, free, needed, what, fewer: kept > 1 });
        }
        let autosaves = options.save_interval.is_none() && options.autosave.is_some();
        Ok((autosaves && free < needed + step).then(|| {
            format!(
                "nothing is saved before the end: --autosave takes {} beside the result, and {} are free in {}",
                memory_text(step),
                memory_text(free),
                options.out_dir.display()
            )
        }))
    }

    /// Why a step on the way is not saved: it must leave the result its room.
    pub fn lacks_room(&self, free: Option<u64>) -> Option<String> {
        let free = free.filter(|free| *free < self.step + self.result)?;
        Some(format!(
            "it takes {} and the result {}, and {} are free",
            memory_text(self.step),
            memory_text(self.result),
            memory_text(free)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: SaveSizes = SaveSizes { result: 1 << 30, step: 4 << 30 };

    #[test]
    fn what_stays_on_the_disk_at_once_is_counted() {
        let check = |change: fn(&mut FinetuneOptions), gib: u64| {
            let mut options = FinetuneOptions { autosave: None, ..FinetuneOptions::default() };
            change(&mut options);
            SIZES.check(&options, 100, Some((gib << 30) + (1 << 20)))
        };
        type Change = fn(&mut FinetuneOptions);
        let cases: &[(u64, Change)] = &[
            (1, |_| ()),
            (3, |o| (o.keep_best, o.eval_interval) = (true, Some(10))),
            (41, |o| o.save_interval = Some(10)),
            (13, |o| (o.save_interval, o.keep_last) = (Some(10), Some(2))),
            // may end at the first of them
            (5, |o| (o.save_interval, o.max_time) = (Some(10), Some(60.0))),
            (1, |o| o.save_interval = Some(200)),
        ];
        for (gib, change) in cases {
            assert_eq!(check(*change, *gib), Ok(None), "{gib} GiB");
            let error = check(*change, gib - 1).unwrap_err();
            assert!(error.needed > (gib << 30), "{error}");
        }
        let message = check(|o| o.save_interval = Some(10), 7).unwrap_err().to_string();
        for word in ["7.00 GiB are free", "41.00 GiB", "10 saved steps of 4.00 GiB", "--keep_last"] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(SIZES.check(&FinetuneOptions::default(), 100, None), Ok(None), "where nobody knows");
    }

    #[test]
    fn the_result_comes_before_a_step_on_the_way() {
        let options = FinetuneOptions::default();
        let note = SIZES.check(&options, 100, Some(5 << 30)).unwrap().unwrap();
        assert!(note.contains("nothing is saved before the end") && note.contains("4.00 GiB"), "{note}");
        assert_eq!(SIZES.check(&options, 100, Some(6 << 30)), Ok(None));
        assert!(SIZES.lacks_room(Some((5 << 30) - 1)).is_some());
        assert_eq!([SIZES.lacks_room(Some(5 << 30)), SIZES.lacks_room(None)], [None, None]);
    }
}
