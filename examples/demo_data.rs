//! Writes everything the demo's small model is made from: its tokenizer, its configuration and its instruction data.
//!
//! `cargo run --example demo_data -- OUT_DIR [--seed N] [--base-rows N]`
//!
//! The base model learns the tasks of [`BASE_TASKS`] from scratch; the demo then teaches it [`NEW_TASK`] through an
//! adapter. All training words are made up from syllables, the held-out words of the new task are English, so that a
//! right answer cannot have been remembered. The same seed writes the same bytes.
//!
//! The tokenizer is a Unigram model without a pre-tokenizer in which every piece costs the same, so that a text is cut
//! into as few pieces as possible: the Alpaca prompt around instruction and input costs three tokens, a word of our
//! instructions one, and a letter of the payload one. Payload letters never join into a word because word pieces begin
//! with a space or a capital followed by small letters. Other characters fall back to bytes.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

/// A rule that turns one word into an answer.
struct Task {
    instruction: &'static str,
    answer: fn(&str) -> String,
}

const BASE_TASKS: [Task; 10] = [
    Task { instruction: "Repeat the word.", answer: str::to_owned },
    Task { instruction: "Write the word backwards.", answer: |w| w.chars().rev().collect() },
    Task { instruction: "Write the word in capital letters.", answer: str::to_uppercase },
    Task { instruction: "Write every letter twice.", answer: |w| w.chars().flat_map(|c| [c, c]).collect() },
    Task { instruction: "Give the first letter of the word.", answer: |w| w[..1].to_owned() },
    Task { instruction: "Give the last letter of the word.", answer: |w| w[w.len() - 1..].to_owned() },
    Task { instruction: "Remove the first letter of the word.", answer: |w| w[1..].to_owned() },
    Task { instruction: "Count the letters of the word.", answer: |w| w.len().to_string() },
    Task {
        instruction: "Keep only the vowels of the word.",
        answer: |w| w.chars().filter(is_vowel).collect(),
    },
    Task { instruction: "Add -ing to the word.", answer: |w| format!("{w}ing") },
];

/// The task that the base model never sees.
const NEW_TASK: Task = Task { instruction: "Say the word in Pig Latin.", answer: pig_latin };

const NEW_TASK_TRAIN_ROWS: usize = 1500;

/// Held-out inputs of the new task.
const TEST_WORDS: &str = "\
    actor anchor animal apple arrow autumn basket blanket bottle branch bread bridge brother butter candle castle \
    cheese cherry chicken clever clock cloud coffee copper corner cotton dinner doctor dragon eagle east elbow engine \
    evening father feather finger flower forest friend garden ghost giant glass grape green hammer harbor honey \
    hunter island jacket kitchen ladder lemon letter lion machine market meadow melon mirror monkey morning mountain \
    needle night north ocean office olive orange otter paper pencil pepper planet plum pocket prince rabbit river \
    school shadow sheep silver singer sister smoke snake spider spring stone storm street string summer table thunder \
    tiger train tunnel uncle under village water whistle window winter yellow";

const PROMPT_HEAD_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides \
    further context. Write a response that appropriately completes the request.\n\n### Instruction:\n";
const PROMPT_HEAD: &str = "Below is an instruction that describes a task. Write a response that appropriately \
    completes the request.\n\n### Instruction:\n";
const PROMPT_INPUT: &str = "\n\n### Input:\n";
const PROMPT_RESPONSE: &str = "\n\n### Response:\n";

fn is_vowel(letter: &char) -> bool {
    matches!(letter, 'a' | 'e' | 'i' | 'o' | 'u')
}

/// The consonants before the first vowel go to the end, followed by "ay"; a word that begins with a vowel gets "way".
fn pig_latin(word: &str) -> String {
    match word.find(|c| is_vowel(&c)) {
        Some(0) | None => format!("{word}way"),
        Some(at) => format!("{}{}ay", &word[at..], &word[..at]),
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("error: {message}\nusage: demo_data OUT_DIR [--seed N] [--base-rows N]");
            return ExitCode::from(2);
        }
    };
    match write_all(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write to {}: {error}", options.out_dir.display());
            ExitCode::FAILURE
        }
    }
}

struct Options {
    out_dir: PathBuf,
    seed: u64,
    base_rows: usize,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut out_dir, mut seed, mut base_rows) = (None, 1, 40_000);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--seed" => seed = number(&arg, args.next())?,
                "--base-rows" => base_rows = number(&arg, args.next())?,
                _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
                _ if out_dir.is_none() => out_dir = Some(PathBuf::from(arg)),
                _ => return Err(format!("unexpected argument {arg:?}")),
            }
        }
        let out_dir = out_dir.ok_or("the output folder is missing")?;
        Ok(Self { out_dir, seed, base_rows })
    }
}

fn number<T: std::str::FromStr>(option: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or_else(|| format!("{option} needs a number"))?;
    value.parse().map_err(|_| format!("{option}: {value:?} is not a number"))
}

fn write_all(options: &Options) -> io::Result<()> {
    let held_out: Vec<&'static str> = TEST_WORDS.split_whitespace().collect();
    let mut words = Words::new(options.seed, &held_out);

    let base: Vec<Row> =
        (0..options.base_rows).map(|i| Row::new(&BASE_TASKS[i % BASE_TASKS.len()], &words.next())).collect();
    let mut seen = HashSet::new();
    let mut new_task_train = Vec::with_capacity(NEW_TASK_TRAIN_ROWS);
    while new_task_train.len() < NEW_TASK_TRAIN_ROWS {
        let word = words.next();
        if seen.insert(word.clone()) {
            new_task_train.push(Row::new(&NEW_TASK, &word));
        }
    }
    let new_task_test: Vec<Row> = held_out.iter().map(|word| Row::new(&NEW_TASK, word)).collect();

    fs::create_dir_all(&options.out_dir)?;
    write_rows(&options.out_dir.join("base.json"), &base)?;
    write_rows(&options.out_dir.join("new_task_train.json"), &new_task_train)?;
    write_rows(&options.out_dir.join("new_task_test.json"), &new_task_test)?;
    let vocabulary = vocabulary();
    fs::write(options.out_dir.join("tokenizer.json"), tokenizer_json(&vocabulary))?;
    fs::write(options.out_dir.join("tokenizer_config.json"), TOKENIZER_CONFIG)?;
    fs::write(options.out_dir.join("config.json"), model_config(vocabulary.len()))
}

/// One Alpaca row.
struct Row {
    instruction: &'static str,
    input: String,
    output: String,
}

impl Row {
    fn new(task: &Task, word: &str) -> Self {
        Self { instruction: task.instruction, input: word.to_owned(), output: (task.answer)(word) }
    }
}

fn write_rows(path: &Path, rows: &[Row]) -> io::Result<()> {
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let [instruction, input, output] = [row.instruction, &row.input, &row.output].map(json_string);
            format!(" {{\"instruction\": {instruction}, \"input\": {input}, \"output\": {output}}}")
        })
        .collect();
    fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
}

/// Pronounceable made-up words of 3 to 9 letters.
struct Words {
    rng: Rng,
    excluded: HashSet<&'static str>,
    onsets: Vec<&'static str>,
    nuclei: Vec<&'static str>,
    codas: Vec<&'static str>,
}

impl Words {
    /// Single consonants stand twice, so that clusters stay the smaller part.
    const ONSETS: &'static str = "b c d f g h j k l m n p r s t v w y z b c d f g h j k l m n p r s t v w y z \
        bl br ch cl cr dr fl fr gh gl gr kn ph pl pr sc sch sh shr sk sl sm sn sp spl spr squ st str sw th thr tr tw wh";
    const NUCLEI: &'static str = "a e i o u a e i o u a e i o u ai au ea ee ei ia ie io oa oo ou ow ue";
    const CODAS: &'static str = "- - - - - - - - b d g l m n p r s t w x y ck ct ff ft ld ll lt mp nd ng nk nt rd rk \
        rm rn rr rt sh sk ss st th tt";

    fn new(seed: u64, excluded: &[&'static str]) -> Self {
        let split = |list: &'static str| list.split_whitespace().collect();
        Self {
            rng: Rng(seed),
            excluded: excluded.iter().copied().collect(),
            onsets: split(Self::ONSETS),
            nuclei: split(Self::NUCLEI),
            codas: split(Self::CODAS),
        }
    }

    fn next(&mut self) -> String {
        loop {
            let mut word = String::new();
            for syllable in 0..1 + self.rng.below(3) {
                if syllable > 0 || self.rng.below(4) > 0 {
                    word += self.rng.pick(&self.onsets);
                }
                word += self.rng.pick(&self.nuclei);
                word += self.rng.pick(&self.codas).trim_matches('-');
            }
            if (3..=9).contains(&word.len()) && !self.excluded.contains(word.as_str()) {
                return word;
            }
        }
    }
}

/// The `SplitMix64` generator.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; the bias of the multiplication is far below what a data set can show.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }
}

/// Pieces in the order of their ids: three specials, 256 bytes, the printable characters, the prompt, the words.
fn vocabulary() -> Vec<String> {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    pieces.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    pieces.push("\n".to_owned());
    pieces.extend((b' '..=b'~').map(|byte| char::from(byte).to_string()));
    pieces.extend([PROMPT_HEAD_WITH_INPUT, PROMPT_HEAD, PROMPT_INPUT, PROMPT_RESPONSE].map(str::to_owned));
    for task in BASE_TASKS.iter().chain([&NEW_TASK]) {
        for (i, word) in task.instruction.trim_end_matches('.').split(' ').enumerate() {
            let piece = if i == 0 { word.to_owned() } else { format!(" {word}") };
            if !pieces.contains(&piece) {
                pieces.push(piece);
            }
        }
    }
    // Kernels like a vocabulary that is a multiple of 8.
    for i in 0..pieces.len().next_multiple_of(8) - pieces.len() {
        pieces.push(format!("<reserved_{i}>"));
    }
    pieces
}

fn tokenizer_json(vocabulary: &[String]) -> String {
    let mut pieces = String::new();
    for (id, piece) in vocabulary.iter().enumerate() {
        let comma = if id + 1 < vocabulary.len() { "," } else { "" };
        let _ = writeln!(pieces, "      [{}, -1.0]{comma}", json_string(piece));
    }
    let special = |id: usize, content: &str| {
        format!(
            "    {{\"id\": {id}, \"content\": \"{content}\", \"single_word\": false, \"lstrip\": false, \
             \"rstrip\": false, \"normalized\": false, \"special\": true}}"
        )
    };
    let specials = [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")].join(",\n");
    TOKENIZER_JSON.replace("ADDED_TOKENS", &specials).replace("PIECES", pieces.trim_end())
}

const TOKENIZER_JSON: &str = r#"{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [
ADDED_TOKENS
  ],
  "normalizer": null,
  "pre_tokenizer": null,
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
      {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
      {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
    ],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
  },
  "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
  "model": {
    "type": "Unigram",
    "unk_id": 0,
    "byte_fallback": true,
    "vocab": [
PIECES
    ]
  }
}
"#;

const TOKENIZER_CONFIG: &str = r#"{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "bos_token": "<s>",
  "eos_token": "</s>",
  "unk_token": "<unk>",
  "add_bos_token": true,
  "add_eos_token": false,
  "clean_up_tokenization_spaces": false,
  "model_max_length": 256
}
"#;

/// About one million parameters; the shape is the demo's, nothing depends on it but the size of the vocabulary.
fn model_config(vocab_size: usize) -> String {
    format!(
        r#"{{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": {vocab_size},
  "hidden_size": 128,
  "intermediate_size": 352,
  "num_hidden_layers": 5,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "hidden_act": "silu",
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0,
  "attention_bias": false,
  "mlp_bias": false,
  "tie_word_embeddings": true,
  "initializer_range": 0.02,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "torch_dtype": "float16"
}}
"#
    )
}

fn json_string(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
