//! Options that are one of a few words, and these words.

use crate::autograd::Recompute;
use crate::graph::DType;
use crate::train::schedule::ScheduleKind;
use crate::word::serialised_as_word;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use thiserror::Error;

serialised_as_word!(RecomputeKind, Example, LayerRange);

/// What a run trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter on frozen weights.
    #[default]
    Lora,
    /// Every weight.
    Full { init: WeightInit },
}

/// Where the weights of full training start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightInit {
    /// The folder's weights.
    #[default]
    Checkpoint,
    /// Random values; the folder needs no weights.
    Random,
}

/// What weights and activations are stored in. Arithmetic, adapters, gradients and optimiser state are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    #[serde(rename = "32-true")]
    F32True,
    #[serde(rename = "16-true")]
    F16True,
    #[default]
    #[serde(rename = "bf16-true")]
    BF16True,
    #[serde(rename = "16-mixed")]
    F16Mixed,
    #[serde(rename = "bf16-mixed")]
    BF16Mixed,
}

/// Which activations are thrown away in the forward pass and made again in the reverse pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RecomputeKind {
    /// The policy with the fewest FLOPs that fits the device's memory.
    #[default]
    Auto,
    Policy(Recompute),
}

impl RecomputeKind {
    /// Nothing is made again.
    pub const NONE: RecomputeKind = RecomputeKind::Policy(Recompute::None);
}

impl fmt::Display for RecomputeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecomputeKind::Auto => f.pad("auto"),
            RecomputeKind::Policy(policy) => policy.fmt(f),
        }
    }
}

impl FromStr for RecomputeKind {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, UnknownName> {
        let allowed = "auto, none, selective, layer, every-N (blocks in groups of N)";
        match word {
            "auto" => Ok(RecomputeKind::Auto),
            _ => word
                .parse()
                .map(RecomputeKind::Policy)
                .map_err(|_| UnknownName { given: word.into(), allowed: allowed.into() }),
        }
    }
}

/// What changes the parameters from their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[default]
    AdamW,
    /// Gradient descent, with momentum where that is asked for.
    #[serde(rename = "SGD")]
    Sgd,
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OptimizerKind::AdamW => "AdamW",
            OptimizerKind::Sgd => "SGD",
        })
    }
}

impl FromStr for OptimizerKind {
    type Err = UnknownName;

    /// By name, or by the name of its class in PyTorch: `torch.optim.AdamW`.
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text.rsplit('.').next().unwrap_or(text).to_ascii_lowercase().as_str() {
            "adamw" => Ok(OptimizerKind::AdamW),
            "sgd" => Ok(OptimizerKind::Sgd),
            _ => Err(UnknownName { given: text.into(), allowed: "AdamW, SGD".into() }),
        }
    }
}

/// Which validation row's prompt is continued at evaluations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Example {
    #[default]
    First,
    /// One that the seed chooses, the same at all evaluations.
    Random,
    /// Counted from 0.
    Index(usize),
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Example::First => f.pad("first"),
            Example::Random => f.pad("random"),
            Example::Index(index) => index.fmt(f),
        }
    }
}

impl FromStr for Example {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "first" => Ok(Example::First),
            "random" => Ok(Example::Random),
            _ => text.parse().map(Example::Index).map_err(|_| UnknownName {
                given: text.into(),
                allowed: "first, random, or a row's number counted from 0".into(),
            }),
        }
    }
}

/// Some of a model's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LayerRange {
    /// So many from the first on.
    First(usize),
    /// So many up to the last.
    Last(usize),
    /// From one to another, both included.
    Between(usize, usize),
}

impl LayerRange {
    /// The layers of a model with so many; `None` where it has too few.
    pub fn of(self, layers: usize) -> Option<Range<usize>> {
        match self {
            LayerRange::First(count) => (count <= layers).then_some(0..count),
            LayerRange::Last(count) => (count <= layers).then(|| layers - count..layers),
            LayerRange::Between(first, last) => (last < layers).then_some(first..last + 1),
        }
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerRange::First(count) => write!(f, "first-{count}"),
            LayerRange::Last(count) => write!(f, "last-{count}"),
            LayerRange::Between(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for LayerRange {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let number = |word: &str| word.trim().parse::<usize>().ok();
        let range = match text.split_once('-') {
            Some(("first", count)) => number(count).filter(|n| *n > 0).map(LayerRange::First),
            Some(("last", count)) => number(count).filter(|n| *n > 0).map(LayerRange::Last),
            Some((first, last)) => {
                let both = number(first).zip(number(last)).filter(|(first, last)| first <= last);
                both.map(|(first, last)| LayerRange::Between(first, last))
            }
            None => number(text).map(|layer| LayerRange::Between(layer, layer)),
        };
        range.ok_or_else(|| UnknownName {
            given: text.into(),
            allowed: "last-16, first-4, 8-15 (both included) or one layer's number".into(),
        })
    }
}

/// Whether kernels are measured before a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuneMode {
    /// Built-in choices.
    Off,
    /// What the cache file holds; the rest is measured and kept there.
    #[default]
    Cached,
    /// All is measured again.
    Full,
}

impl TuneMode {
    pub const NAMES: [&'static str; 3] = ["off", "cached", "full"];
}

impl fmt::Display for TuneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TuneMode::NAMES[*self as usize])
    }
}

impl FromStr for TuneMode {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(TuneMode::Off),
            "cached" => Ok(TuneMode::Cached),
            "full" => Ok(TuneMode::Full),
            _ => Err(UnknownName { given: text.into(), allowed: TuneMode::NAMES.join(", ") }),
        }
    }
}

/// A word that is none of the words an option knows.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{given:?} is none of {allowed}")]
pub struct UnknownName {
    pub given: String,
    pub allowed: String,
}

impl Precision {
    /// What the frozen weights are stored in.
    pub fn weights(self) -> DType {
        match self {
            Precision::F16True => DType::F16,
            Precision::BF16True => DType::BF16,
            Precision::F32True | Precision::F16Mixed | Precision::BF16Mixed => DType::F32,
        }
    }

    /// What the activations and their gradients are stored in.
    pub fn activations(self) -> DType {
        match self {
            Precision::F32True => DType::F32,
            Precision::F16True | Precision::F16Mixed => DType::F16,
            Precision::BF16True | Precision::BF16Mixed => DType::BF16,
        }
    }
}

/// Gives an enum its words on the command line and in messages.
macro_rules! spelled {
    ($type:ty { $($word:literal => $value:path),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order in which help texts list them.
            pub const ALL: &[$type] = &[$($value),+];

            /// The word on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $($value => $word,)+
                }
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(word: &str) -> Result<Self, UnknownName> {
                match word {
                    $($word => Ok($value),)+
                    _ => Err(UnknownName { given: word.into(), allowed: [$($word),+].join(", ") }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

spelled!(Precision {
    "32-true" => Precision::F32True,
    "16-true" => Precision::F16True,
    "bf16-true" => Precision::BF16True,
    "16-mixed" => Precision::F16Mixed,
    "bf16-mixed" => Precision::BF16Mixed,
});
spelled!(ScheduleKind {
    "cosine" => ScheduleKind::Cosine,
    "linear" => ScheduleKind::Linear,
    "constant" => ScheduleKind::Constant,
});
spelled!(WeightInit { "checkpoint" => WeightInit::Checkpoint, "random" => WeightInit::Random });
