# make quickstart   train and score a small Mask R-CNN on the embedded data set, a few minutes on two CPU cores
# make test         run the tests
# make check        formatting, lint, types and the direction of imports
# make format       put formatting and imports in order
# The environment is .venv, made on first use; uv makes it quickly, pip where uv cannot be had.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MMDET := tests/requirements-mmdet.txt
PACKAGES := backbones heads engine tools tests benchmarks setup.py

.PHONY: quickstart test check format install clean

quickstart: $(VENV)/.installed
	@if [ -e runs/quickstart/last.pt ]; then \
		old=runs/quickstart-$$(date +%Y%m%d-%H%M%S); mv runs/quickstart $$old; echo "The run before is now in $$old"; fi
	$(BIN)/python tools/train_det.py configs/quickstart.yaml

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff format --check $(wildcard $(PACKAGES))
	$(BIN)/ruff check $(wildcard $(PACKAGES))
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(VENV)/.installed
	$(BIN)/ruff format $(wildcard $(PACKAGES))
	$(BIN)/ruff check --fix $(wildcard $(PACKAGES))

install: $(VENV)/.installed

$(VENV)/.installed: setup.py $(MMDET)
	@if command -v uv > /dev/null; then \
		echo "Installing with uv"; \
		test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); \
		uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
		uv pip install --quiet --python $(BIN)/python --no-deps -r $(MMDET); \
	else \
		test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
		if $(BIN)/python -m pip install --quiet uv; then \
			echo "Installing with uv, itself installed into $(VENV)"; \
			$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
			$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(MMDET); \
		else \
			echo "Installing with pip"; $(BIN)/python -m pip install --quiet -e '.[dev]'; \
			$(BIN)/python -m pip install --quiet --no-deps -r $(MMDET); \
		fi; \
	fi
	@touch $@

clean:
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache
