# The two commands of the README: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported, and not the thousands of modules that never are.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt
READY := $(VENV)/.ready
SITE_READY := $(VENV)/.ready-site

.PHONY: demo test lint docs site site-tools wheel clean

demo: $(READY)
	$(BIN)/blossomrec demo runs/demo

# Processes with one thread each are faster than one process with several, and three of them keep two
# cores busy while tests wait for servers and for the disk. Each takes a third of the tests, so that
# what the tests of a file share is made once, and at the end some of another's. The many processes
# that tests start find the code compiled. Their files, small ones by the ten thousand, lie in memory
# where there is room for 4 GiB and compiled code may be loaded; Ctrl-C removes them, too.
ROOM = $(shell ! grep -qs ' /dev/shm .*noexec' /proc/mounts && df -Pk /dev/shm 2>/dev/null \
	| awk 'NR == 2 && $$4 > 4194304')
IN_MEMORY = folder=$$(mktemp -d /dev/shm/blossomrec.XXXXXX) && trap 'rm -rf "$$folder"' EXIT \
	&& trap 'exit 130' INT TERM HUP && TMPDIR=$$folder

test: $(READY)
	$(if $(ROOM),$(IN_MEMORY)) \
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 PYTHONDONTWRITEBYTECODE= \
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Without the cache: it does not notice that an imported module became one of our own.
lint: $(READY)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# constraints.txt keeps torch to one version, so that every environment is the same.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e ".[plots,track,tune,pandas,serve,redis,ann,onnx,dev]"
	touch $@

# The tables of the documentation, from the lines in results/.
docs: $(READY)
	$(BIN)/python -m benchmarks tables

# The documentation as a site, in build/site. Its tools come on top. A warning is an error, but not
# with --quiet, which would drop it before it is counted.
site: $(SITE_READY)
	$(BIN)/mkdocs build --strict

site-tools: $(SITE_READY)

$(SITE_READY): $(READY)
	$(INSTALL) -e ".[docs]"
	touch $@

# What is published, in dist.
wheel: $(READY)
	$(BIN)/hatchling build -t wheel

clean:
	rm -rf $(VENV) runs build dist
