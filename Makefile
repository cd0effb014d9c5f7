# Every goal installs or builds what it needs first: see deploy/toolchain.sh.
# One profile (dev) for all of them: what `make demo` compiled, `make test` reuses.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: faults faults-long faults-crash faults-planted
.PHONY: test-readme fuzz hostile
.PHONY: install uninstall dist test-dist
.PHONY: help build demo test test-dashboard test-python test-torch test-clients test-gpu test-targets test-kube test-compose test-vllm
.PHONY: check bench format lint helm python python-wire errors

# `make check CHECK_TESTS=0` leaves the tests out, for callers that run
# `make test` beside it, as .ci/run does.
CHECK_TESTS ?= 1
# Arguments of `make faults-crash`, such as --kills 3.
CRASH ?=
# Arguments of `make faults-planted`, such as --only fence.
PLANTED ?=
KILN_KUBE_SCRIPT ?= ../shared/kube/kube

PYTHON_FILES = tests deploy python
# $(call toolchain,GOAL) && COMMAND: with the environment that GOAL needs.
toolchain = environment=$$(deploy/toolchain.sh $(1)) && eval "$$environment"
binary = "$${CARGO_TARGET_DIR:-target}/debug/kiln"
# What `make install` and `make dist` build. `dev` takes what the other goals have built already.
PROFILE ?= dist
profile_folder = $(patsubst dev,debug,$(PROFILE))
# $(call shipped,PROFILE): the program of that profile, compiled.
shipped = cargo build --locked --profile $(PROFILE) --package kiln --bin kiln && \
	program=$$(realpath "$${CARGO_TARGET_DIR:-target}/$(profile_folder)/kiln")
PREFIX ?= $(HOME)/.local
DESTDIR ?=
abspath_binary = "$$(realpath $(binary))"

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

build: ## compile everything
	$(call toolchain,build) && cargo build --locked --workspace

install: ## kiln, its manual and completions, into PREFIX=~/.local; PROFILE=dev is quicker to build
	$(call toolchain,$(if $(filter dev,$(PROFILE)),build,release)) && $(shipped) && \
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" deploy/install.sh install "$$program"

uninstall: ## takes away what `make install` put into PREFIX
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" deploy/install.sh uninstall

# Of the paths in a program those of this machine are mapped; `dev` is for a test of the rest.
unnamed = $(if $(filter dev,$(PROFILE)),true,export RUSTFLAGS="$${RUSTFLAGS:-} \
	--remap-path-prefix=$(CURDIR)=kiln --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=cargo")
PACKAGES ?= $${CARGO_TARGET_DIR:-target}/packages
dist: ## program, Debian package and wheels, with sums, into PACKAGES=target/packages
	$(call toolchain,dist) && $(unnamed) && $(shipped) && \
	python3 -B deploy/package --program "$$program" --out "$(PACKAGES)" \
		$(if $(filter dev,$(PROFILE)),--own-paths)

# CASES: some of them, as `debian wheels`, or `clone`: from the sources, which takes a cold build.
# BASE: a root that debootstrap made already.
test-dist: $(if $(filter-out clone,$(or $(CASES),all)),dist) ## what `make dist` made, installed and run on a bare Debian; needs root
	$(call toolchain,bare) && \
	python3 -B tests/dist $(if $(filter-out clone,$(or $(CASES),all)),--packages "$(PACKAGES)") \
		$(if $(BASE),--base "$(BASE)") $(CASES)

demo: ## three nodes, real CUDA compiles, failures: a table of claims, checked
	@$(call toolchain,demo) && cargo build --locked --workspace && \
	python3 tests/demo.py --kiln $(binary)

test: test-python ## all tests, those with real processes, NVRTC and S3 among them
	$(call toolchain,test) && tests/in_memory.sh cargo nextest run --locked --workspace

test-python: ## kiln_torch without torch, against a real cluster; part of `make test`
	$(call toolchain,test) && cargo build --locked --package kiln && \
	KILN_BINARY=$(abspath_binary) PYTHONPATH="$$KILN_PYTHON_PACKAGES:python" \
	python3 -B -m pytest python -q -p no:cacheprovider -m "not torch and not triton"

test-torch: ## kiln_torch with real PyTorch and Triton: installs 6 GB, takes half an hour
	$(call toolchain,torch) && cargo build --locked --package kiln && \
	source=$$(mktemp -d) && trap 'rm -rf "$$source"' EXIT && cp -r python "$$source" && \
	"$$KILN_TORCH_PYTHON" -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --force-reinstall "$$source/python" && \
	KILN_BINARY=$(abspath_binary) \
	"$$KILN_TORCH_PYTHON" -B -m pytest python -q -p no:cacheprovider --durations=0 && \
	$(call toolchain,test) && \
	cargo nextest run --locked --package kiln --test cluster --test compiler --run-ignored all inductor && \
	python3 -B tests/page_commands.py --kiln $(binary) --torch "$$KILN_TORCH_PYTHON"

test-gpu: ## on this machine's GPU: operations, transformers' models, 2,000 random graphs
	$(call toolchain,build) && \
	cargo test --locked --package kiln --test gpu -- --ignored --nocapture --test-threads 1 \
		--skip targets::

# TARGETS: all, or parts of fixtures' names; without it a few.
test-targets: ## fixtures compile for every target, by NVRTC alone: TARGETS=all takes long
	$(call toolchain,build) && \
	$${TARGETS:+env KILN_ONLY_PROGRAMS="$$TARGETS"} \
	cargo test --locked --package kiln --test gpu -- --ignored --nocapture targets::

faults-crash: ## real nodes, killed 25 times at each durable step and restarted; takes long
	$(call toolchain,test) && \
	cargo test --locked --package kiln --features crash-points --test crash -- $(CRASH)

faults-planted: ## planted bugs, one at a time: the simulation and the tests must see each
	$(call toolchain,test) && python3 -B tests/faults/planted.py $(PLANTED)

# FUZZ: more words for it, as `--seconds 600 resp`; `--help` names the targets. A stable
# compiler has what cargo-fuzz asks for, behind a variable.
fuzz: ## strangers' bytes at each way in, a minute each; what does harm is kept
	$(call toolchain,fuzz) && folder=$${KILN_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/kiln}/fuzz && \
	RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir tests/fuzz --target-dir "$$folder/target" && \
	python3 -B tests/fuzz --folder "$$folder" \
		--binaries "$$folder/target/$$(rustc -vV | awk '/^host/ { print $$2 }')/release" $(FUZZ)

python-wire: ## write the wire format that python/ ships, from proto/
	$(call toolchain,build) && \
	KILN_WRITE_WIRE=1 cargo test --locked --package kiln-proto --test descriptors

errors: ## write deploy/ERRORS.md, from the table of failures in proto/
	$(call toolchain,build) && \
	KILN_WRITE_ERRORS=1 cargo test --locked --package kiln-proto --test errors

# KILN_BINARY: another binary than this build. KILN_TORCH_PYTHON: a Python with PyTorch, for the
# blocks that need it, which are left out without. PAGES: some pages, not all.
test-readme: ## the commands that README and the doors' pages print, run as they stand
	$(call toolchain,demo) && \
	{ [ -n "$${KILN_BINARY:-}" ] || cargo build --locked --package kiln --bin kiln; } && \
	python3 -B tests/page_commands.py --kiln "$${KILN_BINARY:-$(binary)}" \
		$${KILN_TORCH_PYTHON:+--torch "$$KILN_TORCH_PYTHON"} $(PAGES)

test-clients: ## sccache, ccache and redis-py against a cluster
	$(call toolchain,clients) && cargo build --locked --workspace && \
	python3 tests/clients.py --kiln $(binary)

# KILN_KUBE_SCRIPT: a script with the commands build, up, load, kubectl, helm, run, down.
test-kube: ## the chart on a real Kubernetes of two nodes, while clients ask; needs root
	@[ -x "$(KILN_KUBE_SCRIPT)" ] || { echo "no script at KILN_KUBE_SCRIPT=$(KILN_KUBE_SCRIPT): name \
	one with the commands build, up, load, kubectl, helm, run, down" >&2; exit 1; }
	$(call toolchain,kube) && scratch=$${KILN_KUBE_SCRATCH:-$${XDG_CACHE_HOME:-$$HOME/.cache}/kiln/kube} && \
	mkdir -p "$$scratch" && "$(KILN_KUBE_SCRIPT)" build && \
	KILN_VERSION=0.2.0-next cargo build --locked --package kiln --bin kiln && \
	cp $(binary) "$$scratch/kiln-next" && \
	cargo build --locked --package kiln --bin kiln && \
	python3 -B tests/kube --script "$(KILN_KUBE_SCRIPT)" --folder "$$scratch" \
		--kiln $(binary) --next "$$scratch/kiln-next" $(PHASES)

test-compose: ## deploy/compose.yaml as processes, with a real S3; needs root
	$(call toolchain,compose) && cargo build --locked --package kiln --bin kiln && \
	PYTHONPATH="$$KILN_CHART_PACKAGES" python3 -B tests/compose.py --kiln $(binary)

# HOSTILE: more words for it, as `--idle 2000 silent slow`; `--help` names all.
hostile: ## one node under strangers who mean it no good, while others ask it: a table, checked
	$(call toolchain,test) && \
	{ [ -n "$${KILN_BINARY:-}" ] || cargo build --locked --package kiln --bin kiln; } && \
	PYTHONPATH="$$KILN_PYTHON_PACKAGES:python" \
	python3 -B tests/hostile --kiln "$${KILN_BINARY:-$(binary)}" $(HOSTILE)

# The nodes' binary, and another build of it: KILN_BINARY_BEFORE, or this one as an earlier version.
builds = { before=$${KILN_BINARY_BEFORE:-$$(dirname $(binary))/kiln-before} && \
	{ [ -n "$${KILN_BINARY_BEFORE:-}" ] || \
	{ KILN_VERSION=0.1.0 cargo build --locked --package kiln --bin kiln && \
	cp $(binary) "$$before"; }; } && export KILN_BINARY_BEFORE="$$(realpath "$$before")" && \
	cargo build --locked --package kiln --bin kiln --test faults; }

# FAULTS: more words for it, as `--only kill --seed 7`; `--help` names all.
faults: ## kills, cuts, full disks on real nodes under load, histories checked: 20 minutes; root
	$(call toolchain,faults) && $(builds) && \
	cargo nextest run --locked --package kiln --test cluster --run-ignored only planted && \
	cargo test --locked --quiet --package kiln --test faults -- --minutes 17 $(FAULTS)

HOURS ?= 2
SEEDS ?= 2000
faults-long: ## SEEDS=2000 of the simulation, then the faults for HOURS=2 hours
	$(call toolchain,faults) && $(builds) && \
	KILN_SIM_SEEDS=$(SEEDS) cargo test --locked --quiet --package kiln-cluster --lib \
		--config 'profile.dev.package.kiln-cluster.opt-level=1' -- \
		--exact sim::seeds::many_seeds_keep_every_promise --ignored --nocapture && \
	cargo test --locked --quiet --package kiln --test faults -- \
		--minutes $$(( $(HOURS) * 60 )) $(FAULTS)

# SHOTS: a folder for pictures of the page.
test-dashboard: ## the page in Chromium and `kiln top` in tmux, three nodes under load
	$(call toolchain,dashboard) && cargo build --locked --package kiln --bin kiln && \
	PYTHONPATH="$$KILN_DASHBOARD_PACKAGES:tests" python3 -B tests/dashboard \
		--kiln $(binary) $(if $(SHOTS),--shots "$(SHOTS)")

test-vllm: ## vLLM's compilation package through Kiln, on CPU; installs 6 GB the first time
	$(call toolchain,build) && cargo build --locked --workspace && \
	vllm_python=$$(deploy/vllm-venv.sh) && \
	KILN_BINARY=$(binary) "$$vllm_python" -m pytest -c python/pyproject.toml python/tests/test_vllm.py

check: lint helm python ## everything that must hold before a commit: lints, then the tests
ifneq ($(CHECK_TESTS),0)
	$(MAKE) test
endif

format: ## write all sources as `make check` wants them
	cargo fmt --all
	$(call toolchain,check) && ruff format --config .config/ruff.toml $(PYTHON_FILES)

lint:
	cargo fmt --all --check
	$(call toolchain,check) && \
	shellcheck .ci/run deploy/*.sh tests/*.sh tests/gpu/*.sh && \
	hadolint deploy/Dockerfile && \
	cargo deny --log-level error check licenses bans sources && \
	cargo clippy --locked --workspace --all-targets -- -D warnings && \
	cargo clippy --locked --package kiln --features crash-points --test crash -- -D warnings

helm: ## the chart: schemas, policies, refusals, its README; see deploy/chart/check.py
	$(call toolchain,check) && cargo build --locked --package kiln && \
	PYTHONPATH="$$KILN_CHART_PACKAGES" python3 -B deploy/chart/check.py --kiln $(abspath_binary)

python:
	$(call toolchain,check) && \
	ruff check --config .config/ruff.toml $(PYTHON_FILES) && \
	ruff format --config .config/ruff.toml --check $(PYTHON_FILES) && \
	python3 -B python/check_table.py && \
	python3 -B tests/faults/planted.py --check && \
	python3 -B tests/page_links.py && \
	python3 -B tests/goals.py && \
	python3 -B tests/same_build.py && \
	pyrefly check --config .config/pyrefly.toml \
		--site-package-path "$$KILN_CHART_PACKAGES" $(wildcard tests/*.py tests/dashboard/*.py tests/kube/*.py tests/dist/*.py tests/faults/*.py tests/fuzz/*.py deploy/*/*.py) && \
	pyrefly check --config .config/pyrefly-python.toml \
		--site-package-path "$$KILN_PYTHON_PACKAGES" $(wildcard python/*.py python/*/*.py python/*/*/*.py tests/hostile/*.py)

bench: ## measure; ratios against rivals in one run
	$(call toolchain,bench) && cargo bench --locked --workspace
