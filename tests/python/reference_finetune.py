"""The run of `engraft finetune` in PyTorch, transformers and PEFT, at f32 on the CPU: one JSON object per optimiser step.

It is the other side of a comparison, so nothing here is clever. What both sides must agree on:
- rows: the last round(fraction * n) rows of the file are validation; no shuffling; epochs repeat in the same order;
- a sample: LitGPT's Alpaca prompt and the answer tokenised together, one EOS, cut at the end to max_seq_length;
  with a masked prompt as many labels are dropped as the prompt alone has tokens; samples without a label are left out;
- a step: batch_size consecutive samples (fewer at the end of an epoch), loss = sum of token losses / label tokens of
  all of them, whatever the micro-batch; clipping by min(1, clip / (norm + 1e-6)); AdamW with decoupled decay;
- the rate of step k = 0..N-1: peak (k + 1) / W below the warm-up W, then the schedule's curve over (k - W) / (N - W).
"""
import argparse
import json
import math

import peft
import torch
import transformers

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def flag(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def parse_args():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--model", required=True, help="Hugging Face model folder")
    cli.add_argument("--data", required=True, help="Alpaca rows, as a JSON array or one object per line")
    cli.add_argument("--adapter", required=True, help="initial PEFT adapter")
    cli.add_argument("--save_adapter", help="folder for the trained adapter")
    cli.add_argument("--max_seq_length", type=int, default=256)
    cli.add_argument("--batch_size", type=int, default=8)
    cli.add_argument("--micro_batch_size", type=int, default=2)
    cli.add_argument("--steps", type=int, required=True)
    cli.add_argument("--lr", type=float, default=3e-4)
    cli.add_argument("--warmup", type=int, default=0)
    cli.add_argument("--min_lr", type=float, default=0.0)
    cli.add_argument("--schedule", choices=("cosine", "linear", "constant"), default="cosine")
    cli.add_argument("--weight_decay", type=float, default=0.01)
    cli.add_argument("--beta1", type=float, default=0.9)
    cli.add_argument("--beta2", type=float, default=0.95)
    cli.add_argument("--eps", type=float, default=1e-8)
    cli.add_argument("--grad_clip", type=float, default=1.0, help="0 never clips")
    cli.add_argument("--val_split_fraction", type=float, default=0.1)
    cli.add_argument("--mask_prompt", type=flag, default=True)
    cli.add_argument("--threads", type=int, default=1)
    return cli.parse_args()


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def make_sample(tokenizer, row, max_seq_length, mask_prompt):
    """(token ids, labels), both of one length; labels are -100 where no loss is taken."""
    template = PROMPT_WITH_INPUT if row.get("input") else PROMPT_WITHOUT_INPUT
    prompt = template.format(instruction=row["instruction"], input=row.get("input") or "")
    ids = tokenizer(prompt + row["output"])["input_ids"] + [tokenizer.eos_token_id]
    labels = list(ids)
    if mask_prompt:
        masked = len(tokenizer(prompt)["input_ids"])
        labels[:masked] = [-100] * min(masked, len(labels))
    return ids[:max_seq_length], labels[:max_seq_length]


def make_samples(tokenizer, rows, max_seq_length, mask_prompt):
    samples = [make_sample(tokenizer, row, max_seq_length, mask_prompt) for row in rows]
    return [sample for sample in samples if label_tokens([sample])]


def label_tokens(samples):
    """Tokens that are predicted: the first token of a sample has nothing before it."""
    return sum(label != -100 for _, labels in samples for label in labels[1:])


def loss_sum(model, samples):
    """Sum of the token losses of samples padded on the right."""
    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row_ids, row_labels) in enumerate(samples):
        n = len(row_ids)
        ids[i, :n], mask[i, :n], labels[i, :n] = torch.tensor(row_ids), 1, torch.tensor(row_labels)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
    )


def windows(samples, batch_size):
    """Global batches without end: consecutive samples, the last one of an epoch may be smaller."""
    while True:
        for start in range(0, len(samples), batch_size):
            yield samples[start : start + batch_size]


def learning_rate(args, k):
    if k < args.warmup:
        return args.lr * (k + 1) / args.warmup
    done = (k - args.warmup) / max(args.steps - args.warmup, 1)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[args.schedule]
    return args.min_lr + (args.lr - args.min_lr) * shape


def evaluate(model, samples, micro_batch_size):
    model.eval()
    with torch.no_grad():
        groups = range(0, len(samples), micro_batch_size)
        total = sum(loss_sum(model, samples[i : i + micro_batch_size]).item() for i in groups)
    return total / label_tokens(samples)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    rows = read_rows(args.data)
    held_out = math.floor(args.val_split_fraction * len(rows) + 0.5)  # half away from zero, as f64::round
    cut = len(rows) - held_out
    train, val = (make_samples(tokenizer, part, args.max_seq_length, args.mask_prompt) for part in (rows[:cut], rows[cut:]))
    if not train:
        raise SystemExit(f"{args.data}: no training sample with a label; lower --val_split_fraction or raise --max_seq_length")

    base = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, args.adapter, is_trainable=True).float()
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        params, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, weight_decay=args.weight_decay, foreach=False
    )
    batches = windows(train, args.batch_size)
    for k in range(args.steps):
        model.train()
        batch, rate, value = next(batches), learning_rate(args, k), 0.0
        labels = label_tokens(batch)
        for i in range(0, len(batch), args.micro_batch_size):
            loss = loss_sum(model, batch[i : i + args.micro_batch_size]) / labels
            loss.backward()
            value += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(params, args.grad_clip or float("inf")).item()
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad()
        print(json.dumps(dict(step=k + 1, loss=value, grad_norm=norm, learning_rate=rate, label_tokens=labels)), flush=True)
    if val:
        print(json.dumps(dict(val_loss=evaluate(model, val, args.micro_batch_size), label_tokens=label_tokens(val))), flush=True)
    if args.save_adapter:
        model.save_pretrained(args.save_adapter)


if __name__ == "__main__":
    main()
