"""The local Minari root: where it is, what is in it, and downloading into it."""

import contextlib
import difflib
import io
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raystitch.errors import UserError
from raystitch.io.files import make_folder, sync, sync_tree

DATASET_ID = re.compile(r"([-_\w]+/)*[-_\w]+")
VERSION = re.compile(r"-v\d+$")
ONLINE_HOST = ("huggingface.co", 443)


def check_dataset_id(dataset_id: str) -> str:
    """Raises:
    UserError: when Minari would not accept the id.
    """
    if not DATASET_ID.fullmatch(dataset_id) or len(dataset_id.rpartition("/")[0]) == 1:
        raise UserError(
            f"{dataset_id!r} is not a Minari dataset id; use letters, digits, - and _ in the form namespace/name-v0"
        )
    return dataset_id


def versioned(dataset_id: str) -> str:
    """The id with ``-v0`` where it has no version: Minari cannot list a root that holds a dataset without one."""
    return dataset_id if VERSION.search(dataset_id) else f"{dataset_id}-v0"


def resolve(dataset_id: str) -> str:
    """A local dataset's id as it is stored: an id without a version means its latest version."""
    if VERSION.search(dataset_id) or dataset_path(dataset_id).is_dir():
        return dataset_id
    found = [local for local in local_ids() if VERSION.sub("", local) == dataset_id]
    return max(found, key=lambda local: int(local.rpartition("-v")[2]), default=dataset_id)


def minari_root() -> Path:
    """``$MINARI_DATASETS_PATH`` or Minari's default; need not exist."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def dataset_path(dataset_id: str) -> Path:
    return minari_root() / dataset_id


def local_ids() -> list[str]:
    """Ids of the datasets in the root, sorted. Minari's own listing fails when one of them has no version."""

    seen: set[Path] = set()  # links may be circular

    def below(folder: Path) -> Iterator[Path]:
        if (folder / "data" / "metadata.json").is_file():
            yield folder
            return
        real = folder.resolve()
        if real in seen:
            return
        seen.add(real)
        for child in sorted(folder.iterdir(), key=Path.is_symlink):  # a folder goes before the links to it
            if child.is_dir() and not child.name.startswith("."):
                yield from below(child)

    root = minari_root()
    return sorted(path.relative_to(root).as_posix() for path in below(root)) if root.is_dir() else []


def nearest(dataset_id: str, ids: list[str]) -> str:
    """Return words that lead a user to the datasets that there are."""
    if not ids:
        return "there is no local dataset (set MINARI_DATASETS_PATH if they are elsewhere)"
    close = difflib.get_close_matches(dataset_id, ids, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"local datasets: {', '.join(ids[:8])}"


def _offline() -> str | None:
    """Return the reason why no download can work, within seconds; Minari's own retries take half a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "MINARI_REMOTE")):
        return None
    try:
        socket.create_connection(ONLINE_HOST, timeout=5).close()
    except OSError as error:
        return f"{ONLINE_HOST[0]} cannot be reached ({error.strerror or error})"
    return None


def download(dataset_id: str) -> str | None:
    """Download a dataset from Minari's server, whole or not at all. Return the reason of a failure, None when it
    worked."""
    root = minari_root()
    reason = _offline()
    if reason is not None:
        return f"not found in {root}, and it cannot be downloaded: {reason}"
    import minari

    before = os.environ.get("MINARI_DATASETS_PATH")
    folder: Path | None = None
    logging.getLogger("minari").setLevel(logging.ERROR)
    try:
        make_folder(root)
        folder = Path(tempfile.mkdtemp(prefix=".raystitch-", dir=root))
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            minari.download_dataset(dataset_id)
        final = root / dataset_id
        make_folder(final.parent)
        sync_tree(folder / dataset_id)
        os.rename(folder / dataset_id, final)
        sync(final.parent)
    except Exception as error:  # the storage backends raise errors of their own libraries
        what = (str(error) or repr(error)).splitlines()[0]
        return f"not found in {root}, and downloading it failed: {what}"
    finally:
        if before is None:
            os.environ.pop("MINARI_DATASETS_PATH", None)
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return None
