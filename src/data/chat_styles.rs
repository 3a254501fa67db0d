//! Chat templates by name, for models that have none of their own.
//!
//! Written for base models: `alpaca` and `tinyllama` end turns with the EOS that every model has; the others are for
//! models whose vocabulary has their control tokens. Each turn is written alike wherever it stands, so that every
//! prefix of a conversation is a prefix of its text.

/// The template of this name.
pub(super) fn chat_style(name: &str) -> Option<&'static str> {
    CHAT_STYLES.iter().find(|(known, _)| *known == name).map(|(_, template)| *template)
}

/// The names of all templates.
pub(super) fn chat_style_names() -> impl Iterator<Item = &'static str> {
    CHAT_STYLES.iter().map(|(name, _)| *name)
}

const CHAT_STYLES: [(&str, &str); 6] = [
    ("alpaca", ALPACA),
    ("chatml", CHATML),
    ("gemma", GEMMA),
    ("llama3", LLAMA3),
    ("phi-3", PHI3),
    ("tinyllama", TINYLLAMA),
];

const ALPACA: &str = "\
{%- if messages[0].role != 'system' -%}
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content + '\\n\\n' -}}
{%- elif message.role == 'assistant' -%}{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' -}}
{%- else -%}{{- '### Instruction:\\n' + message.content + '\\n\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}";

const CHATML: &str = "\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

const GEMMA: &str = "\
{%- set first = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set first.system = message.content.strip() + '\\n\\n' -%}
{%- else -%}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' + first.system -}}
{{- message.content.strip() + '<end_of_turn>\\n' -}}{%- set first.system = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}";

const LLAMA3: &str = "\
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content.strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}";

const PHI3: &str = "\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}";

const TINYLLAMA: &str = "\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}";

#[cfg(test)]
mod tests {
    use super::super::chat::ChatTemplate;
    use super::super::conversation::Conversation;
    use super::super::prompt::PromptStyle;
    use super::super::template::Template;
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_single_question_reads_as_in_the_style_of_the_same_name() {
        let tokens = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        for name in chat_style_names() {
            let style: PromptStyle = name.parse().unwrap();
            let template = Template::new(name, chat_style(name).unwrap(), &tokens).unwrap();
            let template = ChatTemplate::single(template);
            // Gemma and Alpaca have no system turn of this kind, Llama 3's style writes BOS itself
            let system = (!["gemma", "alpaca"].contains(&name)).then_some("Be kind.");
            let conversation = Conversation::single(system, "Say it.", None);
            let expected = style.prompt_with(system, "Say it.", None);
            let expected = expected.strip_prefix("<|begin_of_text|>").unwrap_or(&expected);
            assert_eq!(template.text(&conversation, true).unwrap(), expected, "{name}");
        }
    }
}
