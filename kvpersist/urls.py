"""From a URL to the backend that serves it.

Backends are found by the URL's scheme among the entry points of the group ``kvpersist.backends``,
ours like anybody's.  The keyword arguments of a backend's constructor are its options; they may be
given as arguments or in the URL's query, where an argument wins.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

from .errors import KvpersistError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from .backends import Backend

_SECRET = re.compile(r"pass|secret|token|key|sig|credential", re.IGNORECASE)


def open_backend(url: str, *, asynchronous: bool, options: dict[str, Any], known: Iterable[str] = ()) -> Backend:
    """The backend for a URL, not yet connected.

    Args:
        known: options that are not the backend's but could have been meant, for the error's sake.

    Raises:
        OptionError: for a scheme or an option that does not exist; it names those that do.
        MissingExtraError: where the backend's driver is not installed.
    """
    if not isinstance(url, str):
        raise OptionError(f"the URL must be a str, not {type(url).__name__}")
    parts = urlsplit(url)
    if not parts.scheme:
        raise OptionError(f"{redacted(url)!r} has no scheme; known are {_listed(_backends())}")
    kind = _backend(parts.scheme)
    parameters = _options_of(kind)
    given = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **options}
    _check_names(kind, given, parts.scheme, known)
    for name, value in given.items():
        if isinstance(value, str) and name not in options:
            given[name] = _parsed(name, value, parameters.get(name, str))
    return kind(url.partition("?")[0], asynchronous=asynchronous, **given)


def backend_of_client(
    client: Any, *, asynchronous: bool, options: dict[str, Any], known: Iterable[str] = ()
) -> Backend:
    """The backend for a driver's client that somebody made.

    It is found by the top-level module of the client's class, or of a class it derives from, among the entry points
    of the group ``kvpersist.clients``, so that no driver is imported that is not loaded already.

    Raises:
        OptionError: for an object that no backend takes, or an option that does not exist.
    """
    points = {point.name: point for point in entry_points(group="kvpersist.clients")}
    for each in type(client).__mro__:
        module = each.__module__.partition(".")[0]
        if module in points:
            kind: type[Backend] = points[module].load()
            _check_names(kind, options, f"a store made of a {module} client", known)
            return kind.of_client(client, asynchronous=asynchronous, **options)
    raise OptionError(
        f"no store is known for a {type(client).__module__}.{type(client).__qualname__}; "
        f"clients can be those of {', '.join(sorted(points))}"
    )


def check_options(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `OptionError` for the first option that is not known; it names the nearest that is."""
    for name in given:
        if name not in known:
            raise OptionError(_unknown_option(name, what, known))


def redacted(url: str) -> str:
    """A URL without its secrets: no password, no value in the query that looks like one."""
    base, mark, query = url.partition("?")
    shown = [
        f"{name}=***" if _SECRET.search(name) else f"{name}{equals}{value}"
        for name, equals, value in (pair.partition("=") for pair in query.split("&"))
    ]
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", base) + mark + "&".join(shown)


def local_path(url: str) -> Path:
    """The path that a file's URL names, absolute.

    ``file:///tmp/x`` is absolute, ``file://./x`` and ``file://../x`` are relative to the working
    folder and ``file://~/x`` to the home folder.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if "\0" in path or "#" in url:
        raise OptionError(f"{url!r}: a path cannot hold a NUL, and its '#' must be written %23")
    if parts.netloc in (".", "..", "~"):
        return Path(os.path.abspath(os.path.expanduser(parts.netloc + path)))
    if parts.netloc not in ("", "localhost"):
        raise OptionError(
            f"{url!r} names the host {parts.netloc!r}; write {parts.scheme}:///absolute/path "
            f"or {parts.scheme}://./relative/path"
        )
    if not path:
        raise OptionError(f"{url!r} names no path; write {parts.scheme}:///absolute/path")
    if path.startswith("/"):
        path = path.lstrip("/") if os.name == "nt" else "/" + path.lstrip("/")
    return Path(os.path.abspath(path))


@lru_cache(maxsize=1)
def _backends() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="kvpersist.backends")}


def _backend(scheme: str) -> type[Backend]:
    # As in SQLAlchemy: what is behind a plus is the backend's own business.
    point = _backends().get(scheme) or _backends().get(scheme.partition("+")[0])
    if point is None:
        raise OptionError(f"no store is known for {scheme}://; known are {_listed(_backends())}")
    try:
        kind: type[Backend] = point.load()
    except KvpersistError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f'{scheme}:// needs a package that is not installed ({error}): pip install "kvpersist[{scheme}]"'
        ) from error
    return kind


def _check_names(kind: type[Backend], given: Iterable[str], what: str, known: Iterable[str]) -> None:
    # A constructor that takes any option hands on to its driver what is not its own, and the driver checks it.
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values()):
        return
    parameters = _options_of(kind)
    for name in given:
        if name not in parameters:
            raise OptionError(_unknown_option(name, what, [*parameters, *known]))


def _options_of(kind: type[Backend]) -> dict[str, Any]:
    hints = get_type_hints(kind.__init__)
    return {
        name: hints.get(name, str)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "asynchronous"
    }


def _parsed(name: str, text: str, kind: Any) -> Any:
    """An option's value from the text of a URL's query."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError) as error:
        raise OptionError(f"the option {name}={text!r} in the URL is no {kind.__name__}") from error


def _unknown_option(name: str, what: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{what} has no option {name!r}; {hint}"


def _listed(schemes: Iterable[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted(schemes))
