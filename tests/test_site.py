"""The documentation's site: it builds without a warning, is whole, and asks nobody for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import kvpersist

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


class Assets(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")
        elif tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text())
        assert assets.found
        for asset in filter(None, assets.found):
            assert not re.match(r"(\w+:)?//", asset), (page, asset)
            assert page.name == "404.html" or (page.parent / asset.partition("?")[0]).exists(), (page, asset)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = (site / "api.html").read_text()
    assert [name for name in kvpersist.__all__ if f'id="kvpersist.{name}"' not in reference] == []
    for name in ("Persister.save", "AsyncPersister.prune", "Store.scan", "SQLitePersister.from_values", "Telemetry"):
        assert f'id="kvpersist.{name}"' in reference


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, str):
            pages.append(node)
        else:
            for each in node.values() if isinstance(node, dict) else node:  # type: ignore[attr-defined]
                walk(each)

    walk(settings["nav"])
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - set(settings.get("exclude_docs", "").split())
    assert set(pages) == there, "mkdocs.yml and docs/ differ"
    assert len(pages) == len(set(pages))
