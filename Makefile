# `make demo` and `make test` need nothing but Python >= 3.10 and make: they create .venv and install into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test caffe docs-slow lint coverage proto bench-verify bench-convert bench-training bench-inference bench gpu structure plant-shapes dialects pycaffe-tests deviations mutations ports layers docs fuzz differential solvers crashes build compat clean reading deploy bench-pycaffe bench-caffe bench-cpu

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# A stamp per kind of installation, made again when pyproject.toml changes. `python -m venv` on an existing .venv keeps it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## a trained SimpleNet: convert and verify it layer by layer, without network (WEIGHTS=... to use yours)
	$(BIN)/caffe-port demo --force $(WEIGHTS)

test: $(VENV)/.installed-test  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -q $(ARGS)

docs-slow: $(VENV)/.installed-test  ## before a release: the blocks of the pages that install, measure or train for minutes
	CAFFE_PORT_DOCS=slow $(BIN)/python -m pytest -q tests/test_docs.py::test_a_page_does_what_it_says $(ARGS)

caffe: $(VENV)/.installed  ## Caffe itself, built in the cache folder for verify --against caffe (minutes; nothing the second time)
	$(BIN)/caffe-port build-caffe

coverage: $(VENV)/.installed-test  ## the suite with coverage of caffe_port
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -q --cov --cov-report=term $(ARGS)

lint: $(VENV)/.installed-test  ## ruff, mypy, and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

structure: $(VENV)/.installed  ## rooms, imports, circles and the way of the weights, in figures (REV=COMMIT: beside that)
	$(BIN)/python benchmarks/structure.py $(if $(REV),--rev $(REV)) $(ARGS)

proto: $(VENV)/.installed-test  ## proto/caffe.proto -> caffe_port/formats/caffe.binpb
	$(BIN)/python -m grpc_tools.protoc -Iproto --descriptor_set_out=caffe_port/formats/caffe.binpb caffe.proto

bench-verify: $(VENV)/.installed-test  ## what verifying a VGG-16-sized net costs
	$(BIN)/python benchmarks/bench_verify.py

bench-convert: $(VENV)/.installed-test  ## what converting a VGG-16-sized net costs
	$(BIN)/python benchmarks/bench_convert.py

bench-inference: $(VENV)/.installed-test  ## a converted net beside the same net written by hand, and OpenCV
	$(BIN)/python benchmarks/bench_inference.py $(ARGS)

bench-caffe: $(VENV)/.installed-test  ## Caffe itself (make caffe) beside what convert and train make of the same files: speed and memory
	$(BIN)/python benchmarks/bench_caffe.py $(ARGS)

bench-cpu: $(VENV)/.installed-test  ## the ways to run a net on a CPU: model.py, ONNX, and other programs on the same files
	$(BIN)/python benchmarks/bench_cpu.py $(ARGS)

bench-pycaffe: $(VENV)/.installed-test  ## net.forward() through pycaffe's API, beside the Net's own and Caffe itself
	$(BIN)/python benchmarks/bench_pycaffe.py $(ARGS)

bench-training: $(VENV)/.installed-test  ## images/s and memory of training, beside the original port's loop
	$(BIN)/python benchmarks/bench_training.py $(ARGS)

bench: bench-convert bench-inference bench-training bench-verify  ## all the tables that a CPU can make, in less than 10 minutes

gpu: $(VENV)/.installed-test  ## everything docs/results asks of a GPU, in pieces of MINUTES (ROOT=... the data, OUT=...)
	$(BIN)/python benchmarks/gpu_session.py --root $(or $(ROOT),data) --out $(or $(OUT),gpu-results) --minutes $(or $(MINUTES),8) $(ARGS)

plant-shapes: $(VENV)/.installed-test  ## plant a wrong rule in every layer type's record, and show that each is caught
	$(BIN)/python benchmarks/plant_shapes.py $(ARGS)

pycaffe-tests: $(VENV)/.installed-test  ## pycaffe's own tests, of a checkout of BVLC/caffe: FOLDER=caffe/python/caffe/test
	$(BIN)/python -m pip install --quiet six
	$(BIN)/python benchmarks/pycaffe_suite.py $(FOLDER) $(ARGS)

dialects: $(VENV)/.installed-test  ## one-field layers and nets under the numbers of every dialect: how many are read as written
	$(BIN)/python benchmarks/dialect_layers.py $(ARGS)

deviations: $(VENV)/.installed-test  ## measure where OpenCV deviates from Caffe, and write the table of docs/verification.md
	$(BIN)/python benchmarks/opencv_deviations.py --each 300 --write docs/verification.md

mutations: $(VENV)/.installed-test  ## plant slips in layers and in ports, and write the tables of docs/verification.md
	$(BIN)/python benchmarks/mutations.py --write docs/verification.md
	$(BIN)/python benchmarks/ports.py --write docs/verification.md

ports: $(VENV)/.installed-test  ## hand-written ports, right and wrong: how many are judged rightly (ARGS=--all: each of them)
	$(BIN)/python benchmarks/ports.py $(ARGS)

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[fuzz]" || echo "no atheris for this machine: mutations without guidance"
	touch $@

fuzz: $(VENV)/.installed-fuzz  ## every reader of files, for SECONDS=60 in all; findings go to tests/corpus (ARGS=--only ...)
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(ARGS)

differential: $(VENV)/.installed-test  ## random small nets beside Caffe itself (make caffe), for SECONDS=60 from SEED=0 (ARGS=--help)
	$(BIN)/python benchmarks/differential --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(if $(PLANT),--plant "$(PLANT)") $(ARGS)

solvers: $(VENV)/.installed-test  ## random solvers and nets, trained beside Caffe itself (make caffe), RUNS=20 from SEED=0 (ARGS=--help)
	$(BIN)/python benchmarks/solver_runs --runs $(or $(RUNS),20) --seed $(or $(SEED),0) $(ARGS)

reading: $(VENV)/.installed-test  ## random prototxt read beside protobuf's C++ parser as it comes with Caffe (make caffe), SECONDS=60
	$(BIN)/python benchmarks/differential/reading.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0)

crashes: $(VENV)/.installed-test  ## SIGKILL, full disks and lost folders at random times, for every command that writes, TIMES=200
	$(BIN)/python tests/crashes.py $(or $(TIMES),200) --real
	$(BIN)/python tests/crashes_far.py $(or $(TIMES),200) --torchrun 10

deploy: $(VENV)/.installed-test  ## try runtimes on exported nets, and write the tables of docs/deploy.md (installs them; ARGS=--only ...)
	$(BIN)/python benchmarks/deploy --write docs/deploy.md $(ARGS)

layers: $(VENV)/.installed-test  ## docs/layers.md from the docstrings
	$(BIN)/python docs/make_layers.py

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(VENV)/.installed-docs  ## the pages of docs/ and the API reference as a site, in build/site
	cd docs/site && NO_MKDOCS_2_WARNING=1 $(abspath $(BIN))/mkdocs build --quiet --strict
	@echo build/site/index.html

build: $(VENV)/.installed-test  ## wheel and sdist into dist/
	$(BIN)/python -m build

COMPAT ?= torch==2.6.0 torchvision==0.21.0 numpy==1.26.0 protobuf==4.25.0 click==8.1.0 rich==13.0.0 \
	safetensors==0.4.3 opencv-python-headless==4.8.1.78
# What fails with the oldest versions, for the reasons that docs/compatibility.md gives.
KNOWN := layers/forks/test_detection.py::test_detections_are_ssds_loop_and_opencvs \
	formats/test_prototxt.py::test_short_float[16777216.0-1.6777216e+07] \
	commands/test_cli.py::test_usage_errors_are_one_line_and_a_hint commands/test_cli.py::test_building_a_net_does_not_import_sympy
compat:  ## core tests on the oldest versions that pyproject.toml allows (COMPAT=... for others); downloads gigabytes
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet $(COMPAT) --editable ".[data,plot]" "pytest>=8" "hypothesis>=6.100" "lmdb>=1.4"
	.venv-compat/bin/python -m pytest -q -W ignore::DeprecationWarning $(patsubst %,'--deselect=tests/%',$(KNOWN)) $(addprefix tests/,formats definition signatures layers \
		net emit/test_model_source.py verification training/test_solver.py training/test_train.py commands)

clean:  ## everything that make made
	rm -rf $(VENV) .venv-compat build dist demo .coverage .mypy_cache .pytest_cache .ruff_cache
