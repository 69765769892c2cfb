# Everything runs in .venv, which is made anew when the project's dependencies change.
PYTHON ?= python3
BIN := .venv/bin
RUN := HF_HUB_OFFLINE=1 $(BIN)

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(RUN)/chatpipe run pocket

# Two at a time, each on one thread: tiny models gain nothing from a second one.
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN)/pytest -n 2 --dist loadfile

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
