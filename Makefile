PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint install dev catalogue figures reproduce gallery calibrators noisy-labels unlearners hf-example fuzz docs clean

install: .venv/.installed
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

dev: .venv/.dev
.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,ray]'
	touch $@

demo: install
	$(BIN)/assay audit --profile quick --out runs/digits

lint: dev
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/ruff check src tests bench docs
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

catalogue: dev
	$(BIN)/python -m assay.methods

figures: dev
	$(BIN)/python docs/readme.py

reproduce: dev  # only papers whose present code has no recorded run; an interrupted one goes on where it was
	$(BIN)/assay reproduce --all --record --confirm --jobs 2

gallery: dev
	$(BIN)/python docs/gallery.py

calibrators: dev  # needs ASSAY_DATA; what docs/runs/calibrators.jsonl holds is not measured again
	$(BIN)/python docs/calibrators.py

noisy-labels: dev  # needs ASSAY_DATA with CIFAR-10; an interrupted run goes on where it was
	$(BIN)/python docs/noisy_labels.py

unlearners: dev  # about 25 minutes on one core; rows in docs/runs/unlearners.jsonl are not run again
	OMP_NUM_THREADS=1 $(BIN)/python docs/unlearners.py

hf-example: dev  # a tiny ViT trained on the digits, as the README audits it
	$(BIN)/python docs/hf_example.py runs/digits-vit

fuzz: dev  # 100,000 coverage-guided inputs over all readers, about a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_readers.py all -runs=100000

docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv runs
