# A .venv in the clone, from setup.py alone. PYTHON may name any of 3.10 to 3.12.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.10,$(shell python$(v) -c "print('python$(v)')" 2>/dev/null)) python3)
RUN = .venv/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint clean

demo: .venv/done
	rm -rf runs/demo
	$(RUN) scripts/train.py --flagfile=configs/digits_lt.cfg --method=cross_entropy --workdir=runs/demo/from_scratch
	$(RUN) scripts/train.py --flagfile=configs/digits_lt.cfg --workdir=runs/demo/candle
	@echo; $(RUN) scripts/compare.py runs/demo/from_scratch runs/demo/candle

test: .venv/done
	$(RUN) -m pytest

lint: .venv/done
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

.venv/done: setup.py
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --editable ".[report,test]"
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
