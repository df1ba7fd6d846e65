"""A small file that several processes change: what is written replaces exactly what was read, or nothing.

On a local disk the file is compared once more just before it is replaced, and the caller holds the folder's lock. On S3
and Google Cloud Storage the store itself compares (``If-Match``, ``If-None-Match``, generations). obstore asks it to,
because pyarrow's file systems know no conditional requests.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from raystitch.errors import UserError
from raystitch.io.files import atomic_path
from raystitch.io.holders import temporary_name

NO_CREDENTIALS = (
    "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a "
    "role"
)
_UNKNOWN = re.compile(r"status code: (501|400)|not (supported|implemented)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A file as it was read, None where there is none; ``version`` is the store's name for this content."""

    content: bytes | None
    version: Any = None


class ReplaceGuard(Protocol):
    """Replaces files under a condition."""

    unguarded: str
    """The reason why nothing is compared, so that the last writer wins; empty where it is."""

    def read(self, name: str) -> Found:
        """The file as it is now."""
        ...

    def replace(self, name: str, found: Found, content: bytes) -> bool:
        """Writes ``content`` if the file is still what was found; False, and nothing is written, if it is not."""
        ...


class _Changed(Exception):
    pass


class LocalGuard:
    """Files in a folder, whose lock the caller holds. Where the lock does not reach, as on a network share that is
    mounted without, what is left is the moment between the comparison and the renaming."""

    unguarded = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> Found:
        try:
            return Found((self._folder / name).read_bytes())
        except FileNotFoundError:
            return Found(None)

    def replace(self, name: str, found: Found, content: bytes) -> bool:
        try:
            with atomic_path(self._folder / name, durable=True) as temporary:
                temporary.write_bytes(content)
                if self.read(name) != found:
                    raise _Changed
        except _Changed:
            return False
        return True


class ObjectGuard:
    """Objects of a bucket below a prefix."""

    unguarded = ""

    def __init__(self, store: Any) -> None:
        """``store``: one of obstore's."""
        self._store = store

    def read(self, name: str) -> Found:
        try:
            with _as_os_error():
                result = self._store.get(name)
                content = bytes(result.bytes())
        except FileNotFoundError:
            return Found(None)
        return Found(content, {key: result.meta[key] for key in ("e_tag", "version") if result.meta.get(key)})

    def replace(self, name: str, found: Found, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode = "create" if found.content is None else found.version
        with _as_os_error():
            try:
                self._store.put(name, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def probe(self) -> str:
        """Return why the store does not compare; empty where it does.

        It is asked for a second creation, and for the replacement of a version that never was, and has to refuse both.
        """
        name = temporary_name("buffer.json")  # removed at once; should that fail, it counts as temporary
        with _as_os_error():
            self._store.put(name, b"1", use_multipart=False)
        try:
            never = Found(b"", {"e_tag": '"0"', "version": "1"})
            for what, found in (("If-None-Match", Found(None)), ("If-Match", never)):
                try:
                    if self.replace(name, found, b"2"):
                        return f"it ignores {what}"
                except OSError as error:
                    if not _UNKNOWN.search(str(error)):
                        raise
                    return f"it does not know {what}"
        finally:
            with _as_os_error():
                self._store.delete(name)
        return ""


class LastWins:
    """Stands in where a store does not compare."""

    def __init__(self, why: str, read: Callable[[str], bytes], write: Callable[[str, bytes], None]) -> None:
        self.unguarded, self._read, self._write = why, read, write

    def read(self, name: str) -> Found:
        try:
            return Found(self._read(name))
        except FileNotFoundError:
            return Found(None)

    def replace(self, name: str, found: Found, content: bytes) -> bool:
        self._write(name, content)
        return True


def object_guard(uri: str, root: str, region: str | None) -> ObjectGuard | None:
    """The guard of a folder on an object store; None for kinds of stores that are not asked to compare.

    Args:
        uri: names the folder, the server and perhaps the credentials. root: bucket and prefix. region: of the bucket.

    Raises:
        UserError: when there are no credentials.
    """
    parts = urlsplit(uri)
    bucket, _, prefix = root.partition("/")
    # The caller retries, since it knows which errors are permanent.
    common: dict[str, Any] = {
        "prefix": prefix or None,
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=60)},
    }
    if parts.scheme == "s3":
        return ObjectGuard(_s3_store(bucket, parts, region, common))
    if parts.scheme in ("gs", "gcs"):
        from obstore.store import GCSStore

        return ObjectGuard(GCSStore(bucket, **common))
    return None


def _s3_store(bucket: str, parts: SplitResult, region: str | None, common: dict[str, Any]) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    query = parse_qs(parts.query)
    if endpoint := query.get("endpoint_override", [""])[0]:
        scheme = query.get("scheme", ["https"])[0]
        common["endpoint"], common["client_options"] = f"{scheme}://{endpoint}", {"allow_http": scheme == "http"}
    if region:
        common["region"] = region
    if parts.username and parts.password:
        common |= {"access_key_id": unquote(parts.username), "secret_access_key": unquote(parts.password)}
        return S3Store(bucket, **common)
    try:
        return S3Store(bucket, **common, credential_provider=Boto3CredentialProvider())
    except ValueError as error:  # boto3 found none
        raise UserError(f"s3://{bucket}: {NO_CREDENTIALS}") from error


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raises what obstore raises as pyarrow's file systems would."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise OSError(_short(error)) from error
        raise
    except BaseError as error:
        raise OSError(_short(error)) from error


def _short(error: BaseException) -> str:
    """Return the text without the server's document, of which code and message stay."""
    text = str(error).split("Debug source:")[0]
    said = re.findall(r"<(?:Code|Message)>(.*?)</", text, re.DOTALL)
    return " ".join(": ".join([text.split("<?xml")[0].strip().rstrip(":"), *said]).split())
