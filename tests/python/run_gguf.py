"""Generate with llama.cpp, without sampling, and print the text.

    run_gguf.py MODEL_GGUF IDS_JSON COUNT [LORA_GGUF]

IDS_JSON is a list of token ids. Exit code 77 means that xllamacpp, a build of llama.cpp as a Python package, is not installed.
"""
import json
import sys

try:
    import xllamacpp
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(model, ids, count, lora=None):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 0
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    request = {"prompt": json.loads(ids), "n_predict": int(count), "temperature": 0, "ignore_eos": True}
    answer = xllamacpp.Server(params).handle_completions(request)
    sys.stdout.write(answer["choices"][0]["text"])


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
