# make quickstart   train the digits with EDBA, from nothing, and show what happened
# make test         lint, types and the tests
# make test-slow    the tests marked slow: 20,000 steps, 4 ranks, kills, compilation
# make test-today   the tests that need no Composer, on today's torch and today's frameworks
# make docs         the documentation, in site/
# make wheel        wheel and source archive, in dist/, and the wheel tried in an empty environment for each way in
PYTHON ?= python3
BIN := .venv/bin
TODAY := .venv-today/bin
# Test processes side by side, each of which imports Composer once. A file stays in one process: runs are shared in it.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

.PHONY: quickstart test test-slow test-today lint docs wheel clean

quickstart: .venv/installed
	$(BIN)/composer -n 1 -m composer_edba.train digits/edba

test: lint
	$(PYTEST) -m "not slow"

test-slow: .venv/installed
	$(PYTEST) -m slow

test-today: .venv-today/installed
	OMP_NUM_THREADS=1 $(TODAY)/python -m pytest -q -rs -n $(JOBS) --dist loadfile -m "not slow"

docs: .venv/installed
	$(BIN)/mkdocs build --quiet --strict

wheel: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	./scripts/try_wheel dist/*.whl
	for extra in ignite lightning transformers accelerate; do ./scripts/try_wheel dist/*.whl $$extra; done

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

.venv-today/installed: pyproject.toml constraints-today.txt
	$(PYTHON) -m venv .venv-today
	$(TODAY)/python -m pip install --quiet --disable-pip-version-check -c constraints-today.txt uv
	$(TODAY)/uv pip install --quiet --python $(TODAY)/python -c constraints-today.txt \
		-e '.[ignite,lightning,transformers,test]'
	touch $@

clean:
	rm -rf .venv .venv-today site build dist *.egg-info
