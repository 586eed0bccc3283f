# `make demo` and `make test` need python3 (3.11 to 3.13), git and make; everything else goes into .venv.

PYTHON ?= python3
JOBS ?= 2
OUT ?= demo
VENV := .venv
PY := $(VENV)/bin/python
META := setup.cfg pyproject.toml constraints.txt
# Editable in the mode that type checkers of other projects can follow too.
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	--config-settings editable_mode=compat --editable
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-lm test test-lm test-all lint clean

demo: $(VENV)/installed
	$(PY) -m offrl demo --out $(OUT)

# Language models: the extra `lm`, and TRL for the tests that compare with it.
demo-lm: $(VENV)/installed-lm
	$(PY) -m offrl lm demo --out $(OUT)-lm

test-lm: $(VENV)/installed-lm
	$(PY) -m pytest -n $(JOBS) tests/lm tests/test_lm_trl_groups.py tests/test_lm_data.py

test: $(VENV)/installed-test lint
	$(PY) -m pytest -n $(JOBS) -m "not slow"

test-all: $(VENV)/installed-test lint
	$(PY) -m pytest -n $(JOBS)

lint: $(VENV)/installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist offrl.egg-info demo demo-lm .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "offrl needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp is younger than what it was installed from, so a second call installs nothing.
$(VENV)/installed: $(META) | $(PY)
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(INSTALL) .
	@touch $@

$(VENV)/installed-test: $(META) | $(PY)
	@echo "Installing into $(VENV) with what the tests need; the first time takes some minutes."
	$(INSTALL) '.[test,dev,robot,video]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-lm: $(META) | $(PY)
	@echo "Installing into $(VENV) with what language models need; the first time takes some minutes."
	$(INSTALL) '.[test-lm]'
	@touch $@ $(VENV)/installed
