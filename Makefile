# make demo   audit the sample data          make test      lint and the fast tests
# make lint   ruff and mypy alone            make test-all  lint and every test
# make bench  the quick benchmarks
# make fuzz   the property tests with new, random examples
# make coverage  the tests once more, with the branches they take counted: at least 90 %
# make audit  known vulnerabilities of the versions the tests run with (needs the network)
# make licences  the licence of every installed package (needs the network)
# make docs   the documentation as a site, in site/
# make gate   the sample dataset's own gate: passes as it is, fails if annotators vote backwards, is refused if broken
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test test-all lint gate bench docs fuzz coverage audit licences clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "noisescope needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/noisescope score hh-rlhf
	$(BIN)/noisescope validate hh-rlhf --truth sample_data/hh-rlhf/truth.parquet
	$(BIN)/noisescope report hh-rlhf

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/user_script.py

# One worker a core, one thread a worker: small tests gain nothing from threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile -m "not slow"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

fuzz: install
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest -x

coverage: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --cov --cov-fail-under 90 \
	  --cov-report term-missing:skip-covered --cov-report json:coverage.json

# An environment of its own: the tool is no part of what it audits.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt || \
	  { echo "make audit: not clean. Either advisories are listed above, or the last line names a package that"; \
	    echo "could not be audited: then no advisory service was reached, and nothing is known."; exit 1; }

licences: install
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-licenses
	$(VENV)-audit/bin/pip-licenses --python=$(BIN)/python --from=mixed --order=license

gate: install
	$(BIN)/noisescope gate hh-rlhf --junit runs/gate.xml --sarif runs/gate.sarif
	rm -rf runs/gate && mkdir -p runs/gate
	$(BIN)/noisescope flip hh-rlhf --kind contrarian --rate 0.15 --seed 1 --output runs/gate/sloppy
	$(BIN)/noisescope gate runs/gate/sloppy; test $$? -eq 1
	gzip -dc sample_data/hh-rlhf/train.jsonl.gz | sed 's/"chosen"/"chosn"/' > runs/gate/broken.jsonl
	$(BIN)/noisescope gate runs/gate/broken.jsonl; test $$? -eq 2

bench: install
	$(BIN)/python -m benchmarks.detect --quick

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build

clean:
	rm -rf $(VENV) $(VENV)-audit runs .pytest_cache .mypy_cache .ruff_cache .coverage* coverage.json
