"""An open buffer: shards stay in the memory map, delta is a filter over the stored numbers."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from raystitch.buffer.bridges import CHUNK_TRANSITIONS, PER_BRIDGE, BridgeSet, MappedBridges, References, ranges
from raystitch.buffer.rows import RoundCounts, count_rounds, dense, find_rows, pair_rows, parse_ids, rows_that_count
from raystitch.buffer.schema import JUDGED_STEPS, PARENTS, BufferMeta, flat_steps, make_schema
from raystitch.buffer.shard_file import SHARDS, ShardFile, ShardStats
from raystitch.buffer.transitions import Over, StepBatch, Transitions
from raystitch.buffer.ways import Ways
from raystitch.data.episodes import Bools, Floats, Ints
from raystitch.errors import UserError
from raystitch.io.storage import Storage
from raystitch.models.calibration import Calibration, Delta
from raystitch.stitching.acceptance import passes
from raystitch.stitching.candidates import REASONS

if TYPE_CHECKING:  # torch takes a second to import, which `raystitch buffer info` does without
    from raystitch.buffer.torch_dataset import BridgeTransitions

AtDelta = Delta | Literal["generation"]
"""A threshold, or the one that the buffer was made with."""

_CHECKED: set[tuple[str, str, str]] = set()
"""Files whose content was found to match its checksum: a process reads what it uses once."""


class Buffer:
    """An open buffer; columns are views of memory-mapped files.

    Per candidate at most 8 bytes stay in memory (16 more where bridges are chained), per file what its statistics take;
    steps are in memory only where a ``BridgeSet`` is asked for.

    Attributes:
        uri: where it lies.
        meta: its ``buffer.json``.
        table: all candidates, one chunk per file.
        stats: statistics per shard.
        missing_episode: int64 [N], set by ``on_dataset``: the episode that the part at hand lacks, -1 for none.
    """

    def __init__(self, storage: Storage, meta: BufferMeta, files: list[ShardFile]) -> None:
        self.uri, self.meta = storage.uri, meta
        self._storage, self._files, self._sound = storage, files, set[int]()
        self.ways: Ways | None = None
        """How the stitched episodes go on, where that is told apart from the shards."""
        self.missing_episode: Ints | None = None
        self.file_starts = np.cumsum([0, *(file.batch.num_rows for file in files)]).astype(np.int64)
        """First row of each file, and the number of candidates."""
        schema = make_schema(meta.obs_dim, meta.act_dim, meta.schema_version)
        batches = [file.batch.replace_schema_metadata(None) for file in files]
        for file, batch in zip(files, batches, strict=True):
            if not batch.schema.equals(schema):
                raise UserError(f"{self.uri}/{SHARDS}/{file.name} does not have the columns that buffer.json describes")
        self.table = pa.Table.from_batches(batches, schema=schema)
        self.stats: dict[int, ShardStats] = {s.shard: s for file in files for s in file.stats}

    @property
    def num_candidates(self) -> int:
        """The number of candidates, N: every attempt, accepted or not."""
        return self.table.num_rows

    @property
    def hash(self) -> str:
        """``sha256:...`` of what the content is a function of; unchanged by compaction."""
        # Schema 3 stores more about the same candidates: trials on a buffer of either schema are the same trials.
        settings = self.meta.settings() | {"schema_version": 2}
        if self.meta.starts is not None:  # rounds turn to the ways from there first
            settings["starts"] = self.meta.starts
        content = json.dumps([settings, sorted(self.stats)], sort_keys=True)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    @property
    def calibration(self) -> Calibration:
        """The quantiles that a delta such as ``q99`` names, per gap."""
        return self._calibration

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration.from_json(self.meta.calibration)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """A column of one value per candidate as an array."""
        return self.table[name].to_numpy()

    def passing(self, delta: AtDelta = "generation") -> tuple[Bools, Ints]:
        """Decide which candidates pass at ``delta`` and why not, bool [N] and int64 [N] (index into REASONS).

        Raises:
            UserError: for a delta that is not one.
        """
        try:
            asked = self.meta.stitch.qualify.delta if delta == "generation" else delta
            return passes(self.column, asked, self.calibration, self.meta.stitch.qualify)
        except ValueError as error:
            raise UserError(str(error)) from error

    def reasons(self, delta: AtDelta = "generation") -> dict[str, int]:
        """Count the candidates of each reason at ``delta``."""
        counts = np.bincount(self.passing(delta)[1], minlength=len(REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True)}

    def accepted_rows(self, delta: AtDelta = "generation") -> Ints:
        """Rows that count at ``delta``: of the attempts of one pair the first that passes, int64, ascending.

        A chained bridge counts only where the attempts that it was chained onto do. Raises UserError where one refers
        to an episode that the part of the dataset at hand lacks.
        """
        rows = rows_that_count(
            self.passing(delta)[0], self.pairs, self.column("attempt"), self.column("chain_round"), self.parents
        )
        self._require_episodes(rows)
        return rows

    @property
    def has_episodes(self) -> Bools:
        """True where the dataset at hand has both episodes of a candidate, bool [N]; see ``on_dataset``."""
        everywhere = np.ones(self.num_candidates, np.bool_)
        return everywhere if self.missing_episode is None else self.missing_episode < 0

    def _require_episodes(self, rows: Ints) -> None:
        lacking = rows[~self.has_episodes[rows]]
        if self.missing_episode is not None and len(lacking):
            which = f"episode {self.missing_episode[lacking[0]]} of {self.meta.dataset_name}"
            remedy = "which is not among those selected; select all, or augment the selection"
            raise UserError(f"{self.uri} refers to {which}, {remedy}")

    @cached_property
    def _first_rows(self) -> dict[int, int]:
        """The first row of every shard."""
        stats = [stats for file in self._files for stats in file.stats]
        before = np.cumsum([0, *(shard.rows for shard in stats)])
        return {shard.shard: int(row) for shard, row in zip(stats, before, strict=False)}

    def _rows_of_first_attempts(self) -> Ints:
        """Row of the first attempt of each candidate's pair, int64 [N]."""
        try:
            first = pair_rows(parse_ids(self.table["first_id"]), self._first_rows)
            sound = (first >= 0) & (first < len(first))
            if not sound.all() or not (first[first] == first).all():
                raise ValueError("a first_id is not the id of a first attempt")
        except ValueError as error:
            raise UserError(f"{self.uri} is damaged: {error}; run `raystitch buffer verify`") from error
        return first

    @cached_property
    def pairs(self) -> Ints:
        """A number per pair from 0 on, the same for all its attempts, int64 [N]."""
        return dense(self._rows_of_first_attempts())

    @cached_property
    def parents(self) -> tuple[Ints, Ints]:
        """Row of the source's and of the target's stitched parent, int64 [N] each; -1 for real episodes, -2 where the
        parent is not in the buffer (one that is damaged)."""
        columns = [self.table[name] for name in PARENTS]
        found = [np.broadcast_to(np.int64(-1), len(column)) for column in columns]
        if any(column.null_count < len(column) for column in columns):
            first, attempts = self._rows_of_first_attempts(), self.column("attempt")
            for side, column in enumerate(columns):
                ids = parse_ids(column)
                named = np.flatnonzero(ids.shard >= 0)
                row = np.full(len(column), -1, np.int64)
                wanted = pair_rows(ids, self._first_rows)
                row[named] = find_rows(wanted[named], ids.attempt[named], first, attempts)
                found[side] = row
        return found[0], found[1]

    def rounds(self, delta: AtDelta = "generation") -> list[RoundCounts]:
        """Count what each chain round brought at ``delta``."""
        return count_rounds(
            self.accepted_rows(delta), self.pairs, self.column("attempt"), self.column("chain_round"), self.parents
        )

    def num_accepted(self, delta: AtDelta = "generation") -> int:
        """Count the bridges that are accepted at ``delta``."""
        return len(self.accepted_rows(delta))

    def bridges(self, delta: AtDelta = "generation") -> BridgeSet:
        """The accepted bridges at ``delta``, all in memory; ``generation`` is the delta the buffer was made with. For
        buffers that are larger than memory see ``iter_bridges``, ``mapped`` and ``batches``.

        Raises:
            UserError: when a shard's checksum shows damage.
        """
        accepted = self.mapped(delta)
        return accepted.take_positions(np.arange(len(accepted)))

    def mapped(self, delta: AtDelta = "generation") -> MappedBridges:
        """The accepted bridges at ``delta`` left where they are: references in memory, steps in the map."""
        rows = self.accepted_rows(delta)
        return MappedBridges(self, rows, None if self.ways is None else self.ways.among(rows))

    def iter_bridges(
        self, delta: AtDelta = "generation", max_transitions: int = CHUNK_TRANSITIONS
    ) -> Iterator[BridgeSet]:
        """The bridges of ``bridges(delta)`` in pieces of at most ``max_transitions`` transitions (or a single bridge),
        in the same order.

        Raises:
            UserError: when a shard's checksum shows damage.
        """
        return self.mapped(delta).chunks(max_transitions)

    def references(self, rows: Ints) -> References:
        """Return any candidates without their steps, in the order of ``rows``."""
        names = ("source_episode", "source_step", "target_episode", "target_step", "gap")
        columns: dict[str, Ints] = {name: self.column(name)[rows] for name in names}
        chained: dict[str, Ints] = {}
        if self.table["chain_round"].num_chunks and self.column("chain_round").any():
            chained = {
                "chain_round": self.column("chain_round")[rows],
                "source_parent": self.parents[0][rows],
                "target_parent": self.parents[1][rows],
            }
        offsets = np.concatenate([[0], np.cumsum(columns["gap"] + 1)]).astype(np.int64)
        return References(**columns, **chained, rows=rows, offsets=offsets)

    def take(self, rows: Ints) -> BridgeSet:
        """Reads any candidates as bridges, in ascending order of ``rows``, from the files that hold them and no other.

        Raises:
            UserError: when the checksum of one of these files shows damage.
        """
        rows = np.unique(np.asarray(rows, np.int64))
        self._require_episodes(rows)
        names = [name for name in PER_BRIDGE if name in self.table.schema.names]
        types = {name: self.table.schema.field(name).type.to_pandas_dtype() for name in names}
        columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [np.zeros(0, types[name])] for name in names}
        columns |= {
            "ids": [np.zeros(0, np.str_)],
            "observations": [np.zeros((0, self.meta.obs_dim), np.float32)],
            "actions": [np.zeros((0, self.meta.act_dim), np.float32)],
            "rewards": [np.zeros(0, np.float32)],
        }
        if self.has_judged_steps:
            columns |= {"residual": [np.zeros(0, np.float32)], "spread": [np.zeros(0, np.float32)]}
        cuts = np.searchsorted(rows, self.file_starts)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            local = rows[cuts[number] : cuts[number + 1]] - self.file_starts[number]
            states, moves, earned = self.steps(number)
            starts = self.step_starts(number)
            lengths = starts[local + 1] - starts[local]
            steps = ranges(starts[local], lengths)
            columns["observations"].append(states[ranges(starts[local] + local, lengths + 1)])
            columns["actions"].append(moves[steps])
            columns["rewards"].append(earned[steps])
            if (judged := self.judged_steps(number)) is not None:
                columns["residual"].append(judged[0][steps])
                columns["spread"].append(judged[1][steps])
            batch = self._files[number].batch
            columns["ids"].append(np.array(batch["bridge_id"].take(pa.array(local)).to_pylist(), np.str_))
            for name in names:
                columns[name].append(self.table[name].chunk(number).to_numpy(zero_copy_only=False)[local])
        taken: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
        return BridgeSet(
            **taken,
            rows=rows,
            source_parent=self.parents[0][rows],
            target_parent=self.parents[1][rows],
            offsets=np.concatenate([[0], np.cumsum(taken["gap"] + 1)]).astype(np.int64),
        )

    def steps(self, number: int) -> tuple[Floats, Floats, Floats]:
        """Observations [T + n, O], actions [T, A] and rewards [T] of all n candidates of a file: views of the map.

        Raises:
            UserError: when the file's checksum shows damage; it is looked at once per process.
        """
        if number not in self._sound:
            self._check(self._files[number])
            self._sound.add(number)
        batch = self._files[number].batch
        return flat_steps(batch["observations"]), flat_steps(batch["actions"]), flat_steps(batch["rewards"])

    @property
    def has_judged_steps(self) -> bool:
        """True if the residual and spread of every step are stored, as they are from schema 3 on."""
        return set(JUDGED_STEPS) <= set(self.table.schema.names)

    def judged_steps(self, number: int) -> tuple[Floats, Floats] | None:
        """Residual and spread [T] of every step of a file's candidates, views of the map; None where the buffer has
        none (schema 2).

        Raises:
            UserError: when the file's checksum shows damage; it is looked at once per process.
        """
        if not self.has_judged_steps:
            return None
        self.steps(number)  # checks the file
        batch = self._files[number].batch
        return flat_steps(batch["residuals"]), flat_steps(batch["spreads"])

    def step_starts(self, number: int) -> Ints:
        """First transition of each candidate of a file and, last, their number: int64 [n + 1]."""
        return self._files[number].batch["rewards"].offsets.to_numpy().astype(np.int64)

    def _check(self, file: ShardFile) -> None:
        stamp = ""
        if self._storage.local is not None:  # a file that was changed since is looked at again
            found = (self._storage.local / SHARDS / file.name).stat()
            stamp = f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"
        known = (f"{self.uri}/{file.name}", file.checksum, stamp)
        if known in _CHECKED:
            return
        try:
            file.check(self._storage.where(f"{SHARDS}/{file.name}"))
        except UserError:
            self._storage.forget_copy(f"{SHARDS}/{file.name}")
            raise
        _CHECKED.add(known)

    @property
    def content(self) -> str:
        """A digest of what the shards hold, from their checksums; unchanged by compaction."""
        return hashlib.sha256(json.dumps([stats.checksum for stats in self.stats.values()]).encode()).hexdigest()

    @property
    def num_files(self) -> int:
        """The number of shard files."""
        return len(self._files)

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(self._storage.size(f"{SHARDS}/{file.name}") for file in self._files)

    def transitions(self, delta: AtDelta = "generation") -> Transitions:
        """The accepted bridges' transitions, to be drawn from or read in any order without loading the buffer."""
        return Transitions(self, self.accepted_rows(delta))

    def batches(
        self,
        batch_size: int,
        seed: int,
        delta: AtDelta = "generation",
        *,
        num_batches: int | None = None,
        start: int = 0,
        over: Over = "transitions",
        window: int = 64,
    ) -> Iterator[StepBatch]:
        """Random batches straight from the mapped files; see ``Transitions.batches``."""
        return self.transitions(delta).batches(
            batch_size, seed, num_batches=num_batches, start=start, over=over, window=window
        )

    def to_pyarrow(self) -> pads.FileSystemDataset:
        """All candidates as a pyarrow Dataset over the files."""
        paths = [self._storage.location(f"{SHARDS}/{file.name}") for file in self._files]
        schema = self.table.schema
        format_ = pads.IpcFileFormat()
        fragments = [format_.make_fragment(path, filesystem=filesystem) for filesystem, path in paths]
        return pads.FileSystemDataset(fragments, schema, format_, filesystem=paths[0][0] if paths else None)

    def to_torch(self, delta: AtDelta = "generation") -> "BridgeTransitions":
        """The accepted bridges' transitions as a torch Dataset."""
        from raystitch.buffer.torch_dataset import BridgeTransitions

        return BridgeTransitions(self.transitions(delta))
