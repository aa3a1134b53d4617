# What a newcomer needs: make up, make test, make setup. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch by default. For CUDA 12.6, say: make up TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Further options of `nestling up`, such as ARGS="--port 9000 --no-train"
ARGS ?=
CHROMIUM := $(firstword $(shell command -v chromium chromium-browser google-chrome 2>/dev/null))
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: up setup test lint need-chromium clean bench bench-peers bench-quick kill-often tutorial tutorial-votes screenshots

up: setup
	$(VENV)/bin/nestling up $(ARGS)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "No venv module. Install it with: apt-get install python3-venv"; exit 1; }
	@echo "Installing torch and Nestling into $(VENV); this takes a few minutes the first time."
	$(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

test: need-chromium lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Kill a raising a hundred times at random moments; it must end with the same bits. About a quarter of an hour.
kill-often: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/kill_often.py

# Run the tutorial's commands as they are written; what came out is kept in docs/results/tutorial.md. About an hour.
tutorial: $(VENV)/.installed
	$(VENV)/bin/python tests/tutorial.py

# The same of "Teach it a preference in twenty votes".
tutorial-votes: $(VENV)/.installed
	$(VENV)/bin/python tests/tutorial.py tutorial/votes

# Pictures of the page for the docs, of what a workspace serves.
screenshots: $(VENV)/.installed-dev need-chromium
	$(VENV)/bin/python tests/screenshots.py $(WORKSPACE)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

need-chromium:
	@test -n "$(CHROMIUM)" || { echo "The page's test needs Chromium. Install it with: apt-get install chromium"; exit 1; }

# The peers of `nestling bench peers`, in an environment of their own, and llama.cpp built from its packaged source.
PEERS := .bench
bench-peers: $(PEERS)/.installed

$(PEERS)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(PEERS)/venv
	$(PEERS)/venv/bin/python -m pip install --quiet --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	$(PEERS)/venv/bin/python -m pip install --quiet "trl==1.5.*" "transformers>=5" peft accelerate datasets requests
	@command -v cmake >/dev/null && command -v c++ >/dev/null || \
	  { echo "llama.cpp needs a compiler. Install it with: apt-get install cmake g++"; exit 1; }
	$(PEERS)/venv/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python -d $(PEERS)
	mkdir -p $(PEERS)/source && tar -xzf $(PEERS)/llama_cpp_python-*.tar.gz -C $(PEERS)/source --strip-components=1
	cmake -S $(PEERS)/source/vendor/llama.cpp -B $(PEERS)/llama.cpp -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
	  -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF >/dev/null
	cmake --build $(PEERS)/llama.cpp --target llama-batched-bench llama-quantize -j 2 >/dev/null
	@grep -qs amx_int8 /proc/cpuinfo && $(MAKE) $(PEERS)/.without-amx || true
	@touch $@

# With 8 and 4 bits some builds of llama.cpp end by a segmentation fault on some processors with AMX: this one does not.
NO_AMX := -mno-amx-int8 -mno-amx-tile
$(PEERS)/.without-amx:
	cmake -S $(PEERS)/source/vendor/llama.cpp -B $(PEERS)/llama.cpp-without-amx -DCMAKE_BUILD_TYPE=Release \
	  -DLLAMA_CURL=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \
	  -DCMAKE_C_FLAGS="$(NO_AMX)" -DCMAKE_CXX_FLAGS="$(NO_AMX)" >/dev/null
	cmake --build $(PEERS)/llama.cpp-without-amx --target llama-batched-bench -j 2 >/dev/null
	@touch $@

bench: bench-peers
	$(VENV)/bin/nestling bench peers

bench-quick: $(VENV)/.installed
	$(VENV)/bin/nestling bench quick

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
