"""``redis://``: Redis or Valkey, alone, behind Sentinel or as a cluster.

A *folder* is what the first segments of a key name: ``""``, ``ns/``, ``ns/partition/`` and ``ns/partition/app/``.
Each is two Redis keys, a hash of values and a sorted set of names, all of score 0, so that it is in bytewise order::

    kvpersist:{ns/partition/app/}values
    kvpersist:{ns/partition/app/}index

An app's folder holds whatever is below it, however deep.  The folders above hold their own keys and, as a name that
ends in ``/``, the folders right below them, so that the apps of a partition are listed without looking at any step.

What is in braces decides the slot on a cluster: one app is one slot, and apps spread over the nodes.  Each script
works on one folder.  On a single server it gets the keys of the folders above too, and keeps them in step; on a
cluster they are in other slots, and registering is a request of its own, at an app's first save.  The hash's field
``""`` says how far that went:

- absent: nobody has begun.
- a token: begun by somebody, who may have crashed.  All who save meanwhile register the folder with this token.
- ``1``: the folder above knows this one.

The token is also the folder's value in the folder above.  Who empties a folder reads the token first and afterwards
removes the folder's name only if the token is still the same: a folder that somebody else has made anew in between
has another token and keeps its name.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import unquote, urlencode, urlsplit

from ..errors import MissingExtraError, OptionError, StoreError, StoreUnavailableError
from ..keys import scan_range
from ..steps import Step, arun
from ..urls import redacted
from . import PAGE, Backend, Clients, Entry, GivenClient, Mode, Page

try:
    import redis
    import redis.asyncio
    from hiredis import pack_command
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtraError('Redis needs redis-py: pip install "kvpersist[redis]"') from error

if sys.version_info >= (3, 11):
    from asyncio import timeout as time_limit
else:
    from async_timeout import timeout as time_limit  # redis-py needs it there as well

DEPTH: Final = 3
"""How many segments name an app's folder."""

REGISTERED: Final = b"1"
LARGE: Final = 100_000
"""From how many bytes on a value is written by a transaction, which costs more commands, and copies less."""
HUGE: Final = 500_000
"""From how many bytes on a value is read by a command of its own: Lua hashes what a script hands over, a byte in 1 ns,
and the server does nothing else meanwhile."""


class _Script(NamedTuple):
    text: str
    sha: str
    above: bool
    """Whether it works on the folders above too, where they are on the same server."""


def _script(text: str, *, above: bool = False) -> _Script:
    # KEYS: values and index of a folder, and where it works on them of all folders above.
    # ARGV: the name of each of these folders in the one above, but for the last; then the script's own arguments.
    if above:
        text = _ABOVE + text
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), above)


_ABOVE = """
local levels = #KEYS / 2
local function argument(number) return ARGV[levels - 1 + number] end
local function remove_empty_folders()
  for level = 1, levels do
    if redis.call('EXISTS', KEYS[2 * level]) == 1 then return 0 end
    redis.call('DEL', KEYS[2 * level - 1])
    if level < levels then
      redis.call('HDEL', KEYS[2 * level + 1], ARGV[level])
      redis.call('ZREM', KEYS[2 * level + 2], ARGV[level])
    end
  end
  return 1
end
"""

# A write in a folder that this process knows to be registered: whether it was done, or -1 if the folder is not.
_WRITE_REGISTERED = _script("""
local values, index, name = KEYS[1], KEYS[2], ARGV[2]
if redis.call('HGET', values, '') ~= '1' then return -1 end
if ARGV[1] == 'overwrite' then
  redis.call('HSET', values, name, ARGV[3])
elseif redis.call('HSETNX', values, name, ARGV[3]) == 0 then
  return 0
end
redis.call('ZADD', index, 0, name)
if ARGV[4] then
  redis.call('PEXPIRE', values, ARGV[4])
  redis.call('PEXPIRE', index, ARGV[4])
end
return 1
""")

# Names with their values, all or none, in a folder that this process knows to be registered; as _WRITE_REGISTERED.
_CREATE_ALL = _script("""
local values, index, ttl = KEYS[1], KEYS[2], ARGV[1]
if redis.call('HGET', values, '') ~= '1' then return -1 end
for number = 2, #ARGV, 2 do
  if redis.call('HEXISTS', values, ARGV[number]) == 1 then return 0 end
end
for number = 2, #ARGV, 2 do
  redis.call('HSET', values, ARGV[number], ARGV[number + 1])
  redis.call('ZADD', index, 0, ARGV[number])
end
if ttl ~= '0' then
  redis.call('PEXPIRE', values, ttl)
  redis.call('PEXPIRE', index, ttl)
end
return 1
""")

# Whether the write was done, and where the folder is not registered, the token to register it with.
_WRITE = _script(
    """
local values, index = KEYS[1], KEYS[2]
local mode, name, value = argument(1), argument(2), argument(3)
local old, ttl, token, confirmed = argument(4), argument(5), argument(6), argument(7)
local won = 1
if mode == 'create' then
  won = redis.call('HSETNX', values, name, value)
elseif mode == 'replace' and redis.call('HGET', values, name) ~= old then
  return 0
else
  redis.call('HSET', values, name, value)
end
if won == 1 then
  redis.call('ZADD', index, 0, name)
  if ttl ~= '0' then
    redis.call('PEXPIRE', values, ttl)
    redis.call('PEXPIRE', index, ttl)
  end
end
local state = redis.call('HGET', values, '')
if state == '1' then return won end
if token == '' then  -- the folders above are here
  for level = 2, levels do
    redis.call('HSET', KEYS[2 * level - 3], '', '1')
    redis.call('HSET', KEYS[2 * level - 1], ARGV[level - 1], '1')
    redis.call('ZADD', KEYS[2 * level], 0, ARGV[level - 1])
    if redis.call('HGET', KEYS[2 * level - 1], '') == '1' then break end
  end
  return won
end
if state and state == confirmed then
  redis.call('HSET', values, '', '1')
  return won
end
if not state then
  redis.call('HSET', values, '', token)
  state = token
end
return {won, state}
""",
    above=True,
)

# Names in order from the first bound to the second, with their values of less than a size; 0 is without values.
_SCAN = _script("""
local names = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local size = tonumber(ARGV[4])
if size == 0 then return {names} end
local values = {}
for number, name in ipairs(names) do
  values[number] = redis.call('HSTRLEN', KEYS[1], name) < size and redis.call('HGET', KEYS[1], name)
end
return {names, values}
""")

# The same, where all that shares the text before the next "/" is one entry; the search for it starts at a position.
_CHILDREN = _script("""
local found, from, limit = {}, ARGV[1], tonumber(ARGV[3])
while #found < limit do
  local name = redis.call('ZRANGEBYLEX', KEYS[2], from, ARGV[2], 'LIMIT', 0, 1)[1]
  if not name then break end
  local slash = string.find(name, '/', ARGV[4], true)
  if slash then
    name = string.sub(name, 1, slash)
    from = '[' .. string.sub(name, 1, -2) .. '0'
  else
    from = '(' .. name
  end
  found[#found + 1] = name
end
return {found}
""")

# Names in order as for _SCAN, without the folders that have expired; their names are removed.
_FOLDERS = _script(
    """
while true do
  local names = redis.call('ZRANGEBYLEX', KEYS[2], argument(1), argument(2), 'LIMIT', 0, argument(3))
  local expired = {}
  for _, name in ipairs(names) do
    if string.sub(name, -1) == '/' and redis.call('EXISTS', argument(4) .. name .. '}index') == 0 then
      expired[#expired + 1] = name
    end
  end
  if #expired == 0 then return {names} end
  redis.call('HDEL', KEYS[1], unpack(expired))
  redis.call('ZREM', KEYS[2], unpack(expired))
  remove_empty_folders()
end
""",
    above=True,
)

# How many names were removed, and whether the folder is empty now.  With "=" and a value, only a name that still
# has that value is removed.
_DELETE = _script(
    """
local names, condition = {}, argument(1)
for number = levels + 1, #ARGV do
  local value = condition ~= '' and redis.call('HGET', KEYS[1], ARGV[number])
  if condition == '' or (value and '=' .. value == condition) then names[#names + 1] = ARGV[number] end
end
if #names == 0 then return {0, 0} end
redis.call('HDEL', KEYS[1], unpack(names))
redis.call('ZREM', KEYS[2], unpack(names))
return {#names, remove_empty_folders()}
""",
    above=True,
)


class RedisBackend(Backend):
    """Redis 6.2 or newer, or Valkey.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://`` for TLS, ``unix:///path/to.sock``;
            ``redis+cluster://host:port,host:port`` names some nodes of a cluster;
            ``redis+sentinel://host:port,host:port/service/0`` some sentinels, the service and the database;
            ``rediss+cluster://`` and ``rediss+sentinel://`` likewise with TLS.
        prefix: what the names of all Redis keys start with.
        ttl: seconds after its last save when an app is removed, whole; 0 keeps it for ever.
        replicas: how many replicas must have a write before it counts as done, asked for in the same round trip;
            a failover may lose a write that no replica had.  Not on a cluster.
        timeout: seconds to wait for a connection, and for an answer.
        driver_options: all others go to redis-py, such as ``ssl_ca_certs`` or ``max_connections``.
    """

    default_port = 6379

    def __init__(
        self,
        url: str,
        *,
        asynchronous: bool = False,
        prefix: str = "kvpersist:",
        ttl: float = 0.0,
        replicas: int = 0,
        timeout: float = 10.0,
        **driver_options: Any,
    ) -> None:
        super().__init__(
            url,
            asynchronous=asynchronous,
            prefix=prefix,
            ttl=ttl,
            replicas=replicas,
            timeout=timeout,
            **driver_options,
        )
        if "{" in prefix or "}" in prefix:
            raise OptionError(f"the prefix {prefix!r} cannot hold braces: they decide the slot on a cluster")
        if ttl and ttl < 0.001:
            raise OptionError(f"ttl must be a number of seconds, or 0 for ever, not {ttl!r}")
        try:
            self._hosts = _hosts(url)
        except ValueError:
            # Neither the message nor the cause: what is taken for a port may be part of the password.
            raise OptionError(
                f"{redacted(url)}: a port is no number; special characters in a password must be percent-encoded"
            ) from None
        self._prefix = prefix
        self._ttl = round(ttl * 1000)
        self._replicas = replicas
        self._timeout = timeout
        self._driver_options = driver_options
        self._is_cluster = urlsplit(url).scheme.endswith("+cluster")
        if replicas and self._is_cluster:
            raise OptionError("replicas= is not for a cluster: redis-py sends WAIT there in a request of its own")
        self._clients: Clients[_Client] | GivenClient[_Client] = Clients(
            asynchronous=asynchronous,
            connect=self._connect,
            disconnect=self._disconnect,
            abandon=lambda client: None,
        )
        # Folders that the folders above know of, as last seen by this process.
        self._registered: set[str] = set()
        # On a cluster: tokens that this process registered folders with, to be confirmed by its next save.
        self._tokens: dict[str, bytes] = {}

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> RedisBackend:
        """The store behind a `redis.Redis`, a `redis.cluster.RedisCluster`, or an async one."""
        kinds = (redis.asyncio.Redis, redis.asyncio.RedisCluster) if asynchronous else (redis.Redis, redis.RedisCluster)
        if not isinstance(client, kinds):
            raise OptionError(
                f"this needs {'an async' if asynchronous else 'a sync'} client, a {kinds[0].__module__}.Redis or "
                f"RedisCluster, not a {type(client).__module__}.{type(client).__qualname__}"
            )
        is_cluster = isinstance(client, kinds[1])
        unknown = options.keys() - {"prefix", "replicas", "ttl"}
        if unknown:
            raise OptionError(
                f"a store made of a client has no option {min(unknown)!r}; known are prefix, replicas, ttl"
            )
        backend = cls(
            "redis+cluster://client" if is_cluster else "redis://client", asynchronous=asynchronous, **options
        )
        backend._clients = GivenClient(_Client(client))
        return backend

    def open(self) -> Step[None]:
        yield from self._command("EXISTS", self._keys("")[1])

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        folder, name = _split(key)
        value: bytes | None = yield from self._command("HGET", self._keys(folder)[0], name)
        return value

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        keys = list(keys)
        names: dict[str, list[str]] = {}
        for folder, name in map(_split, keys):
            names.setdefault(folder, []).append(name)
        found = {}
        for folder, wanted in names.items():
            values = yield from self._command("HMGET", self._keys(folder)[0], *wanted)
            found.update({folder + name: value for name, value in zip(wanted, values, strict=True)})
        return [found[key] for key in keys]

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        return (yield from self._write(*_split(key), mode, value))

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        folder = _split(entries[0][0])[0] if entries else ""
        if folder in self._registered and all(_split(key)[0] == folder for key, _ in entries):
            named = [each for key, value in entries for each in (_split(key)[1], value)]
            done = yield from self._run(_CREATE_ALL, folder, self._ttl if _is_app(folder) else 0, *named)
            if done >= 0:
                return bool(done)
            self._registered.discard(folder)
        return (yield from super().put_many(entries))

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        if new is None:
            folder, name = _split(key)
            return bool((yield from self._delete_in(folder, [name], old)))
        return (yield from self._write(*_split(key), "replace", new, old))

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        limit = min(limit or PAGE, PAGE)  # a script's stack holds so many
        start, end = scan_range(prefix, after, children=delimiter is not None)
        folder, begun = _split(prefix)
        entries: list[Entry] = []
        if start >= end:
            return Page(entries, None)
        if not delimiter:
            yield from self._walk(folder, start, end, limit, values, entries)
        elif _is_app(folder):
            first, last = _bounds(folder, start, end)
            (names,) = yield from self._run(_CHILDREN, folder, first, last, limit, len(begun) + 1)
            entries += ((folder + name.decode(), None) for name in names)
        else:
            names = yield from self._folders(folder, *_bounds(folder, start, end), limit)
            entries += ((folder + name.decode(), None) for name in names)
        return Page(entries, entries[-1][0] if len(entries) == limit else None)

    def _walk(self, folder: str, start: str, end: str, limit: int, values: bool, entries: list[Entry]) -> Step[None]:
        """Add what is in and below a folder to a page, until the page is full."""
        first, last = _bounds(folder, start, end)
        while len(entries) < limit:
            wanted = limit - len(entries)
            found = yield from self._run(_SCAN, folder, first, last, wanted, HUGE if values else 0)
            names = [name.decode() for name in found[0]]
            known = dict(zip(names, found[1], strict=True)) if values else {}
            huge = [name for name, value in known.items() if value is None and not name.endswith("/")]
            if huge:
                known.update(zip(huge, (yield from self.get_many([folder + name for name in huge])), strict=True))
            for name in names:
                if len(entries) == limit:
                    return
                value = known.get(name)
                if name.endswith("/"):
                    yield from self._walk(folder + name, start, end, limit, values, entries)
                elif value is not None or not values:  # else it was deleted meanwhile
                    entries.append((folder + name, value))
            if len(names) < wanted:
                return
            first = f"({names[-1]}"

    def _folders(self, folder: str, first: str, last: str, limit: int) -> Step[list[bytes]]:
        """The names in a folder above the apps, without the folders that have expired."""
        names: list[bytes]
        if not self._is_cluster:
            stem = f"{self._prefix}{{{folder}"
            (names,) = yield from self._run(_FOLDERS, folder, first, last, limit, stem)
            return names
        while True:
            names, tokens = yield from self._run(_SCAN, folder, first, last, limit, HUGE)
            expired = []
            for name, token in zip(names, tokens, strict=True):
                may_expire = name.endswith(b"/") and (self._ttl or token.startswith(b"ttl:"))
                if may_expire and not (yield from self._command("EXISTS", self._keys(folder + name.decode())[1])):
                    expired.append((name, token))
            if not expired:
                return names
            for name, token in expired:
                yield from self._delete_in(folder, [name], token)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        names: dict[str, list[str]] = {}
        for folder, name in map(_split, keys):
            names.setdefault(folder, []).append(name)
        for folder, going in names.items():
            for first in range(0, len(going), PAGE):
                yield from self._delete_in(folder, going[first : first + PAGE])

    def _delete_in(self, folder: str, names: list[Any], only: bytes | None = None) -> Step[int]:
        """Remove names, those that have the value `only` where it is given; returns how many were removed."""
        above, own_name = _above(folder)
        own_token = None
        if self._is_cluster and folder:
            own_token = yield from self._command("HGET", self._keys(above)[0], own_name)
        removed, emptied = yield from self._run(_DELETE, folder, b"" if only is None else b"=" + only, *names)
        if emptied and own_token:
            yield from self._delete_in(above, [own_name], own_token)
        count: int = removed
        return count

    def _write(self, folder: str, name: str, mode: str, value: bytes, old: bytes = b"") -> Step[bool]:
        ttl = self._ttl if _is_app(folder) else 0
        if folder in self._registered and mode != "replace":
            if len(value) >= LARGE and not self._is_cluster and not self._replicas:
                done, state = yield from self._write_large(folder, name, mode, value, ttl)
                if state in (REGISTERED, REGISTERED.decode()):
                    return done
                # Somebody has deleted the app.  The same again registers it anew, and finds its own value there.
                self._registered.discard(folder)
                yield from self._write(folder, name, mode, value)
                return done
            expiry = (ttl,) if ttl else ()
            done = yield from self._run(_WRITE_REGISTERED, folder, mode, name, value, *expiry)
            if done >= 0:
                return bool(done)
            self._registered.discard(folder)
        if not self._is_cluster or not folder:
            # At the root there is nothing to register: what comes back besides is of no interest.
            done = yield from self._run(_WRITE, folder, mode, name, value, old, ttl, "", "")
            if done and folder:
                self._remember(folder)
            return bool(done)
        new_token = f"{'ttl:' if ttl else ''}{uuid.uuid4().hex}"
        done = yield from self._run(
            _WRITE, folder, mode, name, value, old, ttl, new_token, self._tokens.get(folder, b"")
        )
        if not isinstance(done, list):
            self._tokens.pop(folder, None)
            if done:
                self._remember(folder)
            return bool(done)
        done, token = done
        above, own_name = _above(folder)
        yield from self._write(above, own_name, "overwrite", token)
        if len(self._tokens) >= 10_000:  # what is forgotten costs one registration
            self._tokens.clear()
        self._tokens[folder] = token
        return bool(done)

    def _write_large(self, folder: str, name: str, mode: str, value: bytes, ttl: int) -> Step[tuple[bool, Any]]:
        """Write without a script, which would copy the value several times: whether it was done, and the state."""
        values, index = self._keys(folder)
        try:
            client = yield from self._clients.get()
            transaction = client.redis.pipeline(transaction=True)
            transaction.hget(values, "")
            transaction.execute_command("HSETNX" if mode == "create" else "HSET", values, name, value)
            transaction.execute_command("ZADD", index, 0, name)
            if ttl:
                transaction.execute_command("PEXPIRE", values, ttl)
                transaction.execute_command("PEXPIRE", index, ttl)
            state, won, *_ = yield client.in_time(transaction.execute())
        except _FAILURES as error:
            self._fail(error)
        return mode == "overwrite" or bool(won), state

    def _remember(self, folder: str) -> None:
        if len(self._registered) >= 10_000:  # what is forgotten costs nothing but time
            self._registered.clear()
        self._registered.add(folder)

    def _keys(self, folder: str) -> tuple[str, str]:
        stem = f"{self._prefix}{{{folder or '/'}}}"
        return f"{stem}values", f"{stem}index"

    def _run(self, script: _Script, folder: str, *arguments: Any) -> Step[Any]:
        """Run a script on a folder, and load it where the server does not have it."""
        keys: Iterable[str] = self._keys(folder)
        names: list[str] = []
        if script.above and not self._is_cluster:
            keys = [*keys]
            above = folder
            while above:
                above, name = _above(above)
                keys += self._keys(above)
                names.append(name)
        command = (script.sha, 2 + 2 * len(names), *keys, *names, *arguments)
        writes = script is not _SCAN and script is not _CHILDREN
        try:
            return (yield from self._command("EVALSHA", *command, writes=writes))
        except StoreError as error:
            if not isinstance(error.__cause__, redis.exceptions.NoScriptError):
                raise
        return (yield from self._command("EVAL", script.text, *command[1:], writes=writes))

    def _command(self, *command: Any, writes: bool = False) -> Step[Any]:
        """The one place where a command is sent."""
        try:
            client = yield from self._clients.get()
            if not (self._replicas and writes):
                if client.seconds is None:
                    return (yield from client.execute(command))
                return (yield client.in_time(arun(client.execute(command))))
            pipeline = client.redis.pipeline(transaction=False)
            pipeline.execute_command(*command, NEVER_DECODE=True)
            pipeline.execute_command("WAIT", self._replicas, round(self._timeout * 500))
            result, copies = yield client.in_time(pipeline.execute())
        except _FAILURES as error:
            self._fail(error)
        if copies < self._replicas:
            raise StoreUnavailableError(
                f"{redacted(self.url)}: written, but only {copies} of {self._replicas} replicas said in time that they "
                "have it; saving again makes sure"
            )
        return result

    def _connect(self) -> Step[_Client]:
        yield from ()
        scheme, _, kind = urlsplit(self.url).scheme.partition("+")
        module: Any = redis.asyncio if self.asynchronous else redis
        retry = AsyncRetry if self.asynchronous else Retry
        texts = {name: value for name, value in self._driver_options.items() if isinstance(value, str)}
        options: dict[str, Any] = {
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            # A connection that the server has closed is replaced at once; an answer that is late is late.
            "retry": retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **{name: value for name, value in self._driver_options.items() if name not in texts},
        }
        query = f"?{urlencode(texts)}" if texts else ""
        try:
            if not kind:
                if self.asynchronous:
                    # A task that finds all connections in use waits for one.
                    options.setdefault("timeout", self._timeout)
                    # A limit for a command as a whole costs less than redis-py's, one to send and one to receive.
                    options["socket_timeout"] = self._driver_options.get("socket_timeout")
                    pool = _AsyncPool.from_url(self.url + query, **options)
                else:
                    # As many connections as there are threads.
                    options.setdefault("max_connections", 2**31)
                    pool = module.ConnectionPool.from_url(self.url + query, **options)
                pool.connection_class(**pool.connection_kwargs)  # not connected, but raises for an unknown option
                return _Client(
                    module.Redis.from_pool(pool),
                    # The sync pool refuses who comes when all of few are in use.
                    keeps_one=pool.max_connections > (1 if self.asynchronous else 2**31 - 1),
                    seconds=self._timeout if self.asynchronous else None,
                )
            login, at, listed = urlsplit(self.url).netloc.rpartition("@")
            first = f"{login}{at}{listed.partition(',')[0]}"
            options = {**module.connection.parse_url(f"{scheme}://{first}{query}"), **options}
            del options["host"]
            options.pop("port", None)
            if options.pop("connection_class", None):
                options["ssl"] = True
            if kind == "cluster":
                node = module.cluster.ClusterNode
                options.setdefault("max_connections", 2**31)  # there, who finds all in use would fail
                client = module.RedisCluster(startup_nodes=[node(*host) for host in self._hosts], **options)
                if self.asynchronous:
                    yield client.initialize()  # by one task, before many use it
                return _Client(client)
            service, _, database = urlsplit(self.url).path.strip("/").partition("/")
            if not service:
                raise OptionError(f"{redacted(self.url)!r} names no service, as in redis+sentinel://host:26379/service")
            shared = {name: options[name] for name in _SENTINEL_OPTIONS if name in options}
            sentinel = module.sentinel.Sentinel(
                self._hosts, sentinel_kwargs={**shared, **options.pop("sentinel_kwargs", {})}, **options
            )
            return _Client(sentinel.master_for(unquote(service), db=int(database or 0)))
        except (TypeError, ValueError) as error:
            raise OptionError(f"{redacted(self.url)}: {error}") from error

    def _disconnect(self, client: _Client) -> Step[None]:
        manager = getattr(getattr(client.redis, "connection_pool", None), "sentinel_manager", None)
        for each in [client.redis, *(manager.sentinels if manager else [])]:
            yield each.aclose() if self.asynchronous else each.close()

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, AttributeError) and error.name != "writelines":
            raise error
        raise self._translated(error) from error

    def _translated(self, error: Exception) -> StoreError:
        message = f"{redacted(self.url)}: {error}"
        if isinstance(error, (redis.AuthenticationError, redis.exceptions.AuthorizationError)):
            return StoreError(f"{redacted(self.url)}: the server refuses the login: {error}")
        if isinstance(error, (redis.TimeoutError, asyncio.TimeoutError)):
            return StoreUnavailableError(f"{redacted(self.url)}: no answer within {self._timeout} s")
        if isinstance(error, (OSError, AttributeError, redis.ConnectionError, redis.ReadOnlyError, *_CLUSTER_DOWN)):
            return StoreUnavailableError(message)
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return StoreError(f"{redacted(self.url)}: the server's maxmemory is used up: {error}")
        return StoreError(message)


class _Client:
    """A client of redis-py's, and one connection of its pool that is kept for who comes first.

    What a command costs in redis-py is most of all its way through the pool, which asks the socket each time whether an
    answer is left over.  Here the connection is closed unless its last answer was read whole, so none ever is.
    """

    def __init__(self, client: Any, *, keeps_one: bool = False, seconds: float | None = None) -> None:
        self.redis = client
        self.seconds = seconds
        """The time limit of a command, where redis-py does not watch over it."""
        self._kept: Any = None
        self._is_clean = True
        self._in_use = threading.Lock()
        if not keeps_one:
            self._in_use.acquire()  # for ever

    def execute(self, command: tuple[Any, ...]) -> Step[Any]:
        """Send a command; values come as bytes, also where the client was made to decode."""
        if not self._in_use.acquire(blocking=False):
            return (yield self.redis.execute_command(*command, NEVER_DECODE=True))
        try:
            if self._kept is None:
                self._kept = yield self.redis.connection_pool.get_connection()
            try:
                return (yield from self._exchange(command))
            except redis.ConnectionError:  # most often the server has closed it while it was idle
                return (yield from self._exchange(command))
        finally:
            self._in_use.release()

    def _exchange(self, command: tuple[Any, ...]) -> Step[Any]:
        if not self._is_clean:
            yield self._kept.disconnect()
        self._is_clean = False
        # The async client of redis-py would pack it in Python.
        yield self._kept.send_packed_command([pack_command(command)])
        try:
            answer = yield self._kept.read_response(disable_decoding=True)
        except redis.ResponseError:
            self._is_clean = True
            raise
        self._is_clean = True
        return answer

    def in_time(self, awaitable: Any) -> Any:
        """The same, limited in time where redis-py does not watch over it."""
        return awaitable if self.seconds is None else _in_time(self.seconds, awaitable)


async def _in_time(seconds: float, awaitable: Awaitable[Any]) -> Any:
    async with time_limit(seconds):
        return await awaitable


class _AsyncPool(redis.asyncio.BlockingConnectionPool):
    """A pool that starts a timer only where a task has to wait for a connection, not for each command."""

    _waiting = 0

    async def get_connection(self, *ignored: Any, **deprecated: Any) -> Any:
        if not self._waiting and self.can_get_connection():
            try:
                return await redis.asyncio.ConnectionPool.get_connection(self)  # type: ignore[no-untyped-call]
            except redis.ConnectionError:
                if self.can_get_connection():
                    raise
                # Somebody else was faster.  Redis-py has an exception for that from version 8 on only.
        self._waiting += 1
        try:
            return await super().get_connection()  # type: ignore[no-untyped-call]
        finally:
            self._waiting -= 1


# Where a task of redis-py's async cluster client meets a fault, it closes the connections of the others as well.  One
# that was just about to write finds no writer: "'NoneType' object has no attribute 'writelines'".
_FAILURES = (
    *(redis.RedisError, redis.exceptions.RedisClusterException, OSError, asyncio.TimeoutError),
    AttributeError,
)
_CLUSTER_DOWN = (
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.RedisClusterException,
)
_SENTINEL_OPTIONS = ("socket_timeout", "socket_connect_timeout", "ssl", "ssl_ca_certs", "ssl_cert_reqs")


def _hosts(url: str) -> list[tuple[str, int]]:
    """The hosts and ports that a URL names."""
    parts = urlsplit(url)
    port = 26379 if parts.scheme.endswith("sentinel") else 6379
    each_host = (urlsplit(f"//{each}") for each in parts.netloc.rpartition("@")[2].split(","))
    return [(each.hostname or "", each.port or port) for each in each_host]


def _split(key: str) -> tuple[str, str]:
    """The folder of a key or prefix, and its name there."""
    *segments, name = key.split("/", DEPTH)
    return "".join(f"{each}/" for each in segments), name


def _above(folder: str) -> tuple[str, str]:
    """The folder above, and a folder's name there."""
    above, slash, name = folder[:-1].rpartition("/")
    return above + slash, f"{name}/"


def _is_app(folder: str) -> bool:
    return folder.count("/") == DEPTH


def _bounds(folder: str, start: str, end: str) -> tuple[str, str]:
    """The names of a folder that stand for keys of a range, as ZRANGEBYLEX has it."""
    first = start[len(folder) :] if start.startswith(folder) else ""
    if not _is_app(folder):
        # The folder that the range starts in is the first.
        first = "".join(first.partition("/")[:2])
    return f"[{first}" if first else "-", f"({end[len(folder) :]}" if end.startswith(folder) else "+"
