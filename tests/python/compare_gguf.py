"""Compare a GGUF file with the folder that it was made of, read by llama.cpp's own package `gguf`: as JSON on standard output.

    compare_gguf.py FILE MODEL_DIR [ADAPTER_DIR]

Without ADAPTER_DIR the file is the model, with it the adapter. Names come from gguf's map of tensor names, rows of q and k, and of what
GPT-NeoX has head by head, are put in llama.cpp's order, 1 is added to norms of Gemma, and values are quantised by gguf: `different` are the tensors whose bytes are not the same, `missing`
and `further` those that only one of the two has. `fields` is the metadata without the lists.
Exit code 77 means that gguf, numpy or safetensors is not installed.
"""
import json
import sys
from pathlib import Path

try:
    import gguf
    import numpy as np
    import torch
    from safetensors import safe_open
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def permuted(rows, heads):
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def main(path, model_dir, adapter_dir=None):
    config = json.loads((Path(model_dir) / "config.json").read_text())
    layers, heads = (config[f"num_{name}"] for name in ("hidden_layers", "attention_heads"))
    kv_heads = config.get("num_key_value_heads", heads)
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    architecture = reader.fields["general.architecture"].contents()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    expected = {}
    for file in sorted(Path(adapter_dir or model_dir).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():
                values = tensors.get_tensor(key).to(torch.float32).numpy()
                part = ""
                weight = key
                for matrix in ("A", "B"):
                    if key.endswith(f".lora_{matrix}.weight"):
                        weight = key.removeprefix("base_model.model.").replace(f".lora_{matrix}", "")
                        part = f".lora_{matrix.lower()}"
                if part != ".lora_a" and architecture in ("llama", "mistral3", "smollm3", "granite"):
                    if weight.endswith(("q_proj.weight", "q_proj.bias")):
                        values = permuted(values, heads)
                    elif weight.endswith(("k_proj.weight", "k_proj.bias")):
                        values = permuted(values, kv_heads)
                if part != ".lora_a" and ".query_key_value." in weight:
                    by_head = values.reshape(heads, 3, -1, *values.shape[1:])
                    values = by_head.swapaxes(0, 1).reshape(values.shape)
                if architecture.startswith("gemma") and weight.endswith("norm.weight"):
                    values = values + 1
                expected[names.get_name(weight, (".weight", ".bias")) + part] = values

    different, shapes = [], []
    for name, values in expected.items():
        if name not in found:
            continue
        tensor = found[name]
        if list(reversed(tensor.shape.tolist())) != list(values.shape):
            shapes.append(name)
        elif bytes(tensor.data.tobytes()) != gguf.quants.quantize(values, tensor.tensor_type).tobytes():
            different.append(name)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    json.dump({
        "different": different,
        "shapes": shapes,
        "missing": sorted(set(expected) - set(found)),
        "further": sorted(set(found) - set(expected)),
        "compared": len(expected),
        "types": sorted({tensor.tensor_type.name for tensor in reader.tensors}),
        "fields": {key: value for key, value in fields.items() if not isinstance(value, list)},
    }, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
