"""Compare a merged model with its base and adapter in PEFT: the largest difference of logits on standard output.

    compare_merged.py BASE_DIR ADAPTER_DIR MERGED_DIR

Both run in float32 on the CPU, on the same ids drawn from a fixed seed. Also printed: whether the head is tied in the merged
model, and the largest logit. `transformers` must load the merged folder without a missing or an unexpected weight.
Exit code 77 means that torch, transformers or peft is not installed.
"""
import json
import sys

try:
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoConfig, AutoTokenizer
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(base_dir, adapter_dir, merged_dir):
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    # also of models that see images
    kind = getattr(transformers, AutoConfig.from_pretrained(base_dir).architectures[0])
    base = kind.from_pretrained(base_dir, **options)
    vocab = base.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocab, (2, 24), generator=generator)
    adapted = PeftModel.from_pretrained(base, adapter_dir).eval()
    merged, info = kind.from_pretrained(merged_dir, output_loading_info=True, **options)
    text = "Say the word."
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base_dir, merged_dir)]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        actual = merged.eval()(input_ids=ids).logits
    json.dump({
        "worst": (expected - actual).abs().max().item(),
        "largest": expected.abs().max().item(),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "tied": bool(merged.config.tie_word_embeddings),
        "same_tokens": tokenizers[0](text).input_ids == tokenizers[1](text).input_ids,
    }, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
