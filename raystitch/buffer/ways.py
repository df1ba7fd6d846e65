"""``ways.arrow``: how the stitched episodes of a finished buffer go on, where pairs are split by value.

A bridge names the trajectory that was best from the state it enters when it was made. Later rounds often find a better
one, so at the end of a generation this file says for every accepted bridge which one is next on the best trajectory
known then. It is a function of the shards, and lets all of them be used at their best without making any again.

Legend: B accepted bridges.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raystitch.data.episodes import Ints
from raystitch.errors import DamagedError

if TYPE_CHECKING:
    from raystitch.io.storage import Storage

WAYS_FILE = "ways.arrow"
_DIGEST = b"sha256"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ways:
    """How stitched episodes go on.

    Attributes:
        row: int64 [B], ascending, of the accepted bridges among the buffer's candidates.
        next_row: int64 [B], row of the bridge that is next after the state entered; -1 for none.
        last_episode: int64 [B], number of the real episode with which the stitched one ends.
    """

    row: Ints
    next_row: Ints
    last_episode: Ints

    def write(self, storage: "Storage") -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: when it cannot be written.
        """
        import pyarrow as pa  # policies are trained where it is not installed

        columns = {name: pa.array(getattr(self, name)) for name in self.__dataclass_fields__}
        table = pa.table(columns).replace_schema_metadata({_DIGEST: self._digest})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        storage.write(WAYS_FILE, sink.getvalue(), durable=True)

    @classmethod
    def read(cls, storage: "Storage") -> "Ways | None":
        """Return what the file says; None where there is none.

        Raises:
            DamagedError: when it is not what was written.
        """
        import pyarrow as pa

        try:
            data = storage.read_whole(WAYS_FILE)
        except FileNotFoundError:
            return None
        where, remedy = storage.where(WAYS_FILE), "run `raystitch augment` again to write it anew"
        try:
            table = pa.ipc.open_file(data).read_all()
            found = cls(**{name: table[name].to_numpy() for name in cls.__dataclass_fields__})
            sound = (table.schema.metadata or {}).get(_DIGEST) == found._digest
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise DamagedError(f"{where} is damaged ({error}); {remedy}") from error
        if not sound:
            raise DamagedError(f"{where} is damaged (its checksum differs); {remedy}")
        return found

    @property
    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for name in self.__dataclass_fields__:
            digest.update(np.ascontiguousarray(getattr(self, name), np.int64).data)
        return digest.hexdigest().encode()

    def among(self, rows: Ints) -> "Ways | None":
        """Return how the bridges in ``rows`` (int64, ascending, with all that they build on) go on.

        None where a bridge that is next is not among them: at a stricter delta than that of the generation, episodes go
        on as they did when they were made.
        """
        place = np.minimum(np.searchsorted(self.row, rows), max(len(self.row) - 1, 0))
        told = self.row[place] == rows if len(self.row) else np.zeros(len(rows), np.bool_)
        next_row = np.where(told, self.next_row[place], -1) if len(self.row) else np.full(len(rows), -1)
        if not np.isin(next_row[next_row >= 0], rows).all():
            return None
        return Ways(row=rows[told], next_row=next_row[told], last_episode=self.last_episode[place][told])
