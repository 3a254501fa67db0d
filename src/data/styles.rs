//! The prompts that model families were tuned with, as LitGPT has them.

/// The prompt of a model family.
#[derive(Debug)]
pub struct NamedStyle {
    pub(super) name: &'static str,
    /// The system text where a record brings none.
    system: Option<&'static str>,
    /// With `{system}`, where the style has a place for it, and `{prompt}`.
    pub(super) template: &'static str,
    /// Where neither the record nor the style has a system text.
    without_system: Option<&'static str>,
}

impl NamedStyle {
    pub(super) fn prompt(&self, system: Option<&str>, prompt: &str) -> String {
        let (template, system) = match (system.or(self.system), self.without_system) {
            (Some(system), _) => (self.template, system),
            (None, without) => (without.unwrap_or(self.template), ""),
        };
        // the one style of LitGPT that trims what it is given
        let system = if self.name == "llama2-function-calling" { system.trim() } else { system };
        // the prompt is put in last and once: what it holds is not a template
        let (before, after) = template.split_once("{prompt}").unwrap_or((template, ""));
        [&before.replacen("{system}", system, 1), prompt, &after.replacen("{system}", system, 1)].concat()
    }
}

/// In the order of LitGPT's own table, then those that it has without a name.
pub(super) static NAMED_STYLES: [NamedStyle; 31] = [
    NamedStyle {
        name: "flan",
        system: Some(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n",
        ),
        template: "{system}### Instruction:\n{prompt}\n\n### Response:\n",
        without_system: None,
    },
    NamedStyle {
        name: "longform",
        system: Some(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n",
        ),
        template: "{system}### Instruction:\n{prompt}\n\n### Response:\n",
        without_system: None,
    },
    NamedStyle {
        name: "stablelm-alpha",
        system: Some(
            "# StableLM Tuned (Alpha version)\n- StableLM is a helpful and harmless open-source AI \
             language model developed by StabilityAI.\n- StableLM is excited to be able to help the \
             user, but will refuse to do anything that could be considered harmful to the user.\n- \
             StableLM is more than just an information source, StableLM is also able to write \
             poetry, short stories, and make jokes.\n- StableLM will refuse to participate in \
             anything that could harm a human.",
        ),
        template: "<|SYSTEM|>{system}<|USER|>{prompt}<|ASSISTANT|>",
        without_system: None,
    },
    NamedStyle {
        name: "stablelm-zephyr",
        system: None,
        template: "<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n",
        without_system: None,
    },
    NamedStyle { name: "falcon", system: None, template: "{prompt}\nAnswer:", without_system: None },
    NamedStyle {
        name: "llama2-function-calling",
        system: Some(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully \
             aspossible. Your only response should be JSON formatted functions",
        ),
        template: "<FUNCTIONS>{{\"function\": \"search_bing\", \"description\": \"Search the web for \
                  content on Bing. This allows users to search online/the internet/the web for \
                  content.\", \"arguments\": [{{\"name\": \"query\", \"type\": \"string\", \
                  \"description\": \"The search query \
                  string\"}}]}}</FUNCTIONS>\n\n[INST]<<SYS>>\n{system}\n<</SYS>>\n\n{prompt}[/INST]\n\n",
        without_system: None,
    },
    NamedStyle {
        name: "llama2",
        system: Some(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully as \
             possible, while being safe.  Your answers should not include any harmful, unethical, \
             racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses \
             are socially unbiased and positive in nature.\n\nIf a question does not make any sense, \
             or is not factually coherent, explain why instead of answering something not correct. \
             If you don't know the answer to a question, please don't share false information.",
        ),
        template: "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n {prompt} [/INST] ",
        without_system: None,
    },
    NamedStyle {
        name: "freewilly2",
        system: Some("This is a system prompt, please behave and help the user."),
        template: "### System:\n{system}\n\n### User:\n{prompt}\n\n### Assistant:\n",
        without_system: None,
    },
    NamedStyle {
        name: "platypus",
        system: None,
        template: "### Instruction:\n\n{prompt}\n\n### Response:\n",
        without_system: None,
    },
    NamedStyle {
        name: "stablecode",
        system: None,
        template: "###Instruction\n{prompt}###Response\n",
        without_system: None,
    },
    NamedStyle {
        name: "codellama",
        system: None,
        template: "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{prompt} [/INST]",
        without_system: Some("[INST] {prompt} [/INST]"),
    },
    NamedStyle { name: "phi-1", system: None, template: "{prompt}\n\nAnswer:", without_system: None },
    NamedStyle { name: "phi-2", system: None, template: "Instruct: {prompt}\nOutput:", without_system: None },
    NamedStyle {
        name: "phi-3",
        system: Some("You are a helpful assistant."),
        template: "<|system|>\n{system}<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
        without_system: None,
    },
    NamedStyle {
        name: "phi-4",
        system: None,
        template: "<|im_start|>system<|im_sep|>{system}<|im_end|><|im_start|>user<|im_sep|>{prompt}<|im_end|><|im_start|>assistant<|im_sep|>",
        without_system: Some("<|im_start|>user<|im_sep|>{prompt}<|im_end|><|im_start|>assistant<|im_sep|>"),
    },
    NamedStyle {
        name: "phi-4-reasoning",
        system: Some(
            "You are Phi, a language model trained by Microsoft to help users. Your role as an \
             assistant involves thoroughly exploring questions through a systematic thinking process \
             before providing the final precise and accurate solutions. This requires engaging in a \
             comprehensive cycle of analysis, summarizing, exploration, reassessment, reflection, \
             backtracing, and iteration to develop well-considered thinking process. Please \
             structure your response into two main sections: Thought and Solution using the \
             specified format: <think> {Thought section} </think> {Solution section}. In the Thought \
             section, detail your reasoning process in steps. Each step should include detailed \
             considerations such as analysing questions, summarizing relevant findings, \
             brainstorming new ideas, verifying the accuracy of the current steps, refining any \
             errors, and revisiting previous steps. In the Solution section, based on various \
             attempts, explorations, and reflections from the Thought section, systematically \
             present the final solution that you deem correct. The Solution section should be \
             logical, accurate, and concise and detail necessary steps needed to reach the \
             conclusion. Now, try to solve the following question through the above guidelines:",
        ),
        template: "<|im_start>system<|im_sep|>{system}<|im_end|><|im_start|>user<|im_sep|>{prompt}<|im_end|><|im_start|>assistant<|im_sep|>",
        without_system: None,
    },
    NamedStyle {
        name: "phi-4-mini",
        system: None,
        template: "<|system|>{system}<|end|><|user|>{prompt}<|end|><|assistant|>",
        without_system: Some("<|user|>{prompt}<|end|><|assistant|>"),
    },
    NamedStyle {
        name: "phi-4-mini-reasoning",
        system: Some("Your name is Phi, an AI math expert developed by Microsoft."),
        template: "<|system|>{system}<|end|><|user|>{prompt}<|end|><|assistant|>",
        without_system: None,
    },
    NamedStyle {
        name: "tinyllama",
        system: Some("You are a friendly chatbot who always gives helpful, detailed, and polite answers."),
        template: "<|system|>\n{system}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n",
        without_system: None,
    },
    NamedStyle {
        name: "gemma",
        system: None,
        template: "<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
        without_system: None,
    },
    NamedStyle {
        name: "llama3",
        system: Some("You are a helpful assistant."),
        template: "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        without_system: None,
    },
    NamedStyle {
        name: "olmo",
        system: None,
        template: "<|endoftext|><|user|>\n{prompt}\n<|assistant|>\n",
        without_system: None,
    },
    NamedStyle {
        name: "qwen2.5",
        system: Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: None,
    },
    NamedStyle {
        name: "qwen2.5-math",
        system: Some("Please reason step by step, and put your final answer within \\boxed{}."),
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: None,
    },
    NamedStyle {
        name: "qwq",
        system: Some(
            "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should \
             think step-by-step.",
        ),
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: None,
    },
    NamedStyle {
        name: "qwen3",
        system: None,
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: Some("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"),
    },
    NamedStyle {
        name: "smollm2",
        system: Some("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: None,
    },
    NamedStyle {
        name: "salamandra",
        system: Some(
            "I am Salamandra, an AI language model developed at the Barcelona Supercomputing Centre \
             (BSC) by the Language Technologies Unit. My knowledge base was last updated on August \
             2023. Today Date: 2024-09-30\nSoy Salamandra, un modelo lingüístico de IA desarrollado \
             en el Barcelona Supercomputing Centre (BSC) por la Language Technologies Unit. Mi base \
             de conocimientos se actualizó por última vez en agosto de 2023.\nSoc Salamandra, un \
             model de llenguatge d'IA desenvolupat al Barcelona Supercomputing Centre (BSC) per la \
             Language Technologies Unit.",
        ),
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: None,
    },
    NamedStyle {
        name: "falcon3",
        system: None,
        template: "<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n",
        without_system: None,
    },
    NamedStyle {
        name: "r1-base",
        system: Some(""),
        template: "{system}<｜User｜>{prompt}<｜Assistant｜>",
        without_system: None,
    },
    NamedStyle {
        name: "chatml",
        system: None,
        template: "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        without_system: Some("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"),
    },
];
