//! `engraft serve` as its clients see it.

mod common;

use engraft::data::Tokenizer;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// The program on a port of its own, with what it says on standard error.
struct Server {
    child: Child,
    address: String,
    notes: Arc<Mutex<String>>,
}

impl Server {
    /// `None` where there is no device.
    fn start(more: &[&str]) -> Option<Self> {
        common::gpu()?;
        let folder = common::fixtures().join("models/llama_untied");
        let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
        command.env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
        command.arg("serve").arg(folder).args(["--port", "0", "--precision", "32-true"]).args(more);
        if let Ok(device) = std::env::var("ENGRAFT_TEST_GPU") {
            command.args(["--gpu", &device]);
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let notes = Arc::new(Mutex::new(String::new()));
        let (log, errors) = (Arc::clone(&notes), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                *log.lock().unwrap() += &(line + "\n");
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line} {}", notes.lock().unwrap())).to_owned();
        Some(Server { child, address, notes })
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().clone()
    }

    /// Status and body.
    fn call(&self, method: &str, path: &str, body: &str, headers: &str) -> (u16, String) {
        let mut stream = self.send(method, path, body, headers);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let body = if head.contains("chunked") { unchunked(body) } else { body.to_owned() };
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    /// Status line and headers of the answer, in small letters.
    fn head(&self, method: &str, path: &str, headers: &str) -> String {
        let mut text = String::new();
        self.send(method, path, "", headers).read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").unwrap().0.to_lowercase()
    }

    fn send(&self, method: &str, path: &str, body: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let host =
            if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // a server that refuses early may have closed already
        let _ = stream.write_all(body.as_bytes());
        stream
    }

    fn post(&self, body: &Value) -> (u16, Value) {
        self.post_to(CHAT, body)
    }

    fn post_to(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.call("POST", path, &body.to_string(), "");
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// The chunks of a streamed answer, without the `[DONE]` that ends them.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.call("POST", path, &body.to_string(), "");
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        events
            .iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text += &rest[..size];
        body = &rest[size + 2..];
    }
    text
}

fn ask(more: Value) -> Value {
    let mut body =
        json!({"model": "any", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn answers_are_whole_or_streamed_and_say_the_same() {
    let Some(server) = Server::start(&["--model_name", "tiny"]) else { return };
    assert_eq!(server.call("GET", "/health", "", ""), (200, json!({"status": "ok"}).to_string()));
    let (status, models) = server.call("GET", "/v1/models", "", "");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["id"], &models["object"]), (200, &json!("tiny"), &json!("list")));

    let (status, whole) = server.post(&ask(json!({"max_tokens": 12})));
    assert_eq!(status, 200, "{whole}");
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("tiny")));
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["role"]),
        (&json!("length"), &json!("assistant"))
    );
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    let usage = &whole["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(count("completion_tokens"), 12);
    assert_eq!(count("total_tokens"), count("prompt_tokens") + 12);

    let more =
        json!({"max_completion_tokens": 12, "stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.stream(CHAT, &ask(more));
    let said: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk")
    );
    assert!(chunks.len() > 5, "piece by piece: {chunks:?}");
    let [.., last, end] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    // the second time all of the prompt is in the cache, and what it came to is known
    let cached = count("prompt_tokens");
    assert_eq!(
        (&end["choices"], &end["usage"]["prompt_tokens_details"]["cached_tokens"]),
        (&json!([]), &json!(cached))
    );

    // a stop text that the answer holds
    let stop: String = text.chars().skip(3).take(2).collect();
    let (_, stopped) = server.post(&ask(json!({"max_tokens": 12, "stop": [stop]})));
    let choice = &stopped["choices"][0];
    let expected = text.split(&stop).next().unwrap();
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("stop"), &json!(expected)));

    // seeds decide, and without one answers differ
    let warm = |more: Value| {
        let mut body = ask(json!({"max_tokens": 12, "temperature": 1.5, "top_k": 0, "top_p": 0.99}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(&body).1["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(warm(json!({"seed": 5})), warm(json!({"seed": 5})));
    assert_ne!(warm(json!({"seed": 5})), warm(json!({"seed": 6})));
    assert_ne!(warm(json!({})), warm(json!({})));
}

#[test]
fn a_text_is_continued_as_generate_does_without_a_style() {
    let Some(server) = Server::start(&["--model_name", "tiny"]) else { return };
    let folder = common::fixtures().join("models/llama_untied");
    let mut words =
        vec!["generate", folder.to_str().unwrap(), "--prompt", "the cat", "--prompt_style", "none"];
    words.extend(["--precision", "32-true", "--temperature", "0", "--max_new_tokens", "12", "--quiet"]);
    let device = std::env::var("ENGRAFT_TEST_GPU").ok();
    words.extend(device.iter().flat_map(|device| ["--gpu", device]));
    let output = common::engraft(&words);
    let expected = String::from_utf8(output.stdout).unwrap();
    let expected = expected.strip_suffix('\n').unwrap();
    assert!(!expected.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));

    let ask = |more: Value| {
        let mut body = json!({"model": "any", "prompt": "the cat", "max_tokens": 12, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (status, whole) = server.post_to(TEXT, &ask(json!({})));
    assert_eq!((status, &whole["object"], &whole["model"]), (200, &json!("text_completion"), &json!("tiny")));
    let choice = |answer: &Value| {
        let choice = &answer["choices"][0];
        (choice["text"].as_str().unwrap().to_owned(), choice["finish_reason"].clone())
    };
    assert_eq!(choice(&whole), (expected.to_owned(), json!("length")));
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"), "{whole}");
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    let (_, listed) = server.post_to(TEXT, &ask(json!({"prompt": ["the cat"]})));
    assert_eq!(listed["choices"], whole["choices"]);
    let tokens = Tokenizer::open(&folder).unwrap().encode("the cat").unwrap();
    for prompt in [json!(tokens), json!([tokens])] {
        let (status, of_tokens) = server.post_to(TEXT, &ask(json!({"prompt": prompt})));
        assert_eq!((status, &of_tokens["choices"]), (200, &whole["choices"]));
        assert_eq!(of_tokens["usage"]["prompt_tokens"], tokens.len());
    }

    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.stream(TEXT, &ask(options));
    let [pieces @ .., end] = &chunks[..] else { panic!("{chunks:?}") };
    let said: String = pieces.iter().map(|chunk| choice(chunk).0).collect();
    assert_eq!(said, expected);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"), "{chunks:?}");
    let reasons: Vec<Value> = pieces.iter().map(|chunk| choice(chunk).1).collect();
    assert!(
        reasons.len() > 5 && reasons.iter().rev().skip(1).all(Value::is_null),
        "piece by piece: {chunks:?}"
    );
    assert_eq!(reasons.last(), Some(&json!("length")));
    assert_eq!((&end["choices"], &end["usage"]["completion_tokens"]), (&json!([]), &json!(12)));

    let stop: String = expected.chars().skip(3).take(2).collect();
    let (_, stopped) = server.post_to(TEXT, &ask(json!({"stop": stop})));
    assert_eq!(choice(&stopped), (expected.split(&stop).next().unwrap().to_owned(), json!("stop")));
    // a chat of the same words is another prompt
    let (_, chat) = server.post(&json!({
        "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 12, "temperature": 0
    }));
    assert!(chat["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());
}

/// What programs that measure models ask for: the probability of every token of many texts, and of one more.
#[test]
fn texts_are_scored_and_several_go_in_one_request() {
    let Some(server) = Server::start(&[]) else { return };
    let tokenizer = Tokenizer::open(&common::fixtures().join("models/llama_untied")).unwrap();
    let texts = ["the cat sat", "the cat on a mat", "the"];
    let ask = |prompt: Value, more: Value| {
        let mut body =
            json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = server.post_to(TEXT, &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let together = ask(json!(texts), json!({}));
    let choices = together["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let (mut prompt_tokens, mut new) = (0, 0);
    for (i, (choice, text)) in choices.iter().zip(texts).enumerate() {
        assert_eq!(choice["index"], i);
        let whole = choice["text"].as_str().unwrap();
        assert!(whole.starts_with(text), "{choice}");
        let ids = tokenizer.encode(text).unwrap();
        let scores = &choice["logprobs"];
        let list = |key: &str| scores[key].as_array().unwrap();
        // those of the prompt and the new one, even where that ends the text
        let count = ids.len() + 1;
        assert!(
            ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
                .iter()
                .all(|key| list(key).len() == count)
        );
        assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null());
        for (value, top) in list("token_logprobs").iter().zip(list("top_logprobs")).skip(1) {
            let top: Vec<f64> = top.as_object().unwrap().values().map(number).collect();
            // the most probable one, and this one
            assert!((1..=2).contains(&top.len()) && top.contains(&number(value)) && number(value) < 0.0);
        }
        // greedy: nothing is more probable than what was drawn
        let (last, top) = (list("token_logprobs").last().unwrap(), list("top_logprobs").last().unwrap());
        assert_eq!(top.as_object().unwrap().values().collect::<Vec<_>>(), [last]);
        // the text is the tokens' end to end; BOS has none of it
        let offsets: Vec<usize> =
            list("text_offset").iter().map(|at| at.as_u64().unwrap() as usize).collect();
        assert_eq!(offsets[..2], [0, 0]);
        for (i, token) in list("tokens").iter().enumerate().skip(1).take(ids.len() - 1) {
            let end = if i == ids.len() - 1 { text.len() } else { offsets[i + 1] };
            assert_eq!(token, &text[offsets[i]..end]);
        }
        assert_eq!(offsets[ids.len()], text.len());
        // as one by one, in tokens as in words
        let alone = ask(json!(ids), json!({}));
        assert_eq!(alone["choices"][0]["text"], whole);
        for (one, other) in alone["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .zip(list("token_logprobs"))
        {
            assert!(one.is_null() && other.is_null() || (number(one) - number(other)).abs() < 1e-4);
        }
        prompt_tokens += ids.len();
        new += alone["usage"]["completion_tokens"].as_u64().unwrap();
    }
    assert_eq!(
        (&together["usage"]["prompt_tokens"], &together["usage"]["completion_tokens"]),
        (&json!(prompt_tokens), &json!(new))
    );
    // the prompt alone
    let nothing = ask(json!(texts[0]), json!({"max_tokens": 0, "logprobs": 0}));
    let scores = &nothing["choices"][0]["logprobs"];
    assert_eq!(
        (&nothing["choices"][0]["text"], &nothing["choices"][0]["finish_reason"]),
        (&json!(texts[0]), &json!("length"))
    );
    let ids = tokenizer.encode(texts[0]).unwrap();
    assert_eq!(scores["tokens"].as_array().unwrap().len(), ids.len());
    assert!(scores["top_logprobs"][1].as_object().unwrap().len() == 1, "{scores}");

    // special tokens that are written out are text as well
    let special = "<|start_header_id|>user<|end_header_id|>\n\nthe café";
    let choice = ask(json!(special), json!({"max_tokens": 0}))["choices"][0].clone();
    assert_eq!(choice["text"], special);
    let (offsets, tokens) = (&choice["logprobs"]["text_offset"], &choice["logprobs"]["tokens"]);
    let at = |name: &str| {
        let found = tokens.as_array().unwrap().iter().position(|token| token == name);
        offsets[found.unwrap_or_else(|| panic!("{name} is not in {tokens}"))].as_u64().unwrap() as usize
    };
    assert_eq!(at("<|end_header_id|>"), special.find("<|end").unwrap());
    assert_eq!(at("th"), special.find("the").unwrap());
    // the whole context can be scored where nothing is to follow
    let context: Vec<u32> = (0..128).map(|t| 5 + t % 7).collect();
    let scored = ask(json!(context), json!({"max_tokens": 0}));
    assert_eq!(scored["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 128);
    let mut body = json!({"prompt": context, "max_tokens": 1});
    assert_eq!(server.post_to(TEXT, &body).1["error"]["code"], "context_length_exceeded");
    // as is one that would be told of at too great a length
    (body["echo"], body["n"], body["logprobs"], body["max_tokens"]) =
        (json!(true), json!(128), json!(20), json!(0));
    body["prompt"] = json!(vec![context; 8]);
    let (status, answer) = server.post_to(TEXT, &body);
    assert!(status == 400 && answer["error"]["param"] == "prompt[5]", "{answer}");

    // without a seed no answer is another's, of one request or of two
    let warm = json!({"echo": false, "logprobs": null, "max_tokens": 16, "temperature": 1.5, "top_k": 0});
    let mut texts_of_all = std::collections::HashSet::new();
    for _ in 0..2 {
        let mut more = warm.clone();
        more["n"] = json!(2);
        let answer = ask(json!(["the cat", "the cat"]), more);
        texts_of_all
            .extend(answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].to_string()));
    }
    assert_eq!(texts_of_all.len(), 8);

    // several answers have seeds that follow each other
    let warm = json!({"echo": false, "logprobs": null, "max_tokens": 8, "temperature": 1.5, "top_k": 0, "seed": 4, "n": 3});
    let several = ask(json!(texts[..2]), warm.clone());
    let said = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect()
    };
    let several_said = said(&several);
    assert_eq!(several_said.len(), 6);
    for (p, text) in texts[..2].iter().enumerate() {
        for n in 0..3 {
            let mut one = warm.clone();
            (one["n"], one["seed"]) = (json!(1), json!(4 + n));
            assert_eq!(said(&ask(json!(text), one))[0], several_said[3 * p + n], "{text} {n}");
        }
    }
    // and are streamed one after the other, each to its end
    let mut body = warm;
    (body["prompt"], body["echo"], body["stream"]) = (json!(texts[..2]), json!(true), json!(true));
    let chunks = server.stream(TEXT, &body);
    let choice = |chunk: &Value| {
        (chunk["choices"][0]["index"].as_u64().unwrap() as usize, chunk["choices"][0].clone())
    };
    let mut streamed = vec![String::new(); 6];
    let mut ended = Vec::new();
    for chunk in &chunks {
        let (index, choice) = choice(chunk);
        assert_eq!(index, ended.len());
        streamed[index] += choice["text"].as_str().unwrap();
        if !choice["finish_reason"].is_null() {
            ended.push(index);
        }
    }
    let expected: Vec<String> = several_said
        .iter()
        .enumerate()
        .map(|(i, said)| format!("{}{}", texts[i / 3], said.as_str().unwrap()))
        .collect();
    assert_eq!((streamed, ended.len()), (expected, 6));
}

#[test]
fn tokens_of_a_chat_are_scored() {
    let Some(server) = Server::start(&[]) else { return };
    let (status, answer) =
        server.post(&ask(json!({"max_tokens": 12, "logprobs": true, "top_logprobs": 2, "n": 2})));
    assert_eq!(status, 200, "{answer}");
    for choice in answer["choices"].as_array().unwrap() {
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), 12);
        let mut rest = choice["message"]["content"].as_str().unwrap();
        let mut exact = 0;
        for token in content {
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 2);
            // greedy
            assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
            assert!(top[0]["logprob"].as_f64().unwrap() >= top[1]["logprob"].as_f64().unwrap());
            // what is a part of a character has no bytes here
            let Some(bytes) = token["bytes"].as_array() else { continue };
            let bytes: Vec<u8> = bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
            let text = token["token"].as_str().unwrap();
            assert_eq!(bytes, text.as_bytes());
            // the answer has no space at its beginning
            let at = rest.find(text.trim_start()).unwrap_or_else(|| panic!("{text:?} is not in {rest:?}"));
            rest = &rest[at + text.trim_start().len()..];
            exact += 1;
        }
        assert!(exact > 4, "{choice}");
    }
    // a text that ends the answer takes the tokens behind it away
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let stop: String = said.chars().skip(3).take(2).collect();
    let (_, stopped) = server.post(&ask(json!({"max_tokens": 12, "logprobs": true, "stop": stop})));
    let choice = &stopped["choices"][0];
    let count = choice["logprobs"]["content"].as_array().unwrap().len();
    assert!(count > 0 && count < 12 && choice["finish_reason"] == "stop", "{choice}");
}

#[test]
fn mistakes_are_told_in_openais_form() {
    let Some(server) = Server::start(&["--quiet"]) else { return };
    let error = |status: u16, body: &str| {
        let (given, text) = server.call("POST", "/v1/chat/completions", body, "");
        assert_eq!(given, status, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["error"].clone()
    };
    let broken = error(400, "{\"messages\": [");
    assert_eq!(broken["type"], "invalid_request_error");
    assert!(broken["message"].as_str().unwrap().contains("EOF"), "{broken}");
    assert_eq!(error(400, &ask(json!({"n": 0})).to_string())["param"], "n");
    let long = json!({"messages": [{"role": "user", "content": "a long text ".repeat(100)}]});
    assert_eq!(error(400, &long.to_string())["code"], "context_length_exceeded");
    assert_eq!(
        error(400, &json!({"messages": [{"role": "x", "content": "y"}]}).to_string())["param"],
        "messages[0].role"
    );
    let huge = server.call("POST", "/v1/chat/completions", &" ".repeat(5 << 20), "");
    assert_eq!(huge.0, 413, "{}", huge.1);
    assert_eq!(server.call("GET", "/v1/chat/completions", "", "").0, 405);
    assert_eq!(server.call("POST", "/health", "", "").0, 405);
    assert_eq!(server.call("GET", TEXT, "", "").0, 405);
    let (status, text) = server.call("GET", "/v1/embeddings", "", "");
    assert!(status == 404 && text.contains(CHAT) && text.contains(TEXT), "{text}");
    let text = |body: Value| {
        let (status, answer) = server.post_to(TEXT, &body);
        (status, answer["error"]["param"].clone(), answer["error"]["code"].clone())
    };
    assert_eq!(text(json!({})), (400, json!("prompt"), json!(null)));
    assert_eq!(text(json!({"messages": []})), (400, json!("messages"), json!(null)));
    assert_eq!(text(json!({"prompt": "a", "stop": 5})), (400, json!("stop"), json!(null)));
    let (status, answer) = server.post_to(TEXT, &json!({"prompt": [1, 512]}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(status == 400 && message.contains("512") && message.contains("511"), "{answer}");
    let refused = (400, json!("suffix"), json!("unsupported_parameter"));
    assert_eq!(text(json!({"prompt": "a", "suffix": "b"})), refused);
    // the one of several that is at fault
    assert_eq!(text(json!({"prompt": ["a", "", [512]]})), (400, json!("prompt[2]"), json!(null)));
    let long = json!({"prompt": "a long text ".repeat(100)});
    assert_eq!(text(long), (400, json!("prompt"), json!("context_length_exceeded")));
    let (status, text) = server.call("GET", "/health", "", "Host: evil.example\r\n");
    assert!(status == 403 && text.contains("--host"), "{text}");
    // and it still answers
    assert_eq!(server.post(&ask(json!({"max_tokens": 2}))).0, 200);
    assert_eq!(server.notes(), "");
}

#[test]
fn clients_wait_their_turn_and_one_that_leaves_costs_nothing() {
    let Some(server) = Server::start(&[]) else { return };
    let expected = server.post(&ask(json!({"max_tokens": 20}))).1["choices"].clone();
    std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.post(&ask(json!({"max_tokens": 20}))))).collect();
        for call in calls {
            let (status, answer) = call.join().unwrap();
            assert_eq!((status, &answer["choices"]), (200, &expected));
        }
    });
    // a short answer may be whole before the server knows; so until it was cut once, streamed and not
    for stream in [true, false] {
        let cut = "cut, the client has gone";
        let before = server.notes().matches(cut).count();
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.notes().matches(cut).count() == before {
            assert!(Instant::now() < deadline, "stream {stream}: {}", server.notes());
            let body = ask(json!({"max_tokens": 100, "stream": stream})).to_string();
            let mut client = server.send("POST", "/v1/chat/completions", &body, "");
            match stream {
                true => drop(client.read(&mut [0; 64])),
                // into the answer
                false => std::thread::sleep(Duration::from_millis(15)),
            }
            drop(client);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(server.post(&ask(json!({"max_tokens": 20}))).1["choices"], expected);
}

/// And SIGTERM, with which systems end their services.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_cleanly() {
    for signal in ["-INT", "-TERM"] {
        let Some(mut server) = Server::start(&[]) else { return };
        assert_eq!(server.post(&ask(json!({"max_tokens": 3}))).0, 200);
        // an open connection that says nothing must not hold it up
        let idle = TcpStream::connect(&server.address).unwrap();
        let id = server.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            match server.child.try_wait().unwrap() {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
            assert!(Instant::now() < deadline, "it does not end: {}", server.notes());
        };
        assert_eq!(status.code(), Some(0), "{signal}: {}", server.notes());
        assert!(TcpStream::connect(&server.address).is_err());
        drop(idle);
    }
}

/// A client that waits is told, rather than given the part that was made.
#[cfg(unix)]
#[test]
fn a_server_that_ends_says_so_to_who_waits() {
    for answers in [1, 100] {
        let Some(server) = Server::start(&[]) else { return };
        assert_eq!(server.post(&ask(json!({"max_tokens": 3}))).0, 200);
        // so many that it is not done in time, one of which waits for its turn
        let body = ask(json!({"max_tokens": 100, "n": answers, "temperature": 1}));
        let (first, second) = std::thread::scope(|scope| {
            let all = json!({"max_tokens": 100, "n": 128, "temperature": 1});
            let first = scope.spawn(|| server.post(&ask(all)));
            std::thread::sleep(Duration::from_millis(300));
            let second = scope.spawn(|| server.post(&body));
            std::thread::sleep(Duration::from_millis(100));
            let id = server.child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
            (first.join().unwrap(), second.join().unwrap())
        });
        for (status, answer) in [first, second] {
            let message = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(status == 503 && message.contains("ending"), "{answer}");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.notes().contains("cut, the server is ending") {
            assert!(Instant::now() < deadline, "{}", server.notes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn an_address_that_cannot_be_had_is_told_before_the_model_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let command = |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_engraft")).args(words).output().unwrap();
    let output = command(&["serve", "no_model", "--port", &port]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("cannot listen on 127.0.0.1"), "{text}");
    // open to others: said before anything else goes on
    let output = command(&["serve", "no_model", "--port", "0", "--host", "0.0.0.0"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.starts_with("warning: 0.0.0.0:"), "{text}");
}

/// Connections that never finish a request (slow loris) are closed, and those that wait behind them have their turn.
#[test]
fn half_requests_are_cut_and_take_no_place_for_long() {
    // as many as the server has open at a time, and some more
    const CONNECTIONS: usize = 128 + 8;
    let Some(server) = Server::start(&[]) else { return };
    let began = Instant::now();
    let half = |_| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").unwrap();
        stream
    };
    let streams: Vec<_> = (0..CONNECTIONS).map(half).collect();
    let (status, _) = server.call("GET", "/health", "", "");
    let waited = began.elapsed();
    assert_eq!(status, 200);
    assert!(waited > Duration::from_secs(5), "answered after {waited:?}: no limit of connections");
    for mut stream in streams {
        let mut answer = Vec::new();
        // a reset is an end too
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[test]
fn pages_of_this_machine_may_ask_and_others_may_not() {
    let Some(server) = Server::start(&[]) else { return };
    let preflight = |origin: &str| {
        let headers = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
        );
        server.head("OPTIONS", CHAT, &headers)
    };
    let allowed = preflight("http://localhost:3000");
    assert!(allowed.starts_with("http/1.1 200"), "{allowed}");
    for line in [
        "access-control-allow-origin: http://localhost:3000",
        "access-control-allow-headers: content-type",
        "access-control-allow-methods: get,post",
    ] {
        assert!(allowed.contains(line), "{line}: {allowed}");
    }
    assert!(!preflight("http://evil.example").contains("access-control-allow-origin"));
    let from = |origin: &str| server.head("GET", "/v1/models", &format!("Origin: {origin}\r\n"));
    let answered = from("http://127.0.0.1:5173");
    assert!(answered.contains("access-control-allow-origin: http://127.0.0.1:5173"), "{answered}");
    let refused = from("http://evil.example");
    assert!(
        refused.starts_with("http/1.1 403") && !refused.contains("access-control-allow-origin"),
        "{refused}"
    );
    // not a page at all
    assert!(!server.head("GET", "/v1/models", "").contains("access-control-allow-origin"));
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let Some(server) = Server::start(&["--api_key", "sk-42"]) else { return };
    let status = |path: &str, headers: &str| server.call("GET", path, "", headers).0;
    assert_eq!(status("/health", ""), 200);
    assert_eq!(status("/v1/models", "Authorization: Bearer sk-42\r\n"), 200);
    for wrong in [
        "",
        "Authorization: Bearer sk-43\r\n",
        "Authorization: Bearer sk-4\r\n",
        "Authorization: sk-42\r\n",
        "Authorization: Bearer \r\n",
    ] {
        assert_eq!(status("/v1/models", wrong), 401, "{wrong:?}");
    }
    let (status, body) = server.call("POST", CHAT, &ask(json!({})).to_string(), "");
    assert_eq!(status, 401);
    assert!(body.contains("Authorization: Bearer KEY"), "{body}");
    let (status, _) =
        server.call("POST", CHAT, &ask(json!({})).to_string(), "Authorization: Bearer sk-42\r\n");
    assert_eq!(status, 200);
}

#[test]
fn pages_from_elsewhere_may_ask_where_a_key_is_asked_for() {
    let evil = "Origin: http://pages.example\r\n";
    let allowed = "access-control-allow-origin: http://pages.example";
    let open = ["--host", "0.0.0.0"];
    let with_key: &[&str] = &[&open[..], &["--api_key", "sk-42"]].concat();
    for (options, may) in [(&open[..], false), (with_key, true), (&with_key[2..], false)] {
        let Some(server) = Server::start(options) else { return };
        for method in ["OPTIONS", "GET"] {
            let headers =
                format!("{evil}Access-Control-Request-Method: GET\r\nAuthorization: Bearer sk-42\r\n");
            let answered = server.head(method, "/v1/models", &headers);
            assert_eq!(answered.contains(allowed), may, "{options:?} {method}: {answered}");
        }
        assert_eq!(server.notes().contains("warning: "), options == &open[..], "{}", server.notes());
    }
}
