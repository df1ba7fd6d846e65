"""The content of a buffer's files: the Arrow schema of a shard and the settings in ``buffer.json``.

Legend: N candidates, G largest gap, O observation size, A action size.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystitch.buffer.config import AugmentConfig
from raystitch.data.episodes import Floats, Ints
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.io.config_file import current_names, parse_config
from raystitch.models.calibration import delta_text
from raystitch.stitching.candidates import REASONS, Candidates
from raystitch.stitching.config import StitchConfig

SCHEMA_VERSION = 3
READ_VERSIONS = (2, 3)
"""Schema 2 lacks ``JUDGED_STEPS`` and calls ``augment.proposer`` ``augment.sampler``."""
LACKS = {2: "schema 2: no per-step residuals"}
"""Version -> a line about what buffers of this version do not hold."""

PARENTS = ("source_bridge", "target_bridge")
INTEGERS = ("source_episode", "source_step", "target_episode", "target_step", "gap", "seed")
NUMBERS = (
    "residual_max",
    "residual_mean",
    "spread_max",
    "rollout_deviation",
    "termination_max",
    "return_source",
    "return_stitched",
)
JUDGED_STEPS = ("residuals", "spreads")
"""List columns with the judges' residual and disagreement of every step."""


def make_schema(obs_dim: int, act_dim: int, schema_version: int = SCHEMA_VERSION) -> pa.Schema:
    """One row per candidate attempt; ``observations`` has gap + 2 states, the other lists have gap + 1 steps."""
    judged = JUDGED_STEPS if schema_version >= 3 else ()
    return pa.schema(
        [
            ("bridge_id", pa.string()),
            ("first_id", pa.string()),
            ("attempt", pa.int64()),
            ("chain_round", pa.int64()),
            ("source_bridge", pa.string()),
            ("target_bridge", pa.string()),
            *((name, pa.int64()) for name in INTEGERS),
            *((name, pa.float32()) for name in NUMBERS),
            ("accepted", pa.bool_()),
            ("reason", pa.string()),
            ("observations", pa.list_(pa.list_(pa.float32(), obs_dim))),
            ("actions", pa.list_(pa.list_(pa.float32(), act_dim))),
            ("rewards", pa.list_(pa.float32())),
            *((name, pa.list_(pa.float32())) for name in judged),
        ]
    )


def bridge_id(shard: int, row: int, attempt: int) -> str:
    """``shard-row-attempt``; row is the row of the pair's first attempt in its shard."""
    return f"{shard:06d}-{row:04d}-{attempt}"


def _lists(padded: Floats, lengths: Ints) -> pa.Array:
    """Padded [N, L, ...] to a list column without the padding, at most one fixed-size level below."""
    valid = np.arange(padded.shape[1]) < lengths[:, None]
    return flat_lists(np.ascontiguousarray(padded[valid], np.float32), lengths)


def flat_lists(flat: Floats, lengths: Ints) -> pa.Array:
    """Rows [sum of lengths, ...] one after the other to a list column, at most one fixed-size level below."""
    values: pa.Array = pa.array(flat.reshape(-1))
    if flat.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def schema_version_of(schema: pa.Schema) -> int:
    """Return the version whose columns these are."""
    return 3 if set(JUDGED_STEPS) <= set(schema.names) else 2


def candidates_to_table(
    candidates: Candidates, shard: int, chain_round: int = 0, schema_version: int = SCHEMA_VERSION
) -> pa.Table:
    """Return the candidates of a shard as rows of its file.

    Attempts may come in any order: one belongs to the pair whose first attempt is in row ``first_row``.
    """
    count = len(candidates)
    assert (candidates.attempt[candidates.first_row] == 0).all()
    rows, attempts = candidates.first_row.tolist(), candidates.attempt.tolist()
    columns: dict[str, pa.Array] = {
        "bridge_id": pa.array([bridge_id(shard, *pair) for pair in zip(rows, attempts, strict=True)], pa.string()),
        "first_id": pa.array([bridge_id(shard, row, 0) for row in rows], pa.string()),
        "attempt": pa.array(candidates.attempt, pa.int64()),
        "chain_round": pa.array(np.full(count, chain_round, np.int64)),
        **{name: pa.array([i or None for i in getattr(candidates, name).tolist()], pa.string()) for name in PARENTS},
        **{name: pa.array(getattr(candidates, name), pa.int64()) for name in INTEGERS},
        **{name: pa.array(getattr(candidates, name), pa.float32(), from_pandas=False) for name in NUMBERS},
        "accepted": pa.array(candidates.accepted, pa.bool_()),
        "reason": pa.array([REASONS[code] for code in candidates.reason.tolist()], pa.string()),
        "observations": _lists(candidates.observations, candidates.gap + 2),
        "actions": _lists(candidates.actions, candidates.gap + 1),
        "rewards": _lists(candidates.rewards, candidates.gap + 1),
        **{name: _lists(getattr(candidates, name), candidates.gap + 1) for name in JUDGED_STEPS},
    }
    schema = make_schema(candidates.observations.shape[2], candidates.actions.shape[2], schema_version)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def flat_steps(column: pa.ListArray) -> NDArray[np.float32]:
    """All steps of a list column as one view [sum of lengths, ...], without a copy."""
    values = column.flatten()
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy(zero_copy_only=True).reshape(-1, values.type.list_size)
    return values.to_numpy(zero_copy_only=True)


@dataclass(frozen=True, kw_only=True)
class Complete:
    """Written when generation has finished: the buffer is the first ``num_shards`` shards."""

    num_bridges: int
    num_shards: int
    num_accepted: int
    num_candidates: int


@dataclass(frozen=True, kw_only=True)
class ClosedRound:
    """A round that a later one builds on: its shards are fixed.

    Attributes:
        first_shard, num_shards: the shards it consists of.
        hash: ``sha256:...`` of its manifest, which lists for every shard its number, its accepted bridges and a
            checksum over what was decided, and names the hash of the round before.
    """

    chain_round: int
    first_shard: int
    num_shards: int
    num_accepted: int
    hash: str

    @property
    def end(self) -> int:
        """The first shard of the next round."""
        return self.first_shard + self.num_shards


@dataclass(frozen=True, kw_only=True)
class PilotResult:
    """What one way of choosing pairs brought in the pilot, by which ``pairs.mode`` and ``pairs.seam_max`` were chosen.

    Attributes:
        mode, seam_max: of the pairs.
        tried: pairs that were asked for. stitched: those that were found and worth stitching.
        accepted: pairs with an accepted bridge.
        believed: pairs with an accepted bridge that the judges hold as true as real windows with noise.
        gain: median of what these bridges add to the discounted return; None without any.
        worth: what they add, per pair tried.
        seconds: that it took.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "pairs.mode",
        "pairs.seam_max",
        "tried",
        "stitched",
        "accepted",
        "held true",
        "median gain",
        "gain per pair tried",
    )

    mode: str
    seam_max: float | str | None
    tried: int
    stitched: int
    accepted: int
    believed: int
    gain: float | None
    worth: float
    seconds: float

    @property
    def truth(self) -> float:
        """The share of accepted pairs that is held true; 0 without any."""
        return self.believed / self.accepted if self.accepted else 0.0

    @property
    def name(self) -> str:
        """The two settings, in words."""
        return f"{self.mode} with seam_max={delta_text(self.seam_max)}"

    @property
    def cells(self) -> list[str]:
        """A line of a table with ``COLUMNS``."""
        gain = "" if self.gain is None else f"{self.gain:.4g}"
        counts = self.tried, self.stitched, self.accepted, self.believed
        return [self.mode, delta_text(self.seam_max), *map(str, counts), gain, f"{self.worth:.4g}"]


@dataclass(frozen=True, kw_only=True)
class BufferMeta:
    """``buffer.json``: everything that the content of the shards is a function of.

    Attributes:
        calibration: JSON form of ``stitching.calibration.Calibration``, so that quantile deltas need no bundle.
        seed: root seed of the generation.
        complete: None while generation has not finished for the first time.
        selected_from: fingerprint of the whole dataset where it was made from a part; episode numbers are the whole's.
        select: how ``DatasetRef.select`` writes that part; None where it is the whole, or a part that has no such form.
        rounds: the closed rounds, which is all but the last.
        starts: states in which the task starts, raw; None where they were not asked for or are not known.
        pilot: how ``auto`` settings of pairs were chosen, the best first; empty where none were.
        schema_version: of all its shards; a buffer keeps the one that it was begun with.
    """

    gamma: float
    bundle_hash: str
    dataset_name: str
    dataset_fingerprint: str
    obs_dim: int
    act_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    env: EnvSpec | None
    calibration: Mapping[str, Any]
    stitch: StitchConfig
    augment: AugmentConfig
    seed: int
    complete: Complete | None = None
    rounds: tuple[ClosedRound, ...] = ()
    selected_from: str | None = None
    select: str | None = None
    schema_version: int = SCHEMA_VERSION
    starts: tuple[tuple[float, ...], ...] | None = None
    pilot: tuple[PilotResult, ...] = ()

    @property
    def starts_array(self) -> Floats | None:
        """``starts`` as float32 [K, O]."""
        return None if self.starts is None else np.array(self.starts, np.float32).reshape(-1, self.obs_dim)

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("selected_from", "select", "starts"):
            if value[name] is None:
                del value[name]
        pilot = [asdict(result) for result in value.pop("pilot")]
        return value | {
            "action_low": list(self.action_low),
            "action_high": list(self.action_high),
            "env": None if self.env is None else self.env.to_json(),
            "calibration": dict(self.calibration),
            "stitch": asdict(self.stitch),
            "augment": asdict(self.augment),
            "complete": None if self.complete is None else asdict(self.complete),
            "rounds": [asdict(closed) for closed in self.rounds],
            **({"pilot": pilot} if pilot else {}),
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "BufferMeta":
        """Raises: UserError when ``value`` is not a buffer's settings or of another version."""
        if not isinstance(value, dict) or "schema_version" not in value:
            raise UserError(f"{where} is not a buffer description: it has no schema_version")
        if value["schema_version"] not in READ_VERSIONS:
            raise UserError(
                f"{where} has schema_version={value['schema_version']}, this raystitch reads "
                f"{' and '.join(map(str, READ_VERSIONS))}; generate the buffer again or use the version that wrote it"
            )
        try:
            parsed = {
                "action_low": tuple(value["action_low"]),
                "action_high": tuple(value["action_high"]),
                "env": None if value["env"] is None else EnvSpec.from_json(value["env"]),
                **_nested(value),
            }
            return cls(**(value | parsed))
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is not a buffer description: {error}") from error

    def settings(self) -> dict[str, Any]:
        """Return the settings that two runs must share to fill one buffer."""
        value = self.to_json()
        # The fingerprint says what ``select`` does.
        for name in ("dataset_name", "calibration", "complete", "env", "rounds", "starts", "select", "pilot"):
            value.pop(name, None)
        value["stitch"] = self.stitch.identity()
        # How many bridges a round has decides what the next one is chained onto.
        chained = ("num_bridges", "chain_pool") if self.augment.chain_rounds else ()
        names = ("bridges_per_round",) if self.augment.chain_rounds == "auto" else chained
        names = ("pairs_per_shard", "chain_rounds", *names)
        value["augment"] = {name: getattr(self.augment, name) for name in names}
        return value


@dataclass(frozen=True, kw_only=True)
class _Nested:
    stitch: StitchConfig
    augment: AugmentConfig
    complete: Complete | None = None
    rounds: tuple[ClosedRound, ...] = ()
    pilot: tuple[PilotResult, ...] = ()


def _nested(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a ``buffer.json`` of any version that are dataclasses of their own.

    Raises:
        UserError: naming the key that is not one, or whose value is not.
    """
    nested = {field.name: value[field.name] for field in fields(_Nested) if field.name in value}
    return vars(parse_config(current_names(nested, _Nested), _Nested))
