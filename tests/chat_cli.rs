//! Conversations: the cache between turns, what is dropped from a full context, and `engraft chat` as a user calls it.

mod common;

use engraft::data::{Conversation, Encoder, PromptStyle, SampleOptions, Tokenizer};
use engraft::generate::sampling::SamplingOptions;
use engraft::generate::{AnswerOptions, Chat, ChatOptions, Finish, GenerateOptions, Generator, History};
use engraft::gpu::Gpu;
use engraft::train::options::Precision;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A Llama 3 in small, with its chat template and a limit of 128 tokens.
fn model() -> PathBuf {
    common::fixtures().join("models/llama_untied")
}

fn greedy() -> SamplingOptions {
    SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }
}

fn options(max_new_tokens: usize) -> AnswerOptions {
    AnswerOptions { max_new_tokens, sampling: greedy(), ..AnswerOptions::default() }
}

fn open<'t>(gpu: &Gpu, tokenizer: &'t Tokenizer, context: Option<usize>) -> Chat<'t> {
    let options =
        ChatOptions { model_dir: model(), precision: Precision::F32True, context, ..ChatOptions::default() };
    Chat::open(gpu, tokenizer, &options).unwrap()
}

fn going(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn turns_end_with_the_templates_token_whatever_the_configuration_says() {
    let end = |folder: &Path, style: PromptStyle| {
        let tokenizer = Tokenizer::open(folder).unwrap();
        let options = SampleOptions { style, ..SampleOptions::default() };
        let encoder = Encoder::new(&tokenizer, options, None).unwrap();
        encoder.end_of_turn().map(|token| tokenizer.decode_all(&[token]).unwrap())
    };
    assert_eq!(end(&model(), PromptStyle::Chat).as_deref(), Some("<|eot_id|>"));
    assert_eq!(end(&model(), PromptStyle::Alpaca).as_deref(), Some("<|eot_id|>"));
    let others =
        [("models/qwen2", "<|im_end|>"), ("models/gemma", "<end_of_turn>"), ("models/mistral", "</s>")];
    for (name, expected) in others {
        let folder = common::fixtures().join(name);
        assert_eq!(end(&folder, PromptStyle::Chat).as_deref(), Some(expected), "{name}");
    }
}

#[test]
fn a_cache_that_is_kept_gives_the_tokens_of_an_empty_one() {
    let Some(gpu) = common::gpu() else { return };
    let open = || Generator::open(&gpu, &model(), None, Precision::F32True, 100).unwrap();
    let (mut kept, mut fresh) = (open(), open());
    let generate = GenerateOptions { max_new_tokens: 8, sampling: greedy(), ..GenerateOptions::default() };
    let text = |length: usize, seed: u32| -> Vec<u32> {
        (0..length as u32).map(|t| (t * 197 + t * t * 31 + seed) % 500).collect()
    };
    let mut nothing = |_| ControlFlow::Continue(());
    let first = text(40, 3);
    let mut talk = first.clone();
    talk.extend(kept.generate_further(&first, &generate, &mut nothing).unwrap().tokens);
    talk.extend(text(20, 7));
    // the talk goes on; then another one that shares its first 25 tokens; then a beginning of what is there
    let other = [&first[..25], &text(30, 9)].concat();
    for (prompt, reused) in [(&talk[..], 47), (&other[..], 25), (&other[..30], 29), (&text(5, 400), 0)] {
        let further = kept.generate_further(prompt, &generate, &mut nothing).unwrap();
        assert_eq!(further.reused, reused);
        assert_eq!(further.tokens, fresh.generate(prompt, &generate, &mut nothing).unwrap().tokens);
        let (a, b) = (kept.logits(&[5]).unwrap(), fresh.logits(&[5]).unwrap());
        let worst = a.iter().zip(&b).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn a_second_turn_runs_its_own_tokens_alone() {
    let Some(gpu) = common::gpu() else { return };
    let tokenizer = Tokenizer::open(&model()).unwrap();
    let mut chat = open(&gpu, &tokenizer, None);
    assert_eq!((chat.context(), chat.style()), (128, PromptStyle::Chat));
    let mut history = History::new(Some("be kind".into()));
    history.push_user("the cat");
    let (prompt, dropped) = chat.fit(&mut history, 10).unwrap();
    assert_eq!(dropped, 0);
    let (mut pieces, mut calls) = (String::new(), 0);
    let mut collect = |piece: &str| {
        calls += 1;
        pieces.push_str(piece);
        ControlFlow::Continue(())
    };
    let answer = chat.answer(&prompt, &options(10), &mut collect).unwrap();
    assert_eq!((answer.finish, answer.tokens, answer.reused), (Finish::Length, 10, 0));
    assert_eq!(answer.text, pieces);
    assert!(calls >= answer.tokens, "called {calls} times: every token can end the answer");

    history.push_assistant(&answer.text);
    history.push_user("and the dog");
    let (second, _) = chat.fit(&mut history, 10).unwrap();
    let answer = chat.answer(&second, &options(10), &mut going).unwrap();
    // at least the whole first prompt; its answer as far as its text gives the same tokens again
    assert!(answer.reused >= prompt.len() && answer.reused < second.len(), "{answer:?}");

    // the caller ends an answer, and what was said stays whole
    let mut seen = String::new();
    let cut = chat.answer(&second, &options(10), &mut |piece| {
        seen.push_str(piece);
        ControlFlow::Break(())
    });
    let cut = cut.unwrap();
    assert_eq!((cut.finish, cut.text), (Finish::Caller, seen.clone()));
    assert!(answer.text.starts_with(&seen));
}

#[test]
fn stop_texts_end_an_answer_and_are_left_out() {
    let Some(gpu) = common::gpu() else { return };
    let tokenizer = Tokenizer::open(&model()).unwrap();
    let mut chat = open(&gpu, &tokenizer, None);
    let prompt = chat.prompt(&Conversation::single(None, "the cat", None)).unwrap();
    let whole = chat.answer(&prompt, &options(12), &mut going).unwrap().text;
    let (at, stop) = whole.char_indices().nth(4).map(|(at, _)| (at, whole[at..].chars().take(2))).unwrap();
    let stop: String = stop.collect();
    let first = whole.find(&stop).unwrap();
    assert!(first <= at);
    let stopped = AnswerOptions { stop: vec![stop], ..options(12) };
    let mut pieces = String::new();
    let answer = chat.answer(&prompt, &stopped, &mut |piece| {
        pieces.push_str(piece);
        ControlFlow::Continue(())
    });
    let answer = answer.unwrap();
    assert_eq!((answer.finish, &answer.text[..]), (Finish::Stop, &whole[..first]));
    assert_eq!(pieces, answer.text);
}

#[test]
fn the_oldest_turns_go_where_the_context_is_full() {
    let Some(gpu) = common::gpu() else { return };
    let tokenizer = Tokenizer::open(&model()).unwrap();
    let chat = open(&gpu, &tokenizer, Some(80));
    let mut history = History::new(Some("be kind".into()));
    for turn in 0..4 {
        history.push_user(&format!("question {turn}"));
        history.push_assistant(&format!("answer {turn}"));
    }
    history.push_user("the last question");
    let (prompt, dropped) = chat.fit(&mut history, 1000).unwrap();
    assert!(dropped > 0 && dropped % 2 == 0, "{dropped}");
    assert_eq!(history.len() + dropped, 9);
    assert!(prompt.len() + 20 <= 80, "a quarter is left for the answer: {}", prompt.len());
    let text = tokenizer.decode_all(&prompt).unwrap();
    assert!(text.contains("be kind") && text.contains("the last question") && !text.contains("question 0"));

    let before = history.clone();
    history.push_user(&"a very long message ".repeat(30));
    let error = chat.fit(&mut history, 10).unwrap_err().to_string();
    assert!(error.contains("--context") && error.contains("80"), "{error}");
    history.pop();
    assert_eq!(history, before, "a message that does not fit costs nothing");
}

/// Runs the program on the device under test.
fn engraft(arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Ok(device) = std::env::var("ENGRAFT_TEST_GPU") {
        command.args(["--gpu", &device]);
    }
    let mut child = command.spawn().unwrap();
    // a program that ends before it reads closes the pipe: no error here
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

fn chat(more: &[&str], input: impl AsRef<[u8]>) -> (String, String) {
    let folder = model();
    let fixed = ["chat", folder.to_str().unwrap(), "--precision", "32-true", "--temperature", "0"];
    let output = engraft(&[&fixed[..], more].concat(), input);
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    (String::from_utf8(output.stdout).unwrap(), err)
}

#[test]
fn the_command_answers_a_pipe_and_remembers_until_it_is_told_not_to() {
    let Some(gpu) = common::gpu() else { return };
    let limit = ["--max_new_tokens", "10"];
    let (alone, notes) = chat(&limit, "the cat\n");
    assert!(notes.contains("prompt style chat, context of 128 tokens"), "{notes}");
    let (twice, notes) = chat(&limit, "the cat\nthe cat\n");
    let (first, second) = twice.split_at(alone.len());
    assert_eq!(first, alone);
    assert_ne!(second, alone, "the second answer knows the first turn");
    assert!(notes.contains("of them new"), "{notes}");
    let (cleared, notes) = chat(&limit, "the cat\n/clear\n\nthe cat\n/exit\nthe cat\n");
    assert_eq!(cleared, alone.repeat(2));
    assert!(notes.contains("forgotten"), "{notes}");
    let (system, notes) = chat(&["--quiet", "--system", "say little", "--max_new_tokens", "10"], "the cat");
    assert_ne!(system, alone);
    assert_eq!(notes, "");

    // as the library has it, with a message of two lines
    let tokenizer = Tokenizer::open(&model()).unwrap();
    let mut library = open(&gpu, &tokenizer, None);
    let prompt = library.prompt(&Conversation::single(None, "the cat\nsat", None)).unwrap();
    let answer = library.answer(&prompt, &options(10), &mut going).unwrap();
    for input in ["the cat\\\nsat\n", "\"\"\"the cat\nsat\n\"\"\"\n"] {
        assert_eq!(chat(&limit, input).0, answer.text.clone() + "\n");
    }
}

#[test]
fn a_line_that_is_no_utf8_is_told_and_ends_nothing() {
    if common::gpu().is_none() {
        return;
    }
    let limit = ["--quiet", "--max_new_tokens", "10"];
    let (expected, notes) = chat(&limit, "caf\u{fffd}\n/clear\nthe cat\n");
    assert_eq!(notes, "");
    let (said, notes) = chat(&limit, b"caf\xe9\n/clear\nthe cat\n");
    assert_eq!(said, expected);
    assert!(notes.starts_with("warning: line 1 of standard input is no UTF-8"), "{notes}");
    assert!(notes.contains("\u{fffd}") && notes.ends_with("-t UTF-8\n"), "{notes}");
    // once for a message, and a mark of byte order is no part of the first
    let (expected, _) = chat(&limit, "\u{fffd}\\\n\u{fffd}\n");
    let (said, notes) = chat(&limit, b"\xef\xbb\xbf\xe9\\\n\xe8\n");
    assert_eq!(said, expected);
    assert!(notes.starts_with("warning: lines 1 to 2 of standard input are no UTF-8"), "{notes}");
    assert_eq!(notes.matches("warning").count(), 1, "{notes}");
}

/// A style for single instructions has no form for a second turn.
#[test]
fn messages_in_a_style_without_conversations_stand_alone() {
    if common::gpu().is_none() {
        return;
    }
    let style = ["--prompt_style", "flan", "--max_new_tokens", "10"];
    let (alone, notes) = chat(&style, "the cat\n");
    assert!(
        notes.contains("prompt style flan has no conversations: each message is asked by itself"),
        "{notes}"
    );
    let (both, _) = chat(&style, "the dog\nthe cat\n");
    assert!(both.len() > alone.len() && both.ends_with(&alone), "{both:?} {alone:?}");
}

#[test]
fn a_full_context_is_said_and_the_conversation_goes_on() {
    if common::gpu().is_none() {
        return;
    }
    let long = "a long message ".repeat(60);
    let (_, notes) = chat(&["--max_new_tokens", "24"], format!("one\ntwo\nthree\n{long}\nfour\n"));
    assert!(notes.contains("messages are dropped: the context is full"), "{notes}");
    assert!(notes.contains("shorten it"), "{notes}");
    assert_eq!(notes.matches("of them new").count(), 4, "{notes}");
}

#[test]
fn what_cannot_be_talked_to_is_told() {
    let folder = model();
    let folder = folder.to_str().unwrap();
    let said = |more: &[&str]| {
        let output = engraft(&[&["chat", folder], more].concat(), "hi\n");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        text
    };
    assert!(said(&["--top_p", "2", "--context", "1"]).contains("--context"));
    if common::gpu().is_some() {
        assert!(said(&["--context", "129"]).contains("max_position_embeddings"));
    }
}
