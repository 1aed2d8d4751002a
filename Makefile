# Two commands do all the set-up: `make demo` and `make test`. The rest is for those who build it.
.DEFAULT_GOAL := help
.PHONY: help install demo test check bench soak lock clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## set up .venv and the local chains; a second run skips what is done
	@PYTHON=$(PYTHON) sh infra/install.sh

demo: install ## run the whole service on three real local chains (ONCE=1: play once, check, exit; PORT=8081)
	@$(BIN)/python -m infra.devnet demo $(if $(ONCE),--once,) $(if $(PORT),--port $(PORT),)

test: install ## run every test, file by file in two processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install ## lint, types, import law
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install ## measure; prints a table and writes build/bench.json
	@$(BIN)/python -m tests.bench

soak: install ## what takes long: whole sets of processes, and the property tests with thousands of examples
	@$(BIN)/python -m pytest -m soak
	@HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/property tests/unit

lock: ## resolve requirements.lock anew (hashes, no download addresses)
	@$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --all-extras \
	  --python-version 3.11 --quiet pyproject.toml -o requirements.lock

clean: ## remove what install and runs left behind
	@rm -rf $(VENV) infra/devnet/node_modules build .run
