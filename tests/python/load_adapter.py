"""Load an adapter as PEFT does and print what the adapted model computes, as JSON on standard output.

    load_adapter.py MODEL_DIR ADAPTER_DIR INPUT_JSON

INPUT_JSON holds `input_ids` [batch, T] and, optionally, `attention_mask` and `labels` of the same shape (-100: no
label). Printed: `logits` [batch, T, vocab], `loss` (mean over the labels, or null), `modules` (the adapted layers),
`scale`, and `missing` and `unexpected` (adapter weights that the file lacks or has beyond the model's). Runs in float32 on the CPU.
Exit code 77 means that torch, transformers or peft is not installed.
"""
import json
import sys
import warnings

try:
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    import transformers
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(model_dir, adapter_dir, input_json):
    with open(input_json, encoding="utf-8") as file:
        batch = {key: torch.tensor(value) for key, value in json.load(file).items()}
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(model_dir).architectures[0])
    base = kind.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings():
        # PEFT only warns about keys that are missing or left over; here that is a failure.
        warnings.simplefilter("error", UserWarning)
        with open(f"{adapter_dir}/adapter_config.json", encoding="utf-8") as file:
            config = json.load(file)
            on_head = "lm_head" in [*config["target_modules"], *(config["modules_to_save"] or [])]
        if on_head and base.config.tie_word_embeddings:
            # it is for who merges a tied head's adapter to beware
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        model = PeftModel.from_pretrained(base, adapter_dir).eval()

    with safe_open(f"{adapter_dir}/adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    # modules that are trained in full are stored under the names of those that they replace
    trained = [name for name, _ in model.named_parameters() if ".lora_" in name or ".modules_to_save." in name]
    expected = {name.replace(".modules_to_save.default.", ".").replace(".default.", ".") for name in trained}
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}

    labels = batch.pop("labels", None)
    with torch.no_grad():
        logits = model(**batch).logits.float()
    loss = None
    if labels is not None:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    json.dump({
        "logits": logits.tolist(),
        "loss": loss,
        "modules": sorted(adapted),
        "scale": next(iter(adapted.values())).scaling["default"],
        "missing": sorted(expected - stored),
        "unexpected": sorted(stored - expected),
    }, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
