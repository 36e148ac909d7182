# `make demo` and `make test` need nothing but python3 (3.11 or later) with venv; all else they install into .venv.
# Where there is Go, `make test` builds a Kubernetes control plane, Helm and kubectl once, into the user's cache, some
# twenty minutes.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# two processes, whose shares tests/sharing.py says; their threads do not spin while they wait
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# of `make image`: what it is called, what it is made from, cuda or cpu (then with TORCH_INDEX), and what makes it
IMAGE ?= limbeck:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/limbeck/version.py)
BASE ?= python:3.11-slim-bookworm
VARIANT ?= cuda
TORCH_INDEX ?=
BUILDER ?= docker

.PHONY: demo test soak bench lint mutate generate image clean

demo: $(INSTALLED)
	$(BIN)/limbeck demo

test: $(INSTALLED) lint
	$(BIN)/python -m tests.cluster.binaries
	$(PYTEST)

soak: $(INSTALLED)
	$(BIN)/python -m tests.cluster.binaries
	LIMBECK_SOAK=1 $(PYTEST)

bench: $(INSTALLED)
	$(BIN)/python benchmarks/distill.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/teacher.py
	$(BIN)/python benchmarks/feed.py --images 2048 --experts-together 1 --width 32
	$(BIN)/python benchmarks/listing.py main --images 100000
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/tracking.py
	$(BIN)/python benchmarks/reconcile.py
	$(BIN)/python benchmarks/accuracy.py

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# one thread, so that forks are safe
mutate: $(INSTALLED)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.mutate

generate: $(INSTALLED)
	$(BIN)/python -m limbeck.reference docs
	$(BIN)/python -m limbeck_pipelines.generate .
	$(BIN)/python -m limbeck_operator.generate .
	$(BIN)/python -m charts.generate .
	$(BIN)/python -m tests.pipelines.specs
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

image:
	$(BUILDER) build --build-arg BASE=$(BASE) --build-arg VARIANT=$(VARIANT) --build-arg TORCH_INDEX=$(TORCH_INDEX) \
		--tag $(IMAGE) .

clean:
	rm -rf .venv demo-output mutants

$(INSTALLED): pyproject.toml constraints.txt src/limbeck/version.py
	$(PYTHON) -c 'import sys; sys.exit("limbeck needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
