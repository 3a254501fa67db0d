#!/usr/bin/env bash
# The figures of docs/benchmarks.md on this machine's GPU, in one run: products and kernels against the device's own peak,
# then whole training steps of two models beside PyTorch + PEFT (where python3 has them), in alternation.
#   benches/gpu.sh [FOLDER]     reports as JSON lines in FOLDER (default target/bench-gpu)
# SHAPES, SEQS, SIZE, ROUNDS, STEPS and TUNE pick others than below; SOFTWARE=1 runs it without a GPU too, for who tries this script.
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
if [ -z "${SOFTWARE:-}" ] && head -1 "$out/devices.txt" | grep -q '(software)$'; then
    echo "there is no GPU with a driver here; SOFTWARE=1 runs this on the software device, for which these sizes take hours" >&2
    exit 1
fi

value() { # KEY JSON
    grep -oE "\"$1\": ?[0-9.e-]+" <<<"$2" | head -1 | sed 's/.*: *//'
}
figures() { # JSON of a training benchmark
    local bytes share
    [ "$1" != '{}' ] || { echo "failed, see $out/log.txt"; return; }
    bytes=$(value peak_device_bytes "$1") || bytes=
    # PyTorch's report has no such share
    share=$(value share_of_peak "$1") && share=$(printf '%.2f of peak, ' "$share") || share=
    printf '%.0f tokens/s, %.2f TFLOP/s, %s%s' "$(value tokens_per_s "$1")" "$(value tflop_per_s "$1")" "$share" \
        "$([ -n "$bytes" ] && echo "$((bytes >> 20)) MiB" || echo "memory unknown")"
}

if [ "${TUNE:-1}" != 0 ]; then
    echo "== tuning, so that all rounds run the same kernels (TUNE=0 leaves it to the first ones, within their 30 s)"
    for shape in "${shapes[@]}"; do
        for seq in "${seqs[@]}"; do
            for mode in bf16-true "bf16-true --no_coop" 16-true; do
                # shellcheck disable=SC2086
                "$engraft" tune --shape "$shape" --tokens "$seq" --precision $mode 2>>"$out/log.txt" || echo "    failed, see $out/log.txt"
            done
        done
    done
fi

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
echo "== training steps"
for shape in "${shapes[@]}"; do
    for seq in "${seqs[@]}"; do
        for round in $(seq "$rounds"); do
            echo "$shape, sequence $seq, round $round"
            # with and without matrix units, and with the loss scale that they do without in bf16
            for mode in bf16-true "bf16-true --no_coop" 16-true; do
                # shellcheck disable=SC2086
                report=$("$engraft" bench train --shape "$shape" --seq "$seq" --batch 1 --steps "$steps" \
                    --precision $mode --json 2>>"$out/log.txt") || report='{}'
                echo "$report" >>"$out/engraft-${mode// /}-$shape-$seq.jsonl"
                echo "    engraft $mode: $(figures "$report")"
            done
            if [ -n "$peer" ]; then
                for mode in "" --compile; do
                    report=$(python3 benches/peft/train.py --shape "$shape" --seq "$seq" --steps "$steps" $mode 2>>"$out/log.txt") || report='{}'
                    echo "$report" >>"$out/torch$mode-$shape-$seq.jsonl"
                    echo "    torch bf16${mode/--/ }: $(figures "$report")"
                done
            fi
        done
    done
done
