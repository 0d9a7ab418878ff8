# make install | demo | quick | test | slurm | real | gpu | check | fix | bench | docs | screenshots | clean
.PHONY: install demo quick test slurm real gpu check fix bench docs screenshots clean
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin

install: .venv/installed

.venv/installed: pyproject.toml
	@echo "Installing PyTorch and the rest into .venv: some gigabytes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python benchmarks/demo.py

quick: install
	$(BIN)/python -m pytest -m "not dist and not slurm and not real and not bench and not gpu"

test: install
	$(BIN)/python -m pytest -m "not slurm and not real and not bench and not gpu"

slurm: install
	$(BIN)/python -m pytest -m slurm

real: install
	$(BIN)/python -m pytest -m real

gpu: install
	$(BIN)/python -m pytest -m gpu

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python -m pytest -m bench tests/faults

screenshots: install
	$(BIN)/python docs/screenshots.py

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build ./*.egg-info
