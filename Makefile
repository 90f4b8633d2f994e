# `make demo` and `make test` need only Python 3.11+, make, gcc and libgmp's headers; they set up the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests marked slow, of real processes and sockets, run in `make test` and in CI, not while one works.  Those
# that start processes are a group (tests/conftest.py), one after the other beside pure computation.
PYTEST := $(BIN)/python -m pytest -q

.PHONY: demo test test-fast check lint types layers tree bench docs setup toolchain clean

setup: $(VENV)/.done

# fastecdsa, an exact pin of libp2p, has no wheel for every Python and is then built from source.
toolchain:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "p2pfl needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@command -v gcc >/dev/null 2>&1 && echo '#include <gmp.h>' | gcc -E -xc - >/dev/null 2>&1 || \
	  { echo "p2pfl needs gcc and the headers of GMP, from which libp2p builds fastecdsa:" >&2; \
	    echo "  Debian, Ubuntu: sudo apt-get install gcc python3-dev libgmp-dev" >&2; \
	    echo "  Fedora:         sudo dnf install gcc python3-devel gmp-devel" >&2; \
	    echo "  macOS:          xcode-select --install && brew install gmp" >&2; exit 1; }

$(VENV)/.done: pyproject.toml constraints.txt | toolchain
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,sklearn,dp,sim,ray]'
	@touch $@

demo: setup
	$(BIN)/p2pfl demo

test: setup
	$(PYTEST) -m "not slow" -n 2
	$(PYTEST) -m slow -n 2 --dist loadgroup

test-fast: setup
	$(PYTEST) -m "not slow" -n 2

# mypy and import-linter do not see p2pfl.cli and p2pfl.simulations through the mapping in pyproject.toml,
# so they get a tree of links in which they lie where they are imported from.  trio is linked, too: libp2p
# brings an old stub package that would otherwise hide trio's own types.
tree: setup
	@rm -rf build/src build/typing && mkdir -p build/src/p2pfl build/typing
	@ln -s $(addprefix $(CURDIR)/,$(filter-out %/__pycache__,$(wildcard p2pfl/*)) cli simulations) build/src/p2pfl/
	@ln -s $(CURDIR)/tests build/src/tests
	@ln -s "$$($(BIN)/python -c 'import trio, pathlib; print(pathlib.Path(trio.__file__).parent)')" build/typing/trio

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: tree
	$(BIN)/mypy

layers: tree
	cd build/src && $(CURDIR)/$(BIN)/lint-imports --config ../../pyproject.toml

check: lint types layers test-fast

bench: setup
	$(BIN)/python benchmarks/transport.py
	$(BIN)/python benchmarks/round_overhead.py
	benchmarks/with_byzfl.sh

docs: setup
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:
	rm -rf build dist *.egg-info $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
