//! Bad inputs to every command, in one table: the exit code, what the message must say, and that nothing is left half-written.
//!
//! `cargo test --test bad_inputs -- --nocapture` prints the table with the messages.

mod common;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// No refusal takes a second; unoptimised builds on a software device are slow.
const LIMIT: Duration = Duration::from_secs(120);
/// A message that a person reads to its end.
const LONGEST: usize = 2500;
/// What the files nest: enough to overflow the stack of a parser that recurses without a limit.
const DEEP: usize = 200_000;

/// One bad input: the command that meets it, and how that must end.
struct Case {
    name: &'static str,
    exit: i32,
    words: &'static [&'static str],
    call: fn(&Scratch) -> Call,
}

const fn case(
    name: &'static str,
    exit: i32,
    words: &'static [&'static str],
    call: fn(&Scratch) -> Call,
) -> Case {
    Case { name, exit, words, call }
}

/// Adapters, weights, configurations and tokenizers.
const MODELS: &[Case] = &[
    case("no model folder", 2, &["nowhere", "no such folder"], |s| s.finetune(&s.path("nowhere"), &[])),
    // nor is a device looked for first
    case("no folder to talk to", 2, &["nowhere", "no such folder"], |s| {
        call(&["chat", &s.path("nowhere"), "--gpu", "no such device"])
    }),
    case("weights cut short", 2, &["model.safetensors", "truncated", "again"], |s| {
        let bytes = weights();
        generate(&s.model_with("model.safetensors", &bytes[..bytes.len() / 2]))
    }),
    case("weights of no bytes", 2, &["model.safetensors", "again"], |s| {
        generate(&s.model_with("model.safetensors", b""))
    }),
    case("header longer than the file", 2, &["model.safetensors", "again"], |s| {
        let mut bytes = weights();
        let longer = bytes.len() as u64 * 2;
        bytes[..8].copy_from_slice(&longer.to_le_bytes());
        s.finetune(&s.model_with("model.safetensors", &bytes), &[])
    }),
    case("header of 2^64 - 1 bytes", 2, &["model.safetensors", "again"], |s| {
        s.finetune(&s.model_with("model.safetensors", [0xff; 64]), &[])
    }),
    case("header is not JSON", 2, &["model.safetensors", "not a safetensors file"], |s| {
        generate(&s.model_with("model.safetensors", safetensors("{oops", &[])))
    }),
    case("header nests deeply", 2, &["model.safetensors", "not a safetensors file"], |s| {
        generate(&s.model_with("model.safetensors", safetensors(&deep("[", "]"), &[])))
    }),
    case("an entry of the header nests deeply", 2, &["model.safetensors", "not a safetensors file"], |s| {
        let header = ["{\"a\":", &deep("{\"a\":", "}"), "}"].concat();
        generate(&s.model_with("model.safetensors", safetensors(&header, &[])))
    }),
    case("tensors overlap", 2, &["model.safetensors", "model.norm.weight", "damaged"], |s| {
        let bytes = with_header(|header| {
            header["model.norm.weight"]["data_offsets"] = json!([16, 16 + 4 * 64]);
        });
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("offsets beyond the file", 2, &["model.safetensors", "again"], |s| {
        let bytes = with_header(|header| {
            header["model.norm.weight"]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 4 * 64]);
        });
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("offsets run backwards", 2, &["model.safetensors", "model.norm.weight"], |s| {
        let bytes = with_header(|header| {
            header["model.norm.weight"]["data_offsets"] = json!([256, 0]);
        });
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("shape whose product overflows", 2, &["model.safetensors", "model.norm.weight"], |s| {
        let bytes = with_header(|header| {
            header["model.norm.weight"]["shape"] = json!([u64::MAX, u64::MAX]);
        });
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("weights of 64-bit integers", 2, &["model.safetensors", "model.norm.weight", "I64", "BF16"], |s| {
        let bytes = with_header(|header| {
            header["model.norm.weight"]["dtype"] = json!("I64");
            header["model.norm.weight"]["shape"] = json!([32]);
        });
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("a wrong shape", 2, &["model.norm.weight", "[2, 32]", "[64]", "config.json"], |s| {
        let bytes = with_header(|header| header["model.norm.weight"]["shape"] = json!([2, 32]));
        generate(&s.model_with("model.safetensors", &bytes))
    }),
    case("a missing tensor", 2, &["\"model.norm.weight\" not found", "model.norm.weighs"], |s| {
        let bytes = with_header(|header| {
            let header = header.as_object_mut().unwrap();
            let norm = header.shift_remove("model.norm.weight").unwrap();
            header.insert("model.norm.weighs".into(), norm);
        });
        s.finetune(&s.model_with("model.safetensors", &bytes), &[])
    }),
    case("index names a missing shard", 2, &["index.json", "model-00002-of-00003", "missing"], |s| {
        let model = s.copy(&fixture("models/llama_sharded"), "model");
        fs::remove_file(Path::new(&model).join("model-00002-of-00003.safetensors")).unwrap();
        generate(&model)
    }),
    case("index leads out of the folder", 2, &["index.json", "../secret.safetensors"], |s| {
        let model = s.copy(&fixture("models/llama_sharded"), "model");
        let index = Path::new(&model).join("model.safetensors.index.json");
        let text = fs::read_to_string(&index).unwrap();
        let text = text.replace("model-00001-of-00003.safetensors", "../secret.safetensors");
        fs::write(index, text).unwrap();
        generate(&model)
    }),
    case("index is not JSON", 2, &["model.safetensors.index.json", "line 1"], |s| {
        let model = s.copy(&fixture("models/llama_sharded"), "model");
        fs::write(Path::new(&model).join("model.safetensors.index.json"), "{oops").unwrap();
        generate(&model)
    }),
    case("a Git LFS pointer", 2, &["model.safetensors", "git lfs pull"], |s| {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        s.finetune(&s.model_with("model.safetensors", pointer), &[])
    }),
    case("weights are not numbers", 1, &["not finite", "--learning_rate"], |s| {
        let mut bytes = weights();
        let start = bytes.len() - 4096;
        bytes[start..].fill(0xff);
        s.finetune(&s.model_with("model.safetensors", &bytes), &[])
    }),
    case("no config.json", 2, &["config.json not found", "Hugging Face"], |s| {
        let model = s.model();
        fs::remove_file(Path::new(&model).join("config.json")).unwrap();
        call(&["chat", &model])
    }),
    case("config.json nests deeply", 2, &["config.json", "line 1"], |s| {
        call(&["plan", &s.model_with("config.json", deep("{\"a\":", "}"))])
    }),
    case("unknown architecture", 2, &["MambaForCausalLM", "LlamaForCausalLM"], |s| {
        generate(&s.configured(|config| config["architectures"] = json!(["MambaForCausalLM"])))
    }),
    case("a size of 0", 2, &["config.json", "hidden_size", "0"], |s| {
        call(&["plan", &s.configured(|config| config["hidden_size"] = json!(0))])
    }),
    case("a size below 0", 2, &["config.json", "num_hidden_layers", "-2"], |s| {
        call(&["plan", &s.configured(|config| config["num_hidden_layers"] = json!(-2))])
    }),
    case("a size of 10^30", 2, &["config.json", "vocab_size"], |s| {
        call(&["plan", &s.configured(|config| config["vocab_size"] = json!(1e30))])
    }),
    case("vocabulary smaller than the tokens", 2, &["vocab_size", "256", "tokenizer.json"], |s| {
        let model = s.configured(|config| config["vocab_size"] = json!(256));
        let bytes = with_header(|header| {
            let embedding = &mut header["model.embed_tokens.weight"];
            let start = embedding["data_offsets"][0].as_u64().unwrap();
            embedding["shape"] = json!([256, 64]);
            // the other half is a tensor that nothing names
            embedding["data_offsets"] = json!([start, start + 256 * 64 * 4]);
            header["rest"] = json!({
                "dtype": "F32", "shape": [256, 64],
                "data_offsets": [start + 256 * 64 * 4, start + 512 * 64 * 4]
            });
        });
        fs::write(Path::new(&model).join("model.safetensors"), bytes).unwrap();
        s.finetune(&model, &[])
    }),
    case("no tokenizer.json", 2, &["tokenizer.json", "no such file", "AutoTokenizer"], |s| {
        let model = s.model();
        fs::remove_file(Path::new(&model).join("tokenizer.json")).unwrap();
        s.data(&model, "{\"text\": \"x\"}\n", &[])
    }),
    case("tokenizer.json is broken", 2, &["tokenizer.json", "is not a tokenizer"], |s| {
        s.data(&s.model_with("tokenizer.json", "{\"model\": {\"type\": \"BPE\""), "{\"text\": \"x\"}\n", &[])
    }),
    case("tokenizer.json nests deeply", 2, &["tokenizer.json", "is not a tokenizer"], |s| {
        s.data(&s.model_with("tokenizer.json", deep("[", "]")), "{\"text\": \"x\"}\n", &[])
    }),
    case("tokenizer_config.json is broken", 2, &["tokenizer_config.json", "not a JSON object"], |s| {
        s.data(&s.model_with("tokenizer_config.json", "[1"), "{\"text\": \"x\"}\n", &[])
    }),
    case("validate lists what is wrong", 2, &["1 problem", "model.safetensors: truncated"], |s| {
        let bytes = weights();
        call(&["validate", &s.model_with("model.safetensors", &bytes[..bytes.len() / 2])])
    }),
    case("adapter of another model", 2, &["q_proj", "[64, 128]", "[64, 64]", "another model"], |s| {
        generate_with(&s.adapter(
            |_| (),
            |header| {
                for (name, tensor) in header.as_object_mut().unwrap() {
                    let narrow = name.ends_with("q_proj.lora_A.weight") && tensor["shape"] == json!([4, 64]);
                    if narrow {
                        tensor["shape"] = json!([4, 128]);
                        tensor["dtype"] = json!("BF16");
                    }
                }
            },
        ))
    }),
    case("adapter of other layers", 2, &["model.layers.7."], |s| {
        generate_with(&s.adapter(
            |_| (),
            |header| {
                let names: Vec<String> = header.as_object().unwrap().keys().cloned().collect();
                let header = header.as_object_mut().unwrap();
                for name in names {
                    let tensor = header.shift_remove(&name).unwrap();
                    header.insert(name.replace("layers.1.", "layers.7."), tensor);
                }
            },
        ))
    }),
    case("adapter of another rank than it says", 2, &["adapter_model.safetensors", "16", "4"], |s| {
        generate_with(&s.adapter(|config| config["r"] = json!(16), |_| ()))
    }),
    case("adapter of rank 0", 2, &["adapter_config.json", "r"], |s| {
        s.merge(&s.adapter(|config| config["r"] = json!(0), |_| ()))
    }),
    case("adapter_config.json is broken", 2, &["adapter_config.json", "line 1"], |s| {
        let adapter = s.adapter(|_| (), |_| ());
        fs::write(Path::new(&adapter).join("adapter_config.json"), "{\"r\": 4,").unwrap();
        s.merge(&adapter)
    }),
    case("a DoRA adapter", 2, &["adapter_config.json", "use_dora"], |s| {
        s.merge(&s.adapter(|config| config["use_dora"] = json!(true), |_| ()))
    }),
    case("validate misses an adapter's weights", 2, &["adapter_model.safetensors", "not found"], |s| {
        let adapter = s.adapter(|_| (), |_| ());
        fs::remove_file(Path::new(&adapter).join("adapter_model.safetensors")).unwrap();
        call(&["validate", &s.model(), "--lora", &adapter])
    }),
    case("adapter in the model's place whose base is nowhere", 2, &["no/where/at/all", "--adapter"], |s| {
        generate(&s.adapter(|config| config["base_model_name_or_path"] = json!("no/where/at/all"), |_| ()))
    }),
    case("adapter whose base is nowhere", 2, &["base_model_name_or_path", "--model_dir"], |s| {
        let adapter =
            s.adapter(|config| config["base_model_name_or_path"] = json!("no/where/at/all"), |_| ());
        call(&["export", &adapter, "--gguf", &s.path("out.gguf")])
    }),
    case("export of no model", 2, &["empty", "config.json"], |s| {
        fs::create_dir(s.path("empty")).unwrap();
        call(&["export", &s.path("empty"), "--gguf", &s.path("out.gguf")])
    }),
    case("export of weights cut short", 2, &["model.safetensors", "truncated"], |s| {
        let bytes = weights();
        let model = s.model_with("model.safetensors", &bytes[..bytes.len() - 1]);
        call(&["export", &model, "--gguf", &s.path("out.gguf")])
    }),
];

/// Rows, tables, templates.
const DATA: &[Case] = &[
    case("no rows file", 2, &["nowhere.jsonl", "no such file"], |s| {
        call(&["data", &s.path("nowhere.jsonl"), "--model", &llama()])
    }),
    case("a file of 0 bytes", 2, &["rows.jsonl", "no records", "instruction"], |s| s.rows("")),
    case("blank lines alone", 2, &["rows.jsonl", "no records"], |s| s.rows("\n \n\t\r\n\n")),
    case("an empty array", 2, &["rows.json", "no records"], |s| s.table("rows.json", "[]")),
    case("invalid UTF-8", 2, &["rows.jsonl", "line 2", "byte 27", "UTF-8"], |s| {
        s.rows(b"{\"text\": \"fine\"}\n{\"text\": \"\xff\xfe\"}\n")
    }),
    case("UTF-16", 2, &["rows.jsonl", "UTF-8"], |s| s.rows(b"\xff\xfe{\0\"\0t\0")),
    case("a row nests deeply", 2, &["rows.jsonl", "line 1"], |s| s.rows(deep("{\"text\":", "}"))),
    case("an array nests deeply", 2, &["rows.json", "line 1"], |s| s.table("rows.json", deep("[", "]"))),
    case("a row that is no object", 2, &["rows.jsonl", "line 2", "expected an object"], |s| {
        s.rows("{\"text\": \"x\"}\n17\n")
    }),
    case("a missing key", 2, &["rows.jsonl", "line 4", "output", "instruction"], |s| {
        s.rows("{\"instruction\": \"a\", \"output\": \"b\"}\n\n\n{\"instruction\": \"a\"}\n")
    }),
    case("keys of no format", 2, &["rows.jsonl", "line 1", "question, answer", "--prompt_template"], |s| {
        s.rows("{\"question\": \"a\", \"answer\": \"b\"}\n")
    }),
    case("a value of another type", 2, &["rows.jsonl", "line 1", "output", "string", "number"], |s| {
        s.rows("{\"instruction\": \"a\", \"output\": 3}\n")
    }),
    case("a trailing comma", 2, &["rows.json", "line 3", "trailing comma"], |s| {
        s.table("rows.json", "[\n{\"text\": \"a\"},\n]")
    }),
    case("a comma after a key", 2, &["rows.jsonl", "line 2", "trailing comma"], |s| {
        s.rows("{\"text\": \"a\"}\n{\"text\": \"b\",}\n")
    }),
    case("a row over two lines", 2, &["rows.jsonl", "line 1", "JSONL"], |s| s.rows("{\"text\":\n\"a\"}\n")),
    case("text and no records", 2, &["rows.jsonl", "starts with", "JSONL"], |s| s.rows("hello\n")),
    case("a conversation without turns", 2, &["rows.jsonl", "line 1", "messages"], |s| {
        s.rows("{\"messages\": []}\n")
    }),
    case("a turn without its role", 2, &["rows.jsonl", "line 1", "messages[1]", "role"], |s| {
        s.rows("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"content\": \"b\"}]}\n")
    }),
    case("ragged table", 2, &["rows.csv", "line 3", "2"], |s| {
        s.table("rows.csv", "instruction,output\na,b\na,b,c\n")
    }),
    case("a quote that is never closed", 2, &["rows.csv", "line 2", "never closed"], |s| {
        s.table("rows.csv", "instruction,output\na,\"b\nc,d\n")
    }),
    case("Parquet cut short", 2, &["rows.parquet", "parquet"], |s| {
        let bytes = fs::read(fixture("data/alpaca.parquet")).unwrap();
        s.table("rows.parquet", &bytes[..bytes.len() / 2])
    }),
    case("Parquet with a broken page", 2, &["rows.parquet", "damaged"], |s| {
        let mut bytes = fs::read(fixture("data/chat-zstd.parquet")).unwrap();
        let length = bytes.len();
        bytes[4..length / 2].fill(0x5a);
        s.table("rows.parquet", &bytes)
    }),
    case("gzip cut short", 2, &["rows.jsonl.gz", "gzip", "cut short"], |s| {
        let bytes = gzip(&"{\"text\": \"some words\"}\n".repeat(1000));
        s.table("rows.jsonl.gz", &bytes[..bytes.len() / 2])
    }),
    case("gzip that is damaged", 2, &["rows.jsonl.gz", "gzip", "damaged"], |s| {
        let mut bytes = gzip(&"{\"text\": \"some words\"}\n".repeat(1000));
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8].fill(0xff);
        s.table("rows.jsonl.gz", &bytes)
    }),
    case("Zstandard that is damaged", 2, &["rows.jsonl.zst", "Zstandard"], |s| {
        let mut bytes = zstd::encode_all(&b"{\"text\": \"some words\"}\n"[..], 3).unwrap();
        bytes.truncate(12);
        s.table("rows.jsonl.zst", &bytes)
    }),
    case("64 MiB of blanks in 64 KiB of gzip", 2, &["rows.jsonl.gz", "no records"], |s| {
        s.table("rows.jsonl.gz", gzip(&" ".repeat(64 << 20)))
    }),
    case("a template of broken Jinja", 2, &["template.jinja", "line 2"], |s| {
        s.templated("{{ text }}\n{% if text %}")
    }),
    case("a template without end", 2, &["rows.jsonl", "line 1", "does not come to an end"], |s| {
        s.templated("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}")
    }),
    case("a template that includes itself", 2, &["template.jinja", "line 1"], |s| {
        s.templated("{% include 'template' %}")
    }),
    case("a macro that calls itself", 2, &["template.jinja", "line 1"], |s| {
        s.templated("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}")
    }),
    case("a template of doubling text", 2, &["rows.jsonl", "line 1"], |s| {
        s.templated("{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}")
    }),
    case("a template of repeated text", 2, &["rows.jsonl", "line 1"], |s| {
        s.templated("{{ 'ab' * 100000000000 }}")
    }),
    case("a template of nested brackets", 2, &["template.jinja", "line 1"], |s| {
        s.templated(&["{{ ", &deep("(", ")"), " }}"].concat())
    }),
    case("a template of nested blocks", 2, &["template.jinja", "line 1"], |s| {
        s.templated(&deep("{% if 1 %}", "{% endif %}"))
    }),
    case("a template of a long sum", 2, &["template.jinja", "limit of 131072"], |s| {
        s.templated(&["{{ text", &" + 1".repeat(DEEP), " }}"].concat())
    }),
    case("a template of a long chain", 2, &["template.jinja", "limit of 131072"], |s| {
        s.templated(&["{{ text", &".a".repeat(DEEP), " }}"].concat())
    }),
    case("the longest chain that a template has room for", 2, &["rows.jsonl", "line 1", "undefined"], |s| {
        s.templated(&["{{ text", &".a".repeat(65_000), " }}"].concat())
    }),
    case("the most branches that a template has room for", 2, &["rows.jsonl", "line 1", "none holds"], |s| {
        s.templated(
            &[
                "{% if 0 %}",
                &"{%elif 0%}".repeat(13_000),
                "{% else %}{{ raise_exception('none holds') }}{% endif %}",
            ]
            .concat(),
        )
    }),
    case("a template that refuses", 2, &["rows.jsonl", "line 1", "no system role here"], |s| {
        s.templated("{{ raise_exception('no system role here') }}")
    }),
    case("the model's own template is broken", 2, &["chat_template", "line 1"], |s| {
        let model = s.model_with("chat_template.jinja", "{% for m in messages %}");
        s.data(&model, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n", &[])
    }),
];

/// Options, configuration files, output folders, saved steps.
const OPTIONS: &[Case] = &[
    case("a learning rate that is no number", 2, &["--learning_rate", "NaN"], |s| {
        s.finetune(&llama(), &["--learning_rate", "NaN"])
    }),
    case("a negative batch", 2, &["--batch_size", "-4"], |s| s.finetune(&llama(), &["--batch_size", "-4"])),
    case("max_seq_length 1", 2, &["--max_seq_length", "at least 2"], |s| {
        s.finetune(&llama(), &["--max_seq_length", "1"])
    }),
    case("answers beyond max_seq_length", 2, &["label", "max_seq_length is 4"], |s| {
        s.finetune(&llama(), &["--max_seq_length", "4"])
    }),
    case("an unknown option", 2, &["--lora_rnak", "lora_rank"], |s| {
        s.finetune(&llama(), &["--lora_rnak", "4"])
    }),
    case("a configuration with tabs", 2, &["run.yaml:2", "tab"], |s| {
        s.configuration("train:\n\tepochs: 2\n")
    }),
    case("a configuration with unknown keys", 2, &["run.yaml:2", "lora_rnak", "lora_rank"], |s| {
        s.configuration("lora_alpha: 4\nlora_rnak: 4\n")
    }),
    case(
        "a configuration with a key twice",
        2,
        &["run.yaml:2", "lora_rank is said before, in line 1"],
        |s| s.configuration("lora_rank: 4\nlora_rank: 8\n"),
    ),
    case("a configuration that nests deeply", 2, &["run.yaml:1", "recursion limit"], |s| {
        s.configuration(deep("[", "]"))
    }),
    case("a configuration of nested lists", 2, &["run.yaml", "nested too deeply"], |s| {
        s.configuration("- ".repeat(DEEP))
    }),
    case("a configuration of nested keys", 2, &["run.yaml", "nested too deeply"], |s| {
        s.configuration("? ".repeat(DEEP))
    }),
    case("a configuration of aliases of aliases", 2, &["run.yaml:", "alias"], |s| {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", vec![alias; 10].join(", "));
        }
        s.configuration(text)
    }),
    case("a configuration of invalid UTF-8", 2, &["run.yaml", "UTF-8"], |s| s.configuration(b"seed: \xff\n")),
    case("a configuration that is a list", 2, &["run.yaml:1", "key: value"], |s| {
        s.configuration("- 1\n- 2\n")
    }),
    case("a memory limit of 1 MiB", 3, &["limit of 1.0 MiB", "--micro_batch_size 1"], |s| {
        s.finetune(&llama(), &["--memory_limit", "1MiB"])
    }),
    case("a plan of nothing", 2, &["--data.json_path", "--max_seq_length"], |_| {
        call(&["plan", "--shape", "llama-3.1-8b"])
    }),
    case("an unknown device", 4, &["no such device", "available"], |s| {
        s.finetune(&llama(), &["--gpu", "no such device"])
    }),
    case("a device that is an unknown index", 4, &["99", "available"], |_| {
        generate(&llama()).and(&["--gpu", "99"])
    }),
    case("prompts for evaluation are empty", 2, &["--eval_prompts", "prompts.txt", "one per line"], |s| {
        let prompts = s.file("prompts.txt", "\n\n");
        s.finetune(&llama(), &["--eval_interval", "1", "--eval_prompts", &prompts])
    }),
    case("an empty prompt", 2, &["the prompt is empty", "--prompt"], |_| {
        call(&["generate", &llama()]).and(&["--prompt", ""])
    }),
    case("a prompt of invalid UTF-8", 2, &["standard input", "UTF-8"], |_| {
        call(&["generate", &llama()]).typed(b"\xff\xfe")
    }),
    case("a prompt over the model's limit", 2, &["128", "shorten"], |_| {
        call(&["generate", &llama(), "--prompt", &"word ".repeat(500)])
    }),
    case("a temperature below 0", 2, &["--temperature", "-1"], |_| {
        generate(&llama()).and(&["--temperature", "-1"])
    }),
    case("out_dir under a file", 2, &["--out_dir", "file"], |s| {
        let file = s.file("file", "mine");
        s.finetune(&llama(), &["--out_dir", &format!("{file}/out")])
    }),
    case("out_dir is the model", 2, &["--out_dir", "overwrite"], |s| {
        let model = s.model();
        s.finetune(&model, &["--out_dir", &model])
    }),
    case("out_dir is another model", 2, &["--out_dir", "holds config.json", "another folder"], |s| {
        let model = s.model();
        s.finetune(&llama(), &["--out_dir", &model])
    }),
    case("out_dir is an adapter of others", 2, &["--out_dir", "adapter_config.json"], |s| {
        let adapter = s.adapter(|_| (), |_| ());
        s.finetune(&llama(), &["--out_dir", &adapter])
    }),
    case(
        "saved steps that no disk has room for",
        2,
        &["--out_dir", "are free", "500000 saved steps", "--keep_last"],
        |s| {
            let long = ["--max_steps", "500000", "--epochs", "500000", "--save_interval", "1"];
            s.finetune(&llama(), &["--lora_rank", "4096"]).and(&long)
        },
    ),
    case("a time between saves that is none", 2, &["--autosave", "soon", "90m"], |s| {
        s.finetune(&llama(), &["--autosave", "soon"])
    }),
    case("a merge into a folder with files", 2, &["model", "--out_dir"], |s| {
        let adapter = s.adapter(|_| (), |_| ());
        call(&["merge", &adapter, "--model_dir", &llama(), "--out_dir", &s.model()])
    }),
    case("an export under a file", 1, &["file/model.gguf", "file is a file, not a folder"], |s| {
        let file = s.file("file", "mine");
        call(&["export", &llama(), "--gguf", &format!("{file}/model.gguf")])
    }),
    case("a step to go on from that is nowhere", 2, &["nowhere", "--resume"], |s| {
        s.finetune(&llama(), &["--resume", &s.path("nowhere")])
    }),
    case(
        "a saved step whose state is cut short",
        2,
        &["training_state.json", "not the state of a run", "--resume"],
        |s| s.resumed("training_state.json", |bytes| bytes.truncate(bytes.len() / 2)),
    ),
    case(
        "a saved step whose tensors are cut short",
        2,
        &["training_state.safetensors", "truncated", "no earlier step", "remove"],
        |s| s.resumed("training_state.safetensors", |bytes| bytes.truncate(bytes.len() / 2)),
    ),
    case("a saved step of other options", 2, &["training_state.json", "--seed", "1337", "7"], |s| {
        s.resumed("training_state.safetensors", |_| ()).and(&["--seed", "7"])
    }),
    case("rows for evaluation are missing", 2, &["--data.json_path", "--data FILE"], |_| {
        call(&["evaluate", &llama()])
    }),
    case("evaluation of rows without answers", 2, &["rows.jsonl", "label"], |s| {
        let rows = s.file("rows.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
        call(&["evaluate", &llama(), "--data", &rows])
    }),
    #[cfg(unix)]
    case(
        "a full disk while training",
        1,
        &["adapter_model.safetensors", "cannot be written", "free space"],
        |s| s.finetune(&llama(), &["--lora_rank", "32"]).limited(64),
    ),
    #[cfg(unix)]
    case("a full disk while merging", 1, &["out/model.safetensors", "cannot write", "disk not full"], |s| {
        s.merge(&s.adapter(|_| (), |_| ())).limited(64)
    }),
    #[cfg(unix)]
    case("a full disk while exporting", 1, &["out.gguf", "cannot write", "disk not full"], |s| {
        call(&["export", &llama(), "--gguf", &s.path("out.gguf")]).limited(64)
    }),
];

#[test]
fn every_bad_input_is_named_and_leaves_nothing_behind() {
    if common::gpu().is_none() {
        return;
    }
    let cases: Vec<&Case> = [MODELS, DATA, OPTIONS].into_iter().flatten().collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = check(case);
                    let mut rows = rows.lock().unwrap_or_else(|e| e.into_inner());
                    rows.insert(case.name, outcome);
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap();
    assert_eq!(rows.len(), cases.len(), "two cases have the same name");
    let mut wrong = Vec::new();
    for case in &cases {
        let (found, problems) = &rows[case.name];
        println!("{found}");
        wrong.extend(problems.iter().map(|problem| format!("{}: {problem}\n{found}", case.name)));
    }
    println!("{} bad inputs", cases.len());
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A row of the table, and what is wrong with it.
fn check(case: &Case) -> (String, Vec<String>) {
    let scratch = Scratch(tempfile::tempdir().unwrap());
    let call = (case.call)(&scratch);
    let before = scratch.files();
    let Outcome { code, said, printed, seconds } = call.run(scratch.0.path());
    let mut problems = Vec::new();
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    require(code == Some(case.exit), format!("exit code {code:?} in place of {}", case.exit));
    for word in case.words {
        // what `validate` finds is its result
        let found = said.contains(word) || case.name.contains("validate") && printed.contains(word);
        require(found, format!("does not say {word:?}"));
    }
    require(!said.contains("panicked"), "a panic".into());
    require(said.len() < LONGEST, format!("a message of {} bytes", said.len()));
    require(
        said.lines().any(|line| line.starts_with("engraft: ") || line.starts_with("error: ")),
        "no error".into(),
    );
    let after = scratch.files();
    let half = after
        .keys()
        .find(|name| name.split('/').any(|part| part.ends_with(".tmp") || part.ends_with(".part")));
    require(half.is_none(), format!("left {half:?}"));
    for (name, size) in &before {
        require(after.get(name) == Some(size), format!("changed {name}"));
    }
    // a run that was refused writes nothing at all; one that failed keeps its logs, but has no result
    let results = ["adapter_model.safetensors", "adapter_config.json", ".gguf", "model.safetensors"];
    for name in after.keys().filter(|name| !before.contains_key(*name)) {
        let allowed = case.exit == 1 && !results.iter().any(|result| name.ends_with(result));
        require(allowed, format!("wrote {name}"));
    }
    let message: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let message = message.join("\n    ").replace(&scratch.0.path().display().to_string(), "…");
    (format!("{} ({}, {seconds:.1} s)\n    {message}", case.name, code.unwrap_or(-1)), problems)
}

/// A folder of a case's own.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// The files of a folder, without those in folders in it.
    fn copy(&self, from: &Path, name: &str) -> String {
        let to = self.0.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in
            fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file())
        {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to.display().to_string()
    }

    fn model(&self) -> String {
        self.copy(Path::new(&llama()), "model")
    }

    fn model_with(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let model = self.model();
        fs::write(Path::new(&model).join(name), content).unwrap();
        model
    }

    fn configured(&self, change: fn(&mut Value)) -> String {
        self.model_with(
            "config.json",
            edited(&fs::read(Path::new(&llama()).join("config.json")).unwrap(), change),
        )
    }

    /// PEFT's adapter of the model, changed.
    fn adapter(&self, config: fn(&mut Value), header: fn(&mut Value)) -> String {
        let from = fixture("models/llama/ref/adapter");
        let adapter = self.copy(&from, "adapter");
        let write = |name: &str, bytes: Vec<u8>| fs::write(Path::new(&adapter).join(name), bytes).unwrap();
        write("adapter_config.json", edited(&fs::read(from.join("adapter_config.json")).unwrap(), config));
        let weights = fs::read(from.join("adapter_model.safetensors")).unwrap();
        write("adapter_model.safetensors", rewritten(&weights, header));
        adapter
    }

    /// A short run on a few good rows.
    fn finetune(&self, model: &str, options: &[&str]) -> Call {
        let rows: Vec<Value> =
            (0..8).map(|i| json!({"instruction": format!("Say {i}"), "output": "ab"})).collect();
        let rows = self.file("good.json", json!(rows).to_string());
        let usual = ["--data.val_split_fraction", "0.25", "--max_steps", "2", "--precision", "32-true"];
        let out = self.path("out");
        call(&["finetune", model, "--data", &rows, "--out_dir", &out, "--tune", "off"])
            .and(&usual)
            .and(options)
    }

    fn configuration(&self, text: impl AsRef<[u8]>) -> Call {
        let file = self.file("run.yaml", text);
        self.finetune(&llama(), &["--config", &file])
    }

    /// A run that goes on from a step, one of whose files was changed.
    fn resumed(&self, name: &str, change: fn(&mut Vec<u8>)) -> Call {
        let first = self.finetune(&llama(), &["--save_interval", "1"]);
        let Outcome { code, said, .. } = first.run(self.0.path());
        assert_eq!(code, Some(0), "{said}");
        let out = self.0.path().join("out");
        let step = out.join("step-000001");
        let mut bytes = fs::read(step.join(name)).unwrap();
        change(&mut bytes);
        fs::write(step.join(name), bytes).unwrap();
        first.and(&["--resume", step.to_str().unwrap()])
    }

    fn merge(&self, adapter: &str) -> Call {
        call(&["merge_lora", adapter, "--model_dir", &llama(), "--out_dir", &self.path("out")])
    }

    fn data(&self, model: &str, rows: &str, options: &[&str]) -> Call {
        call(&["data", &self.file("rows.jsonl", rows), "--model", model]).and(options)
    }

    fn rows(&self, content: impl AsRef<[u8]>) -> Call {
        self.table("rows.jsonl", content)
    }

    fn table(&self, name: &str, content: impl AsRef<[u8]>) -> Call {
        call(&["data", &self.file(name, content), "--model", &llama()])
    }

    /// A good row that a template writes.
    fn templated(&self, template: &str) -> Call {
        let template = self.file("template.jinja", template);
        self.data(&llama(), "{\"text\": \"a\", \"answer\": \"b\"}\n", &["--prompt_template", &template])
    }

    /// Every file, with its size.
    fn files(&self) -> BTreeMap<String, u64> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.0.path().to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else {
                    let name = entry.strip_prefix(self.0.path()).unwrap().display().to_string();
                    found.insert(name.replace('\\', "/"), entry.metadata().unwrap().len());
                }
            }
        }
        found
    }
}

/// How a command ended.
struct Outcome {
    /// None where it was ended for taking too long.
    code: Option<i32>,
    /// On standard error, and on standard output.
    said: String,
    printed: String,
    seconds: f64,
}

/// A command with what is typed into it.
struct Call {
    words: Vec<String>,
    input: &'static [u8],
    /// Blocks of 512 bytes that a file may have.
    largest: Option<usize>,
}

fn call(words: &[&str]) -> Call {
    Call { words: words.iter().map(|word| word.to_string()).collect(), input: b"", largest: None }
}

fn generate(model: &str) -> Call {
    call(&["generate", model, "--prompt", "a", "--max_new_tokens", "2"])
}

fn generate_with(adapter: &str) -> Call {
    generate(&llama()).and(&["--lora", adapter])
}

impl Call {
    fn and(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| word.to_string()));
        self
    }

    fn typed(self, input: &'static [u8]) -> Self {
        Call { input, ..self }
    }

    /// With a disk that is full as soon as a file has so many KiB.
    #[cfg(unix)]
    fn limited(self, kib: usize) -> Self {
        Call { largest: Some(kib * 2), ..self }
    }

    fn run(&self, folder: &Path) -> Outcome {
        let binary = env!("CARGO_BIN_EXE_engraft");
        let mut command = match self.largest {
            // the signal is ignored, so that writing fails as it does where the disk is full
            Some(blocks) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""), binary]);
                shell
            }
            None => Command::new(binary),
        };
        if let (Ok(gpu), true) = (std::env::var("ENGRAFT_TEST_GPU"), self.words[0] == "finetune") {
            // before the case's own
            command.args([&self.words[0], "--gpu", &gpu]).args(&self.words[1..]);
        } else {
            command.args(&self.words);
        }
        command
            .env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
            .env("HF_HUB_OFFLINE", "1");
        command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        // a command that is refused before it reads has closed the pipe
        let _ = child.stdin.take().unwrap().write_all(self.input);
        let (stderr, stdout) = (read(child.stderr.take().unwrap()), read(child.stdout.take().unwrap()));
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            if start.elapsed() > LIMIT {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let seconds = start.elapsed().as_secs_f64();
        Outcome { code, said: stderr.join().unwrap(), printed: stdout.join().unwrap(), seconds }
    }
}

/// What a pipe gives, on a thread of its own, so that no pipe is full.
fn read(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn fixture(name: &str) -> PathBuf {
    common::fixtures().join(name)
}

fn llama() -> String {
    fixture("models/llama").display().to_string()
}

fn weights() -> Vec<u8> {
    fs::read(fixture("models/llama/model.safetensors")).unwrap()
}

/// The model's weights under another header.
fn with_header(change: fn(&mut Value)) -> Vec<u8> {
    rewritten(&weights(), change)
}

fn rewritten(file: &[u8], change: fn(&mut Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = edited(&file[8..8 + length], change);
    safetensors(std::str::from_utf8(&header).unwrap(), &file[8 + length..])
}

fn safetensors(header: &str, tensors: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), tensors].concat()
}

fn edited(json: &[u8], change: fn(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(json).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

fn deep(open: &str, close: &str) -> String {
    [open.repeat(DEEP), close.repeat(DEEP)].concat()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}
