"""Loss and the gradient of every parameter of a model, as JSON on standard output.

    full_gradients.py MODEL_DIR REFERENCE_SAFETENSORS

The batch is `input_ids`, `attention_mask` and `labels` of the second file; the loss is the mean over its labels. Printed: `loss`
and `gradients`, by the name of the parameter a flat list. Runs in float32 on the CPU.
Exit code 77 means that torch or transformers is not installed.
"""
import json
import sys

try:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(model_dir, file):
    batch = {key: value.long() for key, value in load_file(file).items() if key in ("input_ids", "attention_mask", "labels")}
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    gradients = {name: parameter.grad.flatten().tolist() for name, parameter in model.named_parameters()}
    json.dump({"loss": loss.item(), "gradients": gradients}, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
