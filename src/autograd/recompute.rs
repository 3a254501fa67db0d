//! Which activations the forward pass keeps for the reverse pass, and which are made again.
//!
//! A policy decides two things: how many blocks are made again together, when the reverse pass reaches the last of them,
//! and which of their nodes. What is made again is a copy of the forward nodes on what was kept, so it has the same bits;
//! the plan frees the originals after the forward pass, and drops the copies that nobody reads.

use crate::graph::Node;
use crate::word::serialised_as_word;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use thiserror::Error;

serialised_as_word!(Recompute);

/// Which activations are kept for the reverse pass (Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al.
/// 2022, arXiv:2205.05198). The last group of blocks is always kept: its reverse pass follows at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Recompute {
    /// All.
    #[default]
    None,
    /// Within blocks, the results of products and of attention; norms, the gated product and dropout are made again.
    Selective,
    /// The inputs of blocks.
    Layer,
    /// The inputs of groups of so many blocks.
    Every(NonZeroU32),
}

/// A word that names no policy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{given:?} is none of none, selective, layer, every-N (blocks in groups of N)")]
pub struct UnknownPolicy {
    pub given: String,
}

impl Recompute {
    /// `every-N`; one block is [`Recompute::Layer`].
    ///
    /// # Errors
    /// Groups of no block.
    pub fn every(blocks: u32) -> Result<Self, UnknownPolicy> {
        match NonZeroU32::new(blocks) {
            None => Err(UnknownPolicy { given: format!("every-{blocks}") }),
            Some(NonZeroU32::MIN) => Ok(Recompute::Layer),
            Some(blocks) => Ok(Recompute::Every(blocks)),
        }
    }

    /// The group of a block in a network whose last block is `last`: groups count from the end, so that the last one is
    /// whole. Group 0 is not made again; `None` where nothing is.
    pub(super) fn group(self, block: u32, last: u32) -> Option<u32> {
        let blocks = match self {
            Recompute::None => return None,
            Recompute::Selective | Recompute::Layer => 1,
            Recompute::Every(blocks) => blocks.get(),
        };
        Some(last.saturating_sub(block) / blocks).filter(|&group| group > 0)
    }

    /// Whether what enters a block is kept for the reverse pass, of `blocks` in all, while what leaves the blocks before it is
    /// not: the first block of a group that is made again.
    pub fn starts_group(self, block: u32, blocks: u32) -> bool {
        let group = |block| self.group(block, blocks.saturating_sub(1));
        self != Recompute::Selective
            && group(block).is_some()
            && block.checked_sub(1).is_none_or(|before| group(before) != group(block))
    }

    /// Whether a node of such a group is made again.
    pub(super) fn rebuilds(self, node: &Node) -> bool {
        match self {
            Recompute::None => false,
            Recompute::Selective => node.op.is_cheap(),
            Recompute::Layer | Recompute::Every(_) => true,
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recompute::None => f.pad("none"),
            Recompute::Selective => f.pad("selective"),
            Recompute::Layer => f.pad("layer"),
            Recompute::Every(blocks) => f.pad(&format!("every-{blocks}")),
        }
    }
}

impl FromStr for Recompute {
    type Err = UnknownPolicy;

    fn from_str(word: &str) -> Result<Self, UnknownPolicy> {
        let unknown = || UnknownPolicy { given: word.into() };
        match word {
            "none" => Ok(Recompute::None),
            "selective" => Ok(Recompute::Selective),
            "layer" => Ok(Recompute::Layer),
            _ => {
                let blocks = word.strip_prefix("every-").and_then(|n| n.parse().ok()).ok_or_else(unknown)?;
                Recompute::every(blocks).map_err(|_| unknown())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_both_ways() {
        for word in ["none", "selective", "layer", "every-2", "every-16"] {
            assert_eq!(word.parse::<Recompute>().unwrap().to_string(), word);
        }
        assert_eq!("every-1".parse(), Ok(Recompute::Layer));
        for word in ["every-0", "every-", "every--1", "all", ""] {
            let said = word.parse::<Recompute>().unwrap_err().to_string();
            assert!(said.contains(&format!("{word:?}")) && said.contains("every-N"), "{said}");
        }
        let json = serde_json::to_string(&Recompute::every(4).unwrap()).unwrap();
        assert_eq!(
            (json.as_str(), serde_json::from_str(&json).unwrap()),
            ("\"every-4\"", Recompute::every(4).unwrap())
        );
    }

    #[test]
    fn groups_count_from_the_end_and_the_last_is_kept() {
        let groups = |policy: Recompute| (0..5).map(|block| policy.group(block, 4)).collect::<Vec<_>>();
        assert_eq!(groups(Recompute::None), [None; 5]);
        assert_eq!(groups(Recompute::Layer), [Some(4), Some(3), Some(2), Some(1), None]);
        assert_eq!(groups(Recompute::every(2).unwrap()), [Some(2), Some(1), Some(1), None, None]);
        assert_eq!(groups(Recompute::every(8).unwrap()), [None; 5]);
        let starts = |policy: Recompute| (0..5).filter(|&b| policy.starts_group(b, 5)).collect::<Vec<_>>();
        assert_eq!(starts(Recompute::Layer), [0, 1, 2, 3]);
        assert_eq!(starts(Recompute::every(2).unwrap()), [0, 1]);
        assert!(starts(Recompute::None).is_empty() && starts(Recompute::Selective).is_empty());
    }
}
