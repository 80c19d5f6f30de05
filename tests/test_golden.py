"""Records written by earlier versions stay readable: the files below golden/ are read, and never written, here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from serializer_table import same

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from cases import CASES, CREATED, FOLDER

from kvpersist.serde import Serde


@pytest.mark.parametrize("name", CASES)
def test_it_stays_readable(name: str) -> None:
    case = CASES[name]
    serde = Serde(case.serde_kwargs)
    data = (FOLDER / f"{name}.record").read_bytes()
    header, sealed = serde.decode("kvpersist", data, name, case.id)
    state = serde.loads(header, sealed)
    assert (header.status, header.created_at) == ("completed", CREATED)
    assert list(state) == list(case.state)
    for key, value in case.state.items():
        assert same(value, state[key]), key
    # A save of the same state by this version is no conflict with it; Arrow names the version of pandas.
    assert "arrays" in name or serde.is_same(header, sealed, serde.dumps(case.state))


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)
