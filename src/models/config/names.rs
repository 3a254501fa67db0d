//! What transformers 5, and PEFT with it, call the parts of a network; files do too, but for the head of GPT-NeoX, whose name in files
//! [`crate::checkpoint`] knows.

use super::{Family, JoinedLayers, ModelConfig};

/// The module that gives the logits, of all families.
pub const HEAD: &str = "lm_head";
pub const HEAD_WEIGHT: &str = "lm_head.weight";
/// The weights of token embeddings.
pub const EMBEDDINGS: [&str; 2] = [LLAMA.embedding, GPT_NEOX.embedding];

/// Names of modules, and of weights where the name says so.
#[derive(Debug)]
pub struct Names {
    /// The weight of the token embedding.
    pub embedding: &'static str,
    /// What the blocks' modules begin with: `{blocks}.0.` and so on.
    pub blocks: &'static str,
    /// The norm behind the last block.
    pub norm: &'static str,
    /// The linear layers within a block.
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// The three of them as one.
    pub query_key_value: &'static str,
    pub output: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    /// The two of them as one.
    pub gate_up: &'static str,
    pub down: &'static str,
}

const LLAMA: Names = Names {
    embedding: "model.embed_tokens.weight",
    blocks: "model.layers",
    norm: "model.norm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    query_key_value: "self_attn.qkv_proj",
    output: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
};

const STARCODER2: Names = Names { up: "mlp.c_fc", down: "mlp.c_proj", ..LLAMA };

const GPT_NEOX: Names = Names {
    embedding: "gpt_neox.embed_in.weight",
    blocks: "gpt_neox.layers",
    norm: "gpt_neox.final_layer_norm",
    query_key_value: "attention.query_key_value",
    output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    ..LLAMA
};

impl Family {
    pub fn names(self) -> &'static Names {
        match self {
            Family::GptNeoX => &GPT_NEOX,
            Family::Starcoder2 => &STARCODER2,
            _ => &LLAMA,
        }
    }
}

impl ModelConfig {
    pub fn names(&self) -> &'static Names {
        self.family.names()
    }

    /// Llama's names of layers, as LitGPT's switches have them, in those of this family: layers that are one here where all of them are
    /// named. Other names stay.
    pub fn own_names(&self, modules: &[String]) -> Vec<String> {
        let own = self.names();
        let (inputs, gate_up) = ([LLAMA.query, LLAMA.key, LLAMA.value], [LLAMA.gate, LLAMA.up]);
        let (joined, whole) =
            (self.joined_layers != JoinedLayers::None, self.joined_layers == JoinedLayers::Whole);
        let mut rules: Vec<(&[&str], &str)> = Vec::new();
        if joined {
            rules.push((&inputs, own.query_key_value));
        }
        match (self.gated_mlp, whole) {
            (true, true) => rules.push((&gate_up, own.gate_up)),
            (true, false) => {}
            (false, _) => rules.push((&gate_up, own.up)),
        }
        let others = [([LLAMA.output], own.output), ([LLAMA.down], own.down)];
        rules.extend(
            others
                .iter()
                .filter(|(theirs, ours)| theirs[0] != *ours)
                .map(|(theirs, ours)| (&theirs[..], *ours)),
        );
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let mut all = modules.to_vec();
        for (theirs, ours) in rules {
            let theirs: Vec<String> = theirs.iter().map(|name| last(name)).collect();
            if theirs.iter().all(|name| all.contains(name)) {
                all.retain(|name| !theirs.contains(name));
                all.push(last(ours));
            }
        }
        all
    }

    /// The head's weight and the embedding's, where both are one.
    pub fn tied_names(&self) -> Option<[&'static str; 2]> {
        self.tied_head.then(|| [HEAD_WEIGHT, self.names().embedding])
    }

    /// The block that a module or a weight belongs to; `None` for those outside of the blocks.
    pub fn block_of(&self, name: &str) -> Option<usize> {
        let within = name.strip_prefix(self.names().blocks)?.strip_prefix('.')?;
        within.split_once('.')?.0.parse().ok()
    }
}
