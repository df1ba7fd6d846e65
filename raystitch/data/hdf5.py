"""Reads HDF5 files from strangers: only arrays of numbers, and nothing that lies outside of the file.

HDF5 can make an array's content that of other files: by external storage, a virtual dataset, or a link into another
file. It loads libraries for filters that it does not know, and a few kilobytes can declare terabytes. Every reader of
datasets opens files through ``open_hdf5``, which refuses all of that before an array is touched.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5s, h5t
from numpy.typing import NDArray

from raystitch.data.checks import GIB, MemoryBudget
from raystitch.errors import UserError

# h5py's low-level modules, which have no type stubs.
h5a, h5d, h5g, h5i, h5l, h5o, h5z = (import_module(f"h5py.h5{name}") for name in "adgiloz")
# The filters that h5py itself writes; HDF5 would look for a library to load for any other.
FILTERS = {
    h5z.FILTER_DEFLATE,
    h5z.FILTER_SHUFFLE,
    h5z.FILTER_FLETCHER32,
    h5z.FILTER_SZIP,
    h5z.FILTER_SCALEOFFSET,
    h5z.FILTER_LZF,
}
NUMBERS = {h5t.INTEGER, h5t.FLOAT, h5t.ENUM}  # h5py stores bool as an enumeration
UNQUESTIONED_BYTES = 64 * 2**20
"""Arrays up to this size may hold less than they declare; rows that were never written read as zeros."""
LARGEST_COMPRESSION = 1100
"""No filter of ``FILTERS`` expands a byte into more than this; gzip's limit is 1032."""
SOFT_LINKS = 32
"""Limit on links within a file that are followed to find one array."""


@dataclass(frozen=True, kw_only=True)
class Hdf5Group:
    """A group of an open file.

    Attributes:
        id: h5py's low-level group.
        path: the file, for messages. name: the group's own path in it, empty for the root.
        size: bytes of the file.
        budget: what reading may take.
    """

    id: Any
    path: Path
    name: str
    size: int
    budget: MemoryBudget

    def names(self, most: int = 1000) -> list[str]:
        """Names of the first links, whatever they point to."""
        return [name.decode(errors="replace") for name in islice(iter(self.id), most)]

    def group(self, name: str) -> "Hdf5Group | None":
        """Return the group of that name, None when there is none."""
        found = self._find(name)
        if not isinstance(found, h5g.GroupID):
            return None
        return Hdf5Group(id=found, path=self.path, name=self._full(name), size=self.size, budget=self.budget)

    def numbers(self, name: str) -> NDArray[Any] | None:
        """Return the array of that name in the file's own number type, None when there is none.

        Raises:
            UserError: when it is no array of numbers, its content lies elsewhere, or it declares more than it holds.
        """
        found = self._find(name)
        if found is None:
            return None
        if not isinstance(found, h5d.DatasetID):
            raise UserError(f"{self.path}: {self._full(name)} must be an array of numbers, but it is a group")
        chunk_bytes = self._check_storage(found.get_create_plist(), name)
        stored_type = found.get_type()
        dtype = self._dtype(stored_type, name)
        shape = found.shape
        if not shape:
            raise UserError(f"{self.path}: {self._full(name)} must be an array of numbers, but it is a single value")
        self._check_size(found, shape, dtype, chunk_bytes * dtype.itemsize, name)
        values = np.empty(shape, dtype)
        if values.size:
            found.read(h5s.ALL, h5s.ALL, values)
        return values

    def attribute(self, name: str) -> Any:
        """Return the group's attribute as h5py gives it, None when there is none.

        Raises:
            UserError: when it is larger than any setting could be.
        """
        key = name.encode()
        if not h5a.exists(self.id, key):
            return None
        size = h5a.open(self.id, key).get_storage_size()
        if size > UNQUESTIONED_BYTES:
            raise UserError(f"{self.path}: the attribute {name} declares {size:,} bytes; it is damaged")
        return h5py.Group(self.id).attrs[name]

    def _full(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name

    def _find(self, name: str) -> Any:
        """Return the object behind a name, reached by links within the file alone; None when there is none."""
        return self._walk(self.id, name.encode(), iter(range(SOFT_LINKS)), self._full(name))

    def _walk(self, start: Any, path: bytes, hops: Iterator[int], name: str) -> Any:
        found = start
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            if not isinstance(found, h5g.GroupID):
                return None
            found = self._follow(found, part, hops, name)
        return found

    def _follow(self, group: Any, link: bytes, hops: Iterator[int], name: str) -> Any:
        try:
            kind = group.links.get_info(link).type
        except (KeyError, RuntimeError, OSError):
            if group.links.exists(link):
                raise
            return None
        if kind == h5l.TYPE_HARD:
            return h5o.open(group, link)
        if kind == h5l.TYPE_SOFT:
            if next(hops, None) is None:
                raise UserError(f"{self.path}: {name} is a circular link; write the array itself")
            target = group.links.get_val(link)
            start = h5g.open(h5i.get_file_id(group), b"/") if target.startswith(b"/") else group
            return self._walk(start, target, hops, name)
        what = "an external link" if kind == h5l.TYPE_EXTERNAL else f"a link of the unknown kind {kind}"
        raise self._elsewhere(name, what)

    def _elsewhere(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self.path}: {name} is {what}: its content lies outside the file, and raystitch opens no other file for "
            "a dataset; write the array itself into the file"
        )

    def _check_storage(self, plist: Any, name: str) -> int:
        """Numbers in one compressed chunk, which HDF5 holds in memory as a whole; 0 where nothing is compressed."""
        if plist.get_layout() == h5d.VIRTUAL:
            raise self._elsewhere(self._full(name), "a virtual dataset")
        if plist.get_external_count():
            raise self._elsewhere(self._full(name), "an array with external storage")
        count = plist.get_nfilters()
        for index in range(count):
            code, _, _, label = plist.get_filter(index)
            if code not in FILTERS:
                raise UserError(
                    f"{self.path}: {self._full(name)} is compressed by filter {code} "
                    f"({label.decode(errors='replace')[:40]}), for which no library is loaded; write it with gzip "
                    "(`h5repack -f GZIP=4`)"
                )
        return math.prod(plist.get_chunk()) if count else 0

    def _dtype(self, stored_type: Any, name: str) -> np.dtype[Any]:
        kind, dtype = stored_type.get_class(), None
        if kind in NUMBERS:
            try:
                dtype = stored_type.dtype
            except (TypeError, ValueError):  # a number type that numpy does not have
                dtype = None
        if dtype is None or dtype.kind not in "bifu":
            raise UserError(
                f"{self.path}: {self._full(name)} must be an array of numbers, got HDF5 type "
                f"{KINDS.get(kind, 'number')} of {stored_type.get_size()} bytes"
            )
        return dtype

    def _check_size(
        self, found: Any, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_bytes: int, name: str
    ) -> None:
        declared = math.prod(shape) * dtype.itemsize
        largest = max(declared, chunk_bytes)
        if largest > UNQUESTIONED_BYTES:
            stored = min(found.get_storage_size(), self.size)
            if largest > LARGEST_COMPRESSION * stored:
                raise UserError(
                    f"{self.path}: {self._full(name)} declares {' x '.join(f'{rows:,}' for rows in shape)} numbers "
                    f"({largest / GIB:,.1f} GiB), but the file of {self.size:,} bytes holds {stored:,} bytes of them; "
                    "it is damaged, or made to fill the memory"
                )
        self.budget.take(largest)


KINDS = {
    h5t.STRING: "string",
    h5t.BITFIELD: "bitfield",
    h5t.OPAQUE: "opaque",
    h5t.COMPOUND: "compound",
    h5t.REFERENCE: "reference",
    h5t.VLEN: "variable length",
    h5t.ARRAY: "array",
    h5t.TIME: "time",
}


@contextmanager
def open_hdf5(path: str | os.PathLike[str], where: str | None = None) -> Iterator[Hdf5Group]:
    """The root group of a file, open for reading.

    Args:
        where: the dataset that the file is part of, for messages; default the path alone.

    Raises:
        UserError: when the file cannot be read as HDF5, there or at any point of the ``with`` block.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            size = path.stat().st_size
            budget = MemoryBudget(where or str(path))
            yield Hdf5Group(id=h5g.open(file.id, b"/"), path=path, name="", size=size, budget=budget)
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        what = (
            f"{path} cannot be read as an HDF5 file" if where is None else f"{where} is damaged: {path} cannot be read"
        )
        raise UserError(f"{what}: {reason}") from error
