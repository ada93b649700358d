# gymcast: everything a fresh clone needs. Requires git, make and Python 3.11 or newer; no compiler, no Node, no uv.
#
#   make run                       set up, then train an archer and watch it live
#   make run ARGS="--minutes 1"    the same with options of `gymcast train archers`
#   make test                      set up, then the whole test suite
#
# Variables:
#   PYTHON=/path/to/python3.12     use this interpreter for .venv instead of the newest suitable one
#   PIP_ARGS="..."                 handed to `pip install`, for example
#                                  PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch's smaller CPU build
#   ARGS="..."                     options for `gymcast train archers`, pytest or the benchmarks

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.gymcast-setup
ARGS ?=
PIP_ARGS ?=
PYTHON ?=

# The stamp holds the folder it was made for: an environment that was copied or moved points at the old checkout.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): again
endif
# An interpreter that is named is looked at again.
ifneq ($(PYTHON),)
$(STAMP): again
endif
# The interpreter may be gone after a system upgrade.
ifneq ($(shell $(PY) -c 'print(1)' 2>/dev/null),1)
$(STAMP): again
endif

# The processes that tests start are many, and each would compile gymcast's sources where this variable is set.
export PYTHONDONTWRITEBYTECODE :=

# Numba keeps compiled kernels between runs; continuous integration starts from nothing each time.
ifneq ($(CI),)
FRESH_CACHE := NUMBA_CACHE_DIR="$$(mktemp -d)"
endif

.PHONY: help setup run test check bench docs clean again

help: ## show this help
	@echo "Usage: make TARGET [ARGS=\"...\"]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Examples: make run    make run ARGS="--minutes 1 --seed 7"    make test ARGS="tests/envs -x"'

setup: $(STAMP) ## make .venv and install gymcast with the pinned versions of constraints.txt
	@:

run: setup ## train an archer and watch it in the browser (ARGS: options of `gymcast train archers`)
	@exec $(VENV)/bin/gymcast train archers $(ARGS)

test: setup ## run the whole test suite (ARGS: options of pytest; "-n 0" for one test at a time)
	@$(FRESH_CACHE) $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## lint, format, types and import rules
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

bench: setup ## measure speed; every benchmark prints its figures and its own command
	@set -e; for script in benchmarks/env_steps.py benchmarks/train_sps.py; do \
		echo "== $$script $(ARGS)"; $(PY) $$script $(ARGS); \
	done

docs: setup ## write the generated pages of docs/
	@$(PY) tests/house/cli_docs.py --write
	@$(PY) tests/house/rest_docs.py --write

clean: ## remove .venv, caches and build results (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Candidates from new to old; the first that is 3.11 to 3.14 and can make virtual environments is taken.
define FIND_PYTHON
good='import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit(1)'; \
python=; no_venv=; seen=; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3.14 python3.13 python3.12 python3.11 python3 python); do \
	command -v "$$candidate" >/dev/null 2>&1 || continue; \
	version=$$("$$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
	seen="$$seen $$candidate ($$version)"; \
	"$$candidate" -c "$$good" || continue; \
	if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python="$$candidate"; break; fi; \
	no_venv="$${no_venv:-$$candidate}"; \
done; \
if [ -z "$$python" ] && [ -n "$$no_venv" ]; then \
	echo "gymcast: $$no_venv cannot make virtual environments: its venv module is missing." >&2; \
	echo "  On Debian or Ubuntu: sudo apt-get install python3-venv    Then run make again." >&2; \
	exit 1; \
elif [ -z "$$python" ]; then \
	echo "gymcast: needs Python 3.11 to 3.14; found:$${seen:- none}." >&2; \
	echo "  Install one (Debian 12: sudo apt-get install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	exit 1; \
fi
endef

$(STAMP): pyproject.toml constraints.txt
	@$(FIND_PYTHON); \
	echo "gymcast: setting up $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
	usable() { \
		$(PY) -c "$$good; import pip" 2>/dev/null && [ "$$(cat $(STAMP) 2>/dev/null || pwd)" = "$$(pwd)" ] \
		&& { [ -z "$(PYTHON)" ] || [ "$$($(PY) --version)" = "$$("$$python" --version)" ]; }; \
	}; \
	usable || "$$python" -m venv --clear $(VENV); \
	echo "gymcast: installing the pinned versions of constraints.txt; the first time this takes a few minutes"; \
	install() { \
		echo "  $$1"; shift; \
		$(PY) -m pip install --progress-bar off --disable-pip-version-check --no-input \
			--constraint constraints.txt $(PIP_ARGS) "$$@" >>$(VENV)/setup.log 2>&1 \
		|| { grep -v '^WARNING' $(VENV)/setup.log | tail -n 12 >&2; \
			echo "gymcast: installing failed; the whole story is in $(VENV)/setup.log" >&2; exit 1; }; \
	}; \
	rm -f $(STAMP) $(VENV)/setup.log; \
	install "build tools" hatchling editables; \
	install "torch, the largest part" torch==2.13.0; \
	install "gymcast with everything else" --no-build-isolation --editable '.[dev,postgres,redis,video,wandb]'; \
	printf '%s' "$(CURDIR)" > $(STAMP); \
	echo "gymcast: ready. Start with: make run   (or: $(VENV)/bin/gymcast --help)"
