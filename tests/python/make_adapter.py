"""Writes an initial PEFT LoRA adapter for a model folder, with seeded values, so that two programs can start from the same point.

A is drawn as PEFT draws it (Kaiming-uniform with a = sqrt(5)); B is zero, or B_STD * N(0, 1) so that the very first
gradient of A is not zero. Values depend on the seed and on the order of the sorted parameter names alone.
"""
import argparse
import math
import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT keeps target_modules in a set: fix its order in the written file
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})

import peft
import torch
import transformers


def parse_args():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--model", required=True, help="Hugging Face model folder")
    cli.add_argument("--out", required=True, help="folder of the adapter")
    cli.add_argument("--r", type=int, default=8)
    cli.add_argument("--alpha", type=float, default=16)
    cli.add_argument("--targets", default="all-linear", help="all-linear, or module names joined by commas")
    cli.add_argument("--save", help="modules that are trained in full, joined by commas")
    cli.add_argument("--b_std", type=float, default=0.0, help="standard deviation of B; 0 leaves B zero")
    cli.add_argument("--seed", type=int, default=0)
    return cli.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    targets = args.targets if args.targets == "all-linear" else args.targets.split(",")
    alpha = int(args.alpha) if args.alpha == int(args.alpha) else args.alpha
    save = args.save.split(",") if args.save else None
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=args.r, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, modules_to_save=save
    )
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(args.seed)
    trainable = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, p in trainable:
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(p, a=math.sqrt(5), generator=generator)
            elif "lora_B" in name:
                p.copy_(args.b_std * torch.randn(p.shape, generator=generator))
    model.save_pretrained(args.out)
    print(f"{args.out}: {len(trainable)} tensors, {sum(p.numel() for _, p in trainable)} parameters")


if __name__ == "__main__":
    main()
