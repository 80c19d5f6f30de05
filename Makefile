# Needs Python 3.10 or newer, make and git; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test lint types coverage wheels dist docs demo bench soak clean

test: lint types
	$(BIN)/python -m pytest -n auto

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --quiet --offline --pedantic .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

types: .venv/ready
	$(BIN)/mypy

# The whole suite, slower by a third: fails below fail_under of pyproject.toml.
coverage: .venv/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --directory .coverage-html --fail-under 0
	$(BIN)/coverage report

# Each extra on each Python at hand, from the wheel alone.
wheels: .venv/ready
	KVPERSIST_WHEELS_EVERYWHERE=1 $(BIN)/python -m pytest -n auto tests/test_wheel.py

dist: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# The site, into .site; any warning fails it.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

demo: .venv/ready
	$(BIN)/python examples/demo.py

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

MINUTES ?= 30
soak: .venv/ready
	$(BIN)/python -m soak --minutes $(MINUTES)

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf .venv .site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
