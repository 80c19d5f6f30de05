"""The wheel and the sdist: built from a clean copy, checked, and used in fresh environments.

``make test`` tries each extra on the Python that runs the tests, and all of them at once on the others at hand;
``make wheels`` each on each.  The environments are made with uv.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import installed
import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))

MAX_WHEEL = 400_000
"""Bytes that the wheel may have, about twice what it has."""


def _pythons() -> dict[str, str]:
    """The interpreters at hand that the package is for, by version: on the path, or installed by pyenv."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for minor in range(10, 20):
        version = f"3.{minor}"
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        candidates = [*map(str, pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
        for python in filter(None, candidates):
            asked = f"import sys; sys.exit(sys.version_info[1] != {minor})"  # pyenv's shims may run nothing
            if subprocess.run([python, "-c", asked], capture_output=True, check=False).returncode == 0:
                found.setdefault(version, python)
    return found


PYTHONS = _pythons()
THIS = next(iter(PYTHONS))
EXTRAS = ["", *installed.EXTRAS, "all"]
EVERYWHERE = bool(os.environ.get("KVPERSIST_WHEELS_EVERYWHERE"))
ENVIRONMENTS = [
    (version, extra) for version in PYTHONS for extra in EXTRAS if EVERYWHERE or version == THIS or extra in ("", "all")
]


class Built(NamedTuple):
    sdist: Path
    wheel: Path

    @property
    def names(self) -> set[str]:
        """What is in the wheel."""
        return set(zipfile.ZipFile(self.wheel).namelist())

    @property
    def metadata(self) -> Message:
        (name,) = [name for name in self.names if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(zipfile.ZipFile(self.wheel).read(name))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of a clean copy of the project, and the wheel that is built from the sdist."""
    copy, target = tmp_path_factory.mktemp("clean") / "kvpersist", tmp_path_factory.mktemp("dist")
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *ignored))
    _ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(copy))
    return Built(*target.glob("*.tar.gz"), *target.glob("*.whl"))


@pytest.fixture
def environment(tmp_path: Path) -> str:
    """The Python of a fresh environment, of the version that runs the tests."""
    return _environment(tmp_path / "venv", THIS)


def _environment(folder: Path, version: str) -> str:
    _ran(find_uv_bin(), "venv", "--quiet", "--python", PYTHONS[version], str(folder))
    return str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")


def _install(python: str, *packages: str) -> None:
    _ran(find_uv_bin(), "pip", "install", "--quiet", "--python", python, *packages)


def _ran(*command: str, cwd: Path | None = None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "COV_"))
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


# What is in them


def test_the_checkers_have_nothing_to_say(built: Built) -> None:
    _ran(sys.executable, "-m", "twine", "check", "--strict", str(built.sdist), str(built.wheel))
    _ran(sys.executable, "-m", "check_wheel_contents", str(built.wheel))


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kvpersist").rglob("*") if path.is_file()}
    expected = {path for path in package if "__pycache__" not in path}
    assert "kvpersist/py.typed" in expected
    (info,) = {name.partition("/")[0] for name in built.names - expected}
    assert re.fullmatch(r"kvpersist-[0-9.]+\.dist-info", info)
    files = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert built.names == expected | {f"{info}/{name}" for name in files}
    assert built.wheel.name.endswith("-py3-none-any.whl")
    assert built.wheel.stat().st_size < MAX_WHEEL


def test_the_sdist_holds_what_the_tests_need_and_nothing_else(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        if hasattr(tarfile, "data_filter"):
            archive.extractall(tmp_path, filter="data")
        else:
            archive.extractall(tmp_path)
    assert {name.partition("/")[0] for name in names} == {
        *("kvpersist", "tests", "examples", "benchmarks", "soak", "docs", "localstack"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "mkdocs.yml", "pyproject.toml"),
        *("PKG-INFO", ".gitignore"),  # which the build adds
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so", ".db"))]
    (folder,) = tmp_path.iterdir()
    found = _ran(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert re.search(r"^\d{4,} tests collected", found, re.MULTILINE)


def test_what_it_asks_for(built: Built) -> None:
    requirements = built.metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w-]", each)[0] for each in requirements if "extra ==" not in each}
    assert core == {"apache-burr", "filelock", "orjson", "ormsgpack", "zstandard"}
    assert set(built.metadata.get_all("Provides-Extra", [])) == {*installed.EXTRAS, "all"}
    assert not [each for each in requirements if not re.search(r">=|^kvpersist\[", each)], "a bound below is missing"
    versions = {each.rpartition(" :: ")[2] for each in built.metadata.get_all("Classifier", []) if ":: 3." in each}
    assert built.metadata["Requires-Python"] == ">=" + min(versions, key=lambda each: int(each[2:]))


# What they do where they are installed


@pytest.mark.parametrize(("version", "extra"), ENVIRONMENTS, ids=lambda each: each or "core")
def test_installed_alone(built: Built, version: str, extra: str, tmp_path: Path) -> None:
    python = _environment(tmp_path / "venv", version)
    _install(python, f"{built.wheel}[{extra}]" if extra else str(built.wheel))
    _ran(python, "-I", installed.__file__, extra)


def test_the_core_brings_six_distributions(built: Built, environment: str) -> None:
    _install(environment, str(built.wheel))
    listed = json.loads(_ran(find_uv_bin(), "pip", "list", "--quiet", "--python", environment, "--format", "json"))
    assert {each["name"] for each in listed} == {
        *("kvpersist", "apache-burr", "filelock", "orjson", "ormsgpack", "zstandard")
    }
    # Its import is held against that of asyncio in the same process, which must be imported all the same.
    ratios = []
    for _ in range(5):
        command = [environment, "-I", "-X", "importtime", "-c", "import asyncio, kvpersist"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
        times = {
            line.split("|")[2].strip(): int(line.split("|")[1]) for line in lines if "|" in line and "[us]" not in line
        }
        ratios.append(times["kvpersist"] / times["asyncio"])
    assert min(ratios) < 1, ratios


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_package_of_somebody_else_passes_the_contract_suites(
    built: Built, example: Path, environment: str, tmp_path: Path
) -> None:
    copy = tmp_path / example.name
    shutil.copytree(example, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    _install(environment, f"{built.wheel}[testing,sqlite]", str(copy))
    shutil.rmtree(copy / "build", ignore_errors=True)
    for module in copy.glob("*.py"):
        module.unlink()  # what is tested is what was installed
    printed = _ran(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=copy)
    assert re.search(r"^\d+ passed in", printed, re.MULTILINE), printed
