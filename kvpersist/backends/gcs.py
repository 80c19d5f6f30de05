"""``gs://bucket/prefix``: an object a key, in Google Cloud Storage, through gcsfs and its JSON API.

A save is one upload with ``ifGenerationMatch=0``, so that of two writers exactly one wins.  A page is one LIST that
starts where it is needed; nothing is cached.  Throttled requests and broken connections are tried again by gcsfs.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from ..errors import (
    AccessDeniedError,
    KvpersistError,
    MissingExtraError,
    OptionError,
    StoreError,
    StoreUnavailableError,
)
from ..keys import scan_range
from ..urls import redacted
from . import PAGE, Mode
from .fsspec import Client
from .s3 import BucketBackend


class GCSBackend(BucketBackend):
    """A prefix in a bucket of Google Cloud Storage.

    Args:
        url: ``gs://bucket`` or ``gs://bucket/prefix``.
        storage_options: what `gcsfs.GCSFileSystem` takes, such as ``project``, ``token``, ``endpoint_url`` and
            ``requester_pays``.  What is missing comes from Google's application default credentials.
        create_bucket: make the bucket where there is none; needs ``project``.
    """

    extra: ClassVar[str] = "gcs"

    def _filesystem_class(self) -> Any:
        try:
            # The class of the JSON API itself: what the package exports asks by gRPC for the kind of the
            # bucket before it uploads, which is one more request and stalls on an emulator.
            from gcsfs.core import GCSFileSystem
        except ImportError as error:
            raise MissingExtraError(f'GCS needs gcsfs: pip install "kvpersist[gcs]" ({error})') from error
        return GCSFileSystem

    def _make(self) -> Any:
        settings = {**self._settings, "use_listings_cache": False}
        return self._kind(asynchronous=self.asynchronous, skip_instance_cache=True, **settings)

    async def _finish(self, filesystem: Any) -> None:
        session = await filesystem._set_session()
        await session.close()

    async def _make_bucket(self, client: Client) -> None:
        try:
            await client.filesystem._mkdir(self.bucket)
        except Exception as error:
            if getattr(error, "code", None) != 409:
                raise

    async def _read(self, client: Client, path: str) -> bytes | None:
        return (await self._read_generation(client, path))[0]

    async def _read_generation(self, client: Client, path: str) -> tuple[bytes | None, str]:
        filesystem = client.filesystem
        try:
            headers, value = await filesystem._call("GET", filesystem.url(f"{self.bucket}/{path}"))
        except FileNotFoundError:
            # gcsfs says the same of a key and of a bucket that do not exist; a listing tells them apart.
            await self._open(client)
            return None, ""
        return value, headers["X-Goog-Generation"]

    async def _write(self, client: Client, path: str, value: bytes, mode: Mode) -> bool:
        return await self._put(client, path, value, "0" if mode == "create" else None)

    async def _replace(self, client: Client, path: str, old: bytes, new: bytes | None) -> bool:
        value, generation = await self._read_generation(client, path)
        if value != old:
            return False
        if new is None:
            return await self._remove(client, path, generation)
        return await self._put(client, path, new, generation)

    async def _remove(self, client: Client, path: str, generation: str) -> bool:
        try:
            await client.filesystem._call("DELETE", "b/{}/o/{}", self.bucket, path, ifGenerationMatch=generation)
        except (FileNotFoundError, FileExistsError):  # gone, or a failed precondition by gcsfs's lights
            return False
        return True

    async def _put(self, client: Client, path: str, value: bytes, generation: str | None) -> bool:
        """Upload where the object's generation is the one given, 0 for an object that does not exist."""
        from gcsfs.core import UnclosableBytesIO

        filesystem = client.filesystem
        boundary = b"==kvpersist=="
        while boundary in value:
            boundary += b"="
        body = b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n--%b\r\n" % (
            boundary,
            json.dumps({"name": path}).encode(),
            boundary,
        ) + b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--%b--" % (value, boundary)
        try:
            await filesystem._call(
                "POST",
                f"{filesystem._location}/upload/storage/v1/b/{self.bucket}/o",
                uploadType="multipart",
                ifGenerationMatch=generation,
                headers={"Content-Type": f'multipart/related; boundary="{boundary.decode()}"'},
                data=UnclosableBytesIO(body),  # so that gcsfs can send it again
            )
        except FileExistsError:  # a failed precondition, by gcsfs's lights
            return False
        return True

    async def _list(
        self, client: Client, prefix: str, after: str | None, limit: int, delimiter: str | None
    ) -> tuple[list[str], str | None]:
        start, _ = scan_range(prefix, after, children=delimiter is not None)
        limit = min(limit, PAGE)
        parameters: dict[str, Any] = {
            "prefix": self._prefix + prefix or None,
            "startOffset": self._prefix + start if after is not None else None,
            "delimiter": delimiter,
            "maxResults": limit,
            "fields": "items/name,prefixes,nextPageToken",
        }
        own = len(self._prefix)
        while True:
            page = await client.filesystem._call("GET", "b/{}/o", self.bucket, json_out=True, **parameters)
            found = sorted(
                [each["name"][own:] for each in page.get("items", ())]
                + [each[own:] for each in page.get("prefixes", ())]
            )
            token = page.get("nextPageToken")
            if found or not token:
                more = token or len(found) > limit
                found = found[:limit]
                return found, found[-1] if more else None
            parameters["pageToken"] = token

    async def _delete(self, client: Client, paths: list[str]) -> None:
        try:
            # In batches of the hundred that Google allows; gcsfs deletes one by one on an emulator.
            await client.filesystem._rm([f"{self.bucket}/{path}" for path in paths], batchsize=100)
        except FileNotFoundError:
            return

    def _translated(self, error: Exception) -> KvpersistError:
        import aiohttp
        import requests
        from google.auth import exceptions as auth

        where, what = redacted(self.url), redacted(str(error)) or type(error).__name__
        code = getattr(error, "code", None)
        if isinstance(error, FileNotFoundError):
            return StoreError(f"{where}: there is no bucket {self.bucket!r}; make it, or say create_bucket=True")
        if isinstance(error, auth.RefreshError) or code == 401:
            return AccessDeniedError(f"{where}: the credentials have expired or are not valid: {what}")
        if isinstance(error, auth.GoogleAuthError):
            return AccessDeniedError(f"{where}: no credentials: {what}")
        if what.startswith("Forbidden"):
            return AccessDeniedError(f"{where}: access denied: {what}")
        if code in (408, 429) or (isinstance(code, int) and code >= 500):
            return StoreUnavailableError(f"{where}: the store is too busy, also after retries ({code}): {what}")
        if isinstance(error, (aiohttp.ClientError, requests.exceptions.RequestException)):
            return StoreUnavailableError(f"{where}: the store could not be reached, also after retries: {what}")
        if isinstance(error, ValueError):
            return OptionError(f"{where}: {what}")
        return super()._translated(error)
