# make demo   from nothing to a finetuned classifier and a report; needs Python and make only
# make docs   the documentation as web pages in site/; open site/index.html
# make test   all checks and tests, but for the slow ones (make test-slow); make test-fast: in a minute
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEEPSPEED := $(VENV)/.deepspeed
DOCS := $(VENV)/.docs

.PHONY: demo demo-long study docs test test-slow test-fast check install soak example dist clean

install: $(INSTALLED)

# constraints.txt holds the versions that CI runs; it pins torch exactly.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

# DeepSpeed is optional, and built from its source: where that fails, the tests that need it are skipped.
$(DEEPSPEED): $(INSTALLED)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt deepspeed \
		|| echo "DeepSpeed did not install: the tests that need it are skipped"
	@touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# A dead link, a missing page and a page outside the navigation are errors. --quiet would hide them from --strict.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(INSTALLED)
	@$(BIN)/python -m tools.demo

# The study's first subject, with five seeds: some two hours on two cores; a stopped one continues.
demo-long: $(INSTALLED)
	@$(BIN)/python -m tools.study gain --seeds 0,1,2,3,4 --workers 2

# Some 11 CPU hours; a stopped study continues.
study: $(INSTALLED)
	@$(BIN)/python -m tools.study gain labels ratio kind decoder shift quality joint --workers 2

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# One process a core with one thread each: more threads would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

test: check $(DEEPSPEED) $(DOCS)
	$(PYTEST) -m "not slow"

# Tests of half a minute and more. CI runs them too.
test-slow: $(DEEPSPEED) $(DOCS)
	$(PYTEST) -m slow

# For work in between: tests that start no processes and train nothing, in a minute.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not processes"

# Longer than a test may take: hundreds of damaged sources, many kills, full disks, many steps.
soak: $(INSTALLED)
	$(BIN)/python -m tools.soak.build
	$(BIN)/python -m tools.soak.kills
	$(BIN)/python -m tools.soak.inference
	$(BIN)/python -m tools.soak.read
	$(BIN)/python -m tools.soak.order
	$(BIN)/python -m tools.soak.checkpoints
	$(BIN)/python -m tools.soak.flat

example: $(INSTALLED)
	$(BIN)/python -m tools.demo.example

# The wheel and the sdist, in dist/, built with the setuptools of constraints.txt.
dist: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf runs videos site shards/demo-*
