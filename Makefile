# Everything a fresh clone needs: `make demo` and `make test` set up .venv themselves and are quick the second time.
PYTHON ?= python3
BIN := .venv/bin
# uv installs where there is one, pip elsewhere. pip compiles nothing beforehand: most modules are never imported, and
# what is, Python keeps; every Ray worker imports this package.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --no-compile) --quiet
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv venv-run demo test test-slow docs lint format clean

# What running needs, and the tools of the tests beside it.
venv-run: .venv/.installed-run
venv: .venv/.installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed-run: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -c constraints.txt -e .
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -c constraints.txt -e ".[dev]"
	touch $@ .venv/.installed-run

.venv/.installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -c constraints.txt -e ".[docs]"
	touch $@ .venv/.installed-run

demo: venv-run
	$(BIN)/python -m raystitch.sweep --out runs/demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --threads 2
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -q -n 2

test-slow: venv
	$(BIN)/python -m pytest -q -m slow

# The documentation as a site, site/index.html, which loads nothing from a network.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file docs/site/mkdocs.yml

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv dist site .pytest_cache .ruff_cache .import_linter_cache
