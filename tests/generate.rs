//! Generation with a KV cache against PyTorch and against the network without a cache; the commands `generate`,
//! `evaluate` and `devices` as a user calls them.

mod common;

use engraft::checkpoint::Adapter;
use engraft::data::{MicroBatch, Sample};
use engraft::error::{Error, Failure};
use engraft::generate::sampling::SamplingOptions;
use engraft::generate::{CacheSize, End, GenerateError, GenerateOptions, Generator, TokenScore};
use engraft::gpu::Gpu;
use engraft::train::evaluator::Evaluator;
use engraft::train::options::Precision;
use engraft::train::quantize::QuantizeOptions;
use engraft::train::setup::open_network;
use engraft::train::trainer::{Capacity, Trainer};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn model(name: &str) -> PathBuf {
    common::fixtures().join("models").join(name)
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    let sampling = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    GenerateOptions { max_new_tokens, sampling, ..GenerateOptions::default() }
}

fn keep_going(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Tokens without any pattern, below the fixtures' vocabulary of 512.
fn text(length: usize) -> Vec<u32> {
    (0..length as u32).map(|t| (t * 197 + t * t * 31 + 11) % 500).collect()
}

#[test]
fn greedy_tokens_equal_pytorch() {
    let Some(gpu) = common::gpu() else { return };
    let llamas = ["llama", "llama_untied", "llama_sharded", "llama_biased"];
    let others = ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "phi4_mini"];
    let further =
        ["olmo2", "olmo3", "smollm3", "granite", "ministral3", "gpt_neox", "stablelm", "starcoder2"];
    for name in llamas.into_iter().chain(others).chain(further) {
        let folder = model(name);
        let report = std::fs::read_to_string(folder.join("ref/reference.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&report).unwrap();
        let prompt = ids(&reference["prompt_ids"]);
        let adapter = folder.join("ref/adapter");
        for (key, adapter) in [("base_greedy", None), ("lora_greedy", Some(adapter.as_path()))] {
            let expected = ids(&reference[key]["tokens"]);
            let size = prompt.len() + expected.len();
            let mut generator = Generator::open(&gpu, &folder, adapter, Precision::F32True, size).unwrap();
            // twice: what the first text left in the cache must not show in the second
            for _ in 0..2 {
                let generated =
                    generator.generate(&prompt, &greedy(expected.len()), &mut keep_going).unwrap();
                assert_eq!(generated.tokens, expected, "{name}: {key}");
                assert_eq!(generated.end, End::Length);
            }
        }
    }
}

/// The same weights as the language model of one that sees images too, under the names that its files have.
#[test]
fn an_embedded_language_model_gives_the_same_tokens() {
    let Some(gpu) = common::gpu() else { return };
    for name in ["gemma3", "mistral", "ministral3"] {
        let (alone, whole) = (model(name), tempfile::tempdir().unwrap());
        common::embed(name, whole.path());
        let report = std::fs::read_to_string(alone.join("ref/reference.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&report).unwrap();
        let adapter = Adapter { embedded: true, ..Adapter::read(&alone.join("ref/adapter")).unwrap() };
        let run = whole.path().join("adapter");
        adapter.write(&run).unwrap();

        let prompt = ids(&reference["prompt_ids"]);
        for (key, adapter) in [("base_greedy", None), ("lora_greedy", Some(run.as_path()))] {
            let expected = ids(&reference[key]["tokens"]);
            let mut generator = Generator::open(&gpu, whole.path(), adapter, Precision::F32True, 64).unwrap();
            let generated = generator.generate(&prompt, &greedy(expected.len()), &mut keep_going).unwrap();
            assert_eq!(generated.tokens, expected, "{name}: {key}");
        }
    }
}

fn generator(gpu: &Gpu, cache: CacheSize) -> Generator {
    generator_of(gpu, "llama", cache)
}

fn generator_of(gpu: &Gpu, name: &str, cache: CacheSize) -> Generator {
    let folder = model(name);
    let adapter = Adapter::read(&folder.join("ref/adapter")).unwrap();
    let (network, source) =
        open_network(&folder, Some(&adapter), Precision::F32True, QuantizeOptions::default()).unwrap();
    Generator::new(gpu, network, &source, Some(&adapter), cache).unwrap()
}

fn trainer(gpu: &Gpu, tokens: usize) -> Trainer {
    trainer_of(gpu, "llama", tokens)
}

fn trainer_of(gpu: &Gpu, name: &str, tokens: usize) -> Trainer {
    let folder = model(name);
    let adapter = Adapter::read(&folder.join("ref/adapter")).unwrap();
    let (network, source) =
        open_network(&folder, Some(&adapter), Precision::F32True, QuantizeOptions::default()).unwrap();
    let trainer = Trainer::new(gpu, network, &source, Capacity { tokens, labels: tokens }, 1).unwrap();
    engraft::train::adapter::load(trainer.optimiser(), &adapter).unwrap();
    trainer
}

fn worst(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let differences = actual.iter().zip(expected).map(|(a, e)| (a - e).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}

#[test]
fn chunks_of_any_size_give_the_logits_of_the_whole_sequence() {
    let Some(gpu) = common::gpu() else { return };
    let tokens = text(101);
    let sample = Sample::new(tokens.clone(), 0);
    let whole = trainer(&gpu, tokens.len()).logits(&MicroBatch::from_samples([&sample])).unwrap();
    let vocabulary = whole.len() / tokens.len();
    let row = |t: usize| &whole[t * vocabulary..(t + 1) * vocabulary];

    // chunks of 24 and 6 rows, neither of which divides 101
    let mut generator = generator(&gpu, CacheSize { tokens: tokens.len(), chunk: 24 });
    let all = generator.logits(&tokens).unwrap();
    let mut largest = worst(&all, row(100));
    // the text so far in pieces, after the longer text has filled the cache
    generator.reset();
    let mut end = 0;
    for piece in [1, 5, 40, 2, 13, 1, 1, 37, 1] {
        let logits = generator.logits(&tokens[end..end + piece]).unwrap();
        end += piece;
        largest = largest.max(worst(&logits, row(end - 1)));
    }
    assert_eq!((end, generator.len()), (tokens.len(), tokens.len()));
    println!("logits with a KV cache: worst error {largest:.2e}");
    assert!(largest < 1e-4, "{largest:.2e}");
}

/// ln(softmax(logits)[token]), summed as it stands.
fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[token as usize]) - sum.ln()
}

#[test]
fn tokens_are_scored_as_the_whole_sequence_has_them() {
    let Some(gpu) = common::gpu() else { return };
    // the second sees eight tokens
    for name in ["llama", "mistral", "qwen3"] {
        scores_are_those_of_the_whole(&gpu, name);
    }
}

fn scores_are_those_of_the_whole(gpu: &Gpu, name: &str) {
    let tokens = text(101);
    let sample = Sample::new(tokens.clone(), 0);
    let whole = trainer_of(gpu, name, tokens.len()).logits(&MicroBatch::from_samples([&sample])).unwrap();
    let vocabulary = whole.len() / tokens.len();
    let expected = |t: usize| &whole[(t - 1) * vocabulary..t * vocabulary];

    // in pieces of 6
    let mut generator = generator_of(gpu, name, CacheSize { tokens: tokens.len(), chunk: 24 });
    let (scores, reused) = generator.score(&tokens, 3).unwrap();
    assert_eq!((scores.len(), reused, generator.len()), (tokens.len(), 0, tokens.len()));
    assert_eq!((scores[0].token, scores[0].log_probability, scores[0].top.len()), (tokens[0], None, 0));
    let mut largest = 0.0_f64;
    for (t, score) in scores.iter().enumerate().skip(1) {
        assert_eq!((score.token, score.top.len()), (tokens[t], 3));
        let own = (score.token, score.log_probability.unwrap());
        for (token, value) in score.top.iter().chain([&own]) {
            largest = largest.max((f64::from(*value) - log_softmax(expected(t), *token)).abs());
        }
        let third = score.top[2].1;
        assert!(score.top[0].1 >= score.top[1].1 && score.top[1].1 >= third);
        // no other one is more probable
        let above =
            (0..vocabulary as u32).filter(|&token| log_softmax(expected(t), token) > f64::from(third) + 1e-4);
        assert!(above.count() < 3);
    }
    println!("{name}: log probabilities: worst error {largest:.2e}");
    assert!(largest < 1e-4, "{largest:.2e}");

    // the logits behind it are there: it goes on as it does from an empty cache
    let short = &tokens[..90];
    generator.score(short, 3).unwrap();
    let further = generator.generate_further(short, &greedy(5), &mut keep_going).unwrap();
    assert_eq!(further.tokens, generator.generate(short, &greedy(5), &mut keep_going).unwrap().tokens);

    // what the next text shares with the last one is known
    let mut other = tokens[..60].to_vec();
    other.extend(text(70)[50..].iter().map(|token| token ^ 1));
    generator.score(&tokens, 3).unwrap();
    let (further, reused) = generator.score(&other, 2).unwrap();
    // the token before the first that differs runs once more, for its logits
    assert_eq!((reused, &further[1..60].len()), (59, &59));
    for (one, all) in further[1..60].iter().zip(&scores[1..60]) {
        assert_eq!((one.log_probability, &one.top[..]), (all.log_probability, &all.top[..2]));
    }
    generator.reset();
    let mut fresh = generator_of(gpu, name, CacheSize { tokens: tokens.len(), chunk: 24 });
    let (fresh, _) = fresh.score(&other, 2).unwrap();
    let apart =
        |a: &TokenScore, b: &TokenScore| (a.log_probability.unwrap() - b.log_probability.unwrap()).abs();
    assert!(further[1..].iter().zip(&fresh[1..]).all(|(a, b)| a.token == b.token && apart(a, b) < 1e-4));
    // more of the most probable ones than are known; then known, with nothing in the cache
    let (more, reused) = generator.score(&other, 4).unwrap();
    assert_eq!((more[5].top.len(), reused), (4, 0));
    generator.reset();
    let (again, reused) = generator.score(&other[..50], 4).unwrap();
    assert_eq!((&again[..], reused), (&more[..50], 50));
    assert!(matches!(generator.score(&[], 1), Err(GenerateError::NoPrompt)));
    assert!(matches!(generator.score(&[1, 99_999], 1), Err(GenerateError::UnknownToken { .. })));
    assert!(matches!(generator.score(&text(102), 1), Err(GenerateError::CacheFull { tokens: 102, .. })));
}

#[test]
fn a_prompt_runs_once_for_several_texts_and_gives_those_of_an_empty_cache() {
    let Some(gpu) = common::gpu() else { return };
    let mut generator = generator(&gpu, CacheSize::new(60));
    let prompt = text(33);
    let options = |seed| {
        let sampling = SamplingOptions { temperature: 1.3, top_k: None, top_p: 1.0, seed };
        GenerateOptions { max_new_tokens: 20, sampling, stop: vec![], scores: Some(2) }
    };
    let alone: Vec<_> =
        (0..3).map(|seed| generator.generate(&prompt, &options(seed), &mut keep_going).unwrap()).collect();
    assert!(alone[0].tokens != alone[1].tokens && alone[1].tokens != alone[2].tokens);
    for (seed, alone) in alone.iter().enumerate() {
        let further = generator.generate_further(&prompt, &options(seed as u64), &mut keep_going).unwrap();
        assert_eq!(further.reused, prompt.len());
        assert_eq!((&further.tokens, &further.scores), (&alone.tokens, &alone.scores));
        // each by the logits that it was drawn from
        let mut text = prompt.clone();
        generator.reset();
        for (token, score) in further.tokens.iter().zip(&further.scores) {
            let logits = generator.logits(&text[generator.len()..]).unwrap();
            assert_eq!(score.token, *token);
            assert!((f64::from(score.log_probability.unwrap()) - log_softmax(&logits, *token)).abs() < 1e-4);
            text.push(*token);
        }
        generator.generate(&prompt, &options(9), &mut keep_going).unwrap();
    }
    // a stop token has a score of its own
    let stop = alone[0].tokens[4];
    let before = alone[0].tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = GenerateOptions { stop: vec![stop], ..options(0) };
    let stopped = generator.generate_further(&prompt, &stopped, &mut keep_going).unwrap();
    assert_eq!((stopped.tokens.len(), stopped.scores.len()), (before, before + 1));
    assert_eq!(stopped.scores[..], alone[0].scores[..=before]);
}

#[test]
fn sampling_is_a_function_of_the_seed() {
    let Some(gpu) = common::gpu() else { return };
    let mut generator = generator(&gpu, CacheSize::new(40));
    let mut draw = |seed| {
        let sampling = SamplingOptions { temperature: 1.0, top_k: Some(40), top_p: 0.95, seed };
        let options = GenerateOptions { max_new_tokens: 24, sampling, ..GenerateOptions::default() };
        generator.generate(&text(9), &options, &mut keep_going).unwrap().tokens
    };
    let first = draw(1);
    assert_eq!(first.len(), 24);
    assert_eq!(first, draw(1));
    assert_ne!(first, draw(2));
}

#[test]
fn stop_tokens_and_the_caller_end_a_text() {
    let Some(gpu) = common::gpu() else { return };
    let mut generator = generator(&gpu, CacheSize::new(30));
    let prompt = text(7);
    let all = generator.generate(&prompt, &greedy(12), &mut keep_going).unwrap().tokens;
    let stop = *all.iter().skip(1).find(|&&token| token != all[0]).unwrap();
    let before = all.iter().position(|&token| token == stop).unwrap();

    let mut seen = Vec::new();
    let mut collect = |token| {
        seen.push(token);
        ControlFlow::Continue(())
    };
    let options = GenerateOptions { stop: vec![stop], ..greedy(12) };
    let stopped = generator.generate(&prompt, &options, &mut collect).unwrap();
    assert_eq!((stopped.end, &stopped.tokens[..]), (End::Stop(stop), &all[..before]));
    assert_eq!(seen, stopped.tokens);

    let ended = generator.generate(&prompt, &greedy(12), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((ended.end, &ended.tokens[..]), (End::Caller, &all[..1]));
    let nothing = generator.generate(&prompt, &greedy(0), &mut keep_going).unwrap();
    assert_eq!((nothing.end, nothing.tokens.len()), (End::Length, 0));
    // which runs nothing
    generator.reset();
    let nothing = generator.generate_further(&prompt, &greedy(0), &mut keep_going).unwrap();
    assert_eq!((nothing.reused, generator.len()), (0, 0));
    generator.logits(&prompt[..4]).unwrap();
    let nothing = generator.generate_further(&prompt, &greedy(0), &mut keep_going).unwrap();
    assert_eq!((nothing.reused, generator.len()), (4, 4));
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_cache_alone() {
    let Some(gpu) = common::gpu() else { return };
    let mut generator = generator(&gpu, CacheSize::new(10));
    let expected = generator.logits(&text(8)).unwrap();
    assert!(matches!(generator.logits(&[]), Err(GenerateError::NoPrompt)));
    assert!(matches!(
        generator.logits(&[1, 99_999]),
        Err(GenerateError::UnknownToken { token: 99_999, vocabulary: 512 })
    ));
    assert!(matches!(generator.logits(&[1, 2, 3]), Err(GenerateError::CacheFull { tokens: 11, cache: 10 })));
    assert_eq!(generator.len(), 8);
    generator.logits(&[1, 2]).unwrap();
    let error = generator.generate(&text(8), &greedy(3), &mut keep_going).unwrap_err();
    assert_eq!(Error::from(error).failure(), Failure::Input);
    let unknown = generator.generate_further(&[1, 99_999], &greedy(1), &mut keep_going);
    assert!(matches!(unknown, Err(GenerateError::UnknownToken { .. })));
    assert!(matches!(generator.score(&text(11), 1), Err(GenerateError::CacheFull { tokens: 11, cache: 10 })));
    assert_eq!(generator.len(), 10);
    generator.reset();
    assert_eq!(generator.logits(&text(8)).unwrap(), expected);

    let over = Generator::open(&gpu, &model("llama"), None, Precision::F32True, 129).map(|_| ());
    assert!(matches!(over, Err(Error::Generate(GenerateError::OverLimit { tokens: 129, limit: 128 }))));
}

#[test]
fn sixteen_bit_storage_stays_close() {
    let Some(gpu) = common::gpu() else { return };
    let tokens = text(20);
    let logits = |precision| {
        let mut generator = Generator::open(&gpu, &model("llama"), None, precision, 20).unwrap();
        generator.logits(&tokens).unwrap()
    };
    let exact = logits(Precision::F32True);
    let spread = exact.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (precision, allowed) in [(Precision::F16True, 0.01), (Precision::BF16True, 0.08)] {
        let error = worst(&logits(precision), &exact) / spread;
        println!("{precision}: worst error {error:.2e} of the largest logit");
        assert!(error < allowed, "{precision}: {error:.2e}");
    }
}

#[test]
fn device_memory_is_what_the_reports_say() {
    let Some(gpu) = common::gpu() else { return };
    let before = gpu.allocated_bytes();
    let generator = generator(&gpu, CacheSize::new(100));
    assert_eq!(gpu.allocated_bytes() - before, generator.memory().total());
    drop(generator);
    assert_eq!(gpu.allocated_bytes(), before);
}

#[test]
fn the_evaluator_gives_the_trainers_loss_in_less_memory() {
    let Some(gpu) = common::gpu() else { return };
    let folder = model("llama");
    let adapter = Adapter::read(&folder.join("ref/adapter")).unwrap();
    let (network, source) =
        open_network(&folder, Some(&adapter), Precision::F32True, QuantizeOptions::default()).unwrap();
    let capacity = Capacity { tokens: 90, labels: 90 };
    let before = gpu.allocated_bytes();
    let mut evaluator = Evaluator::new(&gpu, network, &source, Some(&adapter), capacity).unwrap();
    assert_eq!(gpu.allocated_bytes() - before, evaluator.memory().total());
    let mut trainer = trainer(&gpu, 90);
    assert!(evaluator.memory().total() < trainer.memory().total());
    assert_eq!(evaluator.memory().optimiser, 0);
    let samples = [Sample::new(text(50), 9), Sample::new(text(33), 30)];
    for samples in [&samples[..], &samples[1..]] {
        let batch = MicroBatch::from_samples(samples);
        let expected = trainer.evaluate([&batch]).unwrap();
        assert!((evaluator.loss_sum(&batch).unwrap() / expected - 1.0).abs() < 1e-6);
    }
}

/// Runs the program on the device under test.
fn engraft(arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    // without it some drivers complain on standard error, which these tests compare
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    // nothing outside the build's own folder is written
    command.env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Ok(device) = std::env::var("ENGRAFT_TEST_GPU")
        && arguments[0] != "devices"
        && !arguments.contains(&"--gpu")
    {
        command.args(["--gpu", &device]);
    }
    let mut child = command.spawn().unwrap();
    // a program that ends before it reads closes the pipe: no error here
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn success(arguments: &[&str], input: &str) -> (String, String) {
    let output = engraft(arguments, input);
    let (out, err) = said(&output);
    assert!(output.status.success(), "{arguments:?}: {err}");
    (out, err)
}

/// The exit code, and the message.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = engraft(arguments, "");
    let (out, err) = said(&output);
    assert_eq!(out, "", "{arguments:?}");
    assert!(err.starts_with("engraft: ") && !err.contains("panicked"), "{arguments:?}: {err}");
    (output.status.code().unwrap(), err)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Without a word of how a model was trained, `generate` asks as `chat` and `serve` do; it says what was chosen, and what else an
/// adapter was trained on.
#[test]
fn what_is_chosen_for_the_user_is_told() {
    if common::gpu().is_none() {
        return;
    }
    let folder = model("llama");
    let options = [path(&folder), "--prompt", "a", "--max_new_tokens", "4", "--temperature", "0"];
    let (auto, err) = success(&[&["generate"], &options[..]].concat(), "");
    assert!(err.contains("prompt style chat, as the model has a template"), "{err}");
    let (chat, err) = success(&[&["generate"], &options[..], &["--prompt_style", "chat"]].concat(), "");
    assert_eq!(auto, chat);
    assert!(!err.contains("prompt style"), "{err}");

    let adapter = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(folder.join("ref/adapter").join(file), adapter.path().join(file)).unwrap();
    }
    std::fs::write(adapter.path().join("hyperparameters.json"), r#"{"quantize": "nf4"}"#).unwrap();
    let with = |more: &[&str]| {
        let all = [&["generate"], &options[..], &["--adapter", path(adapter.path())], more].concat();
        success(&all, "").1
    };
    let err = with(&[]);
    assert!(err.contains("was trained on nf4 weights and is used on bf16 ones; --quantize nf4"), "{err}");
    assert!(!with(&["--quantize", "nf4"]).contains("was trained on nf4"));
}

#[test]
fn the_command_generates_the_same_from_an_option_and_from_standard_input() {
    if common::gpu().is_none() {
        return;
    }
    let folder = model("llama");
    let adapter = folder.join("ref/adapter");
    let options = ["--prompt_style", "none", "--max_new_tokens", "12", "--precision", "32-true"];
    let call = |more: &[&str], input: &str| {
        success(&[&["generate", path(&folder)], &options[..], more].concat(), input)
    };
    let greedy = ["--temperature", "0"];
    let (text, notes) = call(&[&greedy[..], &["--prompt", "the cat"]].concat(), "");
    assert!(text.ends_with('\n') && notes.contains("tokens/s") && notes.contains("device "), "{notes}");
    let (piped, notes) = call(&[&greedy[..], &["--quiet"]].concat(), "the cat\n");
    assert_eq!(piped, text);
    assert_eq!(notes, "");
    let lora = ["--lora", path(&adapter), "--prompt", "the cat"];
    assert_ne!(call(&[&greedy[..], &lora].concat(), "").0, text, "the adapter changes the text");

    let sampled = |seed| call(&["--prompt", "the cat", "--temperature", "1", "--seed", seed], "").0;
    assert_eq!(sampled("3"), sampled("3"));
    assert_ne!(sampled("3"), sampled("4"));

    // several texts, each with its own seed and figures
    let more = ["--prompt", "the cat", "--temperature", "1", "--seed", "3", "--num_samples", "2"];
    let (several, notes) = call(&more, "");
    let (first, second) = (sampled("3"), sampled("4"));
    assert_eq!(several, format!("--- 1 of 2, seed 3\n{first}--- 2 of 2, seed 4\n{second}"));
    assert_eq!(notes.matches("; ended by ").count(), 2, "{notes}");
    assert!(notes.contains("\n1 of 2: ") && notes.contains("\n2 of 2: "), "{notes}");
    assert!(!notes.contains("the same"), "{notes}");
    let same = ["--prompt", "the cat", "--num_samples", "2"];
    let (several, notes) = call(&[&greedy[..], &same].concat(), "");
    assert_eq!(several.matches(&text).count(), 2, "{several}");
    assert!(notes.contains("all 2 texts are the same"), "{notes}");
}

#[test]
fn a_text_beyond_the_models_limit_is_cut_with_a_note() {
    if common::gpu().is_none() {
        return;
    }
    let folder = model("llama");
    let generate = ["generate", path(&folder), "--prompt_style", "none", "--temperature", "0"];
    let (_, notes) = success(&[&generate[..], &["--max_new_tokens", "500"]].concat(), "the cat");
    assert!(notes.contains("--max_new_tokens is cut to") && notes.contains("128"), "{notes}");
    let prompt = "the cat sat ".repeat(200);
    let (code, message) = failure(&[&generate[..], &["--prompt", &prompt]].concat());
    assert!(code == 2 && message.contains("shorten the prompt"), "{message}");
}

const RECORDS: &str = r#"[
    {"instruction": "name an animal", "output": "the cat"},
    {"instruction": "repeat", "input": "one two", "output": "one two"},
    {"instruction": "say nothing of it", "output": "a dog sat on the mat"}
]"#;

#[test]
fn the_command_evaluates_a_file() {
    if common::gpu().is_none() {
        return;
    }
    let folder = model("llama");
    let adapter = folder.join("ref/adapter");
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("data.json");
    std::fs::write(&file, RECORDS).unwrap();
    let common = ["evaluate", path(&folder), "--data.json_path", path(&file), "--precision", "32-true"];
    let style = ["--data.prompt_style", "none"];
    let json = |more: &[&str]| -> serde_json::Value {
        let (out, err) = success(&[&common[..], &style, &["--json"], more].concat(), "");
        assert_eq!(err, "");
        serde_json::from_str(&out).unwrap()
    };
    let number = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    let base = json(&["--micro_batch_size", "1"]);
    assert_eq!(number(&base, "samples"), 3.0);
    let loss = number(&base, "loss");
    assert!(loss > 1.0 && (number(&base, "perplexity") / loss.exp() - 1.0).abs() < 1e-9, "{base}");
    // the mean is over label tokens, so the division into micro-batches does not show
    let together = json(&["--micro_batch_size", "3"]);
    assert!((number(&together, "loss") / loss - 1.0).abs() < 1e-5, "{base} {together}");
    assert_eq!(together["label_tokens"], base["label_tokens"]);
    let adapted = json(&["--lora", path(&adapter)]);
    assert!((number(&adapted, "loss") - loss).abs() > 1e-3);
    let unmasked = json(&["--data.mask_prompt", "false"]);
    assert!(number(&unmasked, "label_tokens") > number(&base, "label_tokens"));
    assert_eq!(number(&json(&["--data.val_split_fraction", "0.34"]), "samples"), 1.0);

    let (table, _) = success(&[&common[..], &style].concat(), "");
    for word in ["loss", "perplexity", "label tokens", "samples", "device"] {
        assert!(table.contains(word), "{table}");
    }
    let (code, message) = failure(&[&common[..], &["--max_seq_length", "2"]].concat());
    assert!(code == 2 && message.contains("data.json"), "{message}");
}

/// Of kernels that are measured before, it says what a run says.
#[test]
fn an_evaluation_that_measures_says_so_as_a_run_does() {
    if common::gpu().is_none() {
        return;
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
    let (folder, temporary) = (demo.join("model"), tempfile::tempdir().unwrap());
    let file = temporary.path().join("data.json");
    std::fs::write(&file, RECORDS).unwrap();
    let evaluate = [
        "evaluate",
        path(&folder),
        "--data.json_path",
        path(&file),
        "--data.prompt_style",
        "none",
        "--tune",
        "full",
    ];
    let (_, err) = success(&evaluate, "");
    assert!(err.starts_with("measuring kernels for ") && !err.contains("GFLOP/s"), "{err}");
    let (_, err) = success(&[&evaluate[..], &["--quiet"]].concat(), "");
    assert_eq!(err, "");
}

#[test]
fn the_command_lists_devices() {
    let text = engraft(&["devices"], "");
    let json = engraft(&["devices", "--json"], "");
    assert_eq!(text.status.code(), json.status.code());
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(list["reason"].is_string());
    if common::gpu().is_none() {
        assert_eq!(text.status.code(), Some(4));
        assert!(list["devices"].as_array().unwrap().is_empty() && list["chosen"].is_null());
        assert!(said(&text).1.contains("install a Vulkan driver"));
        return;
    }
    assert_eq!(text.status.code(), Some(0));
    assert_eq!(list["chosen"], 0);
    let first = &list["devices"][0];
    assert!(first["max_binding_bytes"].as_u64().unwrap() > 0 && first["shader_f16"].is_boolean());
    assert!(said(&text).0.contains(first["name"].as_str().unwrap()));
    assert!(said(&text).0.contains("a run uses 0"));
}

#[test]
fn without_any_driver_every_command_says_what_to_install() {
    let folder = model("llama");
    for arguments in [vec!["devices"], vec!["generate", path(&folder), "--prompt", "a"]] {
        // the Vulkan loader finds no driver in an empty list
        let output = Command::new(env!("CARGO_BIN_EXE_engraft"))
            .env("XDG_RUNTIME_DIR", std::env::temp_dir())
            .args(&arguments)
            .env("VK_DRIVER_FILES", "/nonexistent.json")
            .env("VK_ICD_FILENAMES", "/nonexistent.json")
            .output()
            .unwrap();
        let message = said(&output).1;
        if cfg!(target_os = "linux") {
            assert_eq!(output.status.code(), Some(4), "{message}");
            assert!(message.contains("install a Vulkan driver"), "{message}");
        }
    }
}

#[test]
fn bad_input_has_an_exit_code_and_a_reason() {
    let folder = model("llama");
    let data = folder.join("config.json");
    let generate = ["generate", "--prompt", "a"];
    let evaluate = ["evaluate", path(&folder), "--data.json_path"];
    for (arguments, words) in [
        ([&generate[..], &["/no/such/model"]].concat(), "/no/such/model"),
        ([&generate[..], &[path(&folder), "--lora", "/no/such/adapter"]].concat(), "/no/such/adapter"),
        ([&generate[..], &[path(&folder), "--temperature", "-1"]].concat(), "--temperature"),
        ([&generate[..], &[path(&folder), "--prompt_style", "alpacca"]].concat(), "--prompt_style"),
        ([&evaluate[..], &["/no/such/file.json"]].concat(), "/no/such/file.json"),
        ([&evaluate[..], &[path(&data)]].concat(), "config.json"),
        ([&evaluate[..], &[path(&data), "--micro_batch_size", "0"]].concat(), "--micro_batch_size"),
    ] {
        let (code, message) = failure(&arguments);
        assert!(code == 2 && message.contains(words), "{arguments:?}: {code}: {message}");
    }
    let latin = engraft(&["generate", path(&folder)], b"caf\xe9\n");
    let message = said(&latin).1;
    assert!(latin.status.code() == Some(2) && message.contains("UTF-8; convert it with iconv"), "{message}");
    let (code, message) = failure(&[&generate[..], &[path(&folder), "--gpu", "no such device"]].concat());
    assert_eq!(code, 4, "{message}");
}
