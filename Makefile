# make demo   set up, export the shipped checkpoint, verify it, run it on thermal video
# make test   set up, lint, type-check, test, and see that the tests reach enough of the lines and branches
# make audit  known vulnerabilities of what is installed, where their index is reached
# make package  wheel and sdist in dist/, checked
# make plugins  the CUDA operators: what nvcc and TensorRT's headers allow here, and their tests
# make docs   the site, in out/site; strict, and offline
# make trust  bad input, faults, hostile files, load: the short forms; make trust-long: those of docs/reliability.md
# make bench  everything that docs/benchmarks.md says of speed, and whether it got worse; 20 minutes on two quiet cores
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= out/demo
BENCH := models/thermal_lite0.glmd
export GLMD_DATA ?= ../shared/data

# A clip that no training saw, if the real data is there; else a simulated scene with a seed that no training saw.
CLIP := $(wildcard $(GLMD_DATA)/air/clips/IR_HELICOPTER_037.mp4)
SOURCE ?= $(if $(CLIP),$(CLIP),sim://ground?seed=20261123&frames=150)

.PHONY: setup demo test lint cover audit package docs plugins trust trust-long bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Two versions of TensorRT to compare the fakes and the plugins with; beside the environment, as it holds one of a kind.
	for version in 10.16.1.11 11.4.0.106; do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade \
			--target $(VENV)/lean-$${version%.*.*} tensorrt-lean-cu13==$$version || exit 1; \
	done
	touch $@

demo: setup
	mkdir -p $(OUT)
	$(BIN)/glmd-export --ckpt models/thermal_lite0.safetensors -o $(OUT)/thermal_lite0.glmd --overwrite
	$(BIN)/glmd-run --engine $(OUT)/thermal_lite0.glmd --source '$(SOURCE)' --save $(OUT)/clip.mp4 \
		--json $(OUT)/detections.jsonl --picture $(OUT)/picture.png
	@echo "Look at $(OUT)/picture.png and $(OUT)/clip.mp4; every box is in $(OUT)/detections.jsonl"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint cover

# Two processes take the test files in turns; the cores are theirs, so OpenMP starts no further threads.
cover: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/python -m coverage report --skip-covered --show-missing
	$(BIN)/python -m tests.trust.coverage

audit: setup
	$(BIN)/python .ci/audit.py

package: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

plugins: setup
	cmake -S . -B build -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build
	ctest --test-dir build --output-on-failure

trust: setup
	$(BIN)/python -m tests.trust

trust-long: setup
	$(BIN)/python -m tests.trust --long

# The shipped checkpoint in every precision, with its accuracy.
bench: setup
	$(BIN)/python -m benchmarks.latency --bundle $(BENCH)
	$(BIN)/python -m benchmarks.roofline --bundle $(BENCH)
	$(BIN)/python -m benchmarks.startup --bundle $(BENCH)
	$(BIN)/python -m benchmarks.scaling --bundle $(BENCH)
	$(BIN)/python -m benchmarks.published
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.accuracy --bundle models/thermal_lite0.glmd
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.regression

clean:
	rm -rf .coverage .coverage.* out build dist .pytest_cache .mypy_cache .ruff_cache
