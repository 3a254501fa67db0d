//! Conversations, prompts and masks against transformers and LitGPT, and what is done with templates that are
//! missing, broken, or rewrite what was said.

use std::path::{Path, PathBuf};

use engraft::data::{DataError, Dataset, DatasetOptions, PromptStyle, Sample, SampleOptions, Tokenizer};
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

fn tokenizer(family: &str) -> Tokenizer {
    Tokenizer::open(&model_dir(family)).unwrap()
}

fn reference(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("tokenizer").join(file)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

fn ids(sample: &Sample) -> Vec<i64> {
    sample.tokens.iter().map(|&token| i64::from(token)).collect()
}

/// The data set of these rows.
fn dataset(rows: &[Value], tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    Dataset::open(&file, tokenizer, options)
}

fn samples(rows: &[Value], tokenizer: &Tokenizer, options: &DatasetOptions) -> Vec<Sample> {
    dataset(rows, tokenizer, options).unwrap_or_else(|error| panic!("{error}")).train.iter().collect()
}

/// The refusal of one row, after file and line.
fn refusal(row: Value, tokenizer: &Tokenizer, options: &DatasetOptions) -> String {
    let message = dataset(&[row], tokenizer, options).unwrap_err().to_string();
    message.split_once("rows.jsonl: line 1: ").unwrap_or_else(|| panic!("{message}")).1.to_owned()
}

fn style(name: &str) -> DatasetOptions {
    let style = name.parse().unwrap();
    DatasetOptions {
        sample: SampleOptions { style, ..SampleOptions::default() },
        ..DatasetOptions::default()
    }
}

/// Options with a template of their own; the folder lives as long as the pair.
fn with_template(source: &str) -> (tempfile::TempDir, DatasetOptions) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.jinja");
    std::fs::write(&file, source).unwrap();
    (folder, DatasetOptions { prompt_template: Some(file), ..DatasetOptions::default() })
}

/// The texts of the spans that are learned.
fn learned(tokenizer: &Tokenizer, sample: &Sample) -> Vec<String> {
    let text = |span: &engraft::data::Span| {
        tokenizer.decode_all(&sample.tokens[span.start as usize..span.end as usize]).unwrap()
    };
    sample.spans().iter().map(text).collect()
}

fn conversation(turns: &[(&str, &str)]) -> Value {
    let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    json!({"messages": turns.iter().map(message).collect::<Vec<_>>()})
}

// -----------------------------------------------------------------------------
// Against transformers

#[test]
fn conversations_equal_transformers() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let template = tokenizer.chat_template().unwrap().unwrap();
        let reference = reference(&format!("{family}.json"));
        let cases = reference["chat"].as_array().unwrap();
        assert_eq!(cases.len(), 20);
        for case in cases {
            let name = format!("{family}: {}", case["messages"]);
            let row = json!({"messages": case["messages"]});
            if let Some(error) = case["error"].as_str() {
                let message = refusal(row, &tokenizer, &DatasetOptions::default());
                assert!(message.ends_with(&format!(": {error}")), "{name}: {message}");
                continue;
            }
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let messages = case["messages"].as_array().unwrap().iter();
            let messages: Vec<_> = messages.map(|message| message.as_object().unwrap().clone()).collect();
            let conversation =
                engraft::data::Conversation { trained: vec![true; messages.len()], messages, tools: None };
            assert_eq!(
                template.text(&conversation, prompt).unwrap(),
                case["text"].as_str().unwrap(),
                "{name}"
            );
            if !prompt {
                let sample = &samples(&[row], &tokenizer, &DatasetOptions::default())[0];
                assert_eq!(ids(sample), numbers(&case["ids"]), "{name}");
            }
        }
    }
}

#[test]
fn masks_equal_transformers_with_and_without_its_tags() {
    let reference = reference("chat_labels.json");
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let (_folder, marked) = with_template(reference[family]["template"].as_str().unwrap());
        let cases: Vec<&Value> = reference[family]["chat"].as_array().unwrap().iter().collect();
        let cases: Vec<&Value> = cases.into_iter().filter(|case| case.get("error").is_none()).collect();
        assert!(cases.len() >= 7);
        let rows: Vec<Value> = cases.iter().map(|case| json!({"messages": case["messages"]})).collect();
        for (kind, options) in [("found", DatasetOptions::default()), ("marked", marked)] {
            let samples = samples(&rows, &tokenizer, &options);
            assert_eq!(samples.len(), cases.len());
            for (case, sample) in cases.iter().zip(&samples) {
                let name = format!("{family}, {kind}: {}", case["messages"]);
                assert_eq!(ids(sample), numbers(&case["ids"]), "{name}");
                assert_eq!(sample.labels(), numbers(&case["labels"]), "{name}");
            }
        }
    }
}

#[test]
fn named_prompts_equal_litgpt() {
    let reference = reference("prompts.json");
    let cases = reference.as_array().unwrap();
    assert_eq!(cases.len(), 66);
    for case in cases {
        let style: PromptStyle = case["style"].as_str().unwrap().parse().unwrap();
        let text = |key: &str| case[key].as_str();
        let prompt = style.prompt_with(text("system"), text("prompt").unwrap(), text("input"));
        assert_eq!(prompt, text("text").unwrap(), "{case}");
    }
    let mut named: Vec<&str> = cases.iter().map(|case| case["style"].as_str().unwrap()).collect();
    named.dedup();
    assert!(
        PromptStyle::names()
            .filter(|name| !["auto", "none", "chat"].contains(name))
            .all(|n| named.contains(&n))
    );
}

// -----------------------------------------------------------------------------
// Rows of every format

#[test]
fn formats_of_one_conversation_give_the_same_tokens() {
    let tokenizer = tokenizer("qwen2");
    let turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")];
    let rows = [
        conversation(&turns),
        json!({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
                                 {"from": "gpt", "value": "Hello!"}]}),
        json!({"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"},
                                                        {"from": "gpt", "value": "Hello!"}]}),
        json!({"messages": conversation(&turns)["messages"].to_string()}),
    ];
    let first = &samples(&rows[..1], &tokenizer, &DatasetOptions::default())[0];
    assert_eq!(learned(&tokenizer, first), ["Hello!<|im_end|>"]);
    for row in &rows {
        assert_eq!(
            &samples(std::slice::from_ref(row), &tokenizer, &DatasetOptions::default())[0],
            first,
            "{row}"
        );
    }
    let instruction = json!({"instruction": "Hi", "input": "", "output": "Hello!", "system": "Be brief."});
    assert_eq!(&samples(&[instruction], &tokenizer, &style("chat"))[0], first);
}

#[test]
fn completions_and_texts_end_in_eos_and_begin_in_bos() {
    let tokenizer = tokenizer("llama");
    let (bos, eos) = (tokenizer.bos().unwrap(), tokenizer.eos());
    let rows = [
        json!({"prompt": "Once upon", "completion": " a time"}),
        json!({"prompt": "Once", "completion": ""}),
    ];
    let completions = samples(&rows, &tokenizer, &DatasetOptions::default());
    assert_eq!(learned(&tokenizer, &completions[0]), [" a time<|eot_id|>"]);
    assert_eq!(learned(&tokenizer, &completions[1]), ["<|eot_id|>"]);
    let whole = samples(
        &[
            json!({"text": "Once upon a time"}),
            json!({"text": "<|begin_of_text|>Once upon a time<|eot_id|>"}),
        ],
        &tokenizer,
        &DatasetOptions::default(),
    );
    assert_eq!(whole[0], whole[1]);
    assert_eq!(whole[0].tokens, completions[0].tokens);
    assert_eq!(whole[0].label_tokens(), whole[0].tokens.len() - 1);
    for sample in whole.iter().chain(&completions) {
        assert_eq!(sample.tokens.iter().filter(|&&token| token == bos).count(), 1);
        assert_eq!(sample.tokens.iter().filter(|&&token| token == eos).count(), 1);
        assert_eq!((sample.tokens[0], *sample.tokens.last().unwrap()), (bos, eos));
    }
}

#[test]
fn every_answer_is_learned_but_those_that_say_otherwise() {
    let tokenizer = tokenizer("qwen2");
    let row = |first: Value| {
        json!({"messages": [
            {"role": "user", "content": "a"}, first,
            {"role": "user", "content": "b"}, {"role": "assistant", "content": "two"},
            {"role": "user", "content": "c"},
        ]})
    };
    let learned = |first: Value| {
        learned(&tokenizer, &samples(&[row(first)], &tokenizer, &DatasetOptions::default())[0])
    };
    let answer = |key: &str, value: Value| json!({"role": "assistant", "content": "one", key: value});
    assert_eq!(learned(answer("name", json!("x"))), ["one<|im_end|>", "two<|im_end|>"]);
    assert_eq!(learned(answer("train", json!(true))), ["one<|im_end|>", "two<|im_end|>"]);
    assert_eq!(learned(answer("train", json!(false))), ["two<|im_end|>"]);
    assert_eq!(learned(answer("weight", json!(0))), ["two<|im_end|>"]);
    assert_eq!(learned(answer("weight", json!(1))), ["one<|im_end|>", "two<|im_end|>"]);

    let options = DatasetOptions {
        sample: SampleOptions { mask_prompt: false, ..SampleOptions::default() },
        ..DatasetOptions::default()
    };
    let row = row(answer("train", json!(true)));
    let all = &samples(std::slice::from_ref(&row), &tokenizer, &options)[0];
    assert_eq!(all.tokens, samples(&[row], &tokenizer, &DatasetOptions::default())[0].tokens);
    // but for the first token, which no row predicts, and the newline after the last turn
    assert_eq!(all.label_tokens(), all.tokens.len() - 2);
}

#[test]
fn tools_reach_the_template_in_the_order_of_their_keys() {
    let tokenizer = tokenizer("qwen2");
    let (_folder, options) = with_template(
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}\
         {% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}<|im_end|>{% endfor %}",
    );
    let tools = json!([{"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [1.5, null, "é<"]}}}]);
    let row = json!({
        "tools": tools.to_string(),
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1}}}]},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "Seven."},
        ],
    });
    let sample = &samples(&[row], &tokenizer, &options)[0];
    let text = tokenizer.decode_all(&sample.tokens).unwrap();
    let expected = "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": [1.5, null, \
                    \"é<\"]}}}]<|im_start|>user:go<|im_end|><|im_start|>assistant:{\"name\": \"f\", \"arguments\": \
                    {\"z\": 1}}<|im_end|><|im_start|>tool:7<|im_end|><|im_start|>assistant:Seven.<|im_end|>";
    assert_eq!(text, expected);
    let learned = learned(&tokenizer, sample);
    assert_eq!(learned.len(), 2);
    assert!(
        learned[0].ends_with("{\"z\": 1}}<|im_end|>") && learned[1].ends_with("Seven.<|im_end|>"),
        "{learned:?}"
    );
}

#[test]
fn a_template_of_ones_own_writes_any_row() {
    let tokenizer = tokenizer("llama");
    let row = json!({"question": "2+2?", "answer": "4", "hint": ["small", 1]});
    let (_folder, prompt) = with_template("Q: {{ question }} ({{ hint[0] }})\nA: ");
    let (_folder, marked) = with_template(
        "Q: {{ question }} ({{ hint[0] }})\nA: {% generation %}{{ answer }}{% endgeneration %}",
    );
    let [first, second] =
        [&prompt, &marked].map(|options| samples(std::slice::from_ref(&row), &tokenizer, options).remove(0));
    assert_eq!(
        tokenizer.decode_all(&first.tokens).unwrap(),
        "<|begin_of_text|>Q: 2+2? (small)\nA: 4<|eot_id|>"
    );
    assert_eq!(first, second);
    assert_eq!(learned(&tokenizer, &first), ["4<|eot_id|>"]);
    let message = refusal(json!({"question": "2+2?", "hint": ["a"]}), &tokenizer, &prompt);
    assert!(message.contains("no text under output, completion, response, answer"), "{message}");
}

// -----------------------------------------------------------------------------
// Templates that are missing, rewrite, or fail

#[test]
fn a_model_without_a_template_says_what_to_choose() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        std::fs::copy(model_dir("gemma").join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert!(tokenizer.chat_template().unwrap().is_none());
    let row = conversation(&[("user", "Hi"), ("assistant", "Yes"), ("user", "Hm"), ("assistant", "No")]);
    let message = refusal(row.clone(), &tokenizer, &DatasetOptions::default());
    assert!(message.starts_with("the model has no chat template"), "{message}");
    assert!(
        message
            .contains("--prompt_style alpaca|chatml|gemma|llama3|phi-3|tinyllama or --prompt_template FILE")
    );
    let instruction = json!({"instruction": "Hi", "output": "Yes"});
    assert_eq!(samples(&[instruction], &tokenizer, &DatasetOptions::default()).len(), 1);

    let sample = &samples(std::slice::from_ref(&row), &tokenizer, &style("gemma"))[0];
    assert_eq!(
        tokenizer.decode_all(&sample.tokens).unwrap(),
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>user\n\
         Hm<end_of_turn>\n<start_of_turn>model\nNo<end_of_turn>\n"
    );
    assert_eq!(learned(&tokenizer, sample), ["Yes<end_of_turn>", "No<end_of_turn>"]);
    let sample = &samples(std::slice::from_ref(&row), &tokenizer, &style("alpaca"))[0];
    assert_eq!(learned(&tokenizer, sample), ["Yes<eos>", "No<eos>"]);
    let message = refusal(row, &tokenizer, &style("phi-2"));
    assert!(message.starts_with("the prompt style phi-2 is for single instructions"), "{message}");
}

/// Like templates of reasoning models: the thinking of earlier turns is dropped, the generation prompt opens one.
const REWRITING: &str = "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last %}<|im_start|>A:<think>\n\
    </think>{{ m.content }}<|im_end|>\n{% else %}<|im_start|>A:{{ m.content.split('</think>')[-1].strip() }}<|im_end|>\n\
    {% endif %}{% else %}<|im_start|>U:{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>A:<think>\n{% endif %}";

#[test]
fn turns_are_found_where_a_template_rewrites_them() {
    let tokenizer = tokenizer("qwen2");
    let (_folder, options) = with_template(REWRITING);
    let row = conversation(&[
        ("user", "Hi"),
        ("assistant", "<think>hm</think> Hello Hello "),
        ("user", "Hello"),
        ("assistant", ""),
        ("user", "Bye"),
        ("assistant", "Bye"),
    ]);
    let sample = &samples(&[row], &tokenizer, &options)[0];
    assert_eq!(
        tokenizer.decode_all(&sample.tokens).unwrap(),
        "<|im_start|>U:Hi<|im_end|>\n<|im_start|>A:Hello Hello<|im_end|>\n<|im_start|>U:Hello<|im_end|>\n\
         <|im_start|>A:<|im_end|>\n<|im_start|>U:Bye<|im_end|>\n<|im_start|>A:<think>\n</think>Bye<|im_end|>\n"
    );
    assert_eq!(learned(&tokenizer, sample), ["Hello Hello<|im_end|>", "<|im_end|>", "</think>Bye<|im_end|>"]);
}

#[test]
fn an_end_of_turn_that_is_no_stop_token_is_learned_too() {
    let tokenizer = tokenizer("qwen2");
    // as Phi 3 has it: EOS only where the conversation ends; <|im_start|> stands for its end-of-turn token
    let (_folder, options) = with_template(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_start|>\n{% endfor %}\
         {% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}",
    );
    let row = conversation(&[("user", "Hi"), ("assistant", "One"), ("user", "Hm"), ("assistant", "Two")]);
    let sample = &samples(&[row], &tokenizer, &options)[0];
    assert_eq!(learned(&tokenizer, sample), ["One<|im_start|>", "Two<|im_start|>\n<|im_end|>"]);
}

#[test]
fn a_tool_call_ends_before_the_next_message() {
    let tokenizer = tokenizer("qwen2");
    // as Qwen 3 has it: a thought before the last message alone, a newline only between content and call
    let (_folder, options) = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\
         </think>{% endif %}{{ m.content }}{% if m.tool_calls %}{% if m.content %}{{ '\n' }}{% endif %}\
         {{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let row = json!({"messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven."},
    ]});
    let sample = &samples(&[row], &tokenizer, &options)[0];
    assert_eq!(
        learned(&tokenizer, sample),
        ["[{\"name\": \"f\"}]<|im_end|>", "<think>\n</think>Seven.<|im_end|>"]
    );
}

#[test]
fn turns_that_cannot_be_told_are_refused_with_advice() {
    let tokenizer = tokenizer("qwen2");
    let (_folder, options) = with_template(
        "{{ messages | length }}{% for m in messages %}{{ m.role }}{{ m.content | upper }}{{ m.content }}{% endfor %}",
    );
    let row = conversation(&[("user", "Hi"), ("assistant", "Yes"), ("user", "Hm"), ("assistant", "No")]);
    let message = refusal(row.clone(), &tokenizer, &options);
    assert!(message.contains("own.jinja rewrites earlier messages"), "{message}");
    assert!(
        message.contains("message 1 (counted from 0)") && message.contains("{% generation %}"),
        "{message}"
    );
    let whole = DatasetOptions {
        sample: SampleOptions { mask_prompt: false, ..SampleOptions::default() },
        ..options
    };
    assert_eq!(samples(&[row], &tokenizer, &whole).len(), 1);
}

#[test]
fn an_answer_without_an_end_of_turn_gets_eos() {
    let tokenizer = tokenizer("qwen2");
    let (_folder, options) =
        with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    let row = conversation(&[("user", "Hi"), ("assistant", "Yes")]);
    let sample = &samples(&[row], &tokenizer, &options)[0];
    assert_eq!(tokenizer.decode_all(&sample.tokens).unwrap(), "user: Hi\nassistant: Yes\n<|im_end|>");
    assert_eq!(learned(&tokenizer, sample), ["assistant: Yes\n<|im_end|>"]);
}

#[test]
fn templates_come_from_either_file_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    for name in ["tokenizer.json", "config.json"] {
        std::fs::copy(model_dir("qwen2").join(name), file(name)).unwrap();
    }
    let configure = |template: Value| {
        let config = json!({"eos_token": {"content": "<|im_end|>"}, "chat_template": template});
        std::fs::write(file("tokenizer_config.json"), config.to_string()).unwrap();
    };
    let text = |row: &Value| {
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let sample = &samples(std::slice::from_ref(row), &tokenizer, &DatasetOptions::default())[0];
        tokenizer.decode_all(&sample.tokens).unwrap()
    };
    let row = conversation(&[("assistant", "x")]);
    let mut with_tools = row.clone();
    with_tools["tools"] = json!([{"name": "f"}]);
    let template = |word: &str| format!("{word}{{{{ messages[0].content }}}}{{{{ eos_token }}}}");
    configure(json!(template("one")));
    assert_eq!((text(&row), text(&with_tools)), ("onex<|im_end|>".into(), "onex<|im_end|>".into()));
    configure(
        json!([{"name": "default", "template": template("usual")}, {"name": "tool_use", "template": template("tool")}]),
    );
    assert_eq!((text(&row), text(&with_tools)), ("usualx<|im_end|>".into(), "toolx<|im_end|>".into()));
    std::fs::write(file("chat_template.jinja"), template("file")).unwrap();
    assert_eq!(text(&with_tools), "filex<|im_end|>");
    std::fs::create_dir(file("additional_chat_templates")).unwrap();
    std::fs::write(file("additional_chat_templates/tool_use.jinja"), template("other")).unwrap();
    assert_eq!((text(&row), text(&with_tools)), ("filex<|im_end|>".into(), "otherx<|im_end|>".into()));

    std::fs::remove_file(file("chat_template.jinja")).unwrap();
    configure(json!([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]));
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let message = refusal(row.clone(), &tokenizer, &DatasetOptions::default());
    assert!(message.contains("several templates (rag, tool_use) and none is named default"), "{message}");
    for bad in [json!(3), json!([{"name": "default"}])] {
        configure(bad);
        let message = Tokenizer::open(folder.path()).err().unwrap().to_string();
        assert!(
            message.contains("`chat_template` must be a template or a list of named templates"),
            "{message}"
        );
    }
    configure(json!("{% if %}"));
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let message = refusal(row, &tokenizer, &DatasetOptions::default());
    assert!(message.contains("tokenizer_config.json, line 1: is not a Jinja template"), "{message}");
    assert_eq!(
        samples(
            &[json!({"text": "a broken template is no matter here"})],
            &tokenizer,
            &DatasetOptions::default()
        )
        .len(),
        1
    );
    assert!(
        dataset(&[json!({"text": "a"})], &tokenizer, &style("chat"))
            .unwrap_err()
            .to_string()
            .contains("Jinja")
    );
}

#[test]
fn failing_and_endless_templates_name_the_row() {
    let tokenizer = tokenizer("qwen2");
    let row = conversation(&[("user", "Hi"), ("assistant", "Yes")]);
    for (source, expected) in [
        ("\n{{ raise_exception('No ' + messages[0].role) }}", "own.jinja, line 2: No user"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "own.jinja, line 1: "),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
            "does not come to an end",
        ),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "own.jinja, line 1: "),
        ("{% generation %}a", "own.jinja: a {% generation %} block does not end"),
    ] {
        let (_folder, options) = with_template(source);
        let message = refusal(row.clone(), &tokenizer, &options);
        assert!(message.contains(expected), "{source}: {message}");
    }
    for source in ["{% for m in messages %}", "{{ 'a", "{% nothing %}"] {
        let (_folder, options) = with_template(source);
        let message = dataset(std::slice::from_ref(&row), &tokenizer, &options).unwrap_err().to_string();
        assert!(message.contains("own.jinja, line 1: is not a Jinja template: "), "{source}: {message}");
    }
    let options =
        DatasetOptions { prompt_template: Some("/nowhere/t.jinja".into()), ..DatasetOptions::default() };
    let message = dataset(&[row], &tokenizer, &options).unwrap_err().to_string();
    assert!(message.ends_with("t.jinja: no such file: name a Jinja template"), "{message}");
}

#[test]
fn keys_of_a_template_that_no_row_has_are_told() {
    let tokenizer = tokenizer("llama");
    let rows =
        [json!({"question": "Hi", "output": "Yes"}), json!({"question": "a", "hint": "b", "output": "No"})];
    let note = |source: &str| {
        let (_folder, options) = with_template(source);
        dataset(&rows, &tokenizer, &options).unwrap().note
    };
    // what only some rows have is no mistake
    assert_eq!(note("{{ bos_token }}{{ question }}{% if hint %} ({{ hint }}){% endif %}:"), None);
    let note = note("{{ qestion }}{{ hnit }}{{ hint }}:").unwrap();
    assert!(
        note.contains("own.jinja reads hnit, qestion, which none of the first 100 rows of a file has"),
        "{note}"
    );
}
