# `make serve` and `make test` do all the set-up they need; `make setup` is the step they share.
# Own build flags of llama.cpp go into CMAKE_ARGS, e.g.  make setup CMAKE_ARGS=-DGGML_CUDA=on
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= serve_config.yaml
STAMP  := $(VENV)/.setup-done
SOURCE := build/llama.cpp
# Without AMX: compiled by GCC 12, llama.cpp loads a tile configuration that was never written, and the first decode ends the process.
# Without images and sound (mtmd), which nothing here uses.
LLAMA_FLAGS := -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__ -DLLAVA_BUILD=OFF $(CMAKE_ARGS)
# Nor the helpers of llama.cpp's own programs. llama-cpp-python forces its cached variable to ON, which one of this kind goes before;
# with mtmd it takes more than half of the work.
LLAMA_CMAKE := set(LLAMA_BUILD_COMMON OFF)

.PHONY: serve test lint types docs setup clean
serve: setup
	$(BIN)/python -m deployments.launch $(CONFIG)

# First what needs neither llama.cpp nor Ray, in two processes: most of it is Python on one core. Then the rest, one after the other: it
# uses all cores, and there is one cluster per machine. Both parts run whatever the first one says; 5 is "no test fits PYTEST_ARGS".
FAST := not ray and not model
test: setup check-browser
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "$(FAST)" $(PYTEST_ARGS); fast=$$?; \
	$(BIN)/python -m pytest -m "not ($(FAST))" $(PYTEST_ARGS); rest=$$?; \
	case $$fast$$rest in 00|05|50) ;; *) echo "tests: $$fast (not ray and not model), $$rest (the others)"; exit 1;; esac

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Those of the page and the command in the documentation that do not say the same any more.
.PHONY: screenshots
screenshots: setup check-browser
	$(BIN)/python -m docs.generate.screenshots docs/screenshots

# Into build/site; a warning is an error. mkdocs-material tells of its successor on each run: that is no warning of ours.
docs: $(VENV)/.docs-done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m docs.generate.site_check build/site

$(VENV)/.docs-done: pyproject.toml constraints.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

setup: $(STAMP) $(SOURCE)/models

$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory llama
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# An environment with llama.cpp alone. The images and release-check build theirs with it, too:  make llama VENV=/opt/erllama
# -v shows the build of llama.cpp (2 to 5 minutes on two cores) as it goes; every later run finds the stamp and returns at once.
# pip keeps built wheels without asking for which flags they were built: each set of flags has a cache of its own.
.PHONY: llama
llama: check-tools constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	@echo "== building llama.cpp: several minutes on the first run =="
	@echo '$(LLAMA_CMAKE)' > $(VENV)/llama.cmake
	cache="$$($(BIN)/python -m pip cache dir)/llama.cpp-$$(echo "$(LLAMA_FLAGS) $(LLAMA_CMAKE)" | cksum | cut -d' ' -f1)"; \
	CMAKE_ARGS="-DCMAKE_PROJECT_INCLUDE=$(abspath $(VENV))/llama.cmake $(LLAMA_FLAGS)" $(BIN)/python -m pip install -v \
	  --cache-dir "$$cache" -c constraints.txt "$$(grep -o '^llama.cpp.python==.*' constraints.txt | tr _ -)" | $(BIN)/python -u -c "$$SHOW_PROGRESS"
	@$(BIN)/python -m pip show --quiet llama-cpp-python  # a pipe ends with the status of its last command

# What a release must pass: the wheel has what it should, and installed into an environment of nothing else it serves. One cluster per
# machine: RAY_LOCK=FILE waits for those who lock the same file.
RELEASE := build/release
.PHONY: release-check
release-check: setup
	rm -rf $(RELEASE)
	$(BIN)/python -m release.wheel $(RELEASE)
	@$(MAKE) --no-print-directory llama VENV=$(RELEASE)/venv
	$(RELEASE)/venv/bin/python -m pip install --quiet -c constraints.txt $(RELEASE)/*.whl
	$(if $(RAY_LOCK),flock $(RAY_LOCK)) $(BIN)/python -m release.first_answer $(RELEASE)/venv

# Chat templates and vocabularies of real models, for the tests: they lie in the package that llama.cpp was built from.
$(SOURCE)/models: constraints.txt | $(STAMP)
	rm -rf $(SOURCE) && mkdir -p $(SOURCE)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python -c constraints.txt -d $(SOURCE) \
	  "$$(grep -o '^llama.cpp.python==.*' constraints.txt | tr _ -)"
	tar -xzf $(SOURCE)/*.tar.gz -C $(SOURCE) --strip-components=3 --wildcards '*/vendor/llama.cpp/models' && rm $(SOURCE)/*.tar.gz
	touch $@

.PHONY: check-tools
check-tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@missing=""; command -v g++ >/dev/null || missing="$$missing g++"; $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== installing$$missing =="; apt-get update -q && apt-get install -y -q $$missing; \
	  else echo "missing:$$missing. On Debian: sudo apt-get install$$missing"; exit 1; fi; fi

# The tests of the page drive the system's Chromium. Asked each time: it is no part of .venv, whose stamp says nothing of it.
.PHONY: check-browser
check-browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== installing chromium =="; \
	  apt-get update -q && apt-get install -y -q --no-install-recommends chromium; \
	else echo "missing: chromium, for the tests of the page. On Debian: sudo apt-get install chromium"; exit 1; fi; }

# Passes on the build's own progress ("[12/193]"), one short line each, and the last lines of anything that fails.
define SHOW_PROGRESS
import collections, re, sys
tail = collections.deque(maxlen=30)
for line in sys.stdin:
    tail.append(line)
    step = re.match(r"\s*(\[\d+/\d+\]).*?([\w./-]+)?\s*$$", line)
    if step:
        print(step[1], (step[2] or "").rsplit("/", 1)[-1], flush=True)
    elif "error" in line.lower() or line.startswith("Successfully"):
        print(line, end="", flush=True)
endef
export SHOW_PROGRESS

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
