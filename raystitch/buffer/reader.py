"""Reading a buffer: shards stay in the memory map, delta is a filter over the stored numbers."""

import hashlib
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raystitch.buffer.bridges import PER_BRIDGE, BridgeSet, ranges
from raystitch.buffer.counting import RoundCounts, count_rounds, rows_that_count
from raystitch.buffer.schema import PARENTS, BufferMeta, flat_steps, make_schema
from raystitch.buffer.storage import Storage
from raystitch.buffer.writer import (
    SHARDS,
    ShardFile,
    ShardStats,
    checksum,
    list_shards,
    read_meta,
    read_shard_file,
)
from raystitch.data.episodes import Bools, Ints
from raystitch.errors import UserError
from raystitch.models.calibration import Calibration
from raystitch.models.delta import Delta
from raystitch.stitching.acceptance import passes
from raystitch.stitching.candidates import REASONS

if TYPE_CHECKING:
    from raystitch.buffer.torch_dataset import BridgeTransitions

AtDelta = Delta | Literal["generation"]


class Buffer:
    """An open buffer; columns are views of memory-mapped files.

    Attributes:
        uri: where it lies. meta: its ``buffer.json``. table: all candidates, one chunk per file.
        stats: statistics per shard.
    """

    def __init__(self, storage: Storage, meta: BufferMeta, files: list[ShardFile]) -> None:
        self.uri, self.meta = storage.uri, meta
        self._storage, self._files, self._checked = storage, files, set[str]()
        schema = make_schema(meta.obs_dim, meta.act_dim)
        batches = [file.batch.replace_schema_metadata(None) for file in files]
        for file, batch in zip(files, batches, strict=True):
            if not batch.schema.equals(schema):
                raise UserError(f"{self.uri}/{SHARDS}/{file.name} does not have the columns that buffer.json describes")
        self.table = pa.Table.from_batches(batches, schema=schema)
        self.stats: dict[int, ShardStats] = {s.shard: s for file in files for s in file.stats}

    @property
    def num_candidates(self) -> int:
        return self.table.num_rows

    @property
    def hash(self) -> str:
        """``sha256:...`` of what the content is a function of; unchanged by compaction."""
        content = json.dumps([self.meta.settings(), sorted(self.stats)], sort_keys=True)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.from_json(self.meta.calibration)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """A column of one value per candidate as an array."""
        return self.table[name].to_numpy()

    def passing(self, delta: AtDelta = "generation") -> tuple[Bools, Ints]:
        """Which candidates pass at ``delta`` and why not, bool [N] and int64 [N] (index into REASONS).

        Raises:
            UserError: for a delta that is not one.
        """
        try:
            asked = self.meta.stitch.qualify.delta if delta == "generation" else delta
            return passes(self.column, asked, self.calibration, self.meta.stitch.qualify)
        except ValueError as error:
            raise UserError(str(error)) from error

    def reasons(self, delta: AtDelta = "generation") -> dict[str, int]:
        """How many candidates have each reason at ``delta``."""
        counts = np.bincount(self.passing(delta)[1], minlength=len(REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True)}

    def accepted_rows(self, delta: AtDelta = "generation") -> Ints:
        """Rows that count at ``delta``: of the attempts of one pair the first that passes, int64, ascending.

        A chained bridge counts only where the attempts that it was chained onto do.
        """
        return rows_that_count(
            self.passing(delta)[0], self.pairs, self.column("attempt"), self.column("chain_round"), self.parents
        )

    @cached_property
    def pairs(self) -> Ints:
        """A number per pair, the same for all its attempts, int64 [N]."""
        encoded = self.table["first_id"].combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)

    @cached_property
    def parents(self) -> tuple[Ints, Ints]:
        """Row of the source's and of the target's stitched parent, int64 [N] each; -1 for real episodes, -2 where the
        parent is not in the buffer (one that is damaged)."""
        columns = [self.table[name] for name in PARENTS]
        found: list[Ints] = []
        for column in columns:
            row = np.full(len(column), -1, np.int64)
            if column.null_count < len(column):
                ids = pc.SetLookupOptions(value_set=self.table["bridge_id"].combine_chunks())
                place = pc.call_function("index_in", [column], ids).fill_null(-2)
                named = column.is_valid().to_numpy()
                row[named] = place.to_numpy()[named]
            found.append(row)
        return found[0], found[1]

    def rounds(self, delta: AtDelta = "generation") -> list[RoundCounts]:
        """What each chain round brought at ``delta``."""
        return count_rounds(
            self.accepted_rows(delta), self.pairs, self.column("attempt"), self.column("chain_round"), self.parents
        )

    def num_accepted(self, delta: AtDelta = "generation") -> int:
        return len(self.accepted_rows(delta))

    def bridges(self, delta: AtDelta = "generation") -> BridgeSet:
        """The accepted bridges at ``delta``; ``generation`` is the delta the buffer was generated with.

        Raises:
            UserError: when a shard's checksum shows damage.
        """
        return self.take(self.accepted_rows(delta))

    def take(self, rows: Ints) -> BridgeSet:
        """Any candidates as bridges, in ascending order of ``rows``."""
        rows = np.unique(np.asarray(rows, np.int64))
        self._check_checksums()
        observations, actions, rewards = [], [], []
        first_row = 0
        for file in self._files:
            batch = file.batch
            local = rows[(rows >= first_row) & (rows < first_row + batch.num_rows)] - first_row
            first_row += batch.num_rows
            lengths = batch["gap"].to_numpy() + 1
            starts = np.cumsum(lengths) - lengths
            steps = ranges(starts[local], lengths[local])
            states = ranges(starts[local] + local, lengths[local] + 1)
            observations.append(flat_steps(batch["observations"])[states])
            actions.append(flat_steps(batch["actions"])[steps])
            rewards.append(flat_steps(batch["rewards"])[steps])
        gap = self.column("gap")[rows]
        columns: dict[str, Any] = {n: self.column(n)[rows] for n in PER_BRIDGE if n in self.table.schema.names}
        ids = self.table["bridge_id"].take(pa.array(rows)).to_pylist()
        return BridgeSet(
            **columns,
            ids=np.array(ids, np.str_),
            rows=rows,
            source_parent=self.parents[0][rows],
            target_parent=self.parents[1][rows],
            offsets=np.concatenate([[0], np.cumsum(gap + 1)]).astype(np.int64),
            observations=np.concatenate(observations) if observations else self._empty(self.meta.obs_dim),
            actions=np.concatenate(actions) if actions else self._empty(self.meta.act_dim),
            rewards=np.concatenate(rewards) if rewards else np.zeros(0, np.float32),
        )

    @staticmethod
    def _empty(width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.zeros((0, width), np.float32)

    def _check_checksums(self) -> None:
        for file in self._files:
            if file.name not in self._checked and checksum(file.batch) != file.checksum:
                raise UserError(
                    f"{self.uri}/{SHARDS}/{file.name} is damaged: its checksum differs; "
                    "run `raystitch augment` with the same arguments to generate it again"
                )
            self._checked.add(file.name)

    def to_pyarrow(self) -> pads.FileSystemDataset:
        """All candidates as a pyarrow Dataset over the files."""
        paths = [self._storage.location(f"{SHARDS}/{file.name}") for file in self._files]
        schema = make_schema(self.meta.obs_dim, self.meta.act_dim)
        format_ = pads.IpcFileFormat()
        fragments = [format_.make_fragment(path, filesystem=filesystem) for filesystem, path in paths]
        return pads.FileSystemDataset(fragments, schema, format_, filesystem=paths[0][0] if paths else None)

    def to_torch(self, delta: AtDelta = "generation") -> "BridgeTransitions":
        """The accepted bridges' transitions as a torch Dataset."""
        from raystitch.buffer.torch_dataset import BridgeTransitions

        return BridgeTransitions(self.bridges(delta))


def open_buffer(uri: str | os.PathLike[str], *, allow_partial: bool = False, num_shards: int | None = None) -> Buffer:
    """Opens a buffer for reading.

    Args:
        allow_partial: also open one whose generation never finished (its shards so far).
        num_shards: only the first this many, those of closed rounds, whether or not later ones are there.

    Raises:
        UserError: when it is not a buffer, damaged, unfinished or empty.
    """
    storage = Storage(uri)
    meta = read_meta(storage)
    shards = list_shards(uri)
    if num_shards is None and meta.complete is not None:
        num_shards = meta.complete.num_shards
    if num_shards is None and not allow_partial:
        raise UserError(
            f"{uri} is unfinished ({len(shards)} shards so far); run `raystitch augment` with the same arguments again"
        )
    if num_shards is not None:
        wanted = range(num_shards)
        missing = [shard for shard in wanted if shard not in shards]
        if missing:
            raise UserError(
                f"{uri} is damaged: shard {missing[0]} is missing; "
                "run `raystitch augment` with the same arguments to generate it again"
            )
        shards = {shard: shards[shard] for shard in wanted}
    buffer = Buffer(storage, meta, [read_shard_file(storage, name) for name in dict.fromkeys(shards.values())])
    if buffer.num_candidates == 0 and not allow_partial:
        raise UserError(f"{uri} is empty: it holds no candidate; generate it with `raystitch augment`")
    return buffer
