"""The package as others see it: what importing it costs, what it exports, what it depends on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvpersist

ROOT = Path(__file__).parent.parent


def test_importing_it_loads_no_driver_and_no_burr() -> None:
    script = "import sys, json, kvpersist; print(json.dumps(sorted(sys.modules)))"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it imports things
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=bare)
    modules = set(json.loads(result.stdout))
    assert {name for name in modules if name.startswith("kvpersist")} == {"kvpersist"}
    # Counted, not timed: what is not loaded costs no time (measured: under 5 ms, benchmarks/core.py).
    assert not modules & {"burr", "orjson", "asyncio", "sqlite3", "pydantic"}


def test_every_public_name_is_there() -> None:
    for name in kvpersist.__all__:
        assert getattr(kvpersist, name) is not None
        assert name in dir(kvpersist)
    assert set(kvpersist._HOMES) == set(kvpersist.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvpersist.nothing  # type: ignore[attr-defined]


def test_the_core_needs_next_to_nothing() -> None:
    requirements = importlib.metadata.requires("kvpersist") or []
    core = sorted(re.split(r"[^\w-]", each)[0] for each in requirements if "extra ==" not in each)
    assert core == ["apache-burr", "filelock", "orjson", "ormsgpack", "zstandard"]


def test_the_version_is_the_changelogs_newest() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == kvpersist.__version__ == importlib.metadata.version("kvpersist")


def test_it_is_typed() -> None:
    assert (Path(kvpersist.__file__).parent / "py.typed").exists()
