"""From a URL to the backend that serves it.

Backends are found by the URL's scheme among the entry points of the group ``kvpersist.backends``,
ours like anybody's.  The keyword arguments of a backend's constructor are its options; they may be
given as arguments or in the URL's query, where an argument wins.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

from .errors import KvpersistError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from .backends import Backend


def open_backend(
    url: str,
    *,
    asynchronous: bool,
    options: dict[str, Any],
    query: dict[str, str] | None = None,
    known: Iterable[str] = (),
) -> Backend:
    """The backend for a URL, not yet connected.

    Args:
        query: the options in the URL's query, where it was split off already.
        known: options that are not the backend's but could have been meant, for the error's sake.

    Raises:
        OptionError: for a scheme or an option that does not exist; it names those that do.
        MissingExtraError: where the backend's driver is not installed.
    """
    if query is None:
        url, query = split_query(url)
    scheme = urlsplit(url).scheme
    if not scheme:
        raise OptionError(f"{redacted(url)!r} has no scheme; known are {_listed(_backends())}")
    kind = _backend(scheme)
    parameters = _options_of(kind)
    given = {**query, **options}
    _check_names(kind, given, scheme, known)
    for name, value in given.items():
        if name in parameters:
            given[name] = _checked(name, value, parameters[name], in_url=name not in options)
    return kind(url, asynchronous=asynchronous, **given)


def open_place(url: str, *, asynchronous: bool, options: Mapping[str, Any] | None = None) -> tuple[Backend, str | None]:
    """The backend for a URL that may be a persister's, and the namespace in its query; raises as `open_backend`."""
    base, query = split_query(url)
    namespace = query.pop("namespace", None)
    query.pop("on_conflict", None)
    backend = open_backend(
        base, asynchronous=asynchronous, options=dict(options or {}), query=query, known=("namespace",)
    )
    return backend, namespace


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


def check_options(given: Iterable[str], known: Iterable[str], what: str, *, elsewhere: Iterable[str] = ()) -> None:
    """Raise `OptionError` for the first option that is not known.

    It names the nearest that is, or that is known elsewhere, where the option could have been meant for.
    """
    for name in given:
        if name not in known:
            names = sorted([*known, *elsewhere])
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise OptionError(f"{what} has no option {name!r}; {hint}")


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """A URL without its query, and the options in the query."""
    if not isinstance(url, str):
        raise OptionError(f"the URL must be a str, not {type(url).__name__}")
    if "#" in url or any(character < " " for character in url):
        raise OptionError(f"{redacted(url)!r}: a '#' must be written %23, and control characters are not allowed")
    try:
        parts = urlsplit(url)
        url.encode()
    except ValueError as error:
        raise OptionError(f"{redacted(url)!r} is not a URL: {type(error).__name__}") from None
    return url.partition("?")[0], dict(parse_qsl(parts.query, keep_blank_values=True))


def redacted(url: str) -> str:
    """A URL without what may be a secret: all before the host, the values in the query, the fragment.

    A password may hold characters that should have been encoded, so whatever is before the last ``@``
    is taken for one.
    """
    head, mark, rest = url.partition("://")
    if not mark:
        head, mark, rest = url.partition(":")
    if "@" in rest and not rest.startswith("/"):  # ":///" has no place for a password
        rest = "***@" + rest.rpartition("@")[2]
    rest, fragment, _ = rest.partition("#")
    rest, question, query = rest.partition("?")
    names = [f"{pair.partition('=')[0]}=***" for pair in query.split("&") if pair]
    return f"{head}{mark}{rest}{question}{'&'.join(names)}{fragment and '#***'}"


def local_path(url: str) -> Path:
    """The path that a file's URL names, absolute.

    ``file:///tmp/x`` is absolute, ``file://./x`` and ``file://../x`` are relative to the working
    folder and ``file://~/x`` to the home folder.
    """
    parts = urlsplit(url)
    path, shown = unquote(parts.path), redacted(url)
    if "\0" in path:
        raise OptionError(f"{shown!r}: a path cannot hold a NUL")
    if parts.netloc in (".", "..", "~"):
        return Path(os.path.abspath(os.path.expanduser(parts.netloc + path)))
    if parts.netloc not in ("", "localhost"):
        raise OptionError(
            f"{shown!r} names a host; write {parts.scheme}:///absolute/path or {parts.scheme}://./relative/path"
        )
    if not path:
        raise OptionError(f"{shown!r} names no path; write {parts.scheme}:///absolute/path")
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
        package = point.dist.name if point.dist else "kvpersist"
        what = (
            f'pip install "kvpersist[{scheme}]"'
            if package == "kvpersist"
            else f"see {package}, which brings {scheme}://"
        )
        raise MissingExtraError(f"{scheme}:// needs a package that is not installed ({error}): {what}") from error
    return kind


def _check_names(kind: type[Backend], given: Iterable[str], what: str, known: Iterable[str]) -> None:
    # A constructor that takes any option hands on to its driver what is not its own, and the driver checks it.
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values()):
        return
    check_options(given, _options_of(kind), what, elsewhere=known)


def _options_of(kind: type[Backend]) -> dict[str, Any]:
    hints = get_type_hints(kind.__init__)
    return {
        name: hints.get(name, str)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "asynchronous"
    }


_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _checked(name: str, value: Any, hint: Any, *, in_url: bool) -> Any:
    """An option's value, made of text where it comes from a URL, if it is of the type the backend asks for."""
    kinds = [each for each in (bool, int, float, str) if each in (hint, *get_args(hint))]
    if not kinds or (value is None and type(None) in get_args(hint)):
        return value
    if in_url:
        for kind in kinds:
            try:
                return _WORDS[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                continue
    elif type(value) in kinds or (float in kinds and type(value) is int):
        return value
    names = " or ".join(kind.__name__ for kind in kinds)
    raise OptionError(f"the option {name}={value!r} must be a {names}")


def _listed(schemes: Iterable[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted(schemes))
