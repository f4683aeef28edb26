# make test   set up, lint, all tests       make demo    set up, build an engine, generate pictures
# make smoke  half a minute of tests        make lint    ruff, mypy, clang-format    make format  apply them
# make test-full  models of the published size: hours, 24 GB of memory and 60 GB of disk (docs/memory.md)
# make sanitize  the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer, then with ThreadSanitizer
# Needs python3 (3.11 or newer, with its headers), a C++ compiler and make; everything else is installed in .venv.

PYTHON ?= python3
# Processes that share the tests.
TEST_WORKERS ?= 2
# 1 turns compiler warnings into errors; continuous integration sets it.
FASTDIFF_WERROR ?= 0
export FASTDIFF_WERROR
# on requires nvcc, off leaves the CUDA kernels to NVRTC, auto takes nvcc where it is found.
FASTDIFF_CUDA ?= auto
export FASTDIFF_CUDA
# Modules of the caller's environment have no place in .venv.
unexport PYTHONPATH PYTHONHOME

VENV := .venv
BIN := $(VENV)/bin

NATIVE := $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests/cpp examples -name '*.h' -o -name '*.cpp' -o -name '*.c' -o -name '*.cu')

.PHONY: test test-full lint format smoke demo sanitize venv clean
.DELETE_ON_ERROR:

test: venv lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

# FULL_REPORT=FOLDER writes the measured figures there, FULL_FOLDER=FOLDER keeps checkpoints and engines there,
# FULL_MODELS="sd15 sdxl" takes these alone.
test-full: venv
	$(BIN)/python -m pytest -m full -v $(if $(FULL_REPORT),--full-report=$(FULL_REPORT)) \
	  $(if $(FULL_FOLDER),--full-folder=$(FULL_FOLDER)) $(foreach model,$(FULL_MODELS),--full-model=$(model))

smoke: venv
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m smoke

demo: venv
	$(BIN)/python -m fastdiff.zoo.demo

# The kernels take minutes to compile this way; the trees are kept.
sanitize: venv
	for sanitizer in ON thread; do \
	  build=build/sanitize-$$sanitizer; \
	  $(BIN)/cmake -S . -B $$build -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_CXX_FLAGS=-O1 -DFASTDIFF_SANITIZE=$$sanitizer -DFASTDIFF_BUILD_PYTHON=OFF \
	    -DFASTDIFF_BUILD_TESTS=ON && $(BIN)/cmake --build $$build && \
	  $(BIN)/ctest --test-dir $$build/tests/cpp --no-tests=error --output-on-failure || exit 1; \
	done

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

venv: $(VENV)/.installed

# Three stamps, so that editing a kernel compiles it and installs nothing.
$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastdiff needs Python 3.11 or newer, found " + sys.version)'
	rm -rf $(VENV)
	@echo 'creating $(VENV) with pinned versions; this takes a few minutes once'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.requirements: $(VENV)/.created requirements-pinned.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-pinned.txt
	touch $@

# --no-deps: the pinned set is complete, and nothing may be resolved past it.
$(VENV)/.installed: $(VENV)/.requirements pyproject.toml setup.py CMakeLists.txt fastdiff/_version.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f fastdiff/_C*.so fastdiff/kernels/cuda/*.fatbin fastdiff/kernels/cuda/*.fatbin.json
