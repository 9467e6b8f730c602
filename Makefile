# Two commands do all the set-up: `make demo` and `make test`. Everything goes through scripts/cargo, which finds what the
# build needs and keeps the flags the same, so that nothing is compiled twice.

SHELL := bash
CARGO := scripts/cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := "$(TARGET)/release/blobferry"
# Sets the variables that name the tools of others.
WITH_TOOLS := tools=$$(scripts/tools) || exit 1; eval "$$tools";

# Arguments for the demo (a folder to ferry, or --exit to leave nothing running) or the benchmarks (--help tells).
ARGS ?=
# How many kills `make kill` does, power cuts `make powerloss`, full disks `make diskfull`, how many blobs `make sync`
# compares, how many operations `make model` tries, and how many histories `make simulate`.
N ?=
# The same for `make test-slow`, which does a little of each.
KILLS ?= 20
POWER_CUTS ?= 20
FULL_DISKS ?= 5
SYNC_BLOBS ?= 100000
MODEL_OPS ?= 50000
HISTORIES ?= 1000

.PHONY: help build demo test test-slow kill powerloss diskfull sync field bench instructions queue-bench tracing-bench model simulate image-check dist dist-check lint proto-lint proto-baseline doc book clean

help: ## Show what can be made.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## Build the program.
	@$(CARGO) build --bin blobferry

demo: build ## Ferry real files between two stores, and prove that every one arrived (ARGS="--exit", ARGS=/some/folder).
	@$(BIN) demo $(ARGS)

test: ## Run the tests, in ten minutes. Checks whose tools are missing are skipped aloud; with CI=true they must run.
	@mkdir -p "$(TARGET)"; scripts/tools > "$(TARGET)/tools.sh" & $(CARGO) test --no-run && wait $$!
	@. "$(TARGET)/tools.sh"; $(CARGO) test
	@. "$(TARGET)/tools.sh"; $(PROTO_LINT)

test-slow: ## Run what is a matter of size, a little of each (KILLS=, POWER_CUTS=, FULL_DISKS=, SYNC_BLOBS=, MODEL_OPS=, HISTORIES=).
	@$(WITH_TOOLS) $(CARGO) test --test it -- --ignored
	@$(MAKE) --no-print-directory kill N=$(KILLS)
	@$(MAKE) --no-print-directory powerloss N=$(POWER_CUTS)
	@$(MAKE) --no-print-directory diskfull N=$(FULL_DISKS)
	@$(MAKE) --no-print-directory sync N=$(SYNC_BLOBS)
	@$(MAKE) --no-print-directory model N=$(MODEL_OPS)
	@$(MAKE) --no-print-directory simulate N=$(HISTORIES)

kill: ## Kill the replicator N times at random moments under load, and check every ack (make kill N=1000).
	@$(CARGO) bench --bench kill -- --cycles $(or $(N),100)

powerloss: ## Cut the power N times under load, unsynced bytes lost or torn, and check every ack (make powerloss N=300).
	@$(CARGO) bench --bench powerloss -- --cycles $(or $(N),100)

diskfull: ## Fill and free the queue's and the destination's disk N times under load, and check every ack.
	@$(CARGO) bench --bench diskfull -- --cycles $(or $(N),50)

sync: ## Have a full sync compare two stores of N blobs each (make sync N=1000000).
	@$(CARGO) bench --bench sync -- --blobs $(or $(N),1000000)

field: ## Measure what load shedding, errors and hopeless entries cost, or evict N announced blobs (make field N=1000000).
	@$(CARGO) bench --bench field -- $(if $(N),--evicted $(N)) $(ARGS)

bench: ## Measure speed and memory, each figure beside its floor; no round begins after 90 minutes (ARGS="--quick", "--rounds 5", "--only small").
	@$(CARGO) bench --bench wire -- $(ARGS)

instructions: ## Count the instructions of the pure core, and compare them with those that are committed.
	@$(WITH_TOOLS) $(CARGO) bench --bench core -- $(ARGS)

tracing-bench: ## Measure what traces and metrics cost (ARGS="--rounds 15").
	@$(CARGO) bench --bench tracing -- $(ARGS)

queue-bench: ## Measure the queue alone, with ten million entries too (ARGS="--entries 1000000").
	@$(CARGO) bench --bench queue -- $(ARGS)

model: ## Hold the queue to its plain model for N random operations (make model N=1000000; BLOBFERRY_MODEL_SEED= repeats a run).
	@[ -w /dev/shm ] && export TMPDIR=/dev/shm; \
	BLOBFERRY_MODEL_OPS=$(or $(N),1000000) $(CARGO) test --lib random_operations_end_as_in_the_model -- --nocapture

simulate: ## Step the worker's scheduler through its scenarios, with 50 seeds each, and N random histories (make simulate N=100000; SEED= repeats one).
	@BLOBFERRY_SIMULATE=$(or $(N),10000) BLOBFERRY_SIMULATE_SEEDS=50 $(if $(SEED),BLOBFERRY_SIMULATE_SEED=$(SEED)) \
	$(CARGO) test --lib worker::simulation -- --nocapture

image-check: ## Build the Dockerfile on a stand-in for its base image, and probe the result (as root; needs buildah, debootstrap).
	@scripts/image-check

dist: ## Make a release for x86_64 and aarch64: archives, Debian packages, SBOM, licences, checksums.
	@scripts/dist

dist-check: ## Run that release on a bare Debian 11, as root; the one for aarch64 under qemu.
	@scripts/dist-check

lint: ## Check format and lints, as CI does.
	@cargo fmt --check
	@$(CARGO) clippy --all-targets -- -D warnings

PROTO_LINT = [ -z "$$BLOBFERRY_BUF" ] || { "$$BLOBFERRY_BUF" lint && "$$BLOBFERRY_BUF" format -d --exit-code && \
	"$$BLOBFERRY_BUF" breaking proto --against proto/baseline.binpb && echo "buf: lint, format and breaking passed"; }

proto-lint: ## Check the protocol's style, and that it is compatible with what was released.
	@$(WITH_TOOLS) $(PROTO_LINT)

proto-baseline: ## Take the protocol as it is for the baseline of compatibility; say why in the commit.
	@$(WITH_TOOLS) "$$BLOBFERRY_BUF" build proto --exclude-source-info -o proto/baseline.binpb

doc: ## Build the documentation of the code.
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

book: ## Build the documentation as a book, in target/book (mdbook is compiled once).
	@scripts/book

clean: ## Delete what was built (RocksDB takes minutes to compile again).
	@rm -rf "$(TARGET)"
