"""Reads NumPy's .npz archives from strangers: only arrays of numbers, and nothing is unpickled.

A header of a few bytes can declare terabytes, and an array of Python objects is a pickle: both are refused before
anything is allocated.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystitch.data.checks import MemoryBudget
from raystitch.data.layouts import check_file
from raystitch.errors import UserError

HDF5_MAGIC, ZIP_MAGIC = b"\x89HDF", b"PK"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By the version of the .npy format; version 3 is for structures alone."""


@dataclass(frozen=True, kw_only=True)
class NpzArchive:
    """An open archive.

    Attributes:
        path: the file, for messages. budget: what reading may take.
    """

    archive: zipfile.ZipFile
    path: Path
    budget: MemoryBudget

    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape that an array declares, None when there is no array of that name.

        Raises:
            UserError: when it is no array of numbers, or declares another size than it has.
        """
        header = self._header(name)
        return None if header is None else header[0]

    def numbers(self, name: str) -> NDArray[Any] | None:
        """Return the array of that name in the file's own number type, None when there is none.

        Raises:
            UserError: when it is no array of numbers, declares another size than it has, or does not fit into memory.
        """
        header = self._header(name)
        if header is None:
            return None
        shape, dtype = header
        self.budget.take(math.prod(shape) * dtype.itemsize)
        with self.archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        info = self.archive.NameToInfo.get(f"{name}.npy")
        if info is None:
            return None
        with self.archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in HEADERS:
                raise UserError(f"{self.path}: {name} must be an array of numbers, got version {version} of .npy")
            shape, _, dtype = HEADERS[version](member)
            held = info.file_size - member.tell()
        if dtype.hasobject:
            raise UserError(
                f"{self.path}: {name} must be an array of numbers, but it holds Python objects: a pickle, which can "
                "run any code when it is opened, so raystitch never opens one"
            )
        if dtype.kind not in "bifu" or not shape:
            raise UserError(f"{self.path}: {name} must be an array of numbers, got {dtype} of shape {shape}")
        if math.prod(shape) * dtype.itemsize != held:
            declared = " x ".join(f"{rows:,}" for rows in shape)
            raise UserError(
                f"{self.path}: {name} declares {declared} numbers of {dtype.itemsize} bytes, but holds {held:,} bytes; "
                "it is damaged, or made to fill the memory"
            )
        return shape, dtype


@contextmanager
def open_npz(path: Path) -> Iterator[NpzArchive]:
    """An archive, open for reading.

    Raises:
        UserError: when the file cannot be read as .npz, there or at any point of the ``with`` block.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a .npz file")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    _check_kind(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzArchive(archive=archive, path=path, budget=MemoryBudget(str(path)))
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a .npz file: {reason}; it is damaged or incomplete") from error


def _check_kind(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(ZIP_MAGIC):
            return
        if start.startswith(HDF5_MAGIC):
            raise UserError(f"{path} is an HDF5 file; in the D4RL layout it is d4rl:{path}")
    check_file(path)
    raise UserError(f"{path} is not a .npz file")
