"""The pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from kvpersist import keys
from kvpersist.errors import (
    ConflictError,
    InvalidIdError,
    InvalidKeyError,
    KvpersistError,
    StoreError,
    StoreUnavailableError,
)
from kvpersist.history import History
from kvpersist.inspection import Inspection, Listed, Shown, diff, escaped, shown_size, shown_time
from kvpersist.steps import Step, arun, gather
from kvpersist.urls import redacted

from .guard import Guard

HERE: Final = Path(__file__).parent
PAGE: Final = 50
"""How many apps or steps are on a page."""
SEARCHED: Final = 50
"""How many steps are searched for one page of results."""
SAMPLES: Final = 50
"""How many steps the chart of a history looks at."""
NODES: Final = 2_000
"""How many values of a state are shown; its JSON is there whole."""
CHILDREN: Final = 100
"""How many values of one list or dict are shown."""
TEXT: Final = 2_000
"""How many characters of a text are shown."""

STATIC: Final = "/=static"
"""Where style and script are: a segment that no partition key has."""


class NotFound(Exception):
    """Nothing has this address."""


@dataclass
class Pages:
    """The store whose histories the pages show.

    Args:
        inspection: reads it; its backend is asynchronous.
        history: changes it; None where the pages are only to read.
    """

    inspection: Inspection
    history: History | None

    def application(self, *, names: frozenset[str], token: str) -> ASGIApp:
        """The pages as an ASGI application, which disconnects from the store when it is shut down.

        The arguments are those of `Guard`, which stands around all of it.
        """
        app = "/{partition}/{app}/"
        routes = [
            Route("/", self.partitions),
            Mount(STATIC, StaticFiles(directory=HERE / "static")),
            Route("/{partition}/", self.apps),
            Route(app, self.steps),
            Route(f"{app}step/{{name:path}}", self.step),
            Route(f"{app}json/{{name:path}}", self.raw),
            Route(f"{app}diff", self.diff),
            Route(f"{app}search", self.search),
            Route(f"{app}growth", self.growth),
        ]
        if self.history is not None:
            routes += [
                Route(f"{app}rewind", self.rewind, methods=["GET", "POST"]),
                Route(f"{app}fork", self.fork, methods=["GET", "POST"]),
            ]

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await arun(self.inspection.close())
            if self.history is not None:
                await arun(self.history.backend.close())

        pages = Starlette(
            routes=routes,
            exception_handlers={
                404: self._absent,
                Exception: self._failed,
                NotFound: self._absent,
                InvalidKeyError: self._absent,
                InvalidIdError: self._failed,
                KvpersistError: self._failed,
            },
            lifespan=lifespan,
        )
        return Guard(pages, names=names, token=token)

    # What there is

    async def partitions(self, request: Request) -> Response:
        folder = f"{keys.encode(self.inspection.namespace)}/"
        page = await arun(self.inspection.partitions(after=_cursor(request, folder), limit=PAGE))
        if len(page.ids) == 1 and page.after is None and "after" not in request.query_params:
            return RedirectResponse(f"/{keys.encode(page.ids[0])}/", 303)
        return self._page(request, "partitions.html", ids=page.ids, more=_more(page.after, folder))

    async def apps(self, request: Request) -> Response:
        partition_key = keys.decode(request.path_params["partition"])
        folder = keys.partition_prefix(self.inspection.namespace, partition_key)
        prefix = request.query_params.get("prefix", "")
        after = _cursor(request, folder)
        page = await arun(self.inspection.apps(partition_key, after=after, limit=PAGE, prefix=prefix))
        newest = await arun(
            gather(self.inspection.headers(partition_key, app_id or "", limit=1) for app_id in page.ids)
        )
        rows = [
            (app_id, found.entries[0] if found.entries else None)
            for app_id, found in zip(page.ids, newest, strict=True)
        ]
        return self._page(request, "apps.html", rows=rows, prefix=prefix, more=_more(page.after, folder))

    async def steps(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        before = _number(request, "before")
        aside = request.query_params.get("aside") == "1"
        page = await arun(
            self.inspection.headers(
                app.partition_key,
                app.app_id,
                after=_cursor(request, app.folder),
                before_sequence_id=before,
                limit=PAGE,
                include_set_aside=aside,
            )
        )
        if not page.entries and not request.query_params:
            raise NotFound
        return self._page(
            request, "steps.html", app=app, entries=page.entries, aside=aside, more=_more(page.after, app.folder)
        )

    async def step(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        shown = await self._shown(app, request.path_params["name"])
        newer, older = await self._neighbours(app, shown)
        return self._page(request, "step.html", app=app, shown=shown, tree=Tree(shown.state), newer=newer, older=older)

    async def raw(self, request: Request) -> Response:
        shown = await self._shown(_App.of(request, self.inspection), request.path_params["name"])
        if shown.note is not None:
            raise NotFound
        return Response(
            json.dumps(shown.state, indent=1),
            media_type="application/json",
            headers={"Content-Disposition": f'attachment; filename="step-{shown.header.sequence_id}.json"'},
        )

    async def _shown(self, app: _App, name: str) -> Shown:
        shown = await arun(self.inspection.record_at(app.folder + name))
        if shown is None:
            raise NotFound
        return shown

    async def _neighbours(self, app: _App, shown: Shown) -> tuple[Listed | None, Listed | None]:
        """The steps right after and before a live one."""
        if shown.header.set_aside:
            return None, None
        at = shown.header.sequence_id

        def found(before: int) -> Step[Listed | None]:
            if before < 1:
                return None
            page = yield from self.inspection.headers(app.partition_key, app.app_id, before_sequence_id=before, limit=1)
            return page.entries[0] if page.entries else None

        newer, older = await arun(gather([found(at + 2), found(at)]))
        return (newer if newer and newer.record.sequence_id > at else None), older

    async def diff(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        numbers = [_number(request, name) for name in ("a", "b")]
        problem, changes, records = None, [], []
        if None in numbers:
            problem = "Choose two steps to compare."
        else:
            for number in numbers:
                shown = await arun(self.inspection.record(app.partition_key, app.app_id, number))
                if shown is None or shown.note is not None:
                    problem = shown.note if shown else f"There is no step {number}."
                    break
                records.append(shown)
            else:
                changes = await asyncio.to_thread(diff, records[0].state, records[1].state)
        return self._page(
            request, "diff.html", app=app, numbers=numbers, problem=problem, changes=changes[:NODES], count=len(changes)
        )

    async def search(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        wanted = request.query_params.get("q", "")
        page = (
            await arun(
                self.inspection.headers(
                    app.partition_key, app.app_id, before_sequence_id=_number(request, "before"), limit=SEARCHED
                )
            )
            if wanted
            else None
        )
        found = []
        listed = page.entries if page else []
        for shown in await arun(gather(self.inspection.shown(each) for each in listed if each.header)):
            hits = await asyncio.to_thread(list, _hits(shown.state, wanted)) if shown else []
            if shown and hits:
                found.append((shown, hits[:5], len(hits)))
        before = listed[-1].record.sequence_id if page and page.after is not None else None
        return self._page(request, "search.html", app=app, q=wanted, found=found, count=len(listed), before=before)

    async def growth(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        newest = await arun(self.inspection.headers(app.partition_key, app.app_id, limit=1))
        if not newest.entries:
            raise NotFound
        last = newest.entries[0].record.sequence_id
        count = min(SAMPLES, last + 1)
        at = sorted({round(last * each / max(1, count - 1)) for each in range(count)})
        pages = await arun(
            gather(
                self.inspection.headers(app.partition_key, app.app_id, before_sequence_id=each + 1, limit=1)
                for each in at
            )
        )
        sizes = sorted({(each.record.sequence_id, each.size) for page in pages for each in page.entries})
        total, before, points = 0, sizes[0][0] - 1, []
        for at_, size in sizes:  # the steps in between are taken to be as large
            total, before = total + size * (at_ - before), at_
            points.append((at_, size, total))
        chart = Chart.of([(each, so_far) for each, _, so_far in points])
        return self._page(request, "growth.html", app=app, chart=chart, points=points)

    # What changes it

    async def rewind(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        history = self.history
        assert history is not None
        form = await _fields(request)
        to = _parsed(form.get("to"))
        if to is None:
            raise NotFound
        listed = (await arun(self.inspection.headers(app.partition_key, app.app_id, limit=1))).entries
        newest = listed[0].record.sequence_id if listed else 0
        # What was agreed to is what was shown: the app may have gone on since.
        went_on = request.method == "POST" and form.get("newest") != str(newest)
        if request.method == "GET" or went_on:
            return self._page(request, "rewind.html", app=app, to=to, newest=newest, went_on=went_on)
        await arun(history.rewind(app.partition_key, app.app_id, to))
        return RedirectResponse(f"{app.path}?aside=1", 303)

    async def fork(self, request: Request) -> Response:
        app = _App.of(request, self.inspection)
        history = self.history
        assert history is not None
        form = await _fields(request)
        at = _parsed(form.get("at"))
        if at is None:
            raise NotFound
        problem, new = None, ""
        if request.method == "POST":
            new = form.get("new", "")
            if not new:
                problem = "The new app needs an id."
            else:
                try:
                    await arun(history.fork(app.partition_key, app.app_id, at, new))
                except (ConflictError, InvalidIdError, InvalidKeyError) as error:
                    problem = str(error)
                else:
                    return RedirectResponse(f"/{app.partition}/{keys.encode(new)}/", 303)
        return self._page(request, "fork.html", app=app, at=at, new=new, problem=problem)

    # Pages

    def _page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        partition, partition_key = request.path_params.get("partition"), None
        if partition is not None:
            try:
                partition_key = keys.decode(partition)
            except InvalidKeyError:
                partition = None
        html = _TEMPLATES.get_template(template).render(
            store=redacted(self.inspection.backend.url),
            namespace=self.inspection.namespace,
            writes=self.history is not None,
            partition=partition,
            partition_key=partition_key,
            **values,
        )
        return HTMLResponse(html, status)

    async def _absent(self, request: Request, error: Exception) -> Response:
        return self._page(request, "error.html", 404, title="Not found", text="There is nothing here, or no longer.")

    async def _failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, StoreError):
            status = 503 if isinstance(error, StoreUnavailableError) else 502
            return self._page(request, "error.html", status, title="The store failed", text=str(error))
        status = 400 if isinstance(error, InvalidIdError) else 500
        text = str(error) if isinstance(error, KvpersistError) else "Something went wrong; the server has printed what."
        return self._page(request, "error.html", status, title="This cannot be shown", text=text)


class _App(NamedTuple):
    """The app that an address names."""

    partition_key: str | None
    app_id: str
    partition: str
    """Its partition key, as a segment of keys and addresses."""
    path: str
    folder: str
    """What its keys start with."""

    @classmethod
    def of(cls, request: Request, inspection: Inspection) -> _App:
        partition, app = request.path_params["partition"], request.path_params["app"]
        partition_key, app_id = keys.decode(partition), keys.decode(app)
        if app_id is None:
            raise NotFound
        folder = keys.app_prefix(inspection.namespace, partition_key, app_id)
        return cls(partition_key, app_id, partition, f"/{partition}/{app}/", folder)


async def _fields(request: Request) -> dict[str, str]:
    """What a link or a form of ours says."""
    if request.method == "GET":
        return dict(request.query_params)
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=10))
    except ValueError:
        return {}


def _parsed(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        return None
    return int(text)


def _number(request: Request, name: str) -> int | None:
    return _parsed(request.query_params.get(name))


def _cursor(request: Request, folder: str) -> str | None:
    """The key or the child behind which a page begins; None where there is none, or what is given is none."""
    after = request.query_params.get("after", "")
    try:
        keys.check(folder + after.removesuffix("/"))
    except InvalidKeyError:
        return None
    return folder + after


def _more(after: str | None, folder: str) -> str | None:
    return None if after is None else after[len(folder) :]


def _hits(node: Any, wanted: str, path: str = "") -> Iterator[tuple[str, str]]:
    """Where a text stands in a tree, and what surrounds it."""
    if type(node) is dict:
        for key, each in node.items():
            below = f"{path}.{key}" if path else key
            if wanted.lower() in key.lower():
                yield below, key
            yield from _hits(each, wanted, below)
    elif type(node) is list:
        for at, each in enumerate(node):
            yield from _hits(each, wanted, f"{path}[{at}]")
    else:
        text = node if type(node) is str else json.dumps(node)
        found = text.lower().find(wanted.lower())
        if found >= 0:
            yield path, text[max(0, found - 60) : found + len(wanted) + 60]


class Tree:
    """A state as nested lists that open and close, in parts where it is large: each field has its share."""

    def __init__(self, state: Any) -> None:
        fields = list(_items(state)) if type(state) in (dict, list) else [("", state)]
        self.left = max(0, len(fields) - NODES)
        self.nodes = []
        for name, each in fields[:NODES]:
            self._budget = max(1, NODES // min(NODES, len(fields)))
            self.nodes.append(self._node(name, each, 0))

    def _node(self, name: str, node: Any, depth: int) -> dict[str, Any]:
        self._budget -= 1
        if type(node) in (dict, list):
            children: list[dict[str, Any]] = []
            for below, each in _items(node):
                if self._budget <= 0 or len(children) == CHILDREN:
                    break
                children.append(self._node(below, each, depth + 1))
            return {
                "name": name,
                "text": ("{%d}" if type(node) is dict else "[%d]") % len(node),
                "children": children,
                "open": depth < 1 or len(node) <= 3,
                "left": len(node) - len(children),
            }
        text = json.dumps(node, ensure_ascii=False)
        kind = "text" if type(node) is str else "other"
        if len(text) > TEXT:
            text = f"{text[:TEXT]}... ({len(text):,} characters)"
        return {"name": name, "text": text, "kind": kind}


def _items(node: Any) -> Iterator[tuple[str, Any]]:
    return iter(node.items()) if type(node) is dict else ((str(at), each) for at, each in enumerate(node))


class Chart(NamedTuple):
    """A line of sizes over steps, in a box of 600 by 200."""

    line: str
    area: str
    largest: int

    @classmethod
    def of(cls, points: list[tuple[int, int]]) -> Chart:
        last, largest = max(1, points[-1][0]), max(size for _, size in points)
        placed = [(600 * at / last, 200 - 190 * size / largest) for at, size in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        return cls(line, f"{placed[0][0]:.1f},200 {line} {placed[-1][0]:.1f},200", largest)


def _id(text: str | None) -> str:
    return "no partition key" if text is None else escaped(text) if text else '""'


_TEMPLATES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True)
_filters: dict[str, Callable[..., Any]] = {
    "id": _id,
    "escaped": escaped,
    "segment": keys.encode,
    "size": shown_size,
    "time": lambda created_at: escaped(shown_time(created_at)),
    "json": lambda value: escaped(json.dumps(value, ensure_ascii=False))[:TEXT],
}
_TEMPLATES.filters.update(_filters)
