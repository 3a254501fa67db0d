//! `--quantize`: frozen weights in blocks of few bits.

use super::options::Precision;
use super::run_folder::read_json;
use super::weights::WeightSource;
use crate::error::Error;
use crate::graph::DType;
use crate::models::{ModelConfig, Network};
use crate::nn::Storage;
use crate::word::serialised_as_word;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

serialised_as_word!(Quantize);

/// What the frozen linear layers of the blocks are held in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Quantize {
    /// The precision's type.
    #[default]
    None,
    /// Four bits and a scale per 64 values.
    Nf4,
    /// Four bits, scales quantised too.
    Nf4Double,
    /// Eight bits and a scale per row.
    Int8,
}

/// How frozen weights are held beside the precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuantizeOptions {
    pub kind: Quantize,
    /// Token embedding and head as well.
    pub head: bool,
}

/// A word that names no kind.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{given:?} is none of none, nf4, nf4-dq, int8 (or bnb.nf4, bnb.nf4-dq){reason}")]
pub struct UnknownQuantize {
    pub given: String,
    pub reason: &'static str,
}

impl Quantize {
    pub const ALL: [Quantize; 4] = [Quantize::None, Quantize::Nf4, Quantize::Nf4Double, Quantize::Int8];

    pub fn name(self) -> &'static str {
        self.dtype().map_or("none", DType::name)
    }

    /// The storage type, where there is one.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Quantize::None => None,
            Quantize::Nf4 => Some(DType::Nf4),
            Quantize::Nf4Double => Some(DType::Nf4Double),
            Quantize::Int8 => Some(DType::Int8),
        }
    }

    /// How the config.json of a model's folder says that its weights are held. Others than these are refused with the
    /// configuration ([`ModelConfig::read`]).
    pub(super) fn of_settings(folder: &Path) -> Self {
        let how = read_json(&folder.join("config.json")).map(|keys| keys["quantization_config"].clone());
        match how.filter(|how| how["load_in_4bit"] == true) {
            Some(how) if how["bnb_4bit_use_double_quant"] == true => Quantize::Nf4Double,
            Some(_) => Quantize::Nf4,
            None => Quantize::None,
        }
    }

    /// Refuses to train all weights of a model that holds them so.
    ///
    /// # Errors
    /// Weights in blocks.
    pub(super) fn check_full(self, folder: &Path) -> Result<(), Error> {
        match self {
            Quantize::None => Ok(()),
            kind => Err(Error::input(format!(
                "{}: its layers are in {kind}, and full training changes every weight; give the folder of the original, or train \
                 an adapter (engraft finetune)",
                folder.display()
            ))),
        }
    }

    pub(super) fn of_dtype(dtype: DType) -> Self {
        Quantize::ALL.into_iter().find(|kind| kind.dtype() == Some(dtype)).unwrap_or_default()
    }
}

impl QuantizeOptions {
    /// The same, where no checkpoint says how its layers are quantised.
    ///
    /// # Errors
    /// A head that is to be quantised, and no word how.
    pub fn complete(self) -> Result<Self, Error> {
        match self.head && self.kind == Quantize::None {
            true => Err(Error::input("--quantize_head: needs --quantize, which says how")),
            false => Ok(self),
        }
    }

    /// The same for the weights of a source: one that bitsandbytes quantised stays as it is, layers that it left out as well
    /// ([`WeightSource::plain_layers`]).
    ///
    /// # Errors
    /// Another kind than the source has, a source of several kinds or quantised in another way, and as
    /// [`QuantizeOptions::complete`].
    pub fn for_source(self, source: &WeightSource, config: &ModelConfig) -> Result<Self, Error> {
        let WeightSource::Checkpoint(checkpoint) = source else { return self.complete() };
        let Some(dtype) = checkpoint.quantised().map_err(Error::from)? else { return self.complete() };
        let options = self.for_stored(Quantize::of_dtype(dtype))?;
        for (module, _, _) in Network::linear_modules(config) {
            let stored = checkpoint.quantised_type(&format!("{module}.weight")).map_err(Error::from)?;
            if let Some(ty) = stored.filter(|ty| ty.dtype != dtype) {
                return Err(Error::input(format!(
                    "{module}.weight is in {1} while other weights are in {0}: engraft reads models whose layers are quantised \
                     alike or not at all; give the folder of the original and --quantize {0}",
                    options.kind, ty.dtype
                )));
            }
        }
        Ok(options)
    }

    /// The same for weights that are not in the model's folder yet: as its config.json says that they will be.
    ///
    /// # Errors
    /// As [`QuantizeOptions::for_source`].
    pub(super) fn for_settings(self, folder: &Path) -> Result<Self, Error> {
        self.for_stored(Quantize::of_settings(folder))
    }

    fn for_stored(self, found: Quantize) -> Result<Self, Error> {
        match (found, self.kind) {
            (Quantize::None, _) => self.complete(),
            (found, kind) if kind == Quantize::None || kind == found => {
                Ok(QuantizeOptions { kind: found, ..self })
            }
            (found, kind) => Err(Error::input(format!(
                "--quantize {kind}: the weights are {found} already; leave the option out, or give the folder of the original"
            ))),
        }
    }

    /// What the weights of a network are stored in, a token embedding of its own in host memory.
    pub fn storage(self, precision: Precision) -> Storage {
        let plain = Storage { host_embedding: true, ..Storage::from(precision.weights()) };
        match self.kind.dtype() {
            None => plain,
            Some(linear) => Storage { linear, outer: if self.head { linear } else { plain.outer }, ..plain },
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Quantize {
    type Err = UnknownQuantize;

    fn from_str(word: &str) -> Result<Self, UnknownQuantize> {
        let unknown = |reason| UnknownQuantize { given: word.into(), reason };
        match word {
            "bnb.fp4" | "bnb.fp4-dq" | "fp4" | "fp4-dq" => {
                Err(unknown("; fp4 loses more than nf4 at the same size (Dettmers et al. 2023, table 4)"))
            }
            "bnb.int8" | "bnb.int8-training" => Ok(Quantize::Int8),
            _ => {
                let name = word.strip_prefix("bnb.").unwrap_or(word);
                Quantize::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| unknown(""))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_both_tools_are_read() {
        for kind in Quantize::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("bnb.nf4-dq".parse(), Ok(Quantize::Nf4Double));
        assert_eq!("bnb.int8-training".parse(), Ok(Quantize::Int8));
        for word in ["bnb.fp4", "int4", ""] {
            let said = word.parse::<Quantize>().unwrap_err().to_string();
            assert!(said.contains(&format!("{word:?}")) && said.contains("nf4-dq"), "{said}");
        }
    }

    #[test]
    fn the_head_stays_plain_unless_asked() {
        let storage = |head| QuantizeOptions { kind: Quantize::Nf4, head }.storage(Precision::BF16True);
        assert_eq!((storage(false).linear, storage(false).outer), (DType::Nf4, DType::BF16));
        assert_eq!(storage(true).outer, DType::Nf4);
    }
}
