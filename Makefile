# Shortcuts. Everything can also be called directly; `make` lists what there is.

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-gpu

# rustup's usual place, for shells that have not read its profile yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# Mesa's loader layer complains without it, though nothing here opens a window.
export XDG_RUNTIME_DIR ?= /tmp

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: ## install what is missing: a C linker, a Vulkan driver
	@.ci/setup

demo: setup ## build, and teach a small model a new task on whatever device is here
	cargo run --locked --release --example demo

# Mesa's software Vulkan compiles shaders without optimisation: that is most of the tests' time on a new machine.
test: export GALLIVM_PERF ?= nopt
test: setup check ## all that continuous integration runs
	@set -ex; if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked; \
		cargo test --locked --doc; \
	else \
		cargo test --locked; \
	fi
	# once more on a device that binds no more than 16 MiB at a time
	ENGRAFT_TEST_MAX_BINDING=16777216 cargo test --locked --test ops --test reference --test quantised -- \
		--skip every_ --skip attention_ --skip gradient_ --skip tensors_in_pieces

check: setup ## formatting and lints
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || \
		{ echo 'rustfmt or clippy is missing: rustup component add rustfmt clippy' >&2; exit 1; }
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

bench: setup ## speed of the kernels, and of whole training steps
	cargo bench --locked
	cargo run --locked --release -- bench train --hidden 256 --layers 4 --heads 4 --ffn 768 --vocab 2048 \
		--seq 128 --batch 4 --rank 8 --targets q_proj,k_proj,v_proj,o_proj --steps 20

bench-gpu: setup ## all figures on this machine's GPU, beside PyTorch + PEFT where they are
	benches/gpu.sh
