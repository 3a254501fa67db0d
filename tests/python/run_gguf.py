"""Generate with llama.cpp, without sampling: as JSON on standard output, for each prompt its `tokens` and the `text` after it.

    run_gguf.py MODEL_GGUF PROMPTS_JSON COUNT [LORA_GGUF]

PROMPTS_JSON is a list of prompts, each a text or a list of token ids. Exit code 77 means that xllamacpp, a build of llama.cpp as
a Python package, is not installed.
"""
import json
import sys

try:
    import xllamacpp
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(model, prompts, count, lora=None):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 0
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(params)
    answers = []
    for prompt in json.loads(prompts):
        request = {"prompt": prompt, "n_predict": int(count), "temperature": 0, "ignore_eos": True}
        answer = server.handle_completions(request)
        answers.append({"tokens": answer["usage"]["prompt_tokens"], "text": answer["choices"][0]["text"]})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
