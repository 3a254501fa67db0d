//! Data against what transformers and Python's tokenizers say of the same texts, and every bad input with its
//! message.

use std::path::{Path, PathBuf};

use engraft::data::{
    DataError, Dataset, DatasetOptions, MicroBatch, PromptStyle, Record, Sample, SampleOptions, Tokenizer,
    read_records, tokenize_records,
};
use serde_json::{Value, json};

// -----------------------------------------------------------------------------
// Fixtures

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "gemma", "gpt_neox"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn model_dir(family: &str) -> PathBuf {
    fixtures().join("models").join(family)
}

fn reference(family: &str) -> Value {
    let file = fixtures().join("tokenizer").join(format!("{family}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn tokenizer(family: &str) -> Tokenizer {
    Tokenizer::open(&model_dir(family)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap().iter();
    list.map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn record(instruction: &str, input: &str, output: &str) -> Record {
    Record {
        instruction: instruction.to_owned(),
        input: (!input.is_empty()).then(|| input.to_owned()),
        output: output.to_owned(),
        system: None,
    }
}

/// Tokens before the first label.
fn masked(sample: &Sample) -> usize {
    sample.spans()[0].start as usize
}

const ALPACA: SampleOptions =
    SampleOptions { style: PromptStyle::Alpaca, mask_prompt: true, max_seq_length: None };

// -----------------------------------------------------------------------------
// Tokenizers

#[test]
fn encodings_and_texts_equal_transformers() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let reference = reference(family);
        let cases = reference["encode"].as_array().unwrap();
        assert_eq!(cases.len(), 13);
        for case in cases {
            let name = format!("{family}: {}", case["text"]);
            let (expected, source) = (ids(&case["ids"]), text(&case["text"]));
            assert_eq!(tokenizer.encode(source).unwrap(), expected, "{name}");
            assert_eq!(tokenizer.encode_plain(source).unwrap(), ids(&case["ids_without_special"]), "{name}");
            assert_eq!(
                tokenizer.decode(&expected).unwrap(),
                text(&case["decoded_without_special"]),
                "{name}"
            );
        }
    }
}

#[test]
fn alpaca_prompts_and_label_masks_equal_transformers() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let reference = reference(family);
        let cases: Vec<&Value> =
            reference["alpaca"].as_array().unwrap().iter().filter(|case| case["style"] == "litgpt").collect();
        assert_eq!(cases.len(), 4);
        let records: Vec<Record> = cases
            .iter()
            .map(|case| record(text(&case["instruction"]), text(&case["input"]), text(&case["output"])))
            .collect();
        let samples = tokenize_records(&records, &tokenizer, &ALPACA).unwrap();
        for ((case, record), sample) in cases.iter().zip(&records).zip(&samples) {
            let name = format!("{family}: {}", record.instruction);
            assert_eq!(
                PromptStyle::Alpaca.prompt(&record.instruction, record.input.as_deref()),
                text(&case["prompt"]),
                "{name}"
            );
            assert_eq!(sample.tokens, ids(&case["input_ids"]), "{name}");
            let labels: Vec<i64> = serde_json::from_value(case["labels"].clone()).unwrap();
            assert_eq!(sample.labels(), labels, "{name}");
            assert_eq!(masked(sample) as u64, case["prompt_tokens"].as_u64().unwrap());
        }
    }
}

#[test]
fn special_tokens_come_from_the_folder() {
    let facts = FAMILIES.map(|family| {
        let tokenizer = tokenizer(family);
        assert_eq!(tokenizer.stop_tokens(), [tokenizer.eos()], "{family}");
        (tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size())
    });
    assert_eq!(
        facts,
        [
            (Some(506), 510, 512),
            (Some(1), 2, 512),
            (None, 508, 509),
            (Some(2), 1, 512),
            (Some(510), 510, 512),
        ]
    );
}

#[test]
fn bos_is_never_doubled() {
    let tokenizer = tokenizer("llama");
    let bos = tokenizer.bos().unwrap();
    let plain = tokenizer.encode("Hello").unwrap();
    assert_eq!(plain[0], bos);
    assert_eq!(tokenizer.encode("<|begin_of_text|>Hello").unwrap(), plain);
}

#[test]
fn a_stream_of_ids_gives_the_whole_text_and_never_half_a_character() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        for case in reference(family)["encode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let mut stream = tokenizer.decode_stream();
            let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
            assert!(
                pieces.iter().all(|piece| !piece.is_empty() && !piece.contains('\u{fffd}')),
                "{family}: {pieces:?}"
            );
            pieces.extend(stream.finish().unwrap());
            assert_eq!(pieces.concat(), text(&case["decoded_without_special"]), "{family}: {}", case["text"]);
        }
    }
}

#[test]
fn a_stream_that_ends_inside_a_character_says_so_at_the_end() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let whole = tokenizer.encode_plain("é 🙂").unwrap();
        let mut stream = tokenizer.decode_stream();
        let given: String = whole[..whole.len() - 1].iter().filter_map(|&id| stream.push(id)).collect();
        assert!("é ".starts_with(given.as_str()), "{family}: {given:?}");
        let rest = stream.finish().unwrap().unwrap();
        assert!(rest.ends_with('\u{fffd}'), "{family}: {rest:?}");
    }
}

#[test]
fn an_invalid_byte_does_not_take_back_what_was_given() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let bytes = tokenizer.encode_plain("日").unwrap();
        let first = bytes[bytes.len() - 3];
        let after = *tokenizer.encode_plain("x").unwrap().last().unwrap();
        let mut stream = tokenizer.decode_stream();
        let pieces: Vec<String> =
            bytes.iter().chain([&first, &after]).filter_map(|&id| stream.push(id)).collect();
        let text = pieces.concat();
        assert!(text.trim_start().starts_with('日') && text.ends_with('x'), "{family}: {pieces:?}");
        assert!(text.contains('\u{fffd}'), "{family}: {pieces:?}");
        assert_eq!(stream.finish().unwrap(), None);
    }
}

/// A copy of the llama tokenizer's folder whose files can be changed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for name in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
            std::fs::copy(model_dir("llama").join(name), folder.file(name)).unwrap();
        }
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    fn open(&self) -> Tokenizer {
        Tokenizer::open(self.0.path()).unwrap()
    }

    /// The message of the refusal, without the folder's path.
    fn refusal(&self) -> String {
        let error = Tokenizer::open(self.0.path()).err().unwrap();
        let folder = format!("{}", self.0.path().display());
        error
            .to_string()
            .replace(&format!("{folder}{}", std::path::MAIN_SEPARATOR), "")
            .replace(&folder, "MODEL")
    }
}

#[test]
fn bos_follows_the_configuration_where_the_post_processor_adds_none() {
    let folder = Folder::new();
    folder.edit("tokenizer.json", |t| t["post_processor"] = Value::Null);
    assert_eq!(folder.open().encode("Hi").unwrap(), [39, 72]);
    for (switch, expected) in [(true, vec![506, 39, 72]), (false, vec![39, 72])] {
        folder.edit("tokenizer_config.json", |c| c["add_bos_token"] = json!(switch));
        assert_eq!(folder.open().encode("Hi").unwrap(), expected);
        assert_eq!(folder.open().encode_plain("Hi").unwrap(), [39, 72]);
    }
    let both = Folder::new();
    both.edit("tokenizer_config.json", |c| c["add_bos_token"] = json!(true));
    assert_eq!(both.open().encode("Hi").unwrap(), [506, 39, 72]);
}

#[test]
fn a_post_processor_that_appends_eos_leaves_prompts_open() {
    let folder = Folder::new();
    folder.edit("tokenizer.json", |t| {
        let template = &mut t["post_processor"]["processors"][1];
        let eos = json!({"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}});
        template["single"].as_array_mut().unwrap().push(eos);
        template["special_tokens"]["<|eot_id|>"] =
            json!({"id": "<|eot_id|>", "ids": [510], "tokens": ["<|eot_id|>"]});
    });
    let tokenizer = folder.open();
    assert_eq!(tokenizer.encode("Hi").unwrap(), [506, 39, 72]);
    let sample = &tokenize_records(&[record("a", "", "b")], &tokenizer, &ALPACA).unwrap()[0];
    assert_eq!(sample.tokens.iter().filter(|&&id| id == 510).count(), 1);
    assert_eq!(sample.tokens.last(), Some(&510));
}

#[test]
fn padding_and_truncation_saved_in_the_tokenizer_are_ignored() {
    let folder = Folder::new();
    folder.edit("tokenizer.json", |t| {
        t["truncation"] =
            json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        t["padding"] = json!({"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null,
                              "pad_id": 511, "pad_type_id": 0, "pad_token": "<|finetune_right_pad_id|>"});
    });
    assert_eq!(
        folder.open().encode("Hello, world!").unwrap(),
        tokenizer("llama").encode("Hello, world!").unwrap()
    );
}

#[test]
fn eos_falls_back_from_file_to_file() {
    let folder = Folder::new();
    folder.edit("generation_config.json", |c| c["eos_token_id"] = json!([507, 510]));
    folder.edit("config.json", |c| c["eos_token_id"] = json!([507, 508]));
    assert_eq!(folder.open().stop_tokens(), [510, 507, 508]);

    folder.edit("tokenizer_config.json", |c| {
        c["eos_token"] = json!({"content": "<|end_of_text|>", "special": true});
    });
    assert_eq!(folder.open().stop_tokens(), [507, 510, 508]);

    folder.remove("tokenizer_config.json");
    assert_eq!(folder.open().eos(), 507);
    assert_eq!(folder.open().bos(), Some(506));
    folder.remove("config.json");
    assert_eq!((folder.open().eos(), folder.open().bos()), (507, None));
    folder.remove("generation_config.json");
    assert_eq!(
        folder.refusal(),
        "MODEL: the model names no token that ends an answer: set `eos_token` in tokenizer_config.json or \
         `eos_token_id` in config.json"
    );
}

#[test]
fn broken_tokenizer_folders_are_refused_by_file_and_key() {
    let refusal = |change: &dyn Fn(&Folder)| {
        let folder = Folder::new();
        change(&folder);
        folder.refusal()
    };
    let edited = |name: &'static str, key: &'static str, value: Value| {
        refusal(&|folder| folder.edit(name, |file| file[key] = value.clone()))
    };
    assert_eq!(
        refusal(&|folder| folder.remove("tokenizer.json")),
        "tokenizer.json: no such file: the model folder needs a tokenizer.json; from other tokenizer files \
         it is made in Python by AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    );
    for broken in ["", "{", "[]", "{}", r#"{"model": 3}"#] {
        let message = refusal(&|folder| std::fs::write(folder.file("tokenizer.json"), broken).unwrap());
        assert!(message.starts_with("tokenizer.json: is not a tokenizer that can be read: "), "{message}");
    }
    for name in ["tokenizer_config.json", "config.json", "generation_config.json"] {
        let message = refusal(&|folder| std::fs::write(folder.file(name), "[1]").unwrap());
        assert!(message.starts_with(&format!("{name}: is not a JSON object: ")), "{message}");
    }
    assert_eq!(
        edited("tokenizer_config.json", "eos_token", json!("<nope>")),
        "tokenizer_config.json: the key `eos_token` names the token \"<nope>\", which tokenizer.json does \
         not have: the two files do not belong together"
    );
    assert_eq!(
        edited("tokenizer_config.json", "eos_token", json!(7)),
        "tokenizer_config.json: the key `eos_token` must be a string or an object with `content`, found 7"
    );
    assert_eq!(
        edited("tokenizer_config.json", "add_bos_token", json!("yes")),
        "tokenizer_config.json: the key `add_bos_token` must be true or false, found \"yes\""
    );
    for bad in [json!("2"), json!(-1), json!(1.5), json!([1, null]), json!(4_294_967_296_u64)] {
        assert_eq!(
            edited("config.json", "eos_token_id", bad.clone()),
            format!(
                "config.json: the key `eos_token_id` must be a token id or a list of token ids, found {bad}"
            )
        );
    }
    assert_eq!(
        refusal(&|folder| {
            folder.edit("tokenizer.json", |t| t["post_processor"] = Value::Null);
            folder.edit("config.json", |c| c["bos_token_id"] = Value::Null);
            folder.edit("tokenizer_config.json", |c| {
                c["bos_token"] = Value::Null;
                c["add_bos_token"] = json!(true);
            });
        }),
        "tokenizer_config.json: `add_bos_token` is true but no token is named: set `bos_token` there or \
         `bos_token_id` in config.json"
    );
}

// -----------------------------------------------------------------------------
// Records

/// A file with this content; the folder lives as long as the pair.
fn data_file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, content).unwrap();
    (folder, file)
}

fn read(content: impl AsRef<[u8]>) -> Result<Vec<Record>, DataError> {
    let (_folder, file) = data_file("data", content);
    read_records(&file)
}

/// The message of a refused file, after the file's name.
#[track_caller]
fn refused(content: impl AsRef<[u8]>) -> String {
    let (_folder, file) = data_file("rows.json", content);
    let message = read_records(&file).unwrap_err().to_string();
    let prefix = format!("{}: ", file.display());
    message.strip_prefix(&prefix).expect(&message).to_owned()
}

#[test]
fn arrays_and_lines_give_the_same_records() {
    let expected = [record("a", "", "x"), record("b", "i", "y"), record("ü\n", "", "z"), record("", "", "w")];
    let lines = [
        r#"{"instruction": "a", "output": "x", "id": 4, "tags": ["t"]}"#,
        r#"{"output": "y", "instruction": "b", "input": "i"}"#,
        r#"{"instruction": "\u00fc\n", "input": null, "output": "z"}"#,
        r#"{"instruction": "", "input": "", "output": "w"}"#,
    ];
    let array = format!("[{}]", lines.join(",\n"));
    for content in [
        array.clone(),
        format!("\u{feff}{array}\n"),
        format!("\r\n \t{array}\r\n"),
        lines.join("\n"),
        format!("{}\n", lines.join("\r\n")),
        format!("\u{feff}\n\n{}\n \n", lines.join("\n\r\n")),
    ] {
        assert_eq!(read(&content).unwrap(), expected, "{content:?}");
    }
}

#[test]
fn files_that_hold_no_records_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.json");
    assert_eq!(
        read_records(&missing).unwrap_err().to_string(),
        format!(
            "{}: no such file: name a file of records (JSON, JSONL, CSV, Parquet) or a folder with train.* and val.*",
            missing.display()
        )
    );
    assert_eq!(
        read_records(folder.path()).unwrap_err().to_string(),
        format!("{}: is a directory: name the file in it", folder.path().display())
    );
    for content in ["", " \n\r\n\t", "\u{feff}", "[]", " [ ] \n"] {
        assert_eq!(
            refused(content),
            "holds no records: a record is an object with `instruction` and `output`, with `messages`, with `prompt` \
             and `completion`, or with `text`",
            "{content:?}"
        );
    }
    assert_eq!(
        refused("instruction,output\n"),
        "starts with 'i': expected `[` (a JSON array of records) or `{` (JSONL, one record per line); a table \
         must be named .csv or .tsv"
    );
    assert_eq!(
        refused(b"[\n{\"instruction\": \"\xff\"}]"),
        "line 2: byte 19 of the file is not valid UTF-8: save the file as UTF-8"
    );
    assert!(refused(b"\xff\xfe[\0]\0").starts_with("line 1: byte 0 of the file is not valid UTF-8"));
}

#[test]
fn broken_json_is_refused_with_line_and_column() {
    let row = r#"{"instruction": "a", "output": "x"}"#;
    assert_eq!(refused(format!("[\n{row},\n{row},\n]")), "line 4, column 1: broken JSON: trailing comma");
    assert_eq!(refused(format!("[{row}\n{row}]")), "line 2, column 1: broken JSON: expected `,` or `]`");
    assert_eq!(refused(format!("[{row},")), "line 1, column 37: broken JSON: EOF while parsing a value");
    assert_eq!(refused(format!("[{row}]\n[{row}]")), "line 2, column 1: broken JSON: trailing characters");
    assert_eq!(
        refused(format!("{row}\n\n{{\"instruction\": \"b\" \"output\": 1}}\n")),
        "line 3, column 21: broken JSON: expected `,` or `}`"
    );
    assert_eq!(
        refused("{\n\"instruction\": \"a\",\n\"output\": \"x\"\n}\n"),
        "line 1, column 1: broken JSON: EOF while parsing an object: in JSONL each line holds one whole \
         record, and a JSON array starts with `[`"
    );
    assert_eq!(
        refused(r#"[{"instruction": "a", "output": NaN}]"#),
        "line 1, column 33: broken JSON: expected value"
    );
    // A file may not use up the stack.
    assert!(refused("[".repeat(100_000)).contains("recursion limit exceeded"));
}

#[test]
fn wrong_records_are_refused_with_place_and_key() {
    let good = r#"{"instruction": "a", "output": "x"}"#;
    // The same record in an array and as a line: only the place differs.
    let both = |bad: &str, expected: &str| {
        assert_eq!(
            refused(format!("[{good}, {good}, {bad}, 7]")),
            format!("record 2 (counted from 0): {expected}")
        );
        assert_eq!(refused(format!("{good}\n\n{bad}\n7\n")), format!("line 3: {expected}"));
    };
    both(
        r#"{"instruction": "a", "response": "x"}"#,
        "the key `output` is missing (keys found: instruction, response): every record needs `instruction` \
         and `output`",
    );
    both(
        r#"{"messages": []}"#,
        "the key `instruction` is missing (keys found: messages): every record needs `instruction` and \
         `output`",
    );
    both(
        "{}",
        "the key `instruction` is missing (keys found: none): every record needs `instruction` and `output`",
    );
    for (value, name) in [
        ("null", "null"),
        ("true", "a boolean"),
        ("1e3", "a number"),
        (r#"["x"]"#, "an array"),
        (r#"{"x": 1}"#, "an object"),
    ] {
        both(
            &format!(r#"{{"instruction": {value}, "output": "x"}}"#),
            &format!("the key `instruction` must be a string, found {name}"),
        );
        both(
            &format!(r#"{{"instruction": "a", "output": {value}}}"#),
            &format!("the key `output` must be a string, found {name}"),
        );
        if value != "null" {
            both(
                &format!(r#"{{"instruction": "a", "input": {value}, "output": "x"}}"#),
                &format!("the key `input` must be a string, found {name}"),
            );
        }
    }
    for (value, name) in [("null", "null"), ("[]", "an array"), ("\"a\"", "a string"), ("1", "a number")] {
        both(value, &format!("expected an object, found {name}: a record is its keys with their values"));
    }
}

// -----------------------------------------------------------------------------
// Samples

#[test]
fn an_answer_ends_in_exactly_one_eos() {
    let tokenizer = tokenizer("llama");
    let eos = tokenizer.eos();
    let records = ["x", "x<|eot_id|>", "x<|eot_id|><|eot_id|>"].map(|output| record("Say x", "", output));
    let samples = tokenize_records(&records, &tokenizer, &ALPACA).unwrap();
    for sample in &samples {
        assert_eq!(sample, &samples[0]);
        assert_eq!(sample.tokens.iter().filter(|&&id| id == eos).count(), 1);
        assert_eq!(sample.tokens.last(), Some(&eos));
        assert_eq!(sample.label_tokens(), 2);
    }
}

#[test]
fn without_the_mask_all_but_the_first_token_are_labels() {
    let tokenizer = tokenizer("llama");
    let records = [record("Say x", "", "x")];
    let options = SampleOptions { mask_prompt: false, ..ALPACA };
    let all = &tokenize_records(&records, &tokenizer, &options).unwrap()[0];
    let masked = &tokenize_records(&records, &tokenizer, &ALPACA).unwrap()[0];
    assert_eq!(all.tokens, masked.tokens);
    assert_eq!(all.label_tokens(), all.tokens.len() - 1);
}

#[test]
fn truncation_cuts_the_end() {
    let tokenizer = tokenizer("llama");
    let records = [record("Say it", "", "one two three")];
    let whole = &tokenize_records(&records, &tokenizer, &ALPACA).unwrap()[0];
    let prompt = masked(whole);
    for max in [2, prompt, prompt + 1, whole.tokens.len(), 4096] {
        let options = SampleOptions { max_seq_length: Some(max), ..ALPACA };
        let cut = &tokenize_records(&records, &tokenizer, &options).unwrap()[0];
        assert_eq!(cut.tokens, whole.tokens[..max.min(whole.tokens.len())]);
        assert_eq!(cut.label_tokens(), cut.tokens.len().saturating_sub(prompt));
    }
    for max in [0, 1] {
        let options = SampleOptions { max_seq_length: Some(max), ..ALPACA };
        assert_eq!(
            tokenize_records(&records, &tokenizer, &options).unwrap_err().to_string(),
            format!(
                "max_seq_length {max} is too short: a sample needs at least 2 tokens, one to read and one to \
                 predict"
            )
        );
    }
}

#[test]
fn threads_keep_the_order() {
    let tokenizer = tokenizer("llama");
    let records: Vec<Record> = (0..500).map(|i| record("Count", "", &i.to_string())).collect();
    let all = tokenize_records(&records, &tokenizer, &ALPACA).unwrap();
    assert_eq!(all.len(), records.len());
    for (record, sample) in records.iter().zip(&all) {
        let answer = tokenizer.decode(&sample.tokens[masked(sample)..]).unwrap();
        assert_eq!(answer, record.output);
    }
    assert!(tokenize_records(&[], &tokenizer, &ALPACA).unwrap().is_empty());
}

// -----------------------------------------------------------------------------
// Datasets

/// Ten rows with answers of 1 to 10 letters; row 3 has a long prompt.
fn rows() -> String {
    let row = |i: usize| {
        let instruction = if i == 3 { "long ".repeat(30) } else { "Repeat".to_owned() };
        json!({"instruction": instruction, "output": "q".repeat(i + 1)})
    };
    Value::from_iter((0..10).map(row)).to_string()
}

fn options(fraction: f64, shuffle: bool, max_seq_length: Option<usize>) -> DatasetOptions {
    DatasetOptions {
        sample: SampleOptions { max_seq_length, ..ALPACA },
        val_split_fraction: fraction,
        seed: 42,
        shuffle,
        ..DatasetOptions::default()
    }
}

#[test]
fn a_dataset_holds_both_parts_and_their_figures() {
    let tokenizer = tokenizer("llama");
    let (_folder, file) = data_file("rows.json", rows());
    let all = tokenize_records(&read_records(&file).unwrap(), &tokenizer, &ALPACA).unwrap();

    let plain = Dataset::open(&file, &tokenizer, &options(0.2, false, None)).unwrap();
    assert!(plain.train.iter().eq(all[..8].iter().cloned()));
    assert!(plain.validation.iter().eq(all[8..].iter().cloned()));
    let (train, validation) = (plain.summary.train, plain.summary.validation);
    assert_eq!((train.samples, train.truncated, train.without_label), (8, 0, 0));
    assert_eq!(train.tokens, all[..8].iter().map(|s| s.tokens.len()).sum::<usize>());
    assert_eq!(train.label_tokens, all[..8].iter().map(Sample::label_tokens).sum::<usize>());
    assert_eq!(train.longest, all[3].tokens.len());
    assert_eq!((validation.samples, validation.longest), (2, all[9].tokens.len()));

    let shuffled = Dataset::open(&file, &tokenizer, &options(0.2, true, None)).unwrap();
    assert_eq!(shuffled, Dataset::open(&file, &tokenizer, &options(0.2, true, None)).unwrap());
    assert_eq!((shuffled.train.len(), shuffled.validation.len()), (8, 2));

    let none = Dataset::open(&file, &tokenizer, &options(0.0, true, None)).unwrap();
    assert!(none.train.iter().eq(all));
    assert!(none.validation.is_empty());
}

#[test]
fn samples_without_labels_are_counted_and_left_out() {
    let tokenizer = tokenizer("llama");
    let (_folder, file) = data_file("rows.json", rows());
    let all = tokenize_records(&read_records(&file).unwrap(), &tokenizer, &ALPACA).unwrap();
    // Row 4 just fits; the rows after it are cut, and row 3 has no room for its answer.
    let max = all[4].tokens.len();
    let dataset = Dataset::open(&file, &tokenizer, &options(0.2, false, Some(max))).unwrap();
    let (train, validation) = (dataset.summary.train, dataset.summary.validation);
    assert_eq!((train.samples, train.truncated, train.without_label, train.longest), (7, 3, 1, max));
    assert_eq!(train.longest_untruncated, all[3].tokens.len());
    assert_eq!((validation.samples, validation.truncated), (2, 2));
    assert_eq!(dataset.train.len(), 7);
    assert!(dataset.train.iter().all(|sample| sample.label_tokens() > 0));
    assert_eq!(serde_json::to_value(dataset.summary).unwrap()["train"]["without_label"], 1);
    let batch = MicroBatch::from_samples(dataset.train.iter());
    assert_eq!(batch.tokens_len(), train.tokens);
    assert_eq!(batch.label_count(), train.label_tokens);
}

#[test]
fn datasets_with_nothing_to_learn_are_refused() {
    let tokenizer = tokenizer("llama");
    let (_folder, file) = data_file("rows.json", rows());
    let refused = |options: DatasetOptions| {
        let error = Dataset::open(&file, &tokenizer, &options).unwrap_err();
        error.to_string().replace(&file.display().to_string(), "FILE")
    };
    let prompt = PromptStyle::Alpaca.prompt("Repeat", None);
    let shortest = tokenizer.encode(&prompt).unwrap().len();
    assert_eq!(
        refused(options(0.2, false, Some(16))),
        format!(
            "FILE: none of the 8 training samples has a label left: max_seq_length is 16, but the shortest \
             prompt alone has {shortest} tokens, so every answer begins beyond it: raise max_seq_length well \
             above {shortest} (where the model takes so many), shorten the prompts, or take the loss on prompts too \
             (mask_prompt false)"
        )
    );
    assert_eq!(
        refused(options(f64::NAN, false, None)),
        "--data.val_split_fraction NaN is out of range: it must be at least 0 (no validation) and below 1"
    );
    assert_eq!(
        refused(options(0.01, false, None)),
        "--data.val_split_fraction 0.01 of 10 records rounds to no validation record: raise it to 0.05, or set it \
         to 0 to train without validation"
    );
    assert_eq!(
        refused(options(0.99, true, None)),
        "--data.val_split_fraction 0.99 of 10 records leaves none to train on: lower it, or add records"
    );
    assert!(refused(options(0.1, true, Some(1))).starts_with("max_seq_length 1 is too short"));

    let (_folder, single) = data_file("one.json", r#"[{"instruction": "a", "output": "b"}]"#);
    assert_eq!(
        Dataset::open(&single, &tokenizer, &options(0.1, true, None)).unwrap_err().to_string(),
        "--data.val_split_fraction 0.1 of 1 record rounds to no validation record: set it to 0 to train without \
         validation"
    );
}
