"""Object stores: what kvpersist adds to bare s3fs, and how boto3 and obstore do the same, on SeaweedFS on loopback.

All times are of one machine that runs the server too, so look at the ratios.  The last table puts 20 ms between
client and server, as between two machines of a region.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import s3fs
from burr.core import State
from obstore.store import S3Store

from kvpersist import AsyncPersister, Persister

from .pairs import compare
from .report import heading, number, row
from .subjects import states_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from http_proxy import HTTPProxy
from object_servers import BUCKET, SERVERS, ObjectServer

CALLS, PAIRS = 40, 15


def main() -> None:
    heading("Object stores")
    with SERVERS["seaweedfs"]() as server:
        for name, size in (("1 KB", 1000), ("100 KB", 100_000)):
            compared(server, name, State(states_of(size)[0]))
        with HTTPProxy(server.endpoint).running() as proxy:
            proxy.delay = 0.02
            for what, ratio in asyncio.run(in_flight(server.through(proxy.url), server.url())).items():
                number(
                    "object_stores",
                    f"async {what}, 20 ms away, time",
                    "32 in flight",
                    "one at a time",
                    1 / ratio,
                    1 / 8,
                )


def compared(server: ObjectServer, name: str, state: State[Any]) -> None:
    """Save and load latest, each against the requests that it cannot do without; states are stored whole, as theirs."""
    url = server.url()
    folder = url.partition("://")[2]
    persister = Persister.from_url(url, storage_options=server.storage_options, compact_history=False)
    numbers = count()

    def save() -> None:
        persister.save("p", "a", next(numbers), "step", state, "completed")

    def load() -> Any:
        return persister.load("p", "a")

    save()
    ((key, value),) = _only(server, url)
    filesystem = s3fs.S3FileSystem(**server.storage_options, use_listings_cache=False, skip_instance_cache=True)
    boto = server.boto()
    rust = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id=server.storage_options["key"],
        secret_access_key=server.storage_options["secret"],
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def place(engine: str) -> str:
        return f"{folder}/{engine}/{2**63 - next(numbers)}"

    def in_bucket(path: str) -> str:
        return path.partition("/")[2]

    prefix = in_bucket(f"{folder}/{key.rpartition('/')[0]}/")

    def s3fs_load() -> bytes:
        page = filesystem.call_s3("list_objects_v2", Bucket=BUCKET, Prefix=prefix, MaxKeys=1)
        found: bytes = filesystem.cat_file(f"{BUCKET}/{page['Contents'][0]['Key']}", max_concurrency=1)
        return found

    def boto3_load() -> bytes:
        page = boto.list_objects_v2(Bucket=BUCKET, Prefix=prefix, MaxKeys=1)
        found: bytes = boto.get_object(Bucket=BUCKET, Key=page["Contents"][0]["Key"])["Body"].read()
        return found

    def obstore_load() -> bytes:
        page = next(iter(obstore.list(rust, prefix, chunk_size=1)))
        return bytes(obstore.get(rust, page[0]["path"]).bytes())

    create = "create"
    put = {
        "s3fs pipe_file": lambda: filesystem.pipe_file(place("s3fs"), value, mode=create),
        "boto3 put_object": lambda: boto.put_object(
            Bucket=BUCKET, Key=in_bucket(place("boto")), Body=value, IfNoneMatch="*"
        ),
        "obstore put": lambda: obstore.put(rust, in_bucket(place("obstore")), value, mode=create),
    }
    for what, bare in put.items():
        ratio = compare(save, bare, pairs=PAIRS, calls=CALLS)
        row("object_stores", f"save, {name}", "kvpersist", what, ratio, 1.15 if "s3fs" in what else None)
    get = {"s3fs list + get": s3fs_load, "boto3 list + get": boto3_load, "obstore list + get": obstore_load}
    for what, bare in get.items():
        ratio = compare(load, bare, pairs=PAIRS, calls=CALLS)
        row("object_stores", f"load, {name}", "kvpersist", what, ratio, 1.15 if "s3fs" in what else None)
    ratio = compare(put["s3fs pipe_file"], put["obstore put"], pairs=PAIRS, calls=CALLS)
    row("object_stores", f"put, {name}", "s3fs pipe_file", "obstore put", ratio)
    persister.cleanup()
    filesystem.close_session(filesystem.loop, filesystem._s3creator)  # here, and not in the midst of another loop


def _only(server: ObjectServer, url: str) -> list[tuple[str, bytes]]:
    from kvpersist import Store

    with Store.from_url(url, storage_options=server.storage_options) as store:
        return [(key, value or b"") for key, value in store.scan(values=True).entries]


async def in_flight(storage_options: dict[str, Any], url: str, tasks: int = 32, bursts: int = 9) -> dict[str, float]:
    """How many times faster many saves, and many loads, are at once than one after the other: medians."""
    state = State({"text": "x" * 1000})
    ratios: dict[str, list[float]] = {"save": [], "load": []}
    async with AsyncPersister.from_url(url, storage_options=storage_options) as persister:

        async def save(number: int) -> None:
            await persister.save("p", uuid.uuid4().hex, number, "step", state, "completed")

        async def load(_: int) -> None:
            await persister.load("p", "a")

        await persister.save("p", "a", 1, "step", state, "completed")
        await asyncio.gather(*map(load, range(tasks)))  # opens the connections
        for _ in range(bursts):
            for function in (save, load):
                start = time.perf_counter()
                for number in range(tasks // 4):
                    await function(number)
                middle = time.perf_counter()
                await asyncio.gather(*map(function, range(tasks)))
                ratios[function.__name__].append(4 * (middle - start) / (time.perf_counter() - middle))
    return {name: statistics.median(each) for name, each in ratios.items()}


if __name__ == "__main__":
    main()
