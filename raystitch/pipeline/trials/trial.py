"""One trial: everything that a policy is trained from, by value or by path."""

from dataclasses import dataclass, field, replace
from typing import Any

from raystitch.buffer.bridges import Bridges
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import Joins
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.ref import DatasetRef
from raystitch.envs.spec import EnvSpec
from raystitch.errors import check_choice
from raystitch.models.calibration import AUTO, check_delta
from raystitch.pipeline.trials.checks import environment_of
from raystitch.report.names import STITCHER as STITCHER
from raystitch.shaping.config import ShapingConfig
from raystitch.stitching.config import StitchConfig
from raystitch.trainers.config import ALGORITHM_CONFIGS, MEMORY_GIB, AlgorithmConfig, DataMode, EvalConfig

_USED = {"joined": ("bundle",), "stitched": ("bundle", "buffer")}
"""The inputs beside the dataset that a trial of a run records, by its data."""


@dataclass(frozen=True, kw_only=True)
class InputHashes:
    """Hashes of the dataset, bundle and buffer that trials are trained on."""

    dataset: str
    bundle: str
    buffer: str


@dataclass(frozen=True, kw_only=True)
class JoinedSettings:
    """Says which pairs the ``joined`` baseline concatenates: as many as generation stitches, drawn with its seeds.

    Attributes:
        per_round: where pairs are split by value, joins of a round; None for a single one.
    """

    stitch: StitchConfig
    num_pairs: int
    pairs_per_shard: int
    seed: int
    per_round: int | None = None

    @classmethod
    def of(cls, stitch: StitchConfig, augment: AugmentConfig, seed: int) -> "JoinedSettings":
        """Return the settings that match a generation. Joins know no seam; where a pilot chooses the mode, they leave
        any state that one of the modes may leave."""
        mode = "imagine" if stitch.pairs.mode == AUTO else stitch.pairs.mode
        stitch = replace(stitch, pairs=replace(stitch.pairs, mode=mode, seam_max=None))
        chained = stitch.pairs.split == "value" and augment.chain_rounds != 0
        return cls(
            stitch=stitch,
            num_pairs=augment.num_bridges,
            pairs_per_shard=augment.pairs_per_shard,
            seed=seed,
            per_round=augment.round_bridges(1) if chained else None,
        )

    def to_json(self) -> list[Any]:
        """Return the settings as part of a trial's identity; a setting that came later only where it says something."""
        later = [] if self.per_round is None else [self.per_round]
        return [self.stitch.identity(), self.num_pairs, self.pairs_per_shard, self.seed, *later]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One policy to train; plain values and paths, so any process that sees the folders can run it.

    Attributes:
        trial_id: hash of everything that the result depends on; empty outside of a run.
        folder: of the trial.
        dataset: None where the trajectories are handed over as ``LoadedInputs``.
        config: of the algorithm; None for the published settings.
        shaping: of the training data; by default they are taken as they are.
        delta: as written in results.parquet: a number, ``q99``, ``off``; None where there are no generated bridges.
            Outside of a run also ``generation``: what the buffer was made with.
        inputs: hashes of dataset, bundle and buffer; None outside of a run that has no buffer.
        bundle, buffer: paths of what ``joined`` and ``stitched`` data are made from; pairs: for ``joined``.
        device: of training; threads: torch threads, None to leave them.
        memory_gib: training data above this size are mapped from files; no part of the identity, like the two above.
        evaluate: False where the environment is not installed: policies are trained and saved, ``returns.json`` says
            "not evaluated", and the same call with True evaluates them without training again.
    """

    trial_id: str = ""
    folder: str = ""
    dataset: DatasetRef | None = None
    algo: str
    config: AlgorithmConfig | None = None
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    data: DataMode = "original"
    ratio: str = "1:0"
    delta: str | None = None
    seed: int = 0
    inputs: InputHashes | None = None
    bundle: str | None = None
    buffer: str | None = None
    pairs: JoinedSettings | None = None
    device: str = "auto"
    threads: int | None = None
    memory_gib: float = MEMORY_GIB
    evaluate: bool = True

    def __hash__(self) -> int:
        """Hash what tells trials apart; all of their nested settings would take a hundred times as long."""
        return hash((self.trial_id, self.folder, self.algo, self.data, self.ratio, self.delta, self.seed))

    @property
    def cell(self) -> str:
        """What it is about, without the seed."""
        delta = None if self.delta is None else f"delta {self.delta}"
        return " ".join(part for part in (self.algo, self.data, self.ratio, delta, self.shaping.text) if part)

    @property
    def label(self) -> str:
        return f"{self.cell} seed {self.seed}"

    @property
    def record(self) -> dict[str, Any]:
        """Return what ``config.json`` and the policy say of the run's files; part of the trial's identity there.

        ``raystitch train`` has always written the delta as a value where a run writes its text.
        """
        if self.trial_id:
            used = _USED.get(self.data, ()) if self.inputs else ()
            return {
                "trial_id": self.trial_id,
                "delta": self.delta,
                **{name: getattr(self.inputs, name) for name in used},
            }
        if self.inputs is None:
            return {}
        delta = self.delta if self.delta == "generation" else check_delta(self.delta)
        return {"buffer": self.inputs.buffer, "delta": delta}

    @property
    def settings(self) -> AlgorithmConfig:
        """The settings of the algorithm.

        Raises:
            UserError: for an unknown algorithm.
        """
        return self.config or default_config(self.algo)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedInputs:
    """The data that trials are trained on, in memory or mapped.

    Attributes:
        bridges, joined: for ``data`` stitched and joined.
        env: evaluate here; None for the dataset's environment.
    """

    dataset: EpisodeDataset
    bridges: Bridges | None = None
    joined: Joins | None = None
    env: EnvSpec | None = None

    @property
    def environment(self) -> EnvSpec:
        """Where policies are evaluated.

        Raises:
            UserError: when neither ``env`` nor the dataset says.
        """
        return environment_of(self.dataset, self.env)


def shaping_entry(shaping: ShapingConfig) -> dict[str, Any]:
    """Return the hooks as part of a trial's identity; none where they change nothing, as in trials before them."""
    return {"shaping": shaping.to_json()} if shaping.changed() else {}


def default_config(algo: str) -> AlgorithmConfig:
    """Return the published settings of an algorithm.

    Raises:
        UserError: for an unknown one.
    """
    check_choice("algo", algo, ALGORITHM_CONFIGS)
    return ALGORITHM_CONFIGS[algo]()
