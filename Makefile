# The few commands of the project; each also says what it does in `make help`.
PYTHON ?= python3
ENVIRONMENTS := .venvs
UV := $(ENVIRONMENTS)/uv/bin/uv
CORE := $(ENVIRONMENTS)/core
BIN := $(CORE)/bin
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))

MAKEFLAGS += --no-print-directory
.PHONY: help environment environments lock quickstart image images test check lint types unit format benchmark clean

help:  ## show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

environment: $(CORE)/.complete  ## make .venvs/core from its lock file

$(UV):
	$(PYTHON) -m venv $(ENVIRONMENTS)/uv
	$(ENVIRONMENTS)/uv/bin/python -m pip install --quiet uv==0.13.9

# Compiled at install: without .pyc files, importing peft takes three times as long.
$(CORE)/.complete: containers/dev/requirements.lock pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(CORE)
	$(UV) pip install --quiet --python $(BIN)/python $(FIND_LINKS) --compile-bytecode -r containers/dev/requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# Pins that stand are kept, but for torch's: a CPU build has a local suffix (2.13.0+cpu), and PyPI has no such file.
lock: | $(UV)  ## resolve every containers/*/requirements.in; what stands in the locks is kept
	for directory in containers/*/; do test ! -f $$directory/requirements.in || \
	  (sed -i '/^torch==/d' $$directory/requirements.lock && $(UV) pip compile --quiet --python-version 3.11 --no-header \
	  $(FIND_LINKS) $$directory/requirements.in --output-file $$directory/requirements.lock >/dev/null && \
	  sed -i 's/+cpu$$//' $$directory/requirements.lock) || exit 1; done

environments: environment  ## make every environment of containers/ (evaluate …)
	$(BIN)/martlet env create all

quickstart: environment  ## a demo model fine-tuned, merged, quantized and evaluated, in minutes
	@$(BIN)/martlet run configs/quickstart.yaml

image:  ## make image ENVIRONMENT=core: the image martlet-core (BASE_IMAGE=…, IMAGE=…)
	containers/build.sh $(ENVIRONMENT)

images:  ## the images of core, evaluate and worker
	for environment in core evaluate worker; do containers/build.sh $$environment || exit 1; done

lint: environment  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: environment  ## mypy, strict
	$(BIN)/mypy

unit: environment  ## the fast tests
	$(BIN)/pytest -q -n 2 -m "not slow and not server and not environment"

check: lint types unit  ## what to run before every commit (under 3 minutes)

# Containers by themselves, for they share one stack; of the rest one process computes while the other waits for servers.
test: environment  ## every test that this machine can run
	status=0; $(BIN)/pytest -q -rs --durations=10 tests/containers || status=1; \
	$(BIN)/pytest -q -rs --durations=10 -n 2 --ignore tests/containers || status=1; exit $$status

format: environment  ## mend what ruff can mend
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove environments and caches
	rm -rf $(ENVIRONMENTS) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
