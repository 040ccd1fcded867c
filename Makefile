# Everything a person does with this checkout. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check servers azurite test-real bench fuzz constraints build-info docs reference newcomer fmt clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/vaultferry: pyproject.toml requirements.txt constraints.txt
	@echo "Installing into $(VENV), which takes a minute or two the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs,fast]' --constraint constraints.txt
	@touch $@

install: $(BIN)/vaultferry ## make .venv with the vaultferry command
	@:

demo: install ## forty secrets from Vault to Key Vault and a second Vault, on throw-away servers
	@$(BIN)/python -m sandbox.demo

test: install ## the fast tests: nothing but Python
	@$(BIN)/python -m pytest -n auto -m "not real"

check: install ## lint, types and the architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/unit/test_architecture.py

servers: install ## fetch the real Vault, Azurite and the Bitwarden command line into the user's cache
	@$(BIN)/python -m tests.servers.fetch

azurite: install ## the real Azurite, until Ctrl-C: the storage account of local.settings.example.json
	@$(BIN)/python -m tests.servers.azurite

test-real: install ## contract, integration and end-to-end suites against the real servers
	@$(BIN)/python -m pytest -m real

fuzz: install ## the property tests on examples that nobody has tried yet, ten times as many
	@$(BIN)/python -m pytest -n auto -m "hypothesis and not real" --hypothesis-profile=fuzz

bench: install ## throughput against a real Vault, as a ratio to a bare loop in the same run
	@$(BIN)/python -m benchmarks

docs: install ## these pages as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: install ## docs/configuration-reference.md, docs/http.md and the schema for editors, from the code
	@$(BIN)/python -m tests.reference
	@$(BIN)/python -m tests.http_reference

newcomer: ## what README.md tells a newcomer to do, in a clean clone and an empty home directory
	@$(PYTHON) tests/newcomer.py

build-info: ## which commit is published and when, for /health: before `func azure functionapp publish`
	@$(PYTHON) infra/build_info.py

constraints: ## newest versions that requirements.txt allows, into constraints.txt
	@$(BIN)/python -m tests.constraints

fmt: install ## format and fix what can be fixed
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove what the targets above made here
	@rm -rf $(VENV) .demo .bench .mypy_cache .pytest_cache .ruff_cache .azurite _build.json site *.egg-info
