# Every target sets up .venv by itself: Python 3.11, the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Of make bench: rounds of each, and a checkout of nanoGPT, which no registry has.
ROUNDS ?= 3
NANOGPT ?=
PEER := $(if $(NANOGPT),--nanogpt $(NANOGPT))

.PHONY: install demo test slow reliability fuzz soak web-test audit interop smoke-all lint schema docs bench bench-same bench-prepare clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install  ## corpus, tokenizer, pretraining, SFT, DPO, evaluation, export and report: a model that writes Tang poems
	$(BIN)/fledge run recipes/tang-poems

test: lint  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: install  ## the tests that CI leaves out
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,scale]"
	$(BIN)/python -m pytest -m slow --ignore tests/e2e/test_web.py --ignore tests/e2e/test_llama_cpp.py --ignore tests/e2e/test_serve.py

web-test: install  ## the page of fledge chat --web in a browser: apt-get install chromium chromium-driver fonts-noto-cjk
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,web-test]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/e2e/test_web.py

reliability: install  ## every fault at every change of a run's folder: an hour on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/e2e/test_crashes.py \
		tests/e2e/test_lost_processes.py tests/e2e/test_preemption.py tests/e2e/test_faults.py tests/e2e/test_hub.py

fuzz: install  ## mutated recipes, layouts, templates and data files: ten minutes
	FUZZ_SECONDS=50 $(BIN)/python -m pytest -s tests/test_fuzz.py

soak: install  ## 200 random faults, two hours at most; writes docs/soak.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

audit: install  ## known holes in the pinned versions; asks PyPI, and fails where it cannot
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[audit]"
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

interop: install  ## other programs read the exports: llama.cpp, compiled here in ten minutes or more; transformers serve
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,llamacpp,serve]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m slow tests/e2e/test_llama_cpp.py tests/e2e/test_serve.py

smoke-all: install  ## every system end to end, shrunk to minutes on a CPU; what a nightly run calls
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 0 -m "slow or not slow" tests/e2e/test_smoke.py

docs: install  ## the pages, into build/docs; a warning or a broken link between them is an error, other hosts are not asked
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/sphinx-build -W --keep-going --nitpicky --fresh-env --quiet -b html docs build/docs

bench: install  ## every table of benchmarks/README.md but the GPU's, into it; after make demo, with nothing else running
	set -e; for words in prepare.py "attention.py --svg benchmarks/attention.svg" "loss.py --svg benchmarks/loss.svg" \
		"step.py $(PEER)" "step.py --documents short $(PEER)" "step.py --shape tang $(PEER)" overheads.py hub.py \
		generation.py sft.py dpo.py "quality.py $(PEER)"; do $(BIN)/python benchmarks/$$words --rounds $(ROUNDS) --page; done

bench-same: install  ## what each of the means to be fast does to the losses of 200 steps
	$(BIN)/python benchmarks/same.py --page
	$(BIN)/python benchmarks/same.py --shape lillm --page

bench-prepare: install  ## how fast text becomes rows, beside three usual ways: benchmarks/README.md
	$(BIN)/python benchmarks/prepare.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

schema: install  ## the JSON schemas of all recipe keys, from the installed libraries
	$(BIN)/python -m fledge.schema

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
