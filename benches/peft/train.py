#!/usr/bin/env python3
"""The training step of `engraft bench train`, in PyTorch + transformers + PEFT: random weights, random tokens.

    python benches/peft/train.py --shape llama-3.2-1b --seq 512 --batch 1 --steps 20 [--compile]

Prints one JSON object with the keys of `engraft bench train --json`, and tflop_per_s (forward 2 and reverse 2 FLOPs per
base weight and token, as the frozen weights have no gradient of their own; attention and adapters not counted).
Runs on CUDA or ROCm where there is one, else on the CPU.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model

# family, vocabulary, hidden size, MLP size, layers, heads, KV heads, head dimension, tied head: as in src/models/shapes.rs
SHAPES = {
    "small": ("Llama", 2048, 256, 768, 4, 4, 4, 64, False),
    "gemma-3-270m": ("Gemma3Text", 262144, 640, 2048, 18, 4, 1, 256, True),
    "smollm2-135m": ("Llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "pythia-160m": ("GPTNeoX", 50304, 768, 3072, 12, 12, 12, 64, False),
    "pythia-410m": ("GPTNeoX", 50304, 1024, 4096, 24, 16, 16, 64, False),
    "qwen2.5-0.5b": ("Qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
    "qwen3-0.6b": ("Qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "gemma-3-1b": ("Gemma3Text", 262144, 1152, 6912, 26, 4, 1, 256, True),
    "pythia-1b": ("GPTNeoX", 50304, 2048, 8192, 16, 8, 8, 256, False),
    "tinyllama-1.1b": ("Llama", 32000, 2048, 5632, 22, 32, 4, 64, False),
    "llama-3.2-1b": ("Llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "olmo-2-1b": ("Olmo2", 100352, 2048, 8192, 16, 16, 16, 128, False),
    "qwen2.5-1.5b": ("Qwen2", 151936, 1536, 8960, 28, 12, 2, 128, True),
    "stablelm-2-1.6b": ("StableLm", 100352, 2048, 5632, 24, 32, 32, 64, False),
    "qwen3-1.7b": ("Qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "gemma-2b": ("Gemma", 256000, 2048, 16384, 18, 8, 1, 256, True),
    "granite-3.3-2b": ("Granite", 49159, 2048, 8192, 40, 32, 8, 64, True),
    "gemma-2-2b": ("Gemma2", 256000, 2304, 9216, 26, 8, 4, 256, True),
    "pythia-2.8b": ("GPTNeoX", 50304, 2560, 10240, 32, 32, 32, 80, False),
    "starcoder2-3b": ("Starcoder2", 49152, 3072, 12288, 30, 24, 2, 128, True),
    "smollm3-3b": ("SmolLM3", 128256, 2048, 11008, 36, 16, 4, 128, True),
    "llama-3.2-3b": ("Llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "ministral-3-3b": ("Ministral3", 131072, 3072, 9216, 26, 32, 8, 128, True),
    "phi-3.5-mini": ("Phi3", 32064, 3072, 8192, 32, 32, 32, 96, False),
    "phi-4-mini": ("Phi3", 200064, 3072, 8192, 32, 24, 8, 128, True),
    "qwen3-4b": ("Qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "llama-2-7b": ("Llama", 32000, 4096, 11008, 32, 32, 32, 128, False),
    "pythia-6.9b": ("GPTNeoX", 50432, 4096, 16384, 32, 32, 32, 128, False),
    "mistral-7b": ("Mistral", 32768, 4096, 14336, 32, 32, 8, 128, False),
    "qwen2.5-7b": ("Qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
    "llama-3.1-8b": ("Llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "qwen3-8b": ("Qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "gemma-2-9b": ("Gemma2", 256000, 3584, 14336, 42, 16, 8, 256, True),
    "phi-4": ("Phi3", 100352, 5120, 17920, 40, 40, 10, 128, False),
}
HEAD_DIM = ["Llama", "Mistral", "Ministral3", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OWN_LINEAR = {
    "Phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "GPTNeoX": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "Starcoder2": ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
}
# families whose MLP has no gate
PLAIN_MLP = ["GPTNeoX", "Starcoder2"]


def attention(family):
    return "eager" if family == "Gemma2" else "sdpa"


def network(args, device, dtype):
    family, vocab, hidden, inner, layers, heads, kv_heads, head_dim, tied = SHAPES[args.shape]
    own = {
        "Mistral": {"sliding_window": None},
        "Gemma3Text": {"sliding_window": 512},
        "StableLm": {"use_qkv_bias": True},
        "Starcoder2": {"sliding_window": 4096, "bos_token_id": 0, "eos_token_id": 0},
        "Granite": {
            "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 1 / 64, "logits_scaling": 8.0,
        },
    }.get(family, {})
    if args.shape == "phi-4-mini":
        own = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **({} if family == "GPTNeoX" else {"num_key_value_heads": kv_heads}),
        **({"head_dim": head_dim} if family in HEAD_DIM else {}),
        tie_word_embeddings=tied,
        max_position_embeddings=131072,
        # sdpa has no soft caps
        attn_implementation=attention(family),
        use_cache=False,
        **own,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        base = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    torch.set_default_dtype(torch.float32)
    adapter = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=args.targets or OWN_LINEAR.get(family, LINEAR))
    model = get_peft_model(base, adapter)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    matrices = 2 if family in PLAIN_MLP else 3
    linear = layers * (2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + matrices * hidden * inner)
    return model, linear + vocab * hidden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--seq", type=int, default=512, help="tokens per sample")
    parser.add_argument("--batch", type=int, default=1, help="samples per step")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", type=lambda s: s.split(","), help="modules with an adapter (default: all linear)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after three that are not")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations per layer")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    model, weights = network(args, device, getattr(torch, args.dtype))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=cuda)
    if args.compile:
        model = torch.compile(model)
    tokens = torch.randint(0, SHAPES[args.shape][1], (args.batch, args.seq), device=device)

    def step():
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        value = loss.item()
        return time.perf_counter() - start, value

    first, loss_first = step()
    for _ in range(2):
        step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    timed = [step() for _ in range(args.steps)]
    median = statistics.median(seconds for seconds, _ in timed)
    rate = args.batch * args.seq / median
    report = {
        "peer": f"torch {torch.__version__}" + (" compiled" if args.compile else " eager"),
        "shape": args.shape,
        "attention": attention(SHAPES[args.shape][0]),
        "tokens_per_s": rate,
        "step_ms_median": median * 1e3,
        "first_step_s": first,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "tflop_per_s": 4 * weights * rate / 1e12,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "loss_first": loss_first,
        "loss_last": timed[-1][1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
