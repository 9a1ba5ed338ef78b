PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint install dev catalogue figures clean

install: .venv/.installed
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

dev: .venv/.dev
.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

demo: install
	$(BIN)/assay audit --profile quick --out runs/digits

lint: dev
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

catalogue: dev
	$(BIN)/python -m assay.methods

figures: dev
	$(BIN)/python docs/readme.py

clean:
	rm -rf .venv runs
