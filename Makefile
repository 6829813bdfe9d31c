# SPDX-License-Identifier: Apache-2.0
# make demo | build | test | asan | lint | format | bench-switch | bench-controller | clean

SHELL   := /bin/bash
PYTHON  := .venv/bin/python
C_FILES := $(wildcard vswitch/fastpath/*.[ch])
PROTOS  := $(wildcard controller/proto/*.proto)
SCRIPTS := $(wildcard scripts/*.py) scripts/demo scripts/run-container
PY_PATHS := vswitch controller tests $(SCRIPTS) setup.py

.PHONY: demo build test asan lint format bench-switch bench-controller clean
.DELETE_ON_ERROR:

demo: build
	$(PYTHON) scripts/demo

build: build/module.stamp build/proto.stamp

test: build lint
	$(PYTHON) -m pytest tests/unit tests/fastpath tests/system

# Python itself does not know the sanitizers, so their run-time library is preloaded. `-P -p vswitch` imports the
# instrumented copy before anything can put the working tree in front of it. Python's own leaks are of no interest.
asan: build
	FFSWITCH_SANITIZE=1 $(PYTHON) setup.py -q build --build-base build/asan/base --build-lib build/asan/lib
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) PYTHONPATH=build/asan/lib FFSWITCH_SANITIZE=1 \
	ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(PYTHON) -P -m pytest -p vswitch tests/fastpath

lint: build/venv.stamp build/proto.stamp
	.venv/bin/ruff check $(PY_PATHS)
	.venv/bin/ruff format --check $(PY_PATHS)
	.venv/bin/mypy $(PY_PATHS)
	clang-format --dry-run -Werror $(C_FILES) tests/bench/*.c

format: build/venv.stamp
	.venv/bin/ruff check --fix $(PY_PATHS)
	.venv/bin/ruff format $(PY_PATHS)
	clang-format -i $(C_FILES) tests/bench/*.c

bench-switch: build
	scripts/install-deps --bench
	$(PYTHON) -m tests.bench.switch

bench-controller: build
	$(PYTHON) -m tests.bench.controller

clean:
	rm -rf build .venv *.egg-info .*_cache vswitch/_ff.* controller/proto/*_pb2*
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- what is made once, and again only when its sources change ----

build/deps.stamp: scripts/install-deps
	scripts/install-deps
	@mkdir -p $(@D) && touch $@

build/venv.stamp: build/deps.stamp setup.cfg setup.py
	/usr/bin/python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check wheel 'cffi>=1.16' 'grpcio-tools>=1.60' 'mypy-protobuf>=3.6'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --use-pep517 --config-settings editable_mode=compat -e '.[test]'
	@touch $@

build/module.stamp: build/venv.stamp $(C_FILES) vswitch/fastpath/build.py
	$(PYTHON) setup.py -q build_ext --inplace
	@touch $@

build/proto.stamp: build/venv.stamp $(PROTOS) controller/proto/generate.py
	$(PYTHON) controller/proto/generate.py
	@touch $@
