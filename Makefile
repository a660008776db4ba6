# The commands of this project; each sets up what it needs. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# The Python that .venv is made with: 3.11 or newer. Debian's own comes first where it is, since it is
# built with profile-guided optimization, which shows in every figure of `make bench`.
ifndef PYTHON
PYTHON := $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
endif
# The other site of `make demo`: kube-ipsec or strongswan.
PEER ?= kube-ipsec
# One benchmark of `make bench`; empty: all that need no virtual machine and no cluster.
BENCH ?=
# More options for pytest, for example: make test ARGS="-k rekey"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
export PYTHON
# Debian keeps ip, nft and ethtool where the PATH of other users does not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo demo-cluster test test-kernel bench lint crds rootfs images lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: need := venv net $(if $(filter strongswan,$(PEER)),strongswan)
demo: ## YAML to tunnel to traffic between two gateways; PEER=strongswan for the other site
	@.ci/packages --need "$(need)" --along "bench strongswan"
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/kube-ipsec demo --peer $(PEER)

demo-cluster: ## the chart in the cluster of KUBECONFIG: what becomes of a peer there
	@.ci/packages --need venv
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/python -m ipsec_lab.demo_cluster

# One pytest session, so that there is one summary: the tiers with real sockets and
# namespaces come last and stay on one worker (tests/conftest.py), the others share all.
test: ## every tier of tests that can run here
	@.ci/packages --need venv --want "net nat bench strongswan"
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(ARGS)

test-kernel: ## the kernel tier: a Debian kernel under emulation, strongSwan as the peer
	@.ci/packages --need "venv kernel" --want "net strongswan"
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/python -m pytest -v tests/kernel $(ARGS)

bench: ## the benchmark tables, beside strongSwan; BENCH=name for one
	@.ci/packages --need "venv net bench" --want strongswan
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/kube-ipsec bench $(if $(BENCH),--only $(BENCH)) $(ARGS)

lint: ## ruff, mypy, import contracts, drift of generated files
	@.ci/packages --need venv
	@$(MAKE) --no-print-directory $(VENV)/.project
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m ipsec_api.structural --check
	$(BIN)/python -m ipsec_api.reference --check
	$(BIN)/python -m ipsec_lab.chart --check

crds: $(VENV)/.project ## write anew what is generated: crds/*.yaml, docs/resources.md, the chart's files
	$(BIN)/python -m ipsec_api.structural
	$(BIN)/python -m ipsec_api.reference
	$(BIN)/python -m ipsec_lab.chart

# Where images go: make images REGISTRY=registry.example.org/kube-ipsec
REGISTRY ?= ghcr.io/kube-ipsec
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

rootfs: ## assemble the images' root file systems in build/rootfs, and try them
	@.ci/packages --need venv
	@$(MAKE) --no-print-directory $(VENV)/.project
	rm -rf build/rootfs
	for part in operator gateway; do \
	  PYTHON=$(BIN)/python .ci/rootfs $$part build/rootfs/$$part; \
	  chroot build/rootfs/$$part /usr/local/bin/kube-ipsec --version; \
	  chroot build/rootfs/$$part /usr/local/bin/kube-ipsec --self-test $$part; \
	done

images: ## build both images with docker; REGISTRY=... names where they will be pushed
	docker build -f operator/Dockerfile -t $(REGISTRY)/operator:$(VERSION) .
	docker build -f dataplane/Dockerfile -t $(REGISTRY)/gateway:$(VERSION) .

lock: ## resolve requirements.lock, and for images requirements-runtime.lock, anew from pyproject.toml
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --quiet --disable-pip-version-check install 'uv>=0.9,<1'
	build/lock/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --upgrade \
	  --group dev --python-version 3.11 pyproject.toml -o requirements.lock
	build/lock/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --upgrade \
	  --constraint requirements.lock --python-version 3.11 pyproject.toml -o requirements-runtime.lock

clean: ## remove everything that these commands made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf crds/*.egg-info dataplane/*.egg-info operator/*.egg-info *.egg-info

# Set-up, in two stamps: the locked dependencies, then the project itself. Both steps change nothing
# in an environment that already has what they ask for.
$(VENV)/.locked: requirements.lock
	@[ -x $(BIN)/python ] || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.project: $(VENV)/.locked pyproject.toml
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
