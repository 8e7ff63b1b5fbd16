# make demo   sets up, then takes real text to an exported model: about five minutes after set-up
# make test   sets up, then lints, checks types, plans every shipped recipe and runs the tests
# make test-systems  runs the longer tests: clusters (Ray, Slurm), an S3 server, nodes, launchers, whole runs
# make test-systems-quick  leaves out those that take minutes each
# make test-long  runs what takes up to two hours: faults, soaks, mutation testing; logs in runs/
# make mutation  mutation testing alone; make coverage  the lines that `make test`'s tests run
# make bench  runs every benchmark beside its peers, 23 minutes on two cores, and writes docs/performance.md
# make ablations  compares choices of a recipe on the demo's text: docs/ablations.md, 90 runs, half an hour on two free cores
# make setup  only sets up: skipped when nothing changed
# make docs   builds the documentation into site/
# make lock   resolves the dependencies anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEMO := data/demo
DOMAINS := code prose science

HF5 := $(VENV)/transformers-5
CLUSTERS := $(VENV)/clusters
MUTATION := $(VENV)/mutation
# W&B's sweeps package, which wants an old numpy, is there for its schema alone.
UNUSED := $(addprefix --no-emit-package ,scikit-learn scipy joblib threadpoolctl cloudpickle narwhals)
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --no-annotate --quiet

# Two tests at a time, those of a file one after the other, since they share runs. PARALLEL= for one at a time.
PARALLEL ?= -n 2 --dist loadfile

.PHONY: setup demo test test-systems test-systems-quick test-long mutation coverage bench ablations lint docs lock clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# The last line imports everything once, so that Python's compiled files are there when a run starts.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "restomod needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python3 -m venv failed (on Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c \
	  "import composer.loggers, streaming, torch.utils.data, transformers, wandb, restomod.train.builder"
	@touch $@

demo: $(STAMP)
	$(BIN)/python data_prep/harvest.py --out $(DEMO)/corpus --code-mb 8 --prose-mb 5 --science-mb 5
	$(BIN)/python data_prep/train_tokenizer.py --vocab-size 2048 --out $(DEMO)/tokenizer \
	  --input $(foreach d,$(DOMAINS),$(DEMO)/corpus/$(d)/train.jsonl)
	$(BIN)/python data_prep/write_mds.py --tokenizer $(DEMO)/tokenizer \
	  $(foreach d,$(DOMAINS),$(foreach s,train heldout,\
	  --dataset $(DEMO)/mds/$(d)/$(s)=$(DEMO)/corpus/$(d)/$(s).jsonl))
	$(BIN)/python train.py yamls/recipes/demo.yaml
	$(BIN)/restomod export runs/demo
	$(BIN)/restomod eval runs/demo

test: $(STAMP) lint
	$(BIN)/python -m pytest $(PARALLEL)

test-systems: $(STAMP) $(HF5)/.set-up $(CLUSTERS)/.set-up
	$(BIN)/python -m pytest tests/systems $(PARALLEL)

test-systems-quick: $(STAMP) $(HF5)/.set-up $(CLUSTERS)/.set-up
	$(BIN)/python -m pytest tests/systems -m "not slow" $(PARALLEL)

test-long: $(STAMP)
	@mkdir -p runs
	bash -o pipefail -c '$(BIN)/python -m pytest tests/long -s --durations=0 2>&1 | tee runs/test-long.txt'
	@$(MAKE) mutation

mutation: $(MUTATION)/.set-up
	@mkdir -p runs
	bash -o pipefail -c '$(MUTATION)/bin/python tests/long/mutation.py | tee runs/mutation.txt'

coverage: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=
	$(BIN)/coverage report --sort=cover

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# A second environment, which takes torch and all that it lacks from the first.
$(HF5)/.set-up: tests/systems/transformers-5.lock $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(HF5)
	$(BIN)/uv pip install --quiet --python $(HF5)/bin/python --no-deps --require-hashes -r $< \
	  || $(BIN)/python -m pip --python $(HF5)/bin/python install --quiet --no-deps --require-hashes -r $<
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$($(HF5)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first.pth"
	@touch $@

# A third one, with what knows the manifests that `restomod launch` writes: schemas, SkyPilot, linters.
$(CLUSTERS)/.set-up: tests/systems/clusters.lock $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(CLUSTERS)
	$(BIN)/uv pip install --quiet --python $(CLUSTERS)/bin/python --no-deps --require-hashes -r $< \
	  || $(BIN)/python -m pip --python $(CLUSTERS)/bin/python install --quiet --no-deps --require-hashes -r $<
	@touch $@

# A fourth one, with mutmut, whose own needs would move others' versions; torch comes from the first.
$(MUTATION)/.set-up: tests/long/mutation.lock $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(MUTATION)
	$(BIN)/uv pip install --quiet --python $(MUTATION)/bin/python --no-deps --require-hashes -r $< \
	  || $(BIN)/python -m pip --python $(MUTATION)/bin/python install --quiet --no-deps --require-hashes -r $<
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$($(MUTATION)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first.pth"
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ablations: $(STAMP)
	$(BIN)/python -m benchmarks.ablations

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock:
	$(BIN)/$(COMPILE) pyproject.toml --extra judge --group dev -o requirements.lock
	echo 'transformers>=5,<6' | $(BIN)/$(COMPILE) - -o tests/systems/transformers-5.lock
	echo 'mutmut>=3.8' | $(BIN)/$(COMPILE) - -o tests/long/mutation.lock
	echo 'numpy>=2' | $(BIN)/$(COMPILE) --override - tests/systems/clusters.in -o tests/systems/clusters.lock $(UNUSED)

clean:
	rm -rf $(VENV) data runs cache site
