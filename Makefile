# Two commands do everything: `make reproduce` and `make test`. Each target is a thin shell over `python -m diabolo` or pytest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: reproduce reproduce-full reproduce-autoencoders reproduce-cifar10 reproduce-sharp reproduce-all smoke test \
  lint types teeth soak verify-cifar bench setup clean help

help:
	@echo "make reproduce   set up, get MNIST, train and evaluate the article's MNIST chapter, write the report"
	@echo "make smoke       the same with one epoch, to see that everything works"
	@echo "make reproduce-full  the same with K = 5,000 on all test images (much longer)"
	@echo "make reproduce-autoencoders  the chapter of plain, denoising and contractive autoencoders"
	@echo "make reproduce-cifar10  the chapter of CIFAR-10: why it was blurred (139 MB to download, most of an hour)"
	@echo "make reproduce-sharp  the chapter of CIFAR-10, sharp (139 MB to download, more than an hour; not timed as a whole)"
	@echo "make reproduce-all  every chapter"
	@echo "make test        set up and run the tests"
	@echo "make lint types  ruff and mypy --strict"
	@echo "make teeth       plant bugs one at a time and check that the tests catch each (many minutes)"
	@echo "make soak        kill a training run fifty times and compare it with one that nothing happened to (minutes)"
	@echo "make verify-cifar  the chapter of CIFAR-10 with its checks; the result is kept in results/cifar10"
	@echo "make bench       time diabolo beside a plain script, eager tensors and pythae in interleaved rounds (half an hour)"
	@echo "make clean       remove caches (not runs, not data)"

reproduce: $(STAMP)
	@$(BIN)/python -m diabolo reproduce mnist --yes

reproduce-full: $(STAMP)
	@$(BIN)/python -m diabolo reproduce mnist --full --yes

reproduce-autoencoders: $(STAMP)
	@$(BIN)/python -m diabolo reproduce autoencoders --yes

reproduce-cifar10: $(STAMP)
	@$(BIN)/python -m diabolo reproduce cifar10 --yes

reproduce-sharp: $(STAMP)
	@$(BIN)/python -m diabolo reproduce sharp --yes

reproduce-all: $(STAMP)
	@$(BIN)/python -m diabolo reproduce all --yes

smoke: $(STAMP)
	@$(BIN)/python -m diabolo reproduce mnist --smoke --yes

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

teeth: $(STAMP)
	@$(BIN)/python tools/teeth.py --out results/teeth.json

soak: $(STAMP)
	@$(BIN)/python tools/soak.py --out results/soak.json

verify-cifar: $(STAMP)
	@$(BIN)/python tools/verify_cifar.py --out results/cifar10
	@$(BIN)/python tools/verify_cifar.py --out results/cifar10 --plan locality

# In pieces: python -m benchmarks.speed --jobs a,c. The machine should be quiet: rounds in which it was not are dropped.
bench: $(STAMP)
	@$(BIN)/python -m benchmarks.speed

setup: $(STAMP)

# A torch that is installed and in range is kept; otherwise the one pinned in requirements.lock is taken.
$(STAMP): pyproject.toml requirements.lock
	@echo "setting up $(VENV): about 1.4 GB of disk with a CPU build of torch"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "error: this Python cannot make a virtual environment"; \
	  echo "On Debian and Ubuntu install it with: apt install python3-venv"; exit 2; }
	@$(BIN)/python tools/install.py
	@touch $@

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
