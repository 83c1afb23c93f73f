# The two commands: `make serve` and `make test`. Both do all the set-up that a fresh machine with Rust needs.
#   make serve [PORT=8000] [WORKERS=4] [MODEL=dir] [ARGS="more flags of dynamo serve"]

PORT    ?= 8000
WORKERS ?= 4
MODEL   ?= tests/data/tiny-llama
ARGS    ?=

.PHONY: serve build test packages

serve: build
	@exec target/release/dynamo serve --model-path "$(MODEL)" --num-workers $(WORKERS) --http-port $(PORT) --router-mode kv $(ARGS)

build: packages
	@echo "Building (the first time takes some minutes) ..."
	@cargo build --release --locked -p dynamo-cli -p dynamo-frontend

packages:
	@scripts/ensure_packages.sh gcc=cc g++=c++ make=make pkg-config=pkg-config

test: packages
	@scripts/test.sh
