"""Reads the stored episodes of a Minari dataset in its three formats (HDF5, Arrow, Parquet), as arrays of numbers.

The files may be a stranger's. Nothing outside of the dataset's folder is read, whatever links lie in it; recorded
``infos`` and images are left alone.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
from numpy.typing import NDArray

from raystitch.data.checks import MemoryBudget
from raystitch.data.hdf5 import open_hdf5
from raystitch.errors import UserError

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
MAIN_FILE = "main_data.hdf5"
FORMATS = ("hdf5", "arrow", "parquet")
METADATA_BYTES = 64 * 2**20
LFS_POINTER = b"version https://git-lfs"


class StoredEpisode(Protocol):
    """One episode: ``numbers("observations")``, or ``numbers("observations/KEY")`` of a Dict; None where missing."""

    def numbers(self, name: str) -> NDArray[Any] | None: ...


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """The folder of one dataset.

    Attributes:
        path: its ``data`` folder.
        where: the dataset, for messages.
        remedy: how to get files that are missing or damaged.
    """

    path: Path
    where: str
    remedy: str

    def file(self, name: str) -> Path:
        """Return a regular file of the folder.

        The folder itself may be reached through a link; a file in it may not lead out of it.

        Raises:
            UserError: when it is missing, no regular file, or lies elsewhere.
        """
        path = self.path / name
        self._check_inside(path)
        if not path.is_file():
            raise UserError(f"{self.where}: {name} is missing in {self.path} ({self.remedy})")
        return path

    def parts(self, name: str) -> list[Path]:
        """The data files of one episode's folder, by name."""
        folder = self.path / name
        self._check_inside(folder)
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        names = [path.name for path in found if path.name != "metadata.json" and path.name[0] not in "._"]
        return [self.file(f"{name}/{part}") for part in names]

    def _check_inside(self, path: Path) -> None:
        real, home = path.resolve(), self.path.parent.resolve()
        if not real.is_relative_to(home):
            raise UserError(
                f"{self.where}: {path.relative_to(self.path.parent)} is a link out of the dataset's folder; put the "
                "file itself there, or link the whole folder"
            )


def read_metadata(folder: DatasetFolder) -> dict[str, Any]:
    """``metadata.json`` of a dataset.

    Raises:
        UserError: when it is missing or damaged, or the dataset is of a Minari that raystitch does not read.
    """
    if not (folder.path / "metadata.json").exists() and _is_old(folder):
        raise UserError(
            f"{folder.where} was written by Minari 0.4 or older, whose metadata lie inside {MAIN_FILE}; download it "
            "again under its current id (`minari list remote`), or rewrite it with Minari 0.5"
        )
    path = folder.file("metadata.json")
    try:
        if path.stat().st_size > METADATA_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(metadata, dict) or not isinstance(metadata.get("total_episodes"), int):
            raise ValueError("it does not say total_episodes")
    except (OSError, ValueError, RecursionError) as error:
        reason = "is a Git LFS pointer" if _is_pointer(path) else f"is damaged: {error}"
        raise UserError(f"{folder.where}: metadata.json in {folder.path} {reason} ({folder.remedy})") from error
    metadata.setdefault("data_format", "hdf5")
    if metadata["data_format"] not in FORMATS:
        raise UserError(
            f"{folder.where} is stored as {str(metadata['data_format'])[:40]!r} by Minari "
            f"{str(metadata.get('minari_version', '(unknown)'))[:20]}; raystitch reads {', '.join(FORMATS)}"
        )
    return metadata


def _is_old(folder: DatasetFolder) -> bool:
    """Return True if the metadata are attributes of the data file, as before Minari 0.5."""
    try:
        with open_hdf5(folder.file(MAIN_FILE)) as root:
            return root.attribute("total_episodes") is not None
    except UserError:
        return False


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def stored_episodes(
    folder: DatasetFolder, metadata: Mapping[str, Any], indices: Iterable[int]
) -> Iterator[StoredEpisode]:
    """The episodes of those numbers, in that order.

    Raises:
        UserError: for an episode that is missing, and for files that are damaged or unsafe to read.
    """
    if metadata["data_format"] == "hdf5":
        return _hdf5_episodes(folder, indices)
    return _arrow_episodes(folder, metadata["data_format"], indices)


def _missing(folder: DatasetFolder, index: int) -> UserError:
    return UserError(f"{folder.where}: episode {index} is missing in {folder.path} ({folder.remedy})")


def _hdf5_episodes(folder: DatasetFolder, indices: Iterable[int]) -> Iterator[StoredEpisode]:
    path = folder.file(MAIN_FILE)
    if not h5py.is_hdf5(path):
        what = "is a Git LFS pointer, not the data" if _is_pointer(path) else "is damaged: it is no HDF5 file"
        raise UserError(f"{folder.where}: {path} {what} ({folder.remedy})")
    with open_hdf5(path, folder.where) as root:
        for index in indices:
            episode = root.group(f"episode_{index}")
            if episode is None:
                raise _missing(folder, index)
            yield episode


@dataclass(frozen=True)
class ArrowEpisode:
    """One episode's table. Rows are states: the last row's action and reward are padding, if there is one more state
    than steps."""

    table: Any
    path: Path
    num_steps: int

    def numbers(self, name: str) -> NDArray[Any] | None:
        column, _, key = name.partition("/")
        if column not in self.table.column_names:
            return None
        values = self.table[column]
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        if key:
            names = [field.name for field in values.type] if _is_struct(values.type) else []
            if key not in names:
                return None
            values = values.field(names.index(key))
        array = self._array(values, name)
        return array if column == "observations" else array[: self.num_steps]

    def _array(self, values: Any, name: str) -> NDArray[Any]:
        import pyarrow as pa

        rows, width = len(values), None
        if pa.types.is_fixed_size_list(values.type):
            width = values.type.list_size
            values = values.flatten()
        kind = values.type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not numeric or values.null_count or (width is not None and len(values) != rows * width):
            raise UserError(
                f"{self.path}: {name} must be an array of numbers without gaps, got {str(kind)[:80]} with "
                f"{values.null_count} gaps"
            )
        array = values.to_numpy(zero_copy_only=False)
        return array if width is None else array.reshape(rows, width)


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _arrow_episodes(folder: DatasetFolder, data_format: str, indices: Iterable[int]) -> Iterator[StoredEpisode]:
    read = {"arrow": _read_ipc, "parquet": _read_parquet}[data_format]
    budget = MemoryBudget(folder.where)
    for index in indices:
        parts = folder.parts(str(index))
        if not parts:
            raise _missing(folder, index)
        if len(parts) > 1:
            raise UserError(
                f"{folder.where}: episode {index} lies in {len(parts)} files, {parts[0].name} and others; write the "
                "dataset with a Minari version that writes one file each"
            )
        with _decoding(parts[0]):
            table = read(parts[0], budget)
            table.validate(full=True)
        yield ArrowEpisode(table, parts[0], _num_steps(folder, index, table.num_rows))


def _num_steps(folder: DatasetFolder, index: int, num_rows: int) -> int:
    """Return the steps of an episode with that many rows: one fewer, unless its own metadata say that no state follows
    the last."""
    name = f"{index}/metadata.json"
    if not (folder.path / name).exists():
        return num_rows - 1
    path = folder.file(name)
    try:
        told = json.loads(path.read_text(encoding="utf-8")).get("total_steps")
    except (OSError, ValueError, AttributeError, RecursionError):
        told = None
    return num_rows if told == num_rows else num_rows - 1


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn pyarrow's messages about damaged files into one line."""
    import pyarrow as pa

    from raystitch.data.arrow import UnsafeArrow

    why = {
        "extension": "has an extension type, which third-party code would decode",
        "compressed": "is compressed with Arrow's buffer compression",
        "batches": "has too many record batches",
    }
    try:
        yield
    except UserError:
        raise
    except UnsafeArrow as error:
        raise UserError(f"{path} {why[error.reason]}; write it plainly, with Minari's own writer") from error
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError, OverflowError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged and cannot be read: {reason[:200]}") from error


def _read_ipc(path: Path, budget: MemoryBudget) -> Any:
    import pyarrow as pa

    from raystitch.data.arrow import check_messages

    budget.take(path.stat().st_size)
    body = pa.py_buffer(path.read_bytes())
    if len(body) < len(MAGIC) or body[: len(MAGIC)].to_pybytes() != MAGIC:
        raise pa.ArrowInvalid("it is no Arrow file")
    # Read the file as the stream that was checked. Its footer, which may point anywhere, is not used.
    stream = body.slice(len(MAGIC))
    check_messages(stream)
    with pa.ipc.open_stream(stream) as reader:
        names = [name for name in COLUMNS if name in reader.schema.names]
        return reader.read_all().select(names)


def _read_parquet(path: Path, budget: MemoryBudget) -> Any:
    import pyarrow.parquet as pq

    from raystitch.data.arrow import check_parquet

    check_parquet(path)
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        budget.take(sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)))
        names = {metadata.schema.column(index).path.split(".")[0] for index in range(metadata.num_columns)}
        table = file.read([name for name in COLUMNS if name in names])
    budget.take(table.nbytes)
    return table


MAGIC = b"ARROW1\0\0"
