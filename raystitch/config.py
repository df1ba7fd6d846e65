"""The configuration of a whole run: one YAML file plus ``--set a.b=c``; nests the configs of the stages."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from raystitch.buffer.config import AugmentConfig
from raystitch.data.select import ALL, selection_text
from raystitch.errors import UserError
from raystitch.io.config_file import load_config, plain
from raystitch.io.files import is_remote
from raystitch.models.calibration import check_delta
from raystitch.models.config import FitConfig
from raystitch.search_config import SearchConfig
from raystitch.shaping.config import ShapingConfig
from raystitch.stitching.config import StitchConfig
from raystitch.trainers.config import ALGORITHM_CONFIGS, MEMORY_GIB, AlgorithmConfigs, DataMode, EvalConfig
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.shaped import Returns, Rewards, Weights, all_shapings, check_asked, check_shaping, settle

if TYPE_CHECKING:
    from raystitch.data.episodes import EpisodeDataset
    from raystitch.data.ref import DatasetRef

_PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (Path("tune_configs"), _PACKAGE / "_tune_configs", _PACKAGE.parent / "tune_configs")
"""Folders where a configuration's name is looked up: the user's, the wheel's, a source checkout's."""


class PlannedCell(NamedTuple):
    """One cell of the grid: trials that differ in their seed alone."""

    algo: str
    data: DataMode
    ratio: str
    delta: float | str | None
    shaping: ShapingConfig


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One line of the grid; runs once per ratio, delta, rule of each hook and seed.

    Attributes:
        algo: a name of ``AlgorithmConfigs``.
        data: ``stitched``, or one of the baselines: ``original``, ``joined`` (nearest real pairs concatenated, no
            generated bridge), ``weighted`` (the original resampled by return), ``duplicated`` (the original again).
        ratio: original : augmented; ``original`` is always 1:0.
        delta: residual thresholds the stored candidates are read at; ``stitched`` only.
        weights, rewards, returns: what is done to the data (see ``raystitch.shaping``): a rule's name, a mapping with
            its settings (``{name: rw, temperature: 0.2}``), or several of these, a cell each.
    """

    algo: str
    data: DataMode = "stitched"
    ratio: tuple[str, ...] = ()
    delta: tuple[float | str | None, ...] = ()
    weights: Weights | tuple[Weights, ...] = ()
    rewards: Rewards | tuple[Rewards, ...] = ()
    returns: Returns | tuple[Returns, ...] = ()

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHM_CONFIGS:
            raise ValueError(f"algo must be one of {', '.join(ALGORITHM_CONFIGS)}, got {self.algo!r}")
        if self.data == "original" and (self.ratio not in ((), ("1:0",)) or self.delta):
            raise ValueError("data: original is run once, at 1:0; remove its ratio and delta")
        if self.data != "stitched" and self.delta:
            raise ValueError(f"data: {self.data} has no generated bridges, so no delta; remove it")
        for ratio in self.ratio:
            parse_ratio(ratio)
        for delta in self.delta:
            check_delta(delta)
        for shaping in self.shapings:
            check_shaping(shaping, self.algo, ALGORITHM_CONFIGS[self.algo](), self.data)

    @property
    def shapings(self) -> list[ShapingConfig]:
        """Every combination of the line's rules; the identities alone where it names none."""
        return all_shapings(self.weights, self.rewards, self.returns)

    @property
    def cells(self) -> list[PlannedCell]:
        """The line's cells, in the order in which they are trained and reported."""
        found: dict[PlannedCell, None] = {}
        for shaping in self.shapings:
            for ratio, delta in self.combinations:
                data, settled = settle(self.data, ratio, shaping, named=self.weights != ())
                found[PlannedCell(self.algo, data, ratio, delta, settled)] = None
        return list(found)

    @property
    def combinations(self) -> list[tuple[str, float | str | None]]:
        """Ratio and delta of each of the line's cells."""
        ratios = ("1:0",) if self.data == "original" else self.ratio or ("1:1",)
        deltas = (None,) if self.data != "stitched" else self.delta or ("q99",)
        return [(ratio, delta) for ratio in ratios for delta in deltas]


@dataclass(frozen=True)
class HeadlineConfig:
    """The cell of the grid that the verdict is about, chosen before running."""

    ratio: str
    delta: float | str | None
    shaping: str = ""
    """What is done to its data, as the report says it, such as ``weights rw 0.1``; empty for nothing."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Simulator truth of ``max_bridges`` candidates; ``enabled: false`` leaves it out."""

    enabled: bool = True
    max_bridges: int = 500


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """Resources that the run may use.

    Attributes:
        device: of fitting and generating; ``auto`` takes a GPU when there is one.
        trial_cpus, trial_gpus: held by each trial; fractions share a GPU. Trials train on the CPU without trial_gpus.
        trial_memory_gib: reserved for each group of trials, so that no more run on a machine than its memory holds;
            ``auto`` estimates it from the sizes of dataset, buffer and networks; 0 reserves none.
        max_concurrent_trials: None for as many as the resources allow.
        num_retries: times a group of trials that fails, or whose process dies, is tried again before its unfinished
            trials are recorded as failed. A trial whose loss is not finite is not: it would end the same way. A
            group killed because its machine lacks memory has one more round, with twice the memory. Fitting is retried
            as often.
        stacked_seeds: most seeds of a cell of the grid that are trained together in one process. ``auto``: all of them
            on a GPU; on CPUs as many as leave work for every core.
        object_store_gib: Ray's object store, when Ray is started here.
        memory_gib: training data of a trial above this size are mapped from files that all trials of a machine share.
    """

    device: str = "auto"
    trial_cpus: float = 1.0
    trial_gpus: float = 0.0
    trial_memory_gib: float | Literal["auto"] = "auto"
    max_concurrent_trials: int | None = None
    num_retries: int = 1
    stacked_seeds: int | Literal["auto"] = "auto"
    object_store_gib: float = 0.3
    memory_gib: float = MEMORY_GIB

    def __post_init__(self) -> None:
        if self.trial_cpus <= 0 or self.trial_gpus < 0:
            raise ValueError(
                f"need trial_cpus > 0 and trial_gpus >= 0, got trial_cpus={self.trial_cpus}, "
                f"trial_gpus={self.trial_gpus}"
            )
        if self.trial_memory_gib != "auto" and not self.trial_memory_gib >= 0:
            raise ValueError(f"trial_memory_gib must be auto or >= 0, got trial_memory_gib={self.trial_memory_gib}")
        if self.num_retries < 0:
            raise ValueError(f"num_retries must be >= 0, got num_retries={self.num_retries}")
        if self.stacked_seeds != "auto" and self.stacked_seeds < 1:
            raise ValueError(f"stacked_seeds must be auto or at least 1, got stacked_seeds={self.stacked_seeds}")
        if not self.memory_gib >= 0:
            raise ValueError(f"memory_gib must be >= 0, got memory_gib={self.memory_gib}")


LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a whole run of ``raystitch sweep``.

    Attributes:
        name: of the run's folder; the file's name when left out.
        dataset: a dataset reference (``demo:pointmaze``, ``minari:mujoco/hopper/medium-v0``, ``d4rl:FILE.hdf5``,
            ``ogbench:FILE.npz``).
        env: Gymnasium id, in place of the one that the dataset records.
        select: the episodes that the run works on: a name, a mapping such as ``{best: 0.5}``, or a list of them.
        seed: root of fitting and generating.
        seeds: one trial each.
        search: tunes ratio and delta before the grid is trained; what it chooses becomes the headline.
        headline: None for the first stitched cell of the grid to whose data nothing is done, else the first one.
        logging: where else the numbers of fit, augment and the trials go, under ``logs`` of the run; no part of any
            result.
    """

    name: str = ""
    dataset: str
    env: str | None = None
    select: str | dict[str, Any] | list[str | dict[str, Any]] = ALL
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    fit: FitConfig = field(default_factory=FitConfig)
    stitch: StitchConfig = field(default_factory=StitchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    algorithms: AlgorithmConfigs = field(default_factory=AlgorithmConfigs)
    grid: tuple[GridCell, ...]
    search: SearchConfig = field(default_factory=SearchConfig)
    headline: HeadlineConfig | None = None
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    logging: tuple[LoggerName, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "select", selection_text(self.select))
        if not self.grid:
            raise ValueError("grid is empty: name at least one algo and data")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct numbers >= 0, got seeds={list(self.seeds)}")
        if self.evaluation.target_returns == "auto" and self.stitch.pairs.split_asked == "return":
            raise ValueError(
                "evaluation.target_returns: auto is what stitched episodes promise where stitch.pairs.split is value, "
                "got split=return; give numbers"
            )
        self.augment.check(self.stitch.pairs)
        self._check_search()
        for algo in {cell.algo for cell in self.grid}:
            check_asked(self.algorithms.of(algo), self.evaluation)
        cells = self._stitched_cells()
        if self.headline is not None and cells and self.headline not in cells:
            raise ValueError(f"headline is not a stitched cell of the grid: {_named(self.headline, cells)}")

    def _check_search(self) -> None:
        search = self.search
        if search.algorithm == "none":
            return
        shared = sorted(set(self.seeds) & set(search.seeds))
        if shared:
            raise ValueError(
                f"search.seeds and seeds share {shared}; nothing may be tuned on the seeds that are reported"
            )
        steps, every = self.algorithms.of(search.algo).train_steps, self.evaluation.every
        if search.scheduler == "asha" and not 0 < every < steps:
            raise ValueError(
                f"search.scheduler: asha compares cells at evaluations during training; evaluation.every must be "
                f"between 1 and {search.algo}.train_steps={steps}, got evaluation.every={every}"
            )

    def for_dataset(self, dataset: "EpisodeDataset") -> "RunConfig":
        """Return the run with what is ``auto`` in stitching decided for its dataset.

        Raises:
            UserError: for ``evaluation.target_returns: auto`` where pairs are then split by return.
        """
        stitch = self.stitch.for_dataset(dataset)
        if self.evaluation.target_returns == "auto" and stitch.pairs.split == "return":
            raise UserError(
                f"{dataset.name}: evaluation.target_returns: auto is what stitched episodes promise where "
                "stitch.pairs.split is value, and auto chose return; give numbers or set stitch.pairs.split=value"
            )
        return replace(self, stitch=stitch)

    @property
    def dataset_ref(self) -> "DatasetRef":
        """The trajectories of the run."""
        from raystitch.data.ref import DatasetRef  # imports numpy, which `--help` does without

        return DatasetRef(self.dataset, env=self.env, select=selection_text(self.select))

    def _stitched_cells(self) -> list[HeadlineConfig]:
        """Return the stitched cells of the grid, in its order."""
        cells = [cell for line in self.grid if line.data == "stitched" for cell in line.cells]
        return [HeadlineConfig(cell.ratio, cell.delta, cell.shaping.text) for cell in cells]

    @property
    def resolved_headline(self) -> HeadlineConfig | None:
        """The cell that the verdict is about; None in a grid without stitched data."""
        if self.headline is not None:
            return self.headline
        cells = self._stitched_cells()
        return next((cell for cell in cells if not cell.shaping), cells[0] if cells else None)

    @property
    def headline_cell(self) -> tuple[str, float | str | None] | None:
        """Ratio and delta of the cell that the verdict is about; None in a grid without stitched data."""
        headline = self.resolved_headline
        return None if headline is None else (headline.ratio, headline.delta)

    def to_yaml(self) -> str:
        """Write down the resolved configuration, the headline included; it reads back as an equal run.

        Keys of the hooks are left out where they say nothing, as in files before there were any.
        """
        content = plain(asdict(replace(self, headline=self.resolved_headline)))
        for line in content["grid"]:
            _drop(line, weights=[], rewards=[], returns=[])
        _drop(content["search"], weights="uniform", rewards="recorded", returns="plain")
        _drop(content["headline"] or {}, shaping="")
        _drop(content, select=ALL, logging=[])
        return yaml.safe_dump(content, sort_keys=False, width=120)


def _drop(content: dict[str, Any], **empty: Any) -> None:
    """Take keys out of ``content`` where they have the value that says nothing."""
    for name, value in empty.items():
        if content.get(name) == value:
            del content[name]


def _named(headline: HeadlineConfig, cells: Sequence[HeadlineConfig]) -> str:
    """Return a headline that the grid lacks, with the shapings that its ratio and delta have there."""
    text = f"ratio={headline.ratio}, delta={headline.delta}"
    there = [cell.shaping for cell in cells if (cell.ratio, cell.delta) == (headline.ratio, headline.delta)]
    if not (headline.shaping or there):
        return text
    known = f"; with these ratio and delta there is shaping {', '.join(map(repr, there))}" if there else ""
    return f"{text}, shaping={headline.shaping!r}{known}"


def default_out(config: RunConfig) -> Path | str:
    """Return ``runs/NAME``, or ``$RAYSTITCH_RUNS/NAME``, which may be a URI."""
    runs = os.environ.get("RAYSTITCH_RUNS") or "runs"
    return f"{runs.rstrip('/')}/{config.name}" if is_remote(runs) else Path(runs) / config.name


def find_config(name: str | os.PathLike[str]) -> Path:
    """Find a configuration: a path as it is, else a name, such as ``demo`` or ``study/capped``, in ``CONFIG_FOLDERS``.

    Raises:
        UserError: when there is no such file; lists the names there are.
    """
    path = Path(name)
    if path.is_file():
        return path
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("tune_configs",) else path
    if inside.suffix not in (".yaml", ".yml"):
        inside = inside.with_name(f"{inside.name}.yaml")
    for folder in CONFIG_FOLDERS:
        if not path.is_absolute() and (folder / inside).is_file():
            return folder / inside
    files = {(file.relative_to(folder), folder) for folder in CONFIG_FOLDERS for file in folder.rglob("*.yaml")}
    known = sorted({file.with_suffix("").as_posix() for file, _ in files})
    raise UserError(f"there is no configuration {str(name)!r}; give a YAML file or one of {', '.join(known)}")


def load_run_config(path_or_name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply ``a.b=c`` overrides.

    Raises:
        UserError: one line with the file, the line, the key, the value and what would be right.
    """
    path = find_config(path_or_name)
    config = load_config(path, RunConfig, overrides)
    return config if config.name else replace(config, name=path.stem)


def recorded_run_config(path: str | os.PathLike[str]) -> RunConfig:
    """Read the ``config.yaml`` that a run wrote of itself, also one of an earlier version.

    Raises:
        UserError: as ``load_run_config``.
    """
    return load_config(path, RunConfig, recorded=True)
