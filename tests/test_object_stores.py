"""S3 and GCS: the shipped contracts on every server, and what is particular to object stores."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
import requests
from burr.core import State
from http_proxy import HTTPProxy, answer, cut, lose_reply, reset
from object_servers import BUCKET, KEY, SECRET, SERVERS, ObjectServer, free_ports, ftp_server, object_servers

from kvpersist import (
    AsyncPersister,
    ConflictError,
    InvalidKeyError,
    MissingExtraError,
    OptionError,
    Persister,
    StoreError,
    StoreUnavailableError,
)
from kvpersist.errors import AccessDeniedError
from kvpersist.testing import BackendContract, Face, PersisterContract
from kvpersist.testing import backend as contract

__all__ = ["ftp_server", "object_servers"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, object_servers: Callable[[str], ObjectServer]) -> ObjectServer:
    return object_servers(request.param)


def on(*names: str) -> pytest.MarkDecorator:
    """Run on these servers only."""
    return pytest.mark.parametrize("server", names, indirect=True)


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.url()


class OnServers:
    @pytest.fixture
    def options(self, server: ObjectServer) -> dict[str, Any]:
        return {"storage_options": server.storage_options}


SLOW = ("moto", "localstack")
"""Servers in Python, which take a minute for a thousand objects.  SeaweedFS shows the same pages of the same API."""


class RawObjects:
    """A bucket as boto3 or, for Google's, a plain HTTP client sees it."""

    def __init__(self, server: ObjectServer, url: str) -> None:
        self.server = server
        self.bucket, _, self.prefix = url.partition("://")[2].partition("/")

    def read(self, key: str) -> bytes:
        path = f"{self.prefix}/{key}"
        if "gcs" in self.server.name:
            place = f"{self.server.endpoint}/storage/v1/b/{self.bucket}/o/{quote(path, safe='')}"
            return requests.get(place, params={"alt": "media"}, timeout=10).content
        return self.server.boto().get_object(Bucket=self.bucket, Key=path)["Body"].read()

    def write(self, key: str, value: bytes) -> None:
        path = f"{self.prefix}/{key}"
        if "gcs" in self.server.name:
            place = f"{self.server.endpoint}/upload/storage/v1/b/{self.bucket}/o"
            requests.post(
                place, params={"uploadType": "media", "name": path}, data=value, timeout=10
            ).raise_for_status()
        else:
            self.server.boto().put_object(Bucket=self.bucket, Key=path, Body=value)


class TestBackend(OnServers, BackendContract):
    examples = 6  # every operation is a request over HTTP

    @pytest.fixture
    def raw(self, server: ObjectServer, url: str) -> Any:
        return None if server.name.startswith("real-gcs") else RawObjects(server, url)

    @pytest.fixture
    def flat_keys(self, server: ObjectServer) -> bool:
        return server.name != "seaweedfs"

    @pytest.fixture(autouse=True)
    def order_of_folders(self, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """SeaweedFS orders a folder's entries by their names without the slash (``b/c`` before ``b-c/d``), and
        starting after the name of a folder skips what is in it."""
        if server.name == "seaweedfs":
            known = contract.HOSTILE_ORDER
            ordered = [key for key in known if key != "o/b0/d" and not _in_a_folder_that_begins_a_sibling(key, known)]
            assert len(ordered) >= len(known) - 4
            monkeypatch.setattr(contract, "HOSTILE_ORDER", ordered)

    def test_any_sequence_of_operations_agrees_with_a_model(self, store: Any, server: ObjectServer) -> None:
        if server.name in ("moto", "gcs"):  # those that list in order
            super().test_any_sequence_of_operations_agrees_with_a_model(store)

    def test_replace_by_nothing_removes(self, store: Any, face: Face, server: ObjectServer) -> None:
        if server.name != "localstack":
            super().test_replace_by_nothing_removes(store, face)
            return
        # It has no conditional DELETE, so that of several removals at once more than one may say that it was the one.
        store.put("a/k", b"1")
        assert store.replace("a/k", b"0", None) is False
        assert store.replace("a/absent", b"0", None) is False
        assert store.get("a/k") == b"1"
        assert store.replace("a/k", b"1", None) is True
        assert store.get("a/k") is None
        assert store.replace("a/k", b"1", None) is False

    def test_deleting_more_than_a_page(self, store: Any, server: ObjectServer) -> None:
        if server.name not in SLOW:
            super().test_deleting_more_than_a_page(store)

    def test_delete(self, store: Any, server: ObjectServer) -> None:
        if server.name != "seaweedfs":
            super().test_delete(store)
            return
        # It tidies up empty folders only later: until then the child of deleted keys is listed.
        store.put("a/1", b"x")
        store.put("b/1", b"x")
        store.delete(["a/1", "a/absent", "never/there"])
        store.delete([])
        assert [key for key, _ in store.scan().entries] == ["b/1"]
        assert store.put("a/1", b"y", mode="create") is True


def _in_a_folder_that_begins_a_sibling(key: str, keys: list[str]) -> bool:
    folders = [key[:index] for index, letter in enumerate(key) if letter == "/"]
    return any(other.startswith(folder) and "" < other[len(folder) :] < "/" for folder in folders for other in keys)


class TestPersister(OnServers, PersisterContract):
    def test_the_list_of_apps_has_more_than_a_page(
        self, face: Face, url: str, options: dict[str, Any], server: ObjectServer
    ) -> None:
        if server.name not in SLOW:
            super().test_the_list_of_apps_has_more_than_a_page(face, url, options)

    def test_delete_app(self, persister: Any, server: ObjectServer) -> None:
        if server.name != "seaweedfs":
            super().test_delete_app(persister)
            return
        for number in range(3):
            persister.save("p", "a", number, "step", {"n": number}, "completed")
            persister.save("p", "ab", number, "step", {"n": number}, "completed")
        assert persister.delete_app("p", "a") == 3
        assert persister.delete_app("p", "a") == 0
        assert persister.load("p", "a") is None
        assert "ab" in persister.list_app_ids("p")  # and "a", until its empty folder has been tidied up
        assert persister.load("p", "ab")["sequence_id"] == 2


@on("moto", "seaweedfs", "localstack", "gcs")
def test_pages_bring_each_child_once(face: Face, server: ObjectServer, url: str) -> None:
    """Also where a server has an order of its own, wherever a page ends."""
    store = face.store(url, storage_options=server.storage_options)
    children = [f"t/{name}/" for name in ("a", "b", "b!", "b-", "b-0", "b-0-", "b=2f", "b0", "c")]
    for child in children:
        store.put(f"{child}1", b"x")
    for limit in range(1, len(children) + 1):
        found, after = [], None
        while True:
            page = store.scan("t/", after=after, limit=limit, delimiter="/")
            assert len(page.entries) <= limit
            found += [key for key, _ in page.entries]
            after = page.after
            if after is None:
                break
        assert sorted(found) == sorted(children)


# Requests are the bill, so they are counted on the wire


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param == "async")
    yield face
    face.close()


@pytest.fixture
def proxy(server: ObjectServer) -> Iterator[HTTPProxy]:
    with HTTPProxy(server.endpoint).running() as proxy:
        yield proxy


@pytest.fixture
def proxied(server: ObjectServer, proxy: HTTPProxy) -> dict[str, Any]:
    return {"storage_options": server.through(proxy.url)}


@on("moto", "seaweedfs", "localstack", "gcs")
def test_what_each_operation_costs(face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]) -> None:
    persister = face.persister(url, **proxied)
    persister.initialize()
    assert proxy.counted() == ["LIST"]
    for number in range(10):
        persister.save("p", "App", number, "ask", {"n": number}, "completed")
    assert proxy.counted() == ["PUT"] * 10
    assert persister.load("p", "App")["sequence_id"] == 9
    assert _page_sizes(proxy) == ["2"]  # the newest record, and before it whether the app has parts
    assert proxy.counted() == ["LIST", "GET"]
    assert persister.load("p", "App", 4)["state"]["n"] == 4
    assert proxy.counted() == ["LIST", "GET"]
    assert persister.load("p", "nobody") is None
    assert proxy.counted() == ["LIST"]
    assert persister.list_app_ids("p") == ["App"]
    assert proxy.counted() == ["LIST"]
    persister.save("p", "App", 9, "ask", {"n": 9}, "completed")  # the same again
    assert proxy.counted() == ["PUT", "GET"]
    persister.save("p", "App", 10, "ask", {"n": 0}, "failed")
    persister.save("p", "App", 10, "ask", {"n": 1}, "completed")  # gives way: looked at, compared, swapped
    assert proxy.counted() == ["PUT", "PUT", "GET", "GET", "PUT"]
    on_gcs = url.startswith("gs:")
    assert persister.prune("p", "App", keep_last=2) == 9
    # gcsfs knows that emulators have no batches
    assert proxy.counted() == ["LIST", "GET", "GET", "LIST", *(["DELETE"] * 9 if on_gcs else ["POST"])]
    assert persister.delete_app("p", "App") == 2
    assert proxy.counted() == ["LIST", *(["DELETE"] * 2 if on_gcs else ["POST"])]
    overwriting = face.persister(url, on_conflict="overwrite", **proxied)
    overwriting.save("p", "App", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT"]


@on("seaweedfs", "gcs")
def test_ten_thousand_records_and_a_thousand_apps_cost_the_same(
    server: ObjectServer, url: str, proxy: HTTPProxy, proxied: dict[str, Any]
) -> None:
    # Names one of which begins the other sort differently where a folder counts without its slash.
    apps = [f"chat{mark}{number}" for mark in ("", "-", "/") for number in range(350)] + ["chat"]
    with Persister.from_url(f"memory://{uuid.uuid4().hex}") as source:
        records = 10_000 if server.name == "seaweedfs" else 500  # fake-gcs-server lists slowly
        for number in range(records):
            source.save("p", "long", number, "ask", State({"n": number}), "completed")
        for app in apps:
            source.save("p", app, 1, "ask", State({}), "completed")
        space = source._history.backend._space
        asyncio.run(server.fill(url, space.values))
    newest = records - 1
    for face in (Face(asynchronous=False), Face(asynchronous=True)):
        persister = face.persister(url, **proxied)
        assert persister.load("p", "long")["sequence_id"] == newest
        assert _page_sizes(proxy) == ["2"]
        assert proxy.counted() == ["LIST", "GET"]
        assert persister.load("p", "long", 5)["state"]["n"] == 5
        assert proxy.counted() == ["LIST", "GET"]
        newest += 1
        persister.save("p", "long", newest, "ask", {"n": newest}, "completed")
        assert proxy.counted() == ["PUT"]
        assert sorted(persister.list_app_ids("p")) == sorted([*apps, "long"])
        assert proxy.counted() == ["LIST", "LIST"]  # 1,052 apps
        if server.name == "seaweedfs" and face.asynchronous:
            assert persister.prune("p", "long", keep_last=2) == 10_000
            # A page of the kept ones and their states, then a thousand at a time.
            assert proxy.counted() == ["LIST", "GET", "GET", *["LIST", "POST"] * 10]
            assert persister.load("p", "long")["sequence_id"] == newest
        face.close()


@on("gcs")
def test_google_gets_its_deletes_in_batches(face: Face, url: str, proxy: HTTPProxy, server: ObjectServer) -> None:
    # gcsfs takes any address with Google's host name in it for Google's.
    with HTTPProxy(server.endpoint, strip="/storage.googleapis.com").running() as google:
        # Google ends a part at the boundary; fake-gcs-server needs the empty line that ends an HTTP header.
        google.rewrite = lambda body: body.replace(b"content-length: 0\n", b"content-length: 0\n\n")
        persister = face.persister(url, storage_options=server.through(google.url))
        for number in range(150):
            persister.save("p", "a", number, "ask", {"n": number}, "completed")
        google.counted()
        assert persister.delete_app("p", "a") == 150
        assert google.counted() == ["LIST", "POST", "POST"]
        assert persister.load("p", "a") is None


def _page_sizes(proxy: HTTPProxy) -> list[str]:
    sizes = [each.query.get("max-keys") or each.query.get("maxResults") for each in proxy.requests]
    return [size for size in sizes if size]


# Faults


@on("moto", "seaweedfs", "localstack", "gcs")
def test_a_lost_reply_is_no_conflict(face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]) -> None:
    persister = face.persister(url, **proxied)
    persister.save("p", "a", 1, "ask", {"n": 0}, "failed")
    proxy.counted()
    proxy.faults = [lose_reply]
    persister.save("p", "a", 2, "ask", {"n": 2}, "completed")
    assert proxy.counted() == ["PUT", "PUT", "GET"]
    assert persister.load("p", "a")["state"]["n"] == 2
    proxy.counted()
    # The same of the swap that lets a failed record give way.
    proxy.matching = lambda request: "If-Match" in request.headers or request.query.get("ifGenerationMatch", "0") != "0"
    proxy.faults = [lose_reply]
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT", "GET", "GET", "PUT", "PUT", "GET"]
    assert persister.load("p", "a", 1)["state"]["n"] == 1
    with pytest.raises(ConflictError):
        persister.save("p", "a", 1, "ask", {"n": "other"}, "completed")


@on("moto", "gcs")
def test_broken_connections_are_tried_again(face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]) -> None:
    persister = face.persister(url, **proxied)
    proxy.faults = [reset]
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    proxy.faults = [reset]
    assert persister.load("p", "a")["state"]["n"] == 1
    assert proxy.counted() == ["PUT", "PUT", "LIST", "LIST", "GET"]


@on("moto")
def test_a_cut_answer_is_tried_again(face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]) -> None:
    persister = face.persister(url, **proxied)
    persister.save("p", "a", 1, "ask", {"text": "x" * 100_000}, "completed")
    proxy.matching = lambda request: "list-type" not in request.query
    proxy.faults = [cut]
    assert persister.load("p", "a")["state"]["text"] == "x" * 100_000


@on("moto")
def test_throttled_writes_are_tried_again(face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]) -> None:
    persister = face.persister(url, **proxied)
    proxy.faults = [answer(503, "SlowDown"), answer(429, "TooManyRequests")]
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT"] * 3


@on("moto")
def test_tries_come_to_an_end(face: Face, server: ObjectServer, url: str, proxy: HTTPProxy) -> None:
    # botocore's own tries are left out here: s3fs's, with waits of its own, come on top of them.
    options = {**server.through(proxy.url), "config_kwargs": {"retries": {"max_attempts": 0}}}
    persister = face.persister(url, storage_options=options)
    persister.initialize()
    proxy.counted()
    proxy.faults = [answer(503, "SlowDown")] * 100
    with pytest.raises(StoreUnavailableError, match=f"{url}.*SlowDown") as caught:
        persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT"] * 5
    assert caught.value.__cause__ is not None
    _shows_no_secret(caught.value)
    proxy.faults = [reset] * 100
    with pytest.raises(StoreUnavailableError, match=f"{url}.*could not be reached"):
        persister.load("p", "a")
    # aiohttp has one try of its own where a connection that it kept turns out to be broken.
    assert 5 <= len(proxy.counted()) <= 10


@on("gcs")
def test_tries_come_to_an_end_on_gcs(
    face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    persister = face.persister(url, **proxied)
    monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0, raising=False)  # leaves out the waits, not the tries
    proxy.faults = [answer(429), answer(503)]
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT"] * 3
    proxy.faults = [answer(429)] * 100
    with pytest.raises(StoreUnavailableError, match=f"{url}.*429"):
        persister.load("p", "a")
    assert proxy.counted() == ["LIST"] * 6


@on("moto")
def test_a_conditional_write_that_meets_another_is_tried_again(
    face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any]
) -> None:
    persister = face.persister(url, **proxied)
    proxy.faults = [answer(409, "ConditionalRequestConflict")]
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    assert proxy.counted() == ["PUT", "GET", "PUT"]
    assert persister.load("p", "a")["state"]["n"] == 1


@on("moto")
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (answer(403, "AccessDenied"), AccessDeniedError, "access denied .AccessDenied."),
        (answer(403, "InvalidAccessKeyId"), AccessDeniedError, "access denied .InvalidAccessKeyId."),
        (answer(403, "SignatureDoesNotMatch"), AccessDeniedError, "access denied .SignatureDoesNotMatch."),
        (answer(400, "ExpiredToken"), AccessDeniedError, "expired"),
        (answer(400, "AuthorizationHeaderMalformed", Region="eu-north-1"), StoreError, "another region.*eu-north-1"),
        (answer(400, "KeyTooLongError"), StoreError, "refused .KeyTooLongError."),
    ],
)
def test_refusals_have_clear_errors(
    face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any], fault: Any, kind: type[Exception], message: str
) -> None:
    persister = face.persister(url, **proxied)
    persister.initialize()
    calls = [
        lambda: persister.save("p", "a", 1, "ask", {"n": 1}, "completed"),
        lambda: persister.load("p", "a"),
        persister.initialize,
    ]
    for call in calls:
        proxy.faults = [fault] * 3  # botocore asks a bucket for its region before it gives up
        with pytest.raises(kind, match=rf"^{url}: (?s:.*){message}") as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.__cause__ is not None
        _shows_no_secret(caught.value)
        proxy.faults = []
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")


@on("gcs")
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (answer(403, message="tests does not have storage.objects.create"), AccessDeniedError, "does not have storage"),
        (answer(401, message="Expired"), AccessDeniedError, "expired"),
        (answer(400, message="what is that"), StoreError, "what is that"),
    ],
)
def test_refusals_of_google_have_clear_errors(
    face: Face, url: str, proxy: HTTPProxy, proxied: dict[str, Any], fault: Any, kind: type[Exception], message: str
) -> None:
    persister = face.persister(url, **proxied)
    for call in (lambda: persister.save("p", "a", 1, "ask", {}, "completed"), lambda: persister.load("p", "a")):
        proxy.faults = [fault]
        with pytest.raises(kind, match=rf"^{url}: (?s:.*){message}") as caught:
            call()
        assert type(caught.value) is kind


@on("moto", "localstack", "gcs")  # SeaweedFS makes a bucket when it is first written to
def test_no_such_bucket(face: Face, server: ObjectServer) -> None:
    url = f"{server.base.partition(':')[0]}://no-such-bucket-{uuid.uuid4().hex[:8]}/x"
    persister = face.persister(url, storage_options=server.storage_options)
    store = face.store(url, storage_options=server.storage_options)
    calls = [
        persister.initialize,
        lambda: persister.save("p", "a", 1, "ask", {}, "completed"),
        lambda: persister.load("p", "a"),
        lambda: store.get("a"),
        lambda: store.delete(["a"]) if server.name != "gcs" else store.get("a"),  # Google answers 404 for both
    ]
    for call in calls:
        with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket"):
            call()
    made = face.persister(url, storage_options=server.storage_options, create_bucket=True)
    made.save("p", "a", 1, "ask", {}, "completed")
    again = face.persister(f"{url}?create_bucket=yes", storage_options=server.storage_options)
    assert again.load("p", "a")["sequence_id"] == 1


def test_wrong_credentials(face: Face, object_servers: Callable[[str], ObjectServer]) -> None:
    server = object_servers("seaweedfs")  # the one that checks them
    wrong = {**server.storage_options, "secret": "wrong-secret"}
    with pytest.raises(AccessDeniedError, match="SignatureDoesNotMatch") as caught:
        face.persister(server.url(), storage_options=wrong).load("p", "a")
    assert "wrong-secret" not in str(caught.value)
    unknown = {**server.storage_options, "key": "nobody"}
    with pytest.raises(AccessDeniedError):
        face.persister(server.url(), storage_options=unknown).save("p", "a", 1, "ask", {}, "completed")


def test_no_server(face: Face) -> None:
    (port,) = free_ports(1)
    options = {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
    persister = face.persister(
        "s3://bucket/x", storage_options={**options, "config_kwargs": {"retries": {"max_attempts": 0}}}
    )
    with pytest.raises(StoreUnavailableError, match="s3://bucket/x: the store could not be reached") as caught:
        persister.load("p", "a")
    _shows_no_secret(caught.value)


def _shows_no_secret(error: BaseException) -> None:
    assert SECRET not in "".join(traceback.format_exception(error))


# What the bucket holds, seen from outside


@on("moto", "seaweedfs", "localstack")
def test_records_are_objects_that_anyone_can_read(face: Face, server: ObjectServer) -> None:
    url = server.url()
    face.persister(url, storage_options=server.storage_options).save("p", "a", 6, "answer", {"n": 1}, "completed")
    boto, prefix = server.boto(), url.rpartition("/")[2]
    (found,) = boto.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert found["Key"] == f"{prefix}/kvpersist/p/a/9223372036854775801.6.answer"
    header, payload = boto.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read().split(b"\n", 1)
    assert json.loads(header)["app_id"] == "a"
    assert json.loads(payload) == {"n": 1}


@on("moto", "gcs")
def test_what_others_write_is_seen_at_once(face: Face, server: ObjectServer, url: str) -> None:
    one, other = (face.persister(url, storage_options=server.storage_options) for _ in range(2))
    for number in range(3):
        one.save("p", "a", number, "ask", {"n": number}, "completed")
        assert other.load("p", "a")["sequence_id"] == number
        assert other.list_app_ids("p") == ["a"]


@on("moto")
def test_what_s3fs_takes_passes_through(
    face: Face, server: ObjectServer, url: str, proxy: HTTPProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/chats"}
    options = {**server.through(proxy.url), "s3_additional_kwargs": encryption, "requester_pays": True}
    persister = face.persister(url, storage_options=options)
    persister.save("p", "a", 1, "ask", {}, "failed")
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    persister.load("p", "a")
    persister.prune("p", "a", keep_last=1)
    payers = {(each.method, each.headers.get("x-amz-request-payer")) for each in proxy.requests}
    assert payers == {("PUT", "requester"), ("GET", "requester")}
    (found,) = server.boto().list_objects_v2(Bucket=BUCKET, Prefix=url.rpartition("/")[2])["Contents"]
    assert server.boto().head_object(Bucket=BUCKET, Key=found["Key"])["ServerSideEncryption"] == "aws:kms"

    proxy.requests.clear()
    with pytest.raises(AccessDeniedError, match="403"):  # the object is not public
        face.persister(url, storage_options={"anon": True, "endpoint_url": proxy.url}).load("p", "a")
    assert [each.headers.get("Authorization") for each in proxy.requests] == [None, None]

    profile = "[work]\naws_access_key_id = from-the-profile\naws_secret_access_key = x\n"
    (tmp_path / "credentials").write_text(profile)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    proxy.requests.clear()
    face.persister(url, storage_options={"profile": "work"}).load("p", "a")
    assert all("from-the-profile/" in each.headers["Authorization"] for each in proxy.requests)
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
@on("gcs")
def test_what_gcsfs_takes_passes_through(
    scheme: str, face: Face, server: ObjectServer, url: str, proxy: HTTPProxy
) -> None:
    options = {**server.through(proxy.url), "requester_pays": "who-pays"}
    persister = face.persister(url.replace("gs:", f"{scheme}:"), storage_options=options)
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    persister.load("p", "a")
    persister.delete_app("p", "a")
    assert {each.query.get("userProject") for each in proxy.requests} == {"who-pays"}


# Loops, threads, processes


@on("moto", "gcs")
def test_one_persister_on_several_event_loops(server: ObjectServer, url: str, caplog: pytest.LogCaptureFixture) -> None:
    persister = AsyncPersister.from_url(url, storage_options=server.storage_options)

    async def work(number: int) -> Any:
        await persister.save("p", "a", number, "ask", {"n": number}, "completed")
        return (await persister.load("p", "a"))["sequence_id"]

    for number in range(3):
        assert asyncio.run(work(number)) == number
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: asyncio.run(work(number)), range(3, 11)))
    assert max(results) == 10
    gc.collect()  # what a closed loop left behind warns, if at all, now

    async def finish() -> None:
        await persister.load("p", "a")
        await persister.cleanup()

    asyncio.run(finish())
    gc.collect()
    assert caplog.records == []


@on("moto", "gcs")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(server: ObjectServer, url: str) -> None:
    persister = Persister.from_url(url, storage_options=server.storage_options)
    persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_save_in_child, args=(persister, number)) for number in (2, 3)]
    for child in children:
        child.start()
    persister.save("p", "a", 4, "ask", {"n": 4}, "completed")
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert [header.sequence_id for header in persister.history("p", "a")] == [4, 3, 2, 1]
    persister.cleanup()


def _save_in_child(persister: Persister, number: int) -> None:
    persister.save("p", "a", number, "ask", {"n": number}, "completed")
    assert persister.load("p", "a", 1) is not None


def test_the_event_loop_is_not_blocked(object_servers: Callable[[str], ObjectServer]) -> None:
    server = object_servers("moto")
    with HTTPProxy(server.endpoint).running() as proxy:
        proxy.delay = 0.3

        async def work() -> int:
            ticks = 0
            async with AsyncPersister.from_url(server.url(), storage_options=server.through(proxy.url)) as persister:
                await persister.initialize()
                save = asyncio.ensure_future(persister.save("p", "a", 1, "ask", {}, "completed"))
                while not save.done():
                    await asyncio.sleep(0.01)
                    ticks += 1
            assert threading.active_count() <= before + 1  # a thread of the default executor, for the credentials
            return ticks

        before = threading.active_count()
        assert asyncio.run(work()) > 5


# Bad input


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_keys_that_are_too_long_are_refused_before_anything_is_sent(
    scheme: str, face: Face, object_servers: Callable[[str], ObjectServer]
) -> None:
    server = object_servers({"s3": "moto", "gs": "gcs"}[scheme])
    with HTTPProxy(server.endpoint).running() as proxy:
        options = {"storage_options": server.through(proxy.url)}
        url = f"{server.base}/{uuid.uuid4().hex}"
        persister = face.persister(url, **options)
        room = 1024 - len(f"{url.partition(BUCKET)[2][1:]}/kvpersist/p/") - len("/9223372036854775806.1.ask")
        for call in (
            lambda: persister.save("p", "a" * (room + 1), 1, "ask", {}, "completed"),
            lambda: persister.load("p", "a" * (room + 1), 1) or persister.load("p", "a" * 2000, 1),
            lambda: face.store(url, **options).put("k" * 1025, b""),
            lambda: face.store(url, **options).delete(["k" * 1025]),
        ):
            with pytest.raises(InvalidKeyError, match="longer than 1024 bytes"):
                call()
        assert "PUT" not in proxy.counted()
        persister.save("p", "a" * room, 1, "ask", {"n": 1}, "completed")
        assert persister.load("p", "a" * room)["state"] == State({"n": 1})


@on("moto")
@pytest.mark.parametrize("form", ["s3://{}/", "s3a://{}", "s3://{}/x/", "s3://{}/x/y"])
def test_forms_of_a_url(form: str, server: ObjectServer) -> None:
    namespace = uuid.uuid4().hex
    url = form.format(BUCKET)
    with Persister.from_url(url, namespace=namespace, storage_options=server.storage_options) as persister:
        persister.save("p", "a", 1, "ask", {}, "completed")
    folder = url.partition(BUCKET)[2].strip("/")
    prefix = f"{folder}/{namespace}/" if folder else f"{namespace}/"
    assert server.boto().list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 1


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3:///prefix", {}, "names no bucket"),
        ("gs://", {}, "names no bucket"),
        ("s3://bucket//x", {}, "empty part"),
        ("s3://bucket/a*", {}, "expands"),
        ("s3://AKIA:secret@bucket/x", {}, "credentials belong in storage_options"),
        ("s3://bucket", {"storage_options": "key=1"}, "must be a dict"),
        ("s3://bucket", {"storage_option": {}}, "did you mean 'storage_options'"),
        ("s3://bucket", {"endpoint": ""}, "no option 'endpoint'"),
        ("fsspec+nothing://x", {}, "no filesystem for nothing"),
    ],
)
def test_what_means_nothing_is_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Persister.from_url(url, **options)
    assert "secret@" not in str(caught.value)


def test_a_bucket_that_cannot_be(face: Face) -> None:
    persister = face.persister("s3://No_Such Bucket/x", storage_options={"key": KEY, "secret": SECRET})
    with pytest.raises(OptionError, match="Invalid bucket name"):
        persister.load("p", "a")


def test_no_credentials_and_no_profile(face: Face, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(AccessDeniedError, match="no credentials"):
        face.persister("s3://bucket/x").load("p", "a")
    with pytest.raises(OptionError, match="nobody"):
        face.persister("s3://bucket/x", storage_options={"profile": "nobody"}).load("p", "a")


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [("s3://b", "s3fs", "s3"), ("gs://b", "gcsfs.core", "gcs"), ("fsspec+memory://b", "fsspec", "fsspec")],
)
def test_a_missing_extra_is_named(url: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "kvpersist\[{extra}\]"'):
        Persister.from_url(url)


def test_a_missing_filesystem_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"az://.*adlfs"):
        Persister.from_url("az://container/x", on_conflict="overwrite")


def test_secrets_do_not_show(object_servers: Callable[[str], ObjectServer]) -> None:
    server = object_servers("moto")
    persister = Persister.from_url(server.url(), storage_options=server.storage_options)
    assert SECRET not in repr(persister) + repr(persister._history.backend)


# Any other filesystem


@pytest.fixture(params=["memory", "file", "ftp"])
def filesystem_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = uuid.uuid4().hex
    if request.param == "ftp":
        return f"ftp://{request.getfixturevalue('ftp_server')}/{name}"
    return f"fsspec+memory://{name}" if request.param == "memory" else f"fsspec+file://{tmp_path}/{name}"


class TestAnyFilesystem(BackendContract):
    examples = 6

    @pytest.fixture
    def url(self, filesystem_url: str) -> str:
        return filesystem_url

    @pytest.fixture
    def flat_keys(self) -> bool:
        return False


def test_a_filesystem_without_atomic_create_says_so(face: Face, filesystem_url: str) -> None:
    with pytest.raises(OptionError, match="cannot create a record only where there is none") as caught:
        face.persister(filesystem_url)
    assert "tests:tests" not in str(caught.value)
    for mode in ("overwrite", "rewind"):
        persister = face.persister(filesystem_url, on_conflict=mode, namespace=mode)
        for number in (1, 2, 3, 2):
            persister.save("p", "a", number, "ask", {"n": number, "mode": mode}, "completed")
        # The second 2 differs from the first by nothing, so that "rewind" has nothing to set aside but 3.
        assert persister.load("p", "a")["sequence_id"] == (3 if mode == "overwrite" else 2)
        assert persister.list_app_ids("p") == ["a"]
        assert persister.delete_app("p", "a") == 3
        assert persister.list_app_ids("p") == []


# As a user would, in tests of their own


def test_moto_in_the_same_process() -> None:
    from s3_server import s3_server

    with s3_server("my-bucket") as (url, storage_options):
        with Persister.from_url(url, storage_options=storage_options) as persister:
            persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
        client = boto3.client(
            "s3", endpoint_url=storage_options["endpoint_url"], aws_access_key_id="a", aws_secret_access_key="b"
        )
        assert client.list_objects_v2(Bucket="my-bucket")["KeyCount"] == 1
