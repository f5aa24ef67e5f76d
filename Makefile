# make quickstart   train the digits with EDBA, from nothing, and show what happened
# make test         lint, types and the tests
# make test-slow    the tests marked slow: 20,000 steps, 4 ranks, kills, compilation
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow lint clean

quickstart: .venv/installed
	$(BIN)/composer -n 1 -m composer_edba.train yamls/digits/edba.yaml

test: lint
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv installs in a minute what takes pip many.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
