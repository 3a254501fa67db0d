//! Rotary position embedding: its frequencies, and how configuration files spell it.

use super::keys::{Keys, same};
use super::{ConfigError, Family};
use serde::Serialize;
use serde_json::{Value, json};
use std::f64::consts::TAU;

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies are stretched for contexts longer than those of the first training.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn(Yarn),
    /// Each pair's frequency divided by a factor of its own (LongRoPE, Ding et al. 2024, arXiv:2402.13753). Those of texts within the
    /// first training's context: longer ones have other factors, and are refused.
    LongRope {
        short_factor: Vec<f64>,
        /// Those of longer texts.
        long_factor: Vec<f64>,
        /// The longest of these.
        context: usize,
        original_max_position_embeddings: usize,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
}

/// Pairs of elements that turn at least `beta_fast` times in the first training's context keep their frequencies, those that turn less than
/// `beta_slow` times have them divided by `factor`, and those between are interpolated by their number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// The interpolated ones begin and end at whole pairs.
    pub truncate: bool,
    /// Multiplies cosines and sines.
    pub attention_factor: f64,
}

/// Queries at position p are multiplied by `1 + beta ln(1 + floor(p / original))`, as in Ministral 3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QueryScaling {
    pub beta: f64,
    /// Up to it nothing changes.
    pub original_max_position_embeddings: usize,
}

impl QueryScaling {
    /// What the query at a position is multiplied by.
    pub fn at(&self, position: usize) -> f64 {
        let contexts = (position / self.original_max_position_embeddings) as f64;
        1.0 + self.beta * contexts.ln_1p()
    }

    /// `positions`: the model's context.
    pub(super) fn read(
        keys: &Keys<'_>,
        family: Family,
        positions: usize,
    ) -> Result<Option<Self>, ConfigError> {
        const BETA: &str = "llama_4_scaling_beta";
        let [older, newer] = rope_objects(keys)?;
        match (family, older.or(newer)) {
            (Family::Ministral3, Some(rope)) => match rope.optional(BETA, Keys::number)? {
                Some(beta) if beta >= 0.0 => {
                    let original_max_position_embeddings = original_positions(keys, &rope, positions)?;
                    Ok(Some(QueryScaling { beta, original_max_position_embeddings }))
                }
                Some(beta) => Err(rope.wrong(BETA, &json!(beta), "a number from 0 on".into())),
                None => Ok(None),
            },
            (Family::Ministral3, None) => {
                Ok(Some(QueryScaling { beta: 0.1, original_max_position_embeddings: 16_384 }))
            }
            (_, Some(rope)) if rope.get(BETA).is_some() => {
                Err(rope.refused(BETA, &rope.object[BETA], "this family's queries are not scaled"))
            }
            _ => Ok(None),
        }
    }
}

impl Rope {
    /// Radians per position for each pair of the elements of a head that are turned, `[rotary_dim / 2]`.
    pub fn inverse_frequencies(&self, rotary_dim: usize) -> Vec<f32> {
        let unscaled = (0..rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / rotary_dim as f64));
        match &self.scaling {
            RopeScaling::LongRope { short_factor, .. } => {
                unscaled.zip(short_factor).map(|(frequency, factor)| (frequency / factor) as f32).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let share = yarn.interpolated(self.theta, rotary_dim);
                let scaled =
                    unscaled.zip(share).map(|(f, share)| f / yarn.factor * share + f * (1.0 - share));
                scaled.map(|frequency| frequency as f32).collect()
            }
            scaling => unscaled.map(|frequency| scaling.apply(frequency) as f32).collect(),
        }
    }

    /// The longest text of a model whose longer ones have other factors.
    pub fn context(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { context, .. } => Some(context),
            _ => None,
        }
    }

    /// Whether longrope's attention factor follows from the contexts.
    pub(super) fn has_usual_attention_factor(&self) -> bool {
        match self.scaling {
            RopeScaling::LongRope { context, original_max_position_embeddings, attention_factor, .. } => {
                let ratio = context as f64 / original_max_position_embeddings as f64;
                attention_factor == long_attention_factor(ratio, original_max_position_embeddings)
            }
            _ => false,
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            RopeScaling::LongRope { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }

    /// What Llama 3.1's scaling divides each frequency by, `[rotary_dim / 2]`; `None` for other scalings.
    pub fn llama3_factors(&self, rotary_dim: usize) -> Option<Vec<f32>> {
        if !matches!(self.scaling, RopeScaling::Llama3 { .. }) {
            return None;
        }
        let unscaled = (0..rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / rotary_dim as f64));
        Some(unscaled.map(|frequency| (frequency / self.scaling.apply(frequency)) as f32).collect())
    }
}

impl Yarn {
    /// What transformers takes for a Ministral 3 whose file says nothing.
    const MINISTRAL3: Yarn = Yarn {
        factor: 16.0,
        original_max_position_embeddings: 16_384,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 1.0,
    };

    /// Of each pair's frequency the share that is divided.
    fn interpolated(self, theta: f64, rotary_dim: usize) -> impl Iterator<Item = f64> {
        // the number of the pair that turns so often in the first context
        let pair = |turns: f64| {
            let context = self.original_max_position_embeddings as f64;
            rotary_dim as f64 * (context / (turns * TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(rotary_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..rotary_dim / 2).map(move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0))
    }

    /// The attention factor where a file names none: the paper's.
    fn usual_attention_factor(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Which pairs are interpolated is as the paper has it.
    pub fn has_usual_pairs(&self) -> bool {
        (self.beta_fast, self.beta_slow, self.truncate) == (32.0, 1.0, true)
    }

    /// The attention factor in terms of the paper's for this `factor`.
    pub fn attention_factor_of_usual(&self) -> f64 {
        self.attention_factor / Yarn::usual_attention_factor(self.factor, 1.0)
    }

    /// Tokens that it stretches the first training's context to.
    pub fn context(&self) -> usize {
        (self.factor * self.original_max_position_embeddings as f64) as usize
    }

    fn read(rope: &Keys<'_>, original: usize, max_position_embeddings: usize) -> Result<Self, ConfigError> {
        // transformers 5 has a null there stand for the ratio
        let ratio = rope.object.contains_key("factor") && rope.get("factor").is_none();
        let factor = match ratio {
            true => max_position_embeddings as f64 / original as f64,
            false => rope.positive("factor")?,
        };
        let number = |key: &str, usual: f64| Ok(rope.optional(key, Keys::positive)?.unwrap_or(usual));
        let attention_factor = match rope.optional("attention_factor", Keys::positive)? {
            Some(given) => given,
            None => {
                match (rope.optional("mscale", Keys::number)?, rope.optional("mscale_all_dim", Keys::number)?)
                {
                    (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
                        Yarn::usual_attention_factor(factor, scale)
                            / Yarn::usual_attention_factor(factor, all)
                    }
                    _ => Yarn::usual_attention_factor(factor, 1.0),
                }
            }
        };
        if !(attention_factor.is_finite() && attention_factor > 0.0) {
            let (scale, all) = (rope.full("mscale"), rope.full("mscale_all_dim"));
            let reason = format!("{scale} and {all} give the attention factor {attention_factor}");
            return Err(rope.inconsistent(reason));
        }
        Ok(Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: number("beta_fast", 32.0)?,
            beta_slow: number("beta_slow", 1.0)?,
            truncate: rope.optional("truncate", Keys::flag)?.unwrap_or(true),
            attention_factor,
        })
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            // by pairs, not by frequencies
            RopeScaling::None | RopeScaling::Yarn(_) | RopeScaling::LongRope { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";
const PARTIAL: &str = "partial_rotary_factor";
const WHOLE_HEADS: &str = "this family's rotary embedding turns whole heads";

/// `rope_scaling` of transformers 4, which is preferred where both are there, and `rope_parameters` of transformers 5.
fn rope_objects<'a>(keys: &Keys<'a>) -> Result<[Option<Keys<'a>>; 2], ConfigError> {
    Ok([keys.inner("rope_scaling", "rope_scaling.")?, keys.inner("rope_parameters", "rope_parameters.")?])
}

/// Elements at the beginning of a head that are turned, where these are a part of it, as in Phi 4 mini and Pythia.
pub(super) fn read_rotary_dim(
    keys: &Keys<'_>,
    family: Family,
    head_dim: usize,
) -> Result<Option<usize>, ConfigError> {
    let [older, newer] = rope_objects(keys)?;
    let within = older.or(newer).filter(|rope| rope.get(PARTIAL).is_some());
    // as files of transformers 4 have it
    let key = if family == Family::GptNeoX && within.is_none() { "rotary_pct" } else { PARTIAL };
    let keys = within.as_ref().unwrap_or(keys);
    let usual = matches!(family, Family::GptNeoX | Family::StableLm).then_some(0.25);
    let part = keys.optional(key, Keys::positive)?.or(usual).unwrap_or(1.0);
    let value = json!(part);
    if part == 1.0 {
        return Ok(None);
    }
    if !family.turns_parts() {
        return Err(keys.refused(key, &value, WHOLE_HEADS));
    }
    let turned = (head_dim as f64 * part) as usize;
    if turned == 0 || turned > head_dim || !turned.is_multiple_of(4) {
        let expected =
            format!("a part of a head's {head_dim} elements that is a multiple of 4, as the kernels need it");
        return Err(keys.wrong(key, &value, expected));
    }
    // all of a head, in other words
    Ok(Some(turned).filter(|turned| *turned < head_dim))
}

/// The rotary embedding, and another one of layers with a window, which Gemma 3 and OLMo 3 have. `sizes`: the context, and what of a head
/// is turned.
pub(super) fn read_ropes(
    keys: &Keys<'_>,
    family: Family,
    sizes: (usize, usize),
) -> Result<(Rope, Option<Rope>), ConfigError> {
    let [older, newer] = rope_objects(keys)?;
    let read = |theta: &str, usual, rope: Option<&Keys<'_>>| {
        let theta = keys.optional(theta, Keys::positive)?;
        read_rope(keys, family, theta, usual, rope, sizes)
    };
    let theta = family.default_theta();
    if !matches!(family, Family::Gemma3 | Family::Olmo3) {
        let key = if family == Family::GptNeoX { "rotary_emb_base" } else { "rope_theta" };
        return Ok((read(key, theta, older.or(newer).as_ref())?, None));
    }
    let flat = newer.as_ref().filter(|newer| newer.get("full_attention").is_none());
    for key in ["rope_theta", "rope_type"] {
        if let Some(value) = flat.and_then(|flat| flat.get(key)) {
            let reason = "put what is there within full_attention, and the same without scaling within sliding_attention";
            return Err(keys.refused(&format!("rope_parameters.{key}"), value, reason));
        }
    }
    let of = |kind: &str, prefix: &str| match &newer {
        Some(newer) => newer.inner(kind, prefix),
        None => Ok(None),
    };
    let full = of("full_attention", "full_attention.")?;
    let sliding = of("sliding_attention", "sliding_attention.")?;
    let stated = full.as_ref().map_or(Ok(None), |full| full.optional("rope_theta", Keys::positive))?;
    let global = read("rope_theta", stated.unwrap_or(theta), older.or(full).as_ref())?;
    let local = match family {
        Family::Olmo3 => {
            // by the same angles, but for the scaling, as transformers 4 has it; 5 has the default theta there, which all published
            // files have too
            let local = read("rope_theta", theta, sliding.as_ref())?;
            if local == global { None } else { Some(local) }
        }
        _ => Some(read("rope_local_base_freq", 1e4, sliding.as_ref())?),
    };
    Ok((global, local))
}

/// `theta` and `usual`: where the object says nothing, and where the file says nothing.
fn read_rope(
    keys: &Keys<'_>,
    family: Family,
    theta: Option<f64>,
    usual: f64,
    rope: Option<&Keys<'_>>,
    sizes: (usize, usize),
) -> Result<Rope, ConfigError> {
    let Some(rope) = rope else {
        let (theta, scaling) = match family {
            Family::Ministral3 => (1e6, RopeScaling::Yarn(Yarn::MINISTRAL3)),
            _ => (theta.unwrap_or(usual), RopeScaling::None),
        };
        return Ok(Rope { theta, scaling });
    };
    let theta = rope.optional("rope_theta", Keys::positive)?.or(theta).unwrap_or(usual);
    Ok(Rope { theta, scaling: read_scaling(keys, family, rope, theta, sizes)? })
}

/// What a context that is `factor` times the first training's multiplies cosines and sines by.
fn long_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

/// The factors of short and long texts, one for each pair of elements that are turned.
fn read_long_rope(
    rope: &Keys<'_>,
    original: usize,
    max_position_embeddings: usize,
    rotary_dim: usize,
) -> Result<RopeScaling, ConfigError> {
    let pairs = rotary_dim / 2;
    let factors = |key: &str| {
        let value = rope.required(key)?;
        let numbers = |list: &Vec<Value>| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let all = value.as_array().and_then(numbers);
        all.filter(|all| all.len() == pairs && all.iter().all(|factor| *factor > 0.0)).ok_or_else(|| {
            let expected = format!("{pairs} numbers above 0, one for each pair of elements that are turned");
            rope.wrong(key, value, expected)
        })
    };
    let (short_factor, long_factor) = (factors("short_factor")?, factors("long_factor")?);
    let ratio = max_position_embeddings as f64 / original as f64;
    let factor = rope.optional("factor", Keys::positive)?.unwrap_or(ratio);
    let usual = long_attention_factor(factor, original);
    let attention_factor = rope.optional("attention_factor", Keys::positive)?.unwrap_or(usual);
    Ok(RopeScaling::LongRope {
        short_factor,
        long_factor,
        context: max_position_embeddings,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

/// The context of the first training. It is stored beside the object by some exporters, which then counts.
fn original_positions(keys: &Keys<'_>, rope: &Keys<'_>, positions: usize) -> Result<usize, ConfigError> {
    let original = match keys.optional(ORIGINAL, Keys::size)? {
        Some(original) => Some(original),
        None => rope.optional(ORIGINAL, Keys::size)?,
    };
    Ok(original.unwrap_or(positions))
}

fn read_scaling(
    keys: &Keys<'_>,
    family: Family,
    rope: &Keys<'_>,
    theta: f64,
    (max_position_embeddings, rotary_dim): (usize, usize),
) -> Result<RopeScaling, ConfigError> {
    if !family.turns_parts()
        && let Some(value) = rope.get(PARTIAL).filter(|value| !same(value, &json!(1.0)))
    {
        return Err(rope.refused(PARTIAL, value, WHOLE_HEADS));
    }
    let original_positions = || match family {
        // transformers looks nowhere else, and has a default
        Family::Phi3 => Ok(keys.optional(ORIGINAL, Keys::size)?.unwrap_or(4096)),
        _ => original_positions(keys, rope, max_position_embeddings),
    };
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    match rope.optional(key, Keys::text)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: rope.positive("factor")? }),
        // the first files of Phi 3 say su, or yarn, and mean this
        "longrope" | "su" | "yarn" if family == Family::Phi3 => {
            read_long_rope(rope, original_positions()?, max_position_embeddings, rotary_dim)
        }
        "yarn" => {
            let yarn = Yarn::read(rope, original_positions()?, max_position_embeddings)?;
            if theta <= 1.0 {
                return Err(keys.inconsistent(format!("rope_theta {theta} is not above 1, as yarn needs it")));
            }
            if yarn.beta_fast <= yarn.beta_slow {
                let (fast, slow) = (rope.full("beta_fast"), rope.full("beta_slow"));
                let reason = format!("{fast} {} is not above {slow} {}", yarn.beta_fast, yarn.beta_slow);
                return Err(keys.inconsistent(reason));
            }
            Ok(RopeScaling::Yarn(yarn))
        }
        "llama3" => {
            let (low_freq_factor, high_freq_factor) =
                (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let (low, high) = (rope.full("low_freq_factor"), rope.full("high_freq_factor"));
                let reason = format!("{low} {low_freq_factor} is not below {high} {high_freq_factor}");
                return Err(keys.inconsistent(reason));
            }
            Ok(RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original_positions()?,
            })
        }
        other => Err(rope.refused(key, &json!(other), "known are default, linear, llama3 and yarn")),
    }
}
