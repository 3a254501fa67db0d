"""Put a Gemma 3 or Ministral 3 that reads text alone into one that sees images too, as a folder that transformers writes.

    make_embedded.py MODEL_DIR OUT_DIR

The part that sees images is small and random. Exit code 77 means that torch or transformers is not installed.
"""
import shutil
import sys
from pathlib import Path

try:
    import torch
    from transformers import (AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, Mistral3Config,
                              Mistral3ForConditionalGeneration)
except ImportError as error:
    print(f"cannot import: {error}", file=sys.stderr)
    sys.exit(77)


def main(model_dir, out_dir):
    text = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    last = text.config.vocab_size - 1
    parts = dict(text_config=text.config.to_dict(), vision_config=vision)
    kind = Mistral3ForConditionalGeneration if text.config.model_type == "ministral3" else Gemma3ForConditionalGeneration
    if kind is Gemma3ForConditionalGeneration:
        config = Gemma3Config(**parts, mm_tokens_per_image=4, image_token_index=last, boi_token_index=last - 1,
                              eoi_token_index=last - 2)
    else:
        config = Mistral3Config(**parts, image_token_index=last, tie_word_embeddings=text.config.tie_word_embeddings)
    torch.manual_seed(0)
    whole = kind(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.to(torch.bfloat16).save_pretrained(out_dir)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (Path(model_dir) / name).is_file():
            shutil.copy(Path(model_dir) / name, out_dir)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
