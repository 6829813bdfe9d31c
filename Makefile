# SPDX-License-Identifier: Apache-2.0
# make demo | build | test | test-long | test-rdma | asan | fuzz | lint | format | clean
# make bench-switch | bench-instructions | bench-controller | bench-shortcut | bench-vxlan | bench-rdma

SHELL   := /bin/bash
PYTHON  := .venv/bin/python
C_FILES := $(wildcard vswitch/fastpath/*.[ch])
DRIVER  := $(wildcard vswitch/endpoint/*.[ch])
SHM     := vswitch/fastpath/ff_shm.h $(wildcard vswitch/fastpath/shm_*.h)
OUR_TESTS := build/endpoint/app build/endpoint/flow build/endpoint/scribbler
DRIVER_TESTS := $(OUR_TESTS) build/endpoint/l2fwd
SANITIZED := build/asan/endpoint/librte_net_ff.so build/asan/endpoint/app
C_TESTS := $(wildcard tests/bench/*.c tests/bench/traffic/*.[ch] tests/endpoint/*.c tests/fastpath/*.c tests/fuzz/*.[ch])
PROTOS  := $(wildcard controller/proto/*.proto)
SCRIPTS := $(wildcard scripts/*.py) scripts/demo scripts/run-container
# What these test differs with several workers, and EAL starts once a process.
TWO_WORKERS := flows idle memory_ports peers pmd ports shortcuts upcalls workers
PY_PATHS := vswitch controller tests $(SCRIPTS) setup.py

FUZZERS := build/fuzz/vring build/fuzz/parser build/fuzz/memport build/fuzz/net_ff
FUZZ_RUNS ?= 10000000

.PHONY: demo build test test-long test-rdma asan fuzz lint format bench-switch bench-instructions bench-controller bench-shortcut bench-vxlan bench-rdma clean
.DELETE_ON_ERROR:

demo: build
	$(PYTHON) scripts/demo

build: build/module.stamp build/proto.stamp build/endpoint/librte_net_ff.so

test: build lint build/guest.stamp build/rdma.stamp $(FUZZERS) $(DRIVER_TESTS)
	$(PYTHON) -m pytest -m 'not long' tests/unit tests/spin tests/fuzz tests/fastpath tests/endpoint tests/system tests/rdma
	FFSWITCH_TEST_WORKERS=2 $(PYTHON) -m pytest -m 'not long' $(TWO_WORKERS:%=tests/fastpath/test_%.py)

# What takes minutes: `make test` leaves it out.
test-long: build build/guest.stamp $(DRIVER_TESTS)
	$(PYTHON) -m pytest -m long tests/unit tests/fastpath tests/endpoint tests/system

# Two and three hosts with RDMA, in virtual machines; `make test` has what of it is not marked as long.
test-rdma: build build/rdma.stamp
	$(PYTHON) -m pytest tests/rdma

# Python itself does not know the sanitizers, so their run-time library is preloaded. `-P -p vswitch` imports the
# instrumented copy before anything can put the working tree in front of it. Python's own leaks are of no interest.
# Then the driver, in applications that have the sanitizers themselves.
asan: build $(DRIVER_TESTS) $(SANITIZED)
	FFSWITCH_SANITIZE=1 $(PYTHON) setup.py -q build --build-base build/asan/base --build-lib build/asan/lib
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) PYTHONPATH=build/asan/lib FFSWITCH_SANITIZE=1 \
	ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(PYTHON) -P -m pytest -p vswitch tests/fastpath
	FFSWITCH_ENDPOINT=build/asan/endpoint ASAN_OPTIONS=handle_sigbus=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(PYTHON) -m pytest tests/endpoint

# FUZZ_RUNS rounds of each fuzzer; what they find is left in build/fuzz. Then front-ends at random, for longer.
fuzz: build $(FUZZERS)
	for fuzzer in $(notdir $(FUZZERS)); do \
	    mkdir -p build/fuzz/found-$$fuzzer && \
	    build/fuzz/$$fuzzer -runs=$(FUZZ_RUNS) -max_len=600 -entropic=0 -timeout=60 -print_final_stats=1 \
	        -artifact_prefix=build/fuzz/ build/fuzz/found-$$fuzzer tests/fuzz/corpus/$$fuzzer || exit; \
	done
	FFSWITCH_MACHINE=long $(PYTHON) -m pytest tests/fastpath/test_frontend_machine.py

lint: build/venv.stamp build/proto.stamp
	.venv/bin/ruff check $(PY_PATHS)
	.venv/bin/ruff format --check $(PY_PATHS)
	.venv/bin/mypy $(PY_PATHS)
	clang-format --dry-run -Werror $(C_FILES) $(DRIVER) $(C_TESTS)

format: build/venv.stamp
	.venv/bin/ruff check --fix $(PY_PATHS)
	.venv/bin/ruff format $(PY_PATHS)
	clang-format -i $(C_FILES) $(DRIVER) $(C_TESTS)

bench-switch: build
	scripts/install-deps --bench
	$(PYTHON) -m tests.bench.switch

bench-instructions: build
	scripts/install-deps --bench
	$(PYTHON) -m tests.bench.instructions

bench-controller: build
	$(PYTHON) -m tests.bench.controller

bench-shortcut: build
	scripts/install-deps --bench
	$(PYTHON) -m tests.bench.shortcut

bench-vxlan: build
	scripts/install-deps --bench
	$(PYTHON) -m tests.bench.vxlan

bench-rdma: build build/rdma.stamp
	$(PYTHON) -m tests.bench.rdma

clean:
	rm -rf build .venv *.egg-info .*_cache vswitch/_ff.*.so controller/proto/*_pb2*
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- what is made once, and again only when its sources change ----

build/deps.stamp: scripts/install-deps
	scripts/install-deps
	@mkdir -p $(@D) && touch $@

build/venv.stamp: build/deps.stamp setup.cfg setup.py
	/usr/bin/python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check wheel 'cffi>=1.16' 'grpcio-tools>=1.60' 'mypy-protobuf>=3.6'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --use-pep517 --config-settings editable_mode=compat -e '.[test]'
	ln -sfn /usr/lib/python3/dist-packages/pyverbs .venv/lib/python3.*/site-packages/
	@touch $@

build/guest.stamp: build/venv.stamp tests/guest/image.py tests/guest/init tests/guest/agent
	$(PYTHON) -m tests.guest.image
	@touch $@

# The emulated CPU is not this one.
build/rdma.stamp: build/guest.stamp build/module.stamp tests/guest/root.py
	FFSWITCH_MARCH=x86-64-v3 $(PYTHON) setup.py -q build_ext --build-temp build/rdma/temp --build-lib build/rdma/lib
	$(PYTHON) -m tests.guest.root
	@touch $@

build/module.stamp: build/venv.stamp $(C_FILES) vswitch/fastpath/build.py
	$(PYTHON) setup.py -q build_ext --inplace
	@touch $@

# ---- net_ff: a plugin of DPDK's, against the headers that only its source package has ----

DPDK_CFLAGS = $(patsubst -I%,-isystem%,$(filter-out -march=%,$(shell pkg-config --cflags libdpdk)))
DRIVER_CFLAGS = -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -fno-strict-aliasing -march=native -mno-avx512f -DNDEBUG \
    -O3 -g -fPIC -fvisibility=hidden -DALLOW_INTERNAL_API -Ivswitch/fastpath -isystembuild/endpoint/include $(DPDK_CFLAGS)
DRIVER_OBJECTS := $(patsubst vswitch/endpoint/%.c,build/endpoint/%.o,$(filter %.c,$(DRIVER)))
DRIVER_LIBS := ethdev mbuf mempool eal kvargs bus_vdev net ring

build/endpoint/librte_net_ff.so: $(DRIVER_OBJECTS)
	gcc -shared -Wl,-z,defs -o $@ $^ $(DRIVER_LIBS:%=-lrte_%)

build/endpoint/%.o: vswitch/endpoint/%.c $(DRIVER) $(SHM) build/endpoint/source.stamp
	gcc $(DRIVER_CFLAGS) -c -o $@ $<

build/endpoint/source.stamp: build/deps.stamp scripts/dpdk-source
	scripts/dpdk-source build/endpoint/include
	@touch $@

# the programs of its tests

TEST_CFLAGS = -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -march=native -O2 -g -Ivswitch/fastpath $(DPDK_CFLAGS)

$(OUR_TESTS): build/endpoint/%: tests/endpoint/%.c vswitch/fastpath/ff_shm.h build/deps.stamp
	@mkdir -p $(@D)
	gcc $(TEST_CFLAGS) -o $@ $< $$(pkg-config --libs libdpdk)

# the driver and an application with the sanitizers

SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

build/asan/endpoint/librte_net_ff.so: $(DRIVER) $(SHM) build/endpoint/source.stamp
	@mkdir -p $(@D)
	gcc $(DRIVER_CFLAGS) $(SANITIZERS) -shared -o $@ $(filter %.c,$(DRIVER)) $(DRIVER_LIBS:%=-lrte_%)

build/asan/endpoint/app: tests/endpoint/app.c vswitch/fastpath/ff_shm.h build/deps.stamp
	@mkdir -p $(@D)
	gcc $(TEST_CFLAGS) $(SANITIZERS) -o $@ $< $$(pkg-config --libs libdpdk)

# DPDK's own example, as it is
build/endpoint/l2fwd: build/endpoint/source.stamp
	gcc -O2 -w -DALLOW_EXPERIMENTAL_API $(DPDK_CFLAGS) -o $@ build/endpoint/include/l2fwd.c $$(pkg-config --libs libdpdk)

# ---- the fuzzers: clang's libFuzzer, the same sources with the sanitizers ----

FUZZ_CFLAGS = -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -fno-strict-aliasing -march=native -mno-avx512f -DNDEBUG \
    -O2 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -Ivswitch/fastpath $(DPDK_CFLAGS)
FUZZ_DRIVER_CFLAGS := -DALLOW_INTERNAL_API -Ivswitch/endpoint -isystembuild/endpoint/include
FUZZ_VRING := fuzz_vring guest guest_harm call vring vring_split vring_packed frame offload
FUZZ_PARSER := fuzz_parser parse
FUZZ_MEMPORT := fuzz_memport port_ff shortcut frame
FUZZ_DRIVER := memory order rx shortcut sigbus tx

build/fuzz/vring: $(FUZZ_VRING:%=build/fuzz/%.o)
	clang -fsanitize=fuzzer,address,undefined -o $@ $^ $$(pkg-config --libs libdpdk)

build/fuzz/memport: $(FUZZ_MEMPORT:%=build/fuzz/%.o)
	clang -fsanitize=fuzzer,address,undefined -o $@ $^ $$(pkg-config --libs libdpdk)

build/fuzz/net_ff: build/fuzz/fuzz_net_ff.o $(FUZZ_DRIVER:%=build/fuzz/endpoint/%.o)
	clang -fsanitize=fuzzer,address,undefined -o $@ $^ $$(pkg-config --libs libdpdk)

build/fuzz/parser: $(FUZZ_PARSER:%=build/fuzz/%.o)
	clang -fsanitize=fuzzer,address,undefined -o $@ $^

build/fuzz/%.o: vswitch/fastpath/%.c $(C_FILES) build/deps.stamp
	@mkdir -p $(@D)
	clang $(FUZZ_CFLAGS) -c -o $@ $<

build/fuzz/endpoint/%.o: vswitch/endpoint/%.c $(DRIVER) $(C_FILES) build/endpoint/source.stamp
	@mkdir -p $(@D)
	clang $(FUZZ_CFLAGS) $(FUZZ_DRIVER_CFLAGS) -c -o $@ $<

build/fuzz/fuzz_net_ff.o: FUZZ_CFLAGS += $(FUZZ_DRIVER_CFLAGS)
build/fuzz/fuzz_net_ff.o: $(DRIVER) build/endpoint/source.stamp

# the fuzzer learns from the comparisons of what is tested, not from the test's own
build/fuzz/%.o: tests/fuzz/%.c $(C_FILES) $(wildcard tests/fuzz/*.h) build/deps.stamp
	@mkdir -p $(@D)
	clang $(FUZZ_CFLAGS) -fno-sanitize-coverage=trace-cmp -c -o $@ $<
build/proto.stamp: build/venv.stamp $(PROTOS) controller/proto/generate.py
	$(PYTHON) controller/proto/generate.py
	@touch $@
