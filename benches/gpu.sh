#!/usr/bin/env bash
# The figures of docs/benchmarks.md on this machine's GPU, in one run: products and kernels against the device's own peak,
# then whole training steps of two models beside PyTorch + PEFT (where python3 has them), in alternation.
#   benches/gpu.sh [FOLDER]     reports as JSON lines in FOLDER (default target/bench-gpu)
# SHAPES, SEQS, SIZE, ROUNDS and STEPS pick others than below.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/bench-gpu}
read -r -a shapes <<<"${SHAPES:-llama-3.2-1b qwen2.5-0.5b}"
read -r -a seqs <<<"${SEQS:-512 2048}"
rounds=${ROUNDS:-3} steps=${STEPS:-10} size=${SIZE:-4096x4096x4096}
mkdir -p "$out"
cargo build --locked --release
engraft=${CARGO_TARGET_DIR:-target}/release/engraft
"$engraft" devices | tee "$out/devices.txt"

echo "== products of $size"
for storage in f32 f16 bf16; do
    "$engraft" bench matmul --size "$size" --storage "$storage" | tee "$out/matmul-$storage.txt"
done
for shape in "${shapes[@]}"; do
    echo "== products and attention of $shape"
    "$engraft" bench matmul --shape "$shape" | tee "$out/matmul-$shape.txt"
    "$engraft" bench attention --shape "$shape" --tokens 2048 | tee "$out/attention-$shape.txt"
    "$engraft" bench step --shape "$shape" --seq 512 --batch 1 --steps "$steps" --trace "$out/step-$shape.trace.json" |
        tee "$out/step-$shape.txt"
done

peer=
if python3 -c 'import torch, transformers, peft' 2>/dev/null; then peer=1; else
    echo "no PyTorch, transformers and PEFT in python3: engraft alone (pip install torch transformers peft)"
fi
echo "== training steps, tokens/s"
for shape in "${shapes[@]}"; do
    for seq in "${seqs[@]}"; do
        for round in $(seq "$rounds"); do
            line="$shape $seq round $round:"
            report=$("$engraft" bench train --shape "$shape" --seq "$seq" --batch 1 --steps "$steps" --json 2>>"$out/log.txt") || report='{}'
            echo "$report" >>"$out/engraft-$shape-$seq.jsonl"
            line+=" engraft $(sed -n 's/.*"tokens_per_s":\([0-9]*\).*/\1/p' <<<"$report")"
            if [ -n "$peer" ]; then
                for mode in "" --compile; do
                    report=$(python3 benches/peft/train.py --shape "$shape" --seq "$seq" --steps "$steps" $mode 2>>"$out/log.txt") || report='{}'
                    echo "$report" >>"$out/torch$mode-$shape-$seq.jsonl"
                    line+=" torch$mode $(sed -n 's/.*"tokens_per_s": \([0-9]*\).*/\1/p' <<<"$report")"
                done
            fi
            echo "$line"
        done
    done
done
