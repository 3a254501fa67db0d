//! Files of every kind and compression, folders and mixtures, files of tokens, and what is said of bad files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use engraft::data::{
    DataError, DataSource, Dataset, DatasetOptions, Format, Sample, SampleOptions, Tokenizer, detect_format,
    epoch_order, read_records, worth_keeping,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixtures().join("models/qwen2")).unwrap()
}

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &tokenizer(), &DatasetOptions::default())
}

fn samples(path: &Path) -> Vec<Sample> {
    open(path).unwrap_or_else(|error| panic!("{error}")).train.iter().collect()
}

/// A folder whose files are written by name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.0.path().join(name);
        fs::write(&file, content).unwrap();
        file
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(content).unwrap();
    out.finish().unwrap()
}

/// Rows with answers of different lengths.
fn rows(count: usize) -> Vec<Value> {
    let row = |i: usize| json!({"instruction": format!("Repeat {i}"), "input": "", "output": "q".repeat(1 + i % 7)});
    (0..count).map(row).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn texts(samples: &[Sample]) -> Vec<String> {
    let tokenizer = tokenizer();
    samples.iter().map(|sample| tokenizer.decode_all(&sample.tokens).unwrap()).collect()
}

// -----------------------------------------------------------------------------
// Files

#[test]
fn files_of_every_kind_give_the_same_samples() {
    let folder = Folder::new();
    // more rows than a batch, so that order is kept across batches
    let rows = rows(1300);
    let (lines, array) = (lines(&rows), Value::from(rows.clone()).to_string());
    let expected = samples(&folder.write("rows.jsonl", &lines));
    assert_eq!(expected.len(), rows.len());
    let mut table = String::from("instruction,input,output\r\n");
    rows.iter().for_each(|row| table += &format!("{},,{}\r\n", row["instruction"], row["output"]));
    let halves = lines.split_at(lines.len() / 2 + 3);
    let members = [gzip(halves.0.as_bytes()), gzip(halves.1.as_bytes())].concat();
    for (name, content) in [
        ("array.json", array.clone().into_bytes()),
        ("mark.json", format!("\u{feff}{array}").into_bytes()),
        ("lines.json.gz", gzip(lines.as_bytes())),
        ("array.gz", gzip(array.as_bytes())),
        ("members.gz", members),
        ("lines.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
        ("no-matter.csv.json", lines.clone().into_bytes()),
        ("table.csv", table.clone().into_bytes()),
        ("TABLE.CSV", format!("\u{feff}{table}").into_bytes()),
        ("table.csv.gz", gzip(table.as_bytes())),
        ("table.tsv", table.replace(',', "\t").into_bytes()),
        ("table.tsv.zst", zstd::encode_all(table.replace(',', "\t").as_bytes(), 1).unwrap()),
    ] {
        assert_eq!(samples(&folder.write(name, content)), expected, "{name}");
    }
}

#[test]
fn parquet_files_read_as_json_does() {
    let data: Value =
        serde_json::from_slice(&fs::read(fixtures().join("gen/data/conversations.json")).unwrap()).unwrap();
    let data = &data["fixtures"];
    let folder = Folder::new();
    let chats: Vec<Value> =
        data["conversations"].as_array().unwrap().iter().map(|c| json!({"messages": c})).collect();
    let expected = samples(&folder.write("chats.jsonl", lines(&chats)));
    for codec in ["snappy", "zstd", "gzip", "none"] {
        let file = fixtures().join(format!("data/chat-{codec}.parquet"));
        assert_eq!(detect_format(&file).unwrap(), Format::Chat);
        assert_eq!(samples(&file), expected, "{codec}");
    }
    let instructions = folder.write("alpaca.json", data["alpaca"].to_string());
    let file = fixtures().join("data/alpaca.parquet");
    assert_eq!(read_records(&file).unwrap(), read_records(&instructions).unwrap());
}

#[test]
fn folders_hold_both_parts() {
    let folder = Folder::new();
    folder.write("train.jsonl", lines(&rows(5)));
    let options = DatasetOptions { val_split_fraction: 0.4, ..DatasetOptions::default() };
    let open = || Dataset::open(folder.0.path(), &tokenizer(), &options).unwrap();
    assert_eq!((open().train.len(), open().validation.len()), (3, 2));
    folder.write("val.json", Value::from(rows(9)[6..].to_vec()).to_string());
    folder.write("notes.txt", "not data");
    let both = open();
    assert_eq!((both.train.len(), both.validation.len()), (5, 3));
    assert!(texts(&[both.validation.get(0)])[0].contains("Repeat 6"));
    assert_eq!(both.summary.validation.samples, 3);

    let empty = Folder::new();
    let message = Dataset::open(empty.0.path(), &tokenizer(), &options).unwrap_err().to_string();
    assert!(message.contains("holds no file for training: name it train.json"), "{message}");
}

#[test]
fn weights_repeat_training_rows_alone() {
    let folder = Folder::new();
    let all = rows(20);
    let first = folder.write("first.jsonl", lines(&all[..10]));
    let second = folder.write("second.jsonl", lines(&all[10..]));
    let open = |weights: [f64; 2], fraction: f64, seed: u64| {
        let sources = [(&first, weights[0]), (&second, weights[1])];
        let sources = sources.map(|(path, weight)| DataSource { path: path.clone(), weight });
        let options =
            DatasetOptions { val_split_fraction: fraction, seed, shuffle: true, ..Default::default() };
        Dataset::open_sources(&sources, &tokenizer(), &options).unwrap()
    };
    let count = |data: &Dataset| {
        let texts = texts(&data.train.iter().collect::<Vec<_>>());
        let number = |text: &String| {
            let rest = text.split("Repeat ").nth(1).unwrap();
            rest.split('\n').next().unwrap().parse::<usize>().unwrap()
        };
        let mut counts = [0; 20];
        texts.iter().for_each(|text| counts[number(text)] += 1);
        counts
    };
    assert_eq!(count(&open([1.0, 1.0], 0.0, 1)), [1; 20]);
    let mixed = open([2.0, 0.5], 0.0, 1);
    let counts = count(&mixed);
    assert_eq!(counts[..10], [2; 10]);
    assert_eq!(counts[10..].iter().sum::<usize>(), 5);
    assert!(counts[10..].iter().all(|&count| count <= 1));
    assert_eq!(mixed.summary.train.samples, 25);
    assert_eq!(count(&open([2.0, 0.5], 0.0, 1)), counts);
    assert_ne!(count(&open([2.0, 0.5], 0.0, 2)), counts);
    let more = count(&open([2.3, 1.0], 0.0, 1));
    assert!(more[..10].iter().all(|&count| count == 2 || count == 3));
    assert_eq!(more.iter().sum::<usize>(), 23 + 10);

    let plain = open([1.0, 1.0], 0.2, 1);
    let weighted = open([3.0, 3.0], 0.2, 1);
    assert_eq!(weighted.validation, plain.validation);
    assert_eq!((plain.validation.len(), weighted.train.len()), (4, 3 * plain.train.len()));
    assert_eq!(epoch_order(weighted.train.len(), 1, 0, true).len(), 48);
}

// -----------------------------------------------------------------------------
// Files of tokens

#[test]
fn tokens_are_kept_by_what_decides_them() {
    let (folder, cache) = (Folder::new(), Folder::new());
    let file = folder.write("rows.jsonl", lines(&rows(40)));
    let kept = || {
        let mut names: Vec<_> =
            fs::read_dir(cache.0.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let options = DatasetOptions { cache: Some(cache.0.path().join("deep/er")), ..DatasetOptions::default() };
    let tokens = || {
        let names = fs::read_dir(cache.0.path().join("deep/er")).unwrap();
        let mut names: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let open = |options: &DatasetOptions| Dataset::open(&file, &tokenizer(), options).unwrap();
    let plain = open(&DatasetOptions::default());
    assert!(kept().is_empty());
    assert_eq!(open(&options), plain);
    let first = tokens();
    assert_eq!(first.len(), 1);

    // a second run reads what is there: it neither writes it again nor looks at the rows
    let written = fs::metadata(&first[0]).unwrap().modified().unwrap();
    assert_eq!(open(&options), plain);
    assert_eq!((tokens(), fs::metadata(&first[0]).unwrap().modified().unwrap()), (first.clone(), written));
    // split and seed choose among the same tokens
    let split = DatasetOptions { val_split_fraction: 0.5, seed: 9, shuffle: true, ..options.clone() };
    assert_eq!(open(&split).train.len(), 20);
    assert_eq!(tokens(), first);

    // whatever changes the tokens has a file of its own
    let sample = |change: fn(&mut SampleOptions)| {
        let mut options = options.clone();
        change(&mut options.sample);
        options
    };
    let others = [
        sample(|sample| sample.max_seq_length = Some(20)),
        sample(|sample| sample.mask_prompt = false),
        sample(|sample| sample.style = "phi-2".parse().unwrap()),
        DatasetOptions {
            prompt_template: Some(folder.write("t.jinja", "{{ instruction }}")),
            ..options.clone()
        },
    ];
    for (i, other) in others.iter().enumerate() {
        let _ = Dataset::open(&file, &tokenizer(), other);
        assert_eq!(tokens().len(), 2 + i);
    }
    folder.write("rows.jsonl", lines(&rows(41)));
    assert_eq!(open(&options).train.len(), 41);
    assert_eq!(tokens().len(), 6);
    let other = Tokenizer::open(&fixtures().join("models/llama")).unwrap();
    assert_ne!(Dataset::open(&file, &other, &options).unwrap(), open(&options));
    assert_eq!(tokens().len(), 7);

    // a file that was cut short is made again
    folder.write("rows.jsonl", lines(&rows(40)));
    let whole = fs::read(&first[0]).unwrap();
    fs::write(&first[0], &whole[..whole.len() - 9]).unwrap();
    assert_eq!(open(&options), plain);
    assert_eq!(fs::read(&first[0]).unwrap(), whole);
}

#[test]
fn large_data_are_worth_keeping() {
    let folder = Folder::new();
    let (small, large) = (folder.write("train.jsonl", ""), folder.write("large.jsonl", ""));
    // a hole takes no room on the disk
    fs::File::options().write(true).open(&large).unwrap().set_len(8 << 20).unwrap();
    let keep = |paths: &[&Path]| {
        let sources: Vec<DataSource> = paths.iter().map(|path| DataSource::once(*path)).collect();
        worth_keeping(&sources).unwrap()
    };
    assert!(!keep(&[&small]) && keep(&[&large]) && keep(&[&small, &large]) && !keep(&[folder.0.path()]));
    assert!(!keep(&[Path::new("/nowhere")]));
}

#[test]
fn refused_rows_leave_no_file_of_tokens() {
    let (folder, cache) = (Folder::new(), Folder::new());
    let mut rows = rows(700);
    rows[600] = json!({"instruction": "a"});
    rows[650] = json!(7);
    let file = folder.write("rows.jsonl", format!("{}{{", lines(&rows)));
    let options = DatasetOptions { cache: Some(cache.0.path().to_owned()), ..DatasetOptions::default() };
    let message = Dataset::open(&file, &tokenizer(), &options).unwrap_err().to_string();
    // the first mistake of three is the one told
    assert!(message.contains("line 601: the key `output` is missing"), "{message}");
    assert_eq!(fs::read_dir(cache.0.path()).unwrap().count(), 0);

    let blocked = DatasetOptions { cache: Some(file.join("below a file")), ..DatasetOptions::default() };
    let good = folder.write("good.jsonl", r#"{"instruction": "a", "output": "b"}"#);
    let message = Dataset::open(&good, &tokenizer(), &blocked).unwrap_err().to_string();
    assert!(message.contains("the tokens cannot be kept: "), "{message}");
}

// -----------------------------------------------------------------------------
// Bad files

/// What is said of a file, after its name.
#[track_caller]
fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    let file = folder.write(name, content);
    let message = open(&file).expect_err(name).to_string();
    let prefix = format!("{}: ", file.display());
    message.strip_prefix(&prefix).unwrap_or_else(|| panic!("{message}")).to_owned()
}

#[test]
fn damaged_files_are_refused() {
    let good = lines(&rows(300));
    let packed = gzip(good.as_bytes());
    for (name, content, kind) in [
        ("a.json.gz", packed[..packed.len() / 2].to_vec(), "gzip"),
        ("a.json.gz", packed[..packed.len() - 3].to_vec(), "gzip"),
        ("a.json.gz", packed[..12].to_vec(), "gzip"),
        ("a.json.gz", [&packed[..40], &[0xff; 40], &packed[80..]].concat(), "gzip"),
        (
            "a.zst",
            {
                let all = zstd::encode_all(good.as_bytes(), 1).unwrap();
                all[..all.len() / 2].to_vec()
            },
            "Zstandard",
        ),
        ("a.zst", [0x28, 0xb5, 0x2f, 0xfd, 9, 9, 9, 9, 9, 9].to_vec(), "Zstandard"),
        (
            "a.csv.gz",
            {
                let all = gzip(b"instruction,output\na,b\n");
                all[..all.len() - 9].to_vec()
            },
            "gzip",
        ),
        ("a.parquet", b"PAR1".to_vec(), "Parquet"),
        ("a.parquet", b"PAR1 and then nothing of the kindPAR1".to_vec(), "Parquet"),
    ] {
        let message = refused(name, content);
        assert!(
            message.contains(kind) && message.contains("copy, download or pack the file again"),
            "{message}"
        );
    }
    assert_eq!(
        refused("a.gz", gzip(b"[\n{\"instruction\": \"\xff\"}]")),
        "line 2: byte 19 of the file is not valid UTF-8: save the file as UTF-8"
    );
    assert!(refused("a.gz", gzip(b"")).starts_with("holds no records"));
}

#[test]
fn no_cut_of_a_parquet_file_panics() {
    let whole = fs::read(fixtures().join("data/chat-snappy.parquet")).unwrap();
    let folder = Folder::new();
    for length in (0..whole.len()).step_by(7) {
        assert!(open(&folder.write("cut.parquet", &whole[..length])).is_err(), "{length}");
    }
    for at in (4..whole.len()).step_by(13) {
        let mut bad = whole.clone();
        bad[at] ^= 0xff;
        // some bytes are only text; none may end the program
        let _ = open(&folder.write("flipped.parquet", &bad));
    }
}

#[test]
fn bad_tables_are_refused() {
    for (content, expected) in [
        ("", "holds no records"),
        ("instruction,output\n", "holds no records"),
        (
            "a question,an answer\nb,c\n",
            "line 2: no format has these keys (found: a question, an answer): rename them",
        ),
        ("a question,an answer\nb,c\n", "(in CSV the first line names the columns)"),
        (
            "instruction,output\na,b\nc,d,e\n",
            "line 3: the first line names 2 columns, this row has 3: quote values",
        ),
        (
            "instruction,answer\na,b\n",
            "line 2: the key `output` is missing (keys found: instruction, answer)",
        ),
        (
            "messages\n\"[{\"\"role\"\": \"\"user\"\"}]\"\n",
            "line 2: the key `messages[0].content` is missing",
        ),
        ("messages\nhello\n", "line 2: the key `messages` must be an array of messages, found a string"),
    ] {
        let message = refused("a.csv", content);
        assert!(message.contains(expected), "{content:?}: {message}");
    }
    assert!(
        refused("a.csv", b"instruction,output\na,\xff\n")
            .contains("line 2: byte 21 of the file is not valid UTF-8")
    );
}

#[test]
fn bad_rows_are_refused_with_place_and_key() {
    let user = r#"{"role": "user", "content": "a"}"#;
    let chat = |messages: &str| format!("{{\"messages\": {messages}}}");
    for (row, expected) in [
        ("{}".into(), "no format has these keys (found: none)"),
        (r#"{"question": "a", "answer": "b"}"#.into(), "no format has these keys (found: question, answer)"),
        (r#"{"text": 3}"#.into(), "the key `text` must be a string, found a number"),
        (r#"{"text": null}"#.into(), "the key `text` must be a string, found null"),
        (
            r#"{"prompt": "a"}"#.into(),
            "the key `completion` is missing (keys found: prompt): every record needs `prompt` and `completion`",
        ),
        (
            r#"{"prompt": ["a"], "completion": "b"}"#.into(),
            "the key `prompt` must be a string, found an array",
        ),
        (chat("[]"), "the key `messages` is empty: a conversation has at least one message"),
        (chat("null"), "the key `messages` must be an array of messages, found null"),
        (chat("{}"), "the key `messages` must be an array of messages, found an object"),
        (chat("[3]"), "the key `messages[0]` must be an object, found a number"),
        (chat(&format!("[{user}, []]")), "the key `messages[1]` must be an object, found an array"),
        (
            chat(r#"[{"content": "a"}]"#),
            "the key `messages[0].role` is missing (keys found: content): every message needs `role`",
        ),
        (
            chat(r#"[{"role": "user"}]"#),
            "the key `messages[0].content` is missing (keys found: none): every message needs its text",
        ),
        (chat(r#"[{"role": "user", "content": null}]"#), "the key `messages[0].content` is missing"),
        (
            chat(r#"[{"role": "user", "content": 3}]"#),
            "the key `messages[0].content` must be a string, found a number",
        ),
        (
            chat(r#"[{"role": 1, "content": "a"}]"#),
            "the key `messages[0].role` must be a string, found a number",
        ),
        (
            chat(r#"[{"role": "usr", "content": "a"}]"#),
            "the key `messages[0].role` is \"usr\", which is no role: known are system, developer, user, assistant",
        ),
        (
            r#"{"conversations": [{"from": "alien", "value": "a"}]}"#.into(),
            "the key `conversations[0].from` is \"alien\", which is no speaker: known are human, user, gpt",
        ),
        (r#"{"conversations": [{"from": "human"}]}"#.into(), "the key `conversations[0].value` is missing"),
        (
            format!("{{\"messages\": [{user}], \"tools\": 3}}"),
            "the key `tools` must be an array of tool definitions, found a number",
        ),
    ] {
        let message = refused("a.jsonl", &row);
        assert!(message.starts_with("line 1: ") && message.contains(expected), "{row}: {message}");
        let message = refused("a.json", format!("[{row}]"));
        assert!(
            message.starts_with("record 0 (counted from 0): ") && message.contains(expected),
            "{row}: {message}"
        );
    }
    let deep = format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(refused("a.jsonl", &deep).contains("recursion limit exceeded"));
    assert!(refused("a.json", format!("[{deep}]")).contains("recursion limit exceeded"));
    let only = format!("{{\"messages\": [{user}]}}\n");
    assert!(refused("a.jsonl", only.repeat(3)).contains("none of the 3 training samples has a label left"));
}

#[test]
fn the_format_can_be_said() {
    let folder = Folder::new();
    let row = json!({"instruction": "a", "output": "b", "text": "whole", "prompt": "p", "completion": "c"});
    let file = folder.write("rows.jsonl", row.to_string());
    for (format, ends) in [
        (None, "### Response:\nb<|im_end|>"),
        (Some(Format::Text), "whole<|im_end|>"),
        (Some(Format::PromptCompletion), "pc<|im_end|>"),
    ] {
        let options = DatasetOptions { format, ..DatasetOptions::default() };
        let data = Dataset::open(&file, &tokenizer(), &options).unwrap();
        assert!(texts(&[data.train.get(0)])[0].ends_with(ends), "{format:?}");
    }
    let options = DatasetOptions { format: Some(Format::Chat), ..DatasetOptions::default() };
    let message = Dataset::open(&file, &tokenizer(), &options).unwrap_err().to_string();
    assert!(message.contains("the key `messages` is missing"), "{message}");
}
