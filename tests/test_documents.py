"""Every code block of README and docs, run.

- **Python** runs, block after block, in a new folder a document. The address of a server in it becomes that of a real
  one that the tests start: `ADDRESSES` says which. What a block leaves under the name `persister` must save and load.
- **Shell** commands must be ones that the Makefile, the extras or the `kvpersist` command know, with their arguments;
  those of `kvpersist` on a store in the document's folder run.
- **SQL** runs on PostgreSQL and is rolled back; JSON and TOML are parsed.
- What only a test needs, such as the names that a block takes for granted, stands in a comment:
  ``<!-- invisible-code-block: python``.
- What cannot run here says why in a comment before it, ``<!-- skip: next "needs AWS" -->``; there are at most
  `MOST_NOT_RUN` of these.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

import psycopg
import pytest
import servers
from click.testing import CliRunner
from object_servers import moto
from packaging.requirements import Requirement
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from kvpersist import AsyncPersister, Persister
from kvpersist.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "localstack/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
)
MOST_NOT_RUN = 8

ADDRESSES: dict[str, Callable[[], str]] = {
    r"rediss?": lambda: servers.with_options(servers.redis_url(), prefix=f"{servers.unique()}:"),
    r"postgresql": lambda: servers.with_options(servers.postgresql_url(), schema=servers.RUN, table=servers.unique()),
    r"mongodb(?:\+srv)?": lambda: servers.with_options(
        servers.mongodb_url(), database=servers.RUN, collection=servers.unique()
    ),
}
"""By the scheme of a URL in a Python block, the server that takes its place; a new, empty store for each document."""


def with_real_addresses(source: str, addresses: dict[str, str]) -> str:
    for scheme, address in ADDRESSES.items():

        def real(found: re.Match[str], scheme: str = scheme, address: Callable[[], str] = address) -> str:
            if scheme not in addresses:
                addresses[scheme] = address()
            return f'"{addresses[scheme]}"'

        source = re.sub(rf'"{scheme}://[^"]*"', real, source)
    return source


def run_python(example: Example) -> None:
    example.parsed = type(example.parsed)(
        with_real_addresses(example.parsed, example.namespace["__addresses__"]),
        example.parsed.offset,
        example.parsed.line_offset,
    )
    before = example.namespace.get("persister")
    PythonEvaluator()(example)
    persister = example.namespace.get("persister")
    if persister is not before and not getattr(persister, "_closed", False):
        if isinstance(persister, Persister):
            persister.save("a", "round trip", 1, "ask", {"n": 1}, "completed")
            assert persister.load("a", "round trip")["state"]["n"] == 1
        elif isinstance(persister, AsyncPersister):
            asyncio.run(_round_trip(persister))


async def _round_trip(persister: AsyncPersister) -> None:
    async with persister:
        await persister.save("a", "round trip", 1, "ask", {"n": 1}, "completed")
        assert (await persister.load("a", "round trip"))["state"]["n"] == 1


TARGETS = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(metadata("kvpersist").get_all("Provides-Extra") or ())


def run_shell(example: Example) -> None:
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            check_command(words)


def parse_shell(example: Example) -> None:
    """The commands of a transcript, whose output is not compared."""
    for line in str(example.parsed).splitlines():
        if line.startswith("$ "):
            check_command(shlex.split(line[2:], comments=True), run=False)


def check_command(words: list[str], *, run: bool = True) -> None:
    command, *arguments = words
    if command == "make":
        targets = [each for each in arguments if "=" not in each]
        assert set(targets) <= TARGETS, f"the Makefile does not know {' '.join(words)}"
    elif command == "pip":
        assert arguments.pop(0) == "install", words
        for each in arguments:
            if re.match(r"[a-z]", each) and "--group" not in arguments:
                wanted = Requirement(each)
                assert wanted.name != "kvpersist" or wanted.extras <= EXTRAS, f"there is no {each}"
    elif command == "kvpersist":
        check_kvpersist(arguments, run=run)
    elif command == "python" and arguments[0] == "-m":
        assert find_spec(arguments[1].partition(".")[0]), f"there is no module {arguments[1]}"
    elif command == "python":
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"
    else:
        assert command in {"pytest", "docker", "export"}, f"what is {command}?"


def check_kvpersist(arguments: list[str], *, run: bool) -> None:
    """Parse a command; run it where its store is one of the document's own."""
    name, command, rest = main.resolve_command(main.make_context("kvpersist", list(arguments)), list(arguments))
    assert command is not None, arguments
    command.make_context(name, rest)  # an unknown option or a missing argument raises
    if run and any("://./" in each for each in arguments) and name not in ("tail", "ui"):  # which go on for ever
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"kvpersist {shlex.join(arguments)}: {result.output}"


def run_sql(example: Example) -> None:
    with psycopg.connect(servers.postgresql_url()) as connection:
        connection.execute("CREATE ROLE app")
        statements = example.namespace.setdefault("__statements__", [])
        statements.append(str(example.parsed))
        for statement in statements:
            connection.execute(statement)
        connection.rollback()


def indented(document: Document) -> Iterable[Region]:
    """Blocks of commands, or transcripts, that are indented by four spaces; other such blocks are text, as keys are."""
    for found in re.finditer(r"(?<=\n\n)(?: {4}.*\n)+", document.text):
        first = found[0].split()[0]
        lines = "\n".join(line[4:] for line in found[0].splitlines())
        if first == "$":
            yield Region(found.start(), found.end(), lines, parse_shell)
        elif first in {"make", "pip", "python", "kvpersist", "docker", "export"} or re.match(r"[A-Z_]+=", first):
            yield Region(found.start(), found.end(), lines, run_shell)


SYBIL = Sybil(
    path=str(ROOT),
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("sh", run_shell),
        CodeBlockParser("sql", run_sql),
        CodeBlockParser("json", lambda example: json.loads(example.parsed) and None),
        CodeBlockParser("toml", lambda example: tomllib.loads(example.parsed) and None),
        # Never run: each needs its reason.
        CodeBlockParser("js", lambda example: "JavaScript does not run here"),
        SkipParser(),
        indented,
    ],
)


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A server for the buckets of the documents, as the environment names it."""
    with moto() as server:
        with closing(server.boto()) as boto:
            for bucket in ("my-bucket", "bucket"):
                boto.create_bucket(Bucket=bucket)
        yield {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.storage_options["key"],
            "AWS_SECRET_ACCESS_KEY": server.storage_options["secret"],
        }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_blocks_of(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    document = SYBIL.parse(ROOT / name)
    module = types.ModuleType("document")  # so that classes have a module that they can be found in
    monkeypatch.setitem(sys.modules, "document", module)
    document.namespace = module.__dict__
    document.namespace["__addresses__"] = {}
    monkeypatch.chdir(tmp_path)
    python = "".join(example.parsed for example in document if example.region.evaluator is run_python)
    if '"s3://' in python:
        for variable, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(variable, value)
    if 'schema="' in python:
        with psycopg.connect(servers.postgresql_url()) as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS state")
    skipped = []
    with ExitStack() as stack:
        for logger in (logging.getLogger(), logging.getLogger("kvpersist")):  # which a block may set up
            stack.callback(logger.setLevel, logger.level)
            stack.callback(setattr, logger, "handlers", [*logger.handlers])
        stack.callback(lambda: [each.cleanup() for each in vars(module).values() if isinstance(each, Persister)])
        for example in document:
            try:
                example.evaluate()
            except SkipTest as reason:
                skipped.append(f"{name}:{example.line}: {reason}")
            except Exception as error:
                raise AssertionError(f"{name}:{example.line}: {type(error).__name__}: {error}") from error
    print(*skipped, sep="\n")


FENCE = re.compile(r"^( *)```.*\n((?:(?!\1```).*\n)*)\1```$", re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_block_is_missed(name: str) -> None:
    text = (ROOT / name).read_text()
    # What is included is from files with tests of their own.
    fences = [match.start() for match in FENCE.finditer(text) if not match[2].startswith('--8<-- "')]
    run = {region.start for _, region in SYBIL.parse(ROOT / name).regions}
    missed = [text.count("\n", 0, start) + 1 for start in fences if start not in run]
    assert not missed, f"{name}: the blocks at these lines are of a language that is not run"


def test_what_is_not_run_says_why_and_is_little() -> None:
    found = {
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}": match[1]
        for name in DOCUMENTS
        for text in [(ROOT / name).read_text()]
        for match in re.finditer(r"<!--+ *skip:(.*?)-->", text)
    }
    print(*(f"{where}: {what}" for where, what in found.items()), sep="\n")
    assert len(found) <= MOST_NOT_RUN
    for where, what in found.items():
        assert re.fullmatch(r' next "[^"]{10,}" *', what), f"{where}: say skip: next, with a reason"


def test_a_block_that_is_wrong_fails(tmp_path: Path) -> None:
    wrong = {
        "```python\nimport kvpersist\nkvpersist.nothing\n```\n": "no attribute 'nothing'",
        "```sh\nmake nothing\n```\n": "does not know make nothing",
        "```sh\npip install 'kvpersist[nothing]'\n```\n": r"no kvpersist\[nothing\]",
        "```sh\nkvpersist nothing\n```\n": "No such command",
        "```sh\nkvpersist history a --nothing\n```\n": "No such option",
        "```sh\nkvpersist history\n```\n": "Missing parameter: app_id",
        "\n\n    $ kvpersist nothing\n": "No such command",
        "\n\n    make nothing\n": "does not know make nothing",
        "```json\n{\n```\n": "Expecting",
    }
    for text, message in wrong.items():
        path = tmp_path / "wrong.md"
        path.write_text(text)
        (example,) = SYBIL.parse(path)
        example.namespace["__addresses__"] = {}
        with pytest.raises(Exception, match=message):
            example.evaluate()
