//! What transformers 5, and PEFT with it, call the parts of a network; files do too, but for the head of GPT-NeoX, whose name in files
//! [`crate::checkpoint`] knows.

use super::{Family, JoinedLayers, ModelConfig};

/// The module that gives the logits, of all families.
pub const HEAD: &str = "lm_head";
pub const HEAD_WEIGHT: &str = "lm_head.weight";
/// Of token embeddings, one for each way to name them.
pub const EMBEDDING_WEIGHTS: [&str; 2] = [LLAMA.embedding_weight, GPT_NEOX.embedding_weight];

/// Names of modules, and of a weight.
#[derive(Debug)]
pub struct Names {
    pub embedding_weight: &'static str,
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
    embedding_weight: "model.embed_tokens.weight",
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
    embedding_weight: "gpt_neox.embed_in.weight",
    blocks: "gpt_neox.layers",
    norm: "gpt_neox.final_layer_norm",
    query_key_value: "attention.query_key_value",
    output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    ..LLAMA
};

fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

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

    /// Last names of Llama's layers, and the last name of what they are, together, in this family.
    fn renamed_layers(&self) -> Vec<(Vec<&'static str>, &'static str)> {
        let own = self.names();
        let (inputs, gate_up) = (vec![LLAMA.query, LLAMA.key, LLAMA.value], vec![LLAMA.gate, LLAMA.up]);
        let mut all = Vec::new();
        if self.joined_layers != JoinedLayers::None {
            all.push((inputs, own.query_key_value));
        }
        match (self.gated_mlp, self.joined_layers) {
            (true, JoinedLayers::Whole) => all.push((gate_up, own.gate_up)),
            (true, _) => {}
            (false, _) => all.push((gate_up, own.up)),
        }
        all.extend([(vec![LLAMA.output], own.output), (vec![LLAMA.down], own.down)]);
        let all = all.into_iter().map(|(theirs, ours)| (theirs.into_iter().map(last).collect(), last(ours)));
        all.filter(|(theirs, ours): &(Vec<_>, _)| theirs != &[*ours]).collect()
    }

    /// Llama's names of layers, as LitGPT's switches have them, in those of this family: layers that are one here where all of them are
    /// named. Other names stay.
    pub fn own_names(&self, modules: &[String]) -> Vec<String> {
        let mut all = modules.to_vec();
        for (theirs, ours) in self.renamed_layers() {
            let named = |name: &&str| all.iter().any(|given| given == name);
            // an MLP without a gate has the layer behind it alone
            let up = ours == last(self.names().up) && named(&last(LLAMA.up));
            if up || theirs.iter().all(named) {
                all.retain(|given| !theirs.contains(&given.as_str()));
                all.push(ours.to_owned());
            }
        }
        all
    }

    /// The layer of which Llama's one of that name is a part, and all of its parts.
    pub fn joined_as(&self, module: &str) -> Option<(&'static str, Vec<&'static str>)> {
        let found = self.renamed_layers().into_iter().find(|(theirs, _)| theirs.contains(&last(module)));
        found.filter(|(theirs, _)| theirs.len() > 1).map(|(theirs, ours)| (ours, theirs))
    }

    /// The head's weight and the embedding's, where both are one.
    pub fn tied_names(&self) -> Option<[&'static str; 2]> {
        self.tied_head.then(|| [HEAD_WEIGHT, self.names().embedding_weight])
    }

    /// The block that a module or a weight belongs to; `None` for those outside of the blocks.
    pub fn block_of(&self, name: &str) -> Option<usize> {
        let within = name.strip_prefix(self.names().blocks)?.strip_prefix('.')?;
        within.split_once('.')?.0.parse().ok()
    }
}
