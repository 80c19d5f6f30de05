"""Redis and Valkey, alone, as a cluster and behind Sentinel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import servers
from server_contract import ServerContract, SharedStoreContract, state
from servers import Server, new_redis, unique

from kvpersist import OptionError, Persister, Store, StoreError, StoreUnavailableError
from kvpersist.backends import Page
from kvpersist.backends.redis import HUGE
from kvpersist.steps import Step, run
from kvpersist.testing import BackendContract
from kvpersist.testing.faces import Face, FaceFixtures

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = new_redis(*DURABLE)
    yield server
    server.kill()


@pytest.fixture
def prefix() -> str:
    return f"{unique()}:"


class TestRedis(ServerContract):
    huge_load = 2  # its name, and what it holds

    @pytest.fixture
    def place(self, prefix: str) -> dict[str, Any]:
        return {"prefix": prefix}

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}?timeout=1"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        return (redis.asyncio if asynchronous else redis).Redis.from_url(url.partition("?")[0], decode_responses=True)


class TestCluster(SharedStoreContract):
    @pytest.fixture
    def server(self) -> Server:
        return servers.redis_cluster()[0]

    @pytest.fixture
    def place(self, prefix: str) -> dict[str, Any]:
        return {"prefix": prefix}

    def url(self, port: int) -> str:
        return f"redis+cluster://127.0.0.1:{port}?timeout=1"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = redis.asyncio.RedisCluster if asynchronous else redis.RedisCluster
        return kind.from_url(url.partition("?")[0].replace("+cluster", ""))

    def test_an_app_is_one_slot_and_apps_are_spread(self, face: Face, prefix: str) -> None:
        persister = face.persister(servers.redis_cluster_url(), prefix=prefix)
        for number in range(60):
            persister.save("p", f"app{number}", 1, "step", state(number), "completed")
        apps_of = []
        for node in servers.redis_cluster():
            with redis.Redis(port=node.port) as client:
                keys = {key.decode() for key in client.keys(f"{prefix}{{kvpersist/p/*")}
            apps = {key.rpartition("}")[0] for key in keys}
            assert keys == {f"{app}}}{part}" for app in apps for part in ("values", "index")}
            apps_of.append(len(apps))
        assert all(apps_of)
        assert sum(apps_of) == 60 + 1  # and the partition's own list

    def test_an_operation_is_one_request(self, face: Face, prefix: str) -> None:
        persister, other = (face.persister(servers.redis_cluster_url(), prefix=prefix) for _ in range(2))
        for number in range(5):  # so that each node has each script
            for each in (persister, other):
                each.save("warm", f"up{number}", 1, "step", state(1), "completed")
                each.load("warm", f"up{number}", 1)
        persister.list_app_ids("warm")
        persister.save("p", "app0", 0, "step", state(0), "completed")

        def counted(expected: int, target: Any, method: str, *arguments: Any) -> Any:
            before = _commands()
            result = getattr(target, method)(*arguments)
            assert _commands() - before == expected, method
            return result

        # The first save of an app by a process is one more, as long as no process knows that it is registered.
        counted(2, persister, "save", "p", "app1", 1, "step", state(1), "completed")
        counted(2, other, "save", "p", "app1", 2, "step", state(2), "completed")
        for number in range(3, 30):
            counted(1, persister, "save", "p", "app1", number, "step", state(number), "completed")
        counted(1, other, "save", "p", "app1", 30, "step", state(30), "completed")
        counted(1, face.persister(servers.redis_cluster_url(), prefix=prefix), "save", *_record("app1", 31))
        assert counted(1, persister, "load", "p", "app1")["sequence_id"] == 31
        assert counted(1, persister, "load", "p", "app1", 2)["sequence_id"] == 2
        assert counted(1, persister, "list_app_ids", "p") == ["app0", "app1"]

    def test_a_connection_that_another_task_closes(self, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        face = Face(True)
        persister = face.persister(servers.redis_cluster_url(), prefix=prefix)
        persister.save("p", "a", 1, "step", state(1), "completed")
        kind = redis.asyncio.Connection
        send = kind._send_packed_command

        async def closed(self: Any, command: Any) -> None:
            monkeypatch.undo()
            await self.disconnect(nowait=True)  # as another task does that has met a fault
            await send(self, command)

        monkeypatch.setattr(kind, "_send_packed_command", closed)
        with pytest.raises(StoreUnavailableError):
            persister.load("p", "a")
        assert persister.load("p", "a")["state"]["n"] == 1
        face.close()

    def test_an_app_whose_registration_was_cut_off_is_registered_by_the_next_save(
        self, face: Face, prefix: str
    ) -> None:
        persister = face.persister(servers.redis_cluster_url(), prefix=prefix)
        persister.save("p", "other", 1, "step", state(1), "completed")
        with redis.RedisCluster("127.0.0.1", servers.redis_cluster()[0].port) as client:
            # What a crash behind the first request leaves.
            client.hset(f"{prefix}{{kvpersist/p/}}values", "", "1")
            for part in ("values", "index"):
                assert client.exists(f"{prefix}{{kvpersist/p/other/}}{part}")
            client.hdel(f"{prefix}{{kvpersist/p/}}values", "other/")
            client.zrem(f"{prefix}{{kvpersist/p/}}index", "other/")
            assert persister.list_app_ids("p") == []
        fresh = face.persister(servers.redis_cluster_url(), prefix=prefix)
        fresh.save("p", "other", 1, "step", state(1), "completed")  # the retry
        assert fresh.list_app_ids("p") == ["other"]

    def test_a_node_that_is_killed_and_restarted(self, face: Face, prefix: str) -> None:
        url = servers.redis_cluster_url()
        persister = face.persister(url, prefix=prefix, timeout=1)
        for number in range(30):
            persister.save("p", f"app{number}", 1, "step", state(number), "completed")
        node = servers.redis_cluster()[1]
        node.kill()
        results = []
        for number in range(30):
            try:
                persister.save("p", f"app{number}", 2, "step", state(number), "completed")
                results.append(True)
            except StoreUnavailableError:
                results.append(False)
        assert not all(results)
        node.start()
        servers.await_cluster(servers.redis_cluster())
        for number in range(30):
            _until_available(persister.save, "p", f"app{number}", 2, "step", state(number), "completed")
            assert [each.sequence_id for each in persister.history("p", f"app{number}")] == [2, 1]
        assert len(persister.list_app_ids("p")) == 30


class TestValkey(BackendContract):
    @pytest.fixture
    def url(self, prefix: str) -> str:
        return f"redis://127.0.0.1:{servers.valkey().port}?prefix={prefix}"


class TestSentinel(BackendContract):
    @pytest.fixture
    def url(self, prefix: str) -> str:
        return f"redis+sentinel://127.0.0.1:{servers.redis_sentinel().port}/main?prefix={prefix}"

    def test_a_failover_loses_no_acknowledged_save(self, face: Face, prefix: str) -> None:
        trio = servers.RedisTrio()
        try:
            url = f"redis+sentinel://127.0.0.1:{trio.sentinel.port}/main?prefix={prefix}&timeout=2&replicas=1"
            persister = face.persister(url)
            for number in range(200):
                persister.save("p", "a", number, "step", state(number), "completed")
            trio.master.kill()
            with pytest.raises(StoreUnavailableError):
                persister.save("p", "a", 200, "step", state(200), "completed")
            # There is no second replica to ask for.
            persister = face.persister(url.replace("&replicas=1", ""))
            _until_available(persister.save, "p", "a", 200, "step", state(200), "completed")
            assert [each.sequence_id for each in persister.history("p", "a")] == list(range(200, -1, -1))
            assert persister.list_app_ids("p") == ["a"]
        finally:
            trio.kill()


class TestOptions(FaceFixtures):
    def test_a_write_that_too_few_replicas_have_is_an_error(self, face: Face, server: Server, prefix: str) -> None:
        persister = face.persister(f"redis://127.0.0.1:{server.port}", prefix=prefix, replicas=1, timeout=2)
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            persister.save("p", "a", 1, "step", state(1), "completed")

    def test_a_lost_script_cache_is_filled_again(self, face: Face, server: Server, prefix: str) -> None:
        persister = face.persister(f"redis://127.0.0.1:{server.port}", prefix=prefix)
        with redis.Redis(port=server.port) as client:
            for number in range(3):
                client.script_flush()
                persister.save("p", "a", number, "step", state(number), "completed")
                client.script_flush()
                assert persister.load("p", "a")["sequence_id"] == number
                client.script_flush()
                assert persister.list_app_ids("p") == ["a"]
        assert persister.delete_app("p", "a") == 3

    @pytest.mark.parametrize("clustered", [False, True])
    def test_a_ttl_ends_an_app_as_a_whole(self, face: Face, server: Server, prefix: str, clustered: bool) -> None:
        url = servers.redis_cluster_url() if clustered else f"redis://127.0.0.1:{server.port}"
        raw: Any = (
            redis.RedisCluster("127.0.0.1", servers.redis_cluster()[0].port)
            if clustered
            else redis.Redis(port=server.port)
        )
        persister = face.persister(url, prefix=prefix, ttl=100)
        forever = face.persister(url, prefix=prefix)
        with raw:
            for app in ("a", "b"):
                for number in range(3):
                    persister.save("p", app, number, "step", state(number), "completed")
                remaining = [raw.pttl(f"{prefix}{{kvpersist/p/{app}/}}{part}") for part in ("values", "index")]
                assert all(0 < each <= 100_000 for each in remaining)
                at = [raw.pexpiretime(f"{prefix}{{kvpersist/p/{app}/}}{part}") for part in ("values", "index")]
                assert at[0] == at[1]
            forever.save("q", "c", 1, "step", state(1), "completed")
            assert raw.pttl(f"{prefix}{{kvpersist/q/c/}}values") == -1
            short = face.persister(url, prefix=prefix, ttl=0.2)
            for app in ("a", "b"):
                short.save("p", app, 3, "step", state(3), "completed")  # the last save decides
            deadline = time.monotonic() + 30
            while raw.exists(f"{prefix}{{kvpersist/p/b/}}index"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            reader = short if clustered else forever
            assert reader.load("p", "a") is None
            assert reader.list_app_ids("p") == []
            assert reader.list_partitions() == ["q"]
            left = {key.decode() for key in raw.scan_iter(f"{prefix}*")}
            assert {key for key in left if "/p/" in key} == set()
            # An app that comes back is listed again.
            persister.save("p", "a", 1, "step", state(1), "completed")
            assert reader.list_app_ids("p") == ["a"]

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode_responses", [False, True])
    def test_clients_may_decode_and_speak_either_protocol(
        self, face: Face, server: Server, prefix: str, protocol: int, decode_responses: bool
    ) -> None:
        from kvpersist import AsyncStore, Store

        module: Any = redis.asyncio if face.asynchronous else redis
        client = module.Redis(port=server.port, decode_responses=decode_responses, protocol=protocol)
        store = face.adopt((AsyncStore if face.asynchronous else Store).from_client(client, prefix=prefix))
        value = bytes(range(256))
        assert store.put("n/p/a/1", value, "create") is True
        assert store.put("n/p/a/1", value, "create") is False
        assert store.replace("n/p/a/1", value, value * 2) is True
        assert store.get("n/p/a/1") == value * 2
        assert store.scan("n/", values=True).entries == [("n/p/a/1", value * 2)]
        assert store.scan("n/", delimiter="/").entries == [("n/p/", None)]
        store.delete(["n/p/a/1"])
        assert store.scan().entries == []
        closing = client.aclose() if face.asynchronous else client.close()
        if face.asynchronous:
            face.loop.run_until_complete(closing)

    def test_nothing_is_left_of_what_was_deleted(self, face: Face, server: Server, prefix: str) -> None:
        store = face.store(f"redis://127.0.0.1:{server.port}", prefix=prefix)
        keys = ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e", "a/b/c2/d"]
        for key in keys:
            store.put(key, b"x")
        store.delete(keys)
        with redis.Redis(port=server.port) as client:
            assert client.keys(f"{prefix}*") == []

    @pytest.mark.parametrize("size", [10, 1_000_000])
    @pytest.mark.parametrize("mode", ["create", "overwrite"])
    def test_what_another_process_deleted_is_listed_again(
        self, face: Face, server: Server, prefix: str, size: int, mode: str
    ) -> None:
        one, other = (face.store(f"redis://127.0.0.1:{server.port}", prefix=prefix, ttl=100) for _ in range(2))
        for _ in range(3):
            assert one.put("n/p/a/1", b"x" * size, mode) is True
            assert one.put("n/p/a/1", b"y", "create") is False
            assert one.put("n/p/a/2", b"z" * size, mode) is True
            assert other.scan("n/p/", delimiter="/").entries == [("n/p/a/", None)]
            assert other.scan("", values=True).entries == [("n/p/a/1", b"x" * size), ("n/p/a/2", b"z" * size)]
            with redis.Redis(port=server.port) as client:
                for part in ("values", "index"):
                    assert 0 < client.pttl(f"{prefix}{{n/p/a/}}{part}") <= 100_000
            other.delete(["n/p/a/1", "n/p/a/2"])
            assert one.scan("", delimiter="/").entries == []

    def test_huge_values_are_in_their_places(self, face: Face, server: Server, prefix: str) -> None:
        store = face.store(f"redis://127.0.0.1:{server.port}", prefix=prefix)
        sizes = {f"n/p/a/{number}": size for number, size in enumerate([1, HUGE, HUGE - 1, 0, HUGE + 1])}
        for key, size in sizes.items():
            store.put(key, b"x" * size)
        for limit in range(1, 7):
            found, after = [], None
            while True:
                page = store.scan("n/", limit=limit, values=True, after=after)
                found += [(key, len(value)) for key, value in page.entries]
                after = page.after
                if after is None:
                    break
            assert found == list(sizes.items())
        assert store.scan("n/p/a/").entries == [(key, None) for key in sizes]

    def test_a_huge_value_that_is_deleted_while_it_is_read(self, server: Server, prefix: str) -> None:
        """Between its name and what it holds: the next one takes its place."""
        with Store.from_url(f"redis://127.0.0.1:{server.port}", prefix=prefix) as store:
            for number in range(3):
                store.put(f"n/p/a/{number}", b"x" * HUGE)
            answers = 0

            def scanned() -> Step[Page]:
                nonlocal answers
                body = store._backend.scan("n/p/a/", limit=1, values=True)
                answer = None
                while True:
                    try:
                        answer = body.send(answer)
                    except StopIteration as stop:
                        return stop.value
                    answers += 1
                    if answers == 1:
                        store.delete(["n/p/a/0"])
                    answer = yield answer

            page = run(scanned())
            assert page.entries == [("n/p/a/1", b"x" * HUGE)]
            assert page.after == "n/p/a/1"

    def test_as_many_connections_as_threads_are_enough(self, face: Face, server: Server, prefix: str) -> None:
        store = face.store(f"redis://127.0.0.1:{server.port}", prefix=prefix, max_connections=2)
        store.put("n/p/a/0", b"x")
        with ThreadPoolExecutor(2) as threads:
            for _ in range(5):
                puts = [(f"n/p/a/{number}", b"x" * HUGE, "overwrite") for number in range(2)]
                if face.asynchronous:
                    assert face.at_once(store, "put", puts) == [True] * 2
                else:
                    assert list(threads.map(lambda put: store.put(*put), puts)) == [True] * 2

    def test_the_rights_that_the_docs_name_are_enough(self, face: Face, server: Server) -> None:
        text = (Path(__file__).parent.parent / "docs" / "redis.md").read_text()
        start = text.index("ACL SETUSER")
        words = text[start : text.index("\n\n", start)].split()
        assert words[2:6] == ["app", "on", ">password", "~kvpersist:*"]
        with redis.Redis(port=server.port) as client:
            client.execute_command(*words)
            try:
                persister = face.persister(f"redis://app:password@127.0.0.1:{server.port}", namespace=unique(), ttl=100)
                for number, size in enumerate([1, HUGE, 1]):
                    persister.save("p", "a", number, "step", state("x" * size), "failed")
                    persister.save("p", "a", number, "step", state("y" * size), "completed")
                    assert persister.load("p", "a")["state"]["n"] == "y" * size
                assert persister.load("p", "a", 1)["sequence_id"] == 1
                assert persister.list_app_ids("p") == ["a"]
                assert persister.rewind("p", "a", 1) == 1
                assert persister.prune("p", keep_last=1) > 0
                assert persister.delete_app("p", "a") > 0
                assert persister.list_app_ids("p") == []
            finally:
                client.execute_command("ACL", "DELUSER", "app")

    def test_no_limit_is_too_much_for_a_script(self, face: Face, server: Server, prefix: str) -> None:
        store = face.store(f"redis://127.0.0.1:{server.port}", prefix=prefix)
        names = [f"{number:05d}" for number in range(9000)]
        with redis.Redis(port=server.port) as client:
            client.hset(f"{prefix}{{n/p/a/}}values", mapping=dict.fromkeys(names, "x"))
            client.zadd(f"{prefix}{{n/p/a/}}index", dict.fromkeys(names, 0))
        page = store.scan("n/p/a/", limit=100_000, values=True)
        found = page.entries
        while page.after is not None:
            page = store.scan("n/p/a/", limit=100_000, values=True, after=page.after)
            found += page.entries
        assert found == [(f"n/p/a/{name}", b"x") for name in names]
        store.delete([key for key, _ in found])
        assert store.scan().entries == []

    def test_driver_options(self, face: Face, server: Server, prefix: str) -> None:
        url = f"redis://127.0.0.1:{server.port}?client_name=me&prefix={prefix}"
        store = face.store(url, max_connections=3)
        store.put("a", b"x")
        with redis.Redis(port=server.port) as client:
            assert "me" in {each["name"] for each in client.client_list()}
        with pytest.raises(OptionError, match="colour"):
            face.store(f"redis://127.0.0.1:{server.port}", colour="red").get("a")
        with pytest.raises(OptionError, match="braces"):
            face.store(url, prefix="{x}")
        with pytest.raises(OptionError, match="names no service"):
            face.store("redis+sentinel://127.0.0.1:1").get("a")

    def test_tasks_wait_for_a_connection(self, server: Server, prefix: str) -> None:
        face = Face(asynchronous=True)
        name = unique()
        url = f"redis://127.0.0.1:{server.port}?client_name={name}&prefix={prefix}"
        store = face.store(url, max_connections=3, timeout=5)
        store.put("a", b"x")
        assert face.at_once(store, "get", [("a",)] * 200) == [b"x"] * 200
        with redis.Redis(port=server.port) as client:
            assert sum(each["name"] == name for each in client.client_list()) == 3
            client.client_pause(2_000)
            store = face.store(url, max_connections=1, timeout=0.5)
            late = face.at_once(store, "get", [("a",)] * 2)
            assert [type(each) for each in late] == [StoreUnavailableError] * 2
            client.client_unpause()
        assert store.get("a") == b"x"
        face.close()

    def test_a_unix_socket(self, face: Face, prefix: str, tmp_path: Path) -> None:
        path = servers.short_folder() / "socket"
        server = new_redis("--unixsocket", str(path))
        try:
            store = face.store(f"unix://{path}", prefix=prefix)
            assert store.put("a/b", b"x", "create") is True
            assert store.scan().entries == [("a/b", None)]
        finally:
            server.kill()

    def test_a_refused_login_says_so_and_tells_no_password(self, face: Face, prefix: str) -> None:
        server = new_redis("--requirepass", "right")
        try:
            good = face.store(f"redis://:right@127.0.0.1:{server.port}", prefix=prefix)
            assert good.put("a", b"x") is True
            bad = face.store(f"redis://:wr0ng@127.0.0.1:{server.port}", prefix=prefix)
            with pytest.raises(StoreError, match="refuses the login") as caught:
                bad.get("a")
            assert "wr0ng" not in f"{caught.value}{caught.value.__cause__}{bad!r}"
            for malformed in ("redis://:wr0ng/x@host:1", "redis+cluster://u:wr0ng/x@host:1,host:2"):
                with pytest.raises(OptionError) as refused:
                    face.store(malformed)
                assert "wr0ng" not in f"{refused.value}{refused.value.__cause__}"
        finally:
            server.kill()

    def test_a_full_server_says_so(self, face: Face, prefix: str) -> None:
        server = new_redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
        try:
            persister = face.persister(f"redis://127.0.0.1:{server.port}", prefix=prefix, compact_history=False)
            persister.save("p", "a", 0, "step", state(0), "completed")
            with pytest.raises(StoreError, match="maxmemory"):
                _fill(persister)
            assert persister.load("p", "a")["state"]["n"] is not None
        finally:
            server.kill()

    def test_names_that_look_like_commands_are_harmless(self, server: Server) -> None:
        hostile = ["a b\r\nFLUSHALL\r\n:", "*", "'; return redis.call('FLUSHALL')--", "日本", "a\0b"]
        for prefix in hostile:
            with Persister.from_url(f"redis://127.0.0.1:{server.port}", prefix=prefix) as persister:
                persister.save(prefix, prefix, 1, prefix, state(prefix), "completed")
        for prefix in hostile:
            with Persister.from_url(f"redis://127.0.0.1:{server.port}", prefix=prefix) as persister:
                assert persister.load(prefix, prefix)["state"]["n"] == prefix
                assert persister.list_partitions() == [prefix]


def _record(app: str, number: int) -> tuple[Any, ...]:
    return "p", app, number, "step", state(number), "completed"


def _fill(persister: Any) -> None:
    for number in range(1, 20):
        persister.save("p", "a", number, "step", state("x" * 1_000_000), "completed")


def _commands() -> int:
    """How many commands the nodes have run for clients' data."""
    count = 0
    for node in servers.redis_cluster():
        with redis.Redis(port=node.port) as client:
            for name, stats in client.info("commandstats").items():
                if name in {"cmdstat_evalsha", "cmdstat_eval"}:
                    count += stats["calls"]
    return count


def _until_available(operation: Any, *arguments: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return operation(*arguments)
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
