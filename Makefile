# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOENV := $(VENV)/proto
PROTO := protos/pilotfish_core/proto/v1/verifier.proto

.PHONY: demo mobile-demo mobile check test test-browser servers node browser lint types proto mobile-sdk-test mobile-proto clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@# torch first: its pinned build for the CPU; anything looser pulls gigabytes of CUDA packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all]' --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/pilotfish demo

# The browser as the device: a page that is built here, served by a verifier, opened on a phone.
mobile-demo: $(STAMP) mobile
	@$(BIN)/python -m mobile_demo.serve $(if $(PORT),--http-port $(PORT)) $(ARGS)

MOBILE := mobile_demo/dist/index.html
MODULES := mobile_demo/node_modules/.package-lock.json
mobile: $(MOBILE)

$(MODULES): mobile_demo/package.json mobile_demo/package-lock.json
	@$(MAKE) --no-print-directory node
	cd mobile_demo && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(MOBILE): $(MODULES) $(shell find mobile_demo/app mobile_demo/sdk/src -type f 2>/dev/null)
	cd mobile_demo && node app/build.mjs

node:
	@node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends nodejs npm >/dev/null; \
	else echo "the page is built by Node 20 or newer, with npm. Debian: sudo apt-get install -y nodejs npm"; exit 1; fi

# What the tests of the page run it in.
browser:
	@test -x /usr/bin/chromium && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-liberation >/dev/null; \
	else echo "the tests of the page need Chromium. Debian: sudo apt-get install -y chromium fonts-liberation"; exit 1; fi

check: $(STAMP) lint types
	$(BIN)/python -m pytest -q -m 'not slow' --ignore tests/browser

test: $(STAMP) $(PROTOENV)/bin/python servers
	$(BIN)/python -m pytest -q --ignore tests/browser

# The page in Chromium, against a real verifier.
test-browser: $(STAMP) browser mobile
	$(BIN)/python -m pytest -q tests/browser

# What the tests of several replicas run for real. Nothing is started but by the tests, on ports of their own.
SERVERS := redis-server nginx
servers:
	@missing=; for name in $(SERVERS); do PATH="$$PATH:/usr/sbin" command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	else echo "the tests of several replicas need:$$missing. Debian: sudo apt-get install -y$$missing"; exit 1; fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The stubs are committed. They are made by an old generator on purpose: what it writes imports on protobuf 5.29 to 7.
$(PROTOENV)/bin/python:
	$(PYTHON) -m venv $(PROTOENV)
	$@ -m pip install --quiet --disable-pip-version-check --no-compile grpcio-tools==1.70.0 mypy-protobuf==3.6.0 'protobuf<6' 'setuptools<81'

proto: $(PROTOENV)/bin/python
	PATH="$(CURDIR)/$(PROTOENV)/bin:$$PATH" $(PROTOENV)/bin/python -m grpc_tools.protoc -I protos --python_out=$(or $(OUT),shared) \
		--grpc_python_out=$(or $(OUT),shared) --mypy_out=quiet:$(or $(OUT),shared) --mypy_grpc_out=quiet:$(or $(OUT),shared) $(PROTO)

# The TypeScript SDK: compiled, it replays what Python does, and its client talks to a real verifier.
SDK_DRAFT := mobile_demo/build/draft/manifest.json
$(SDK_DRAFT): $(STAMP)
	$(BIN)/pilotfish export reference/draft --to onnx-web --quant int8 --overwrite --out $(@D)

mobile-sdk-test: $(STAMP) $(SDK_DRAFT) $(MODULES)
	$(BIN)/python -m pilotfish_core.vectors mobile_demo/build/vectors reference/target
	cd mobile_demo && PYTHON="$(abspath $(BIN))/python" npm run --silent test:sdk

# The generated frames are committed, as the Python stubs are.
mobile-proto: $(PROTOENV)/bin/python
	mkdir -p mobile_demo/build
	PATH="$(CURDIR)/mobile_demo/node_modules/.bin:$$PATH" $(PROTOENV)/bin/python -m grpc_tools.protoc -I protos \
		--es_out=mobile_demo/build --es_opt=target=ts,import_extension=js $(PROTO)
	cp mobile_demo/build/pilotfish_core/proto/v1/verifier_pb.ts mobile_demo/sdk/src/proto/verifier_pb.ts

clean:
	rm -rf build dist mobile_demo/dist mobile_demo/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
