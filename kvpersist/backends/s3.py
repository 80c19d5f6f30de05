"""``s3://bucket/prefix``: an object a key, in S3 or a store that speaks its protocol, through s3fs.

A save is one PUT with ``If-None-Match: *``, so that of two writers exactly one wins.  A page is one LIST that
starts where it is needed and brings as many keys as are needed; nothing is cached, and nothing is asked twice
(no HEAD).  Throttled requests and broken connections are tried again by botocore and s3fs.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..errors import (
    AccessDeniedError,
    InvalidKeyError,
    KvpersistError,
    MissingExtraError,
    OptionError,
    StoreError,
    StoreUnavailableError,
)
from ..urls import redacted
from . import PAGE, Mode
from .fsspec import Client, FsspecBackend

MAX_KEY = 1024
"""The longest key that S3 and GCS hold, in bytes, with the prefix."""

# What S3 and its kin answer to a conditional write that came second, and to one that met another under way.
_LOST = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"}
_ELSEWHERE = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_BUSY = {"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling", "RequestLimitExceeded"}


class BucketBackend(FsspecBackend):
    """What S3 and GCS have in common: a bucket, flat keys of a limited length, an atomic create.

    Args:
        url: ``SCHEME://bucket`` or ``SCHEME://bucket/prefix``.
        storage_options: what the filesystem takes.
        create_bucket: make the bucket where there is none.
    """

    atomic_create = True

    def __init__(
        self,
        url: str,
        *,
        asynchronous: bool = False,
        storage_options: dict[str, Any] | None = None,
        create_bucket: bool = False,
    ) -> None:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise OptionError(
                f"{redacted(url)}: credentials belong in storage_options or the environment, not in the URL"
            )
        super().__init__(url, asynchronous=asynchronous, storage_options=storage_options, create_bucket=create_bucket)
        # An access point's ARN has a slash of its own: arn:aws:s3:eu-west-1:123456789012:accesspoint/name
        parts = re.fullmatch(r"(arn:[^/]*:accesspoint/[^/]+|[^/]+)(?:/(.*))?", self.root)
        if parts is None:
            raise OptionError(f"{redacted(url)} names no bucket; write {url.partition(':')[0]}://bucket/prefix")
        self.bucket = parts[1]
        self._prefix = f"{parts[2]}/" if parts[2] else ""
        self._create_bucket = create_bucket

    def _path(self, key: str) -> str:
        if len(self._prefix.encode()) + len(key.encode()) > MAX_KEY:
            raise InvalidKeyError(
                f"{self._prefix}{key}: this key is longer than {MAX_KEY} bytes, the most that a bucket holds; "
                "use shorter ids, a shorter prefix, or another store"
            )
        return self._prefix + key

    async def _prepare(self, client: Client) -> None:
        await super()._prepare(client)
        if self._create_bucket:
            await self._make_bucket(client)

    async def _make_bucket(self, client: Client) -> None:
        raise NotImplementedError

    async def _open(self, client: Client) -> None:
        await self._list(client, "", None, 1, None)  # shows what is wrong with the bucket or the credentials


class S3Backend(BucketBackend):
    """A prefix in a bucket of S3.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        storage_options: what `s3fs.S3FileSystem` takes, such as ``key``, ``secret``, ``token``, ``profile``, ``anon``,
            ``endpoint_url``, ``client_kwargs={"region_name": ...}``, ``s3_additional_kwargs`` (encryption)
            and ``requester_pays``.  What is missing comes from the usual environment and files of AWS.
        create_bucket: make the bucket where there is none.
    """

    extra: ClassVar[str] = "s3"

    def _filesystem_class(self) -> Any:
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise MissingExtraError(f'S3 needs s3fs: pip install "kvpersist[s3]" ({error})') from error
        return S3FileSystem

    def _make(self) -> Any:
        # botocore's pool of 10 connections would make the 11th request in flight wait.
        config = {"max_pool_connections": 64, **(self._settings.get("config_kwargs") or {})}
        # With one connection an object s3fs need not ask for its size before it reads it.
        settings = {**self._settings, "config_kwargs": config, "use_listings_cache": False, "max_concurrency": 1}
        return self._kind(asynchronous=self.asynchronous, skip_instance_cache=True, **settings)

    async def _prepare(self, client: Client) -> None:
        from botocore.handlers import set_list_objects_encoding_type_url

        session = await client.filesystem.set_session()
        # Our keys need no encoding in a listing, and LocalStack compares an encoded key with a StartAfter
        # that is not, so that its pages would never end.
        session.meta.events.unregister("before-parameter-build.s3.ListObjectsV2", set_list_objects_encoding_type_url)
        await super()._prepare(client)

    async def _finish(self, filesystem: Any) -> None:
        session = await filesystem.set_session()
        await session.close()

    async def _request(self, client: Client, operation: str, **parameters: Any) -> Any:
        filesystem = client.filesystem
        return await filesystem._call_s3(operation, filesystem.req_kw, Bucket=self.bucket, **parameters)

    async def _make_bucket(self, client: Client) -> None:
        session = await client.filesystem.set_session()
        region = session.meta.region_name
        where = {} if region in (None, "us-east-1", "aws-global") else {"LocationConstraint": region}
        try:
            await self._request(client, "create_bucket", **({"CreateBucketConfiguration": where} if where else {}))
        except Exception as error:
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    async def _read(self, client: Client, path: str) -> bytes | None:
        try:
            value: bytes = await client.filesystem._cat_file(f"{self.bucket}/{path}")
        except FileNotFoundError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None
            raise
        return value

    async def _write(self, client: Client, path: str, value: bytes, mode: Mode) -> bool:
        return await self._put(client, path, value, **({"IfNoneMatch": "*"} if mode == "create" else {}))

    async def _replace(self, client: Client, path: str, old: bytes, new: bytes | None) -> bool:
        try:
            found = await self._request(client, "get_object", Key=path)
        except FileNotFoundError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return False
            raise
        async with found["Body"] as body:
            if await body.read() != old:
                return False
        if new is None:
            return await self._remove(client, path, found["ETag"])
        return await self._put(client, path, new, IfMatch=found["ETag"])

    async def _remove(self, client: Client, path: str, etag: str) -> bool:
        try:
            await self._request(client, "delete_object", Key=path, IfMatch=etag)
        except Exception as error:
            code = _code(error)
            if code in _LOST or code in ("NoSuchKey", "404"):
                return False
            if code != "NotImplemented":
                raise
            # AWS knows this condition since 2025 and LocalStack does not.  The value was the old one a moment ago.
            await self._delete(client, [path])
        return True

    async def _put(self, client: Client, path: str, value: bytes, **condition: str) -> bool:
        try:
            await self._request(client, "put_object", Key=path, Body=value, **condition)
        except Exception as error:
            code = _code(error)
            if condition and (code in _LOST or (code in ("NoSuchKey", "404") and "IfMatch" in condition)):
                return False
            raise
        return True

    async def _list(
        self, client: Client, prefix: str, after: str | None, limit: int, delimiter: str | None
    ) -> tuple[list[str], str | None]:
        parameters: dict[str, Any] = {"Prefix": self._prefix + prefix, "MaxKeys": min(limit, PAGE)}
        if delimiter:
            parameters["Delimiter"] = delimiter
        if after is not None:
            # A child that was rolled up ends in a slash; "~" sorts behind all that our keys go on with.
            parameters["StartAfter"] = self._prefix + (f"{after}~" if after.endswith("/") else after)
        while True:
            page = await self._request(client, "list_objects_v2", **parameters)
            own = len(self._prefix)
            keys = [each["Key"][own:] for each in page.get("Contents", ())]
            children = [each["Prefix"][own:] for each in page.get("CommonPrefixes", ())]
            found = sorted(key for key in keys + children if key != after)
            if found or not page.get("IsTruncated"):
                # The server's own last, not ours: SeaweedFS orders folders without their slash.
                last = max(each[-1] for each in (keys, children) if each) if found else None
                return found, last if page.get("IsTruncated") else None
            parameters["ContinuationToken"] = page["NextContinuationToken"]

    async def _delete(self, client: Client, paths: list[str]) -> None:
        for start in range(0, len(paths), 1000):
            objects = [{"Key": path} for path in paths[start : start + 1000]]
            done = await self._request(client, "delete_objects", Delete={"Objects": objects, "Quiet": True})
            for failed in done.get("Errors", ()):
                message = f"{redacted(self.url)}: {failed['Key']} was not deleted: {failed.get('Message')}"
                denied = failed.get("Code") in _DENIED
                raise (AccessDeniedError if denied else StoreError)(message)

    def _translated(self, error: Exception) -> KvpersistError:
        from botocore import exceptions as boto

        where, code, what = redacted(self.url), _code(error), redacted(str(error)) or type(error).__name__
        if code == "NoSuchBucket":
            return StoreError(f"{where}: there is no bucket {self.bucket!r}; make it, or say create_bucket=True")
        if code in _EXPIRED:
            return AccessDeniedError(f"{where}: the credentials have expired or are not valid ({code}): {what}")
        if code in _DENIED:
            return AccessDeniedError(f"{where}: access denied ({code}): {what}")
        if code in _ELSEWHERE:
            return StoreError(
                f"{where}: the bucket is in another region than the one that was asked ({code}): {what}; "
                f'say storage_options={{"client_kwargs": {{"region_name": {_region(error)!r}}}}}'
            )
        if code in _BUSY or code[:1] == "5" or code in ("429", "TooManyRequests"):
            return StoreUnavailableError(f"{where}: the store is too busy, also after retries ({code}): {what}")
        if code:
            return StoreError(f"{where}: refused ({code}): {what}")
        if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
            return AccessDeniedError(f"{where}: no credentials: {what}")
        if isinstance(error, (boto.ProfileNotFound, boto.ParamValidationError, boto.NoRegionError, ValueError)):
            return OptionError(f"{where}: {what}")
        if isinstance(error, (boto.HTTPClientError, boto.ConnectionError)):
            return StoreUnavailableError(f"{where}: the store could not be reached, also after retries: {what}")
        return super()._translated(error)


def _answer(error: BaseException | None) -> dict[str, Any]:
    """What S3 said, where an exception of s3fs or botocore stands for an answer of S3's."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _region(error: BaseException) -> str:
    answer = _answer(error)
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "...")
