# Needs Python >= 3.11 and make, nothing else: the first target that runs code builds .venv from constraints.txt.
#   make demo | make test | make PYTHON=/path/to/python3.12 test | make VENV=/elsewhere test

VENV ?= .venv
PYTHON ?=
JOBS ?= 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint style types layers bench docs site clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

# A name on the path may be a stub that cannot run, so each candidate is asked for its version before it is chosen.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; chosen=; \
	for name in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3); do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then chosen=$$name; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "error: rankwise needs Python >= 3.11; tried: $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)" >&2; \
	  echo "       install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "building $(VENV) with $$("$$chosen" --version) (a few minutes, once)"; \
	"$$chosen" -m venv "$(VENV)"; \
	"$(BIN)/python" -m pip install -q -c constraints.txt torch; \
	"$(BIN)/python" -m pip install -q -c constraints.txt -e ".[text,report,quant,dev]"; \
	touch "$(STAMP)"

install: $(STAMP) ## build the virtual environment (VENV, default .venv)

demo: $(STAMP) ## learn a real stream with two methods, beside the frozen base and joint training
	@"$(BIN)/rankwise" demo

test: $(STAMP) ## run the tests that take seconds (JOBS processes, default 2)
	@$(PYTEST)

test-slow: $(STAMP) ## run the tests marked slow
	@$(PYTEST) -m slow

lint: style types layers ## style, types and the floors of the package

style: $(STAMP) ## ruff: lint rules and formatting
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

types: $(STAMP) ## pyright over src
	@"$(BIN)/pyright" --pythonpath "$(BIN)/python"

layers: $(STAMP) ## import-linter: no room imports from a floor above it
	@"$(BIN)/lint-imports"

bench: $(STAMP) ## run each benchmark; results are JSON files beside it
	@set -eu; found=; \
	for file in benchmarks/[a-z]*.py; do \
	  [ -f "$$file" ] || continue; found=yes; echo "$$file"; "$(BIN)/python" "$$file"; \
	done; \
	[ -n "$$found" ] || { echo "error: benchmarks/ holds no benchmark" >&2; exit 1; }

docs: site ## the site, then every snippet of its pages and example of the docstrings
	@"$(BIN)/python" -m pytest -q -m "" tests/test_docs.py tests/test_tutorial.py tests/test_examples.py
	@"$(BIN)/python" -m pytest -q tests/house/test_pages.py

site: $(STAMP) ## build the documentation into build/docs/site
	@"$(BIN)/python" scripts/docs build/docs
	@"$(BIN)/zensical" build --strict --clean -f build/docs/mkdocs.yml
	@echo "build/docs/site/index.html; with its search: $(BIN)/python -m http.server -d build/docs/site"

clean: ## remove the virtual environment and what tools left behind
	rm -rf "$(VENV)" .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
