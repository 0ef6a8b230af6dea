# A .venv in the clone, from setup.py alone. PYTHON may name any of 3.10 to 3.12. Python 3.10 comes
# first: its protobuf is compiled, and the tests take about a quarter less time.
USABLE = import ensurepip, sys, venv; assert (3, 10) <= sys.version_info < (3, 13); print(sys.executable)
CANDIDATES = python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) python3.11 python3.12 python3 \
    $(wildcard $(HOME)/.pyenv/versions/3.1[12].*/bin/python)
PYTHON ?= $(firstword $(foreach python,$(CANDIDATES),$(shell $(python) -c '$(USABLE)' 2>/dev/null)))
RUN = .venv/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-long lint docs notebooks clean

demo: .venv/done
	rm -rf runs/demo
	$(RUN) scripts/train.py --flagfile=configs/digits_lt.cfg --method=cross_entropy --workdir=runs/demo/from_scratch
	$(RUN) scripts/train.py --flagfile=configs/digits_lt.cfg --workdir=runs/demo/candle
	@echo; $(RUN) scripts/compare.py runs/demo/from_scratch runs/demo/candle

test: .venv/done
	$(RUN) -m pytest

test-long: .venv/done
	$(RUN) -m pytest -m "long and not slow"

lint: .venv/done
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# The site, in build/site: a broken link or a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

# The examples as notebooks with their pictures, in build/notebooks.
notebooks: $(patsubst examples/%.py,build/notebooks/%.ipynb,$(wildcard examples/*.py))

build/notebooks/%.ipynb: examples/%.py .venv/docs
	mkdir -p $(@D)
	rm -rf runs/$*
	$(RUN) -m jupytext --quiet --to ipynb --set-kernel python3 --execute --run-path . --output $@ $<

.venv/docs: .venv/done
	$(RUN) -m pip install --quiet --editable ".[docs]"
	touch $@

.venv/done: setup.py
	@test -n "$(PYTHON)" || { echo "Needs Python 3.10 to 3.12 with venv: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --upgrade pip # old ones search for minutes on Python 3.10
	$(RUN) -m pip install --quiet --editable ".[report,test]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
