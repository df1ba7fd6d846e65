"""G5: how the usual start and recovery grow with the number of episodes, by what is trained on.

Everything is made anew from each share of the training part: models, bridges, policies. None of them sees the held-out
part, so recovery here is from states that are new to the policies too, unlike that of a sweep's own trials.

``scaling`` in generalise.json has ``algo, measure, settings, notes`` (what was left out and why), ``rows`` per policy:
``fraction, num_episodes, num_bridges`` (of the share), ``arm`` and the keys of ``policies.rows``, ``curve`` (``step,
train, held_out``: action errors while training); ``comparisons`` at the largest share, see ``compare_cells``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.buffer.opening import open_buffer
from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.simulator import Unavailable
from raystitch.errors import RunError, UserError
from raystitch.io.files import read_json, write_json
from raystitch.models.calibration import delta_text
from raystitch.models.config import HEADS, FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.study.overfit import ActionWindows, action_windows, policy_errors
from raystitch.pipeline.study.parts import StudyParts
from raystitch.pipeline.study.policies import MEASURES, STUDY, compare_cells
from raystitch.pipeline.study.recovery import PoorStarts, RecoveryConfig, recovery
from raystitch.pipeline.trials.inputs import load_inputs
from raystitch.pipeline.trials.targets import with_target
from raystitch.pipeline.trials.train import training_data
from raystitch.pipeline.trials.trial import InputHashes, JoinedSettings, Trial
from raystitch.seeding import derive_seed, numpy_rng
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.shaping.weights import WEIGHTS
from raystitch.trainers.config import AlgorithmConfig
from raystitch.trainers.evaluate import evaluate
from raystitch.trainers.loop import train_policies
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import parse_ratio

ARMS = ("original", "weighted", "joined", "stitched")
FRACTIONS = (0.05, 0.1, 0.25, 1.0)
NUM_POINTS = 5
"""Action errors along training."""
WEIGHTS_NAME = "aw"
MIN_PART = 4

OnArm = Callable[[int, int, str], None]
"""(number done, number of all, share and arm) before each."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Settings of the measurement; the run's configuration says the rest.

    Attributes:
        algo, settings: the algorithm that is trained, and its settings.
        fit: of the models, on every share of the episodes. num_bridges: accepted bridges of every share.
        fractions: shares of the training part.
        num_episodes: of the evaluation from the usual start.
    """

    algo: str
    settings: AlgorithmConfig
    fit: FitConfig
    num_bridges: int
    seeds: tuple[int, ...]
    fractions: tuple[float, ...] = FRACTIONS
    num_episodes: int = 50
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions must be in (0, 1], got fractions={list(self.fractions)}")

    def to_json(self) -> dict[str, Any]:
        """Return what a reader of the numbers wants to know."""
        return {
            "train_steps": self.settings.train_steps,
            "fit_steps": self.fit.diffusion.train_steps,
            "num_bridges": self.num_bridges,
            "num_episodes": self.num_episodes,
            "num_starts": self.recovery.num_starts,
            "seeds": list(self.seeds),
        }


def scaling_config(
    config: RunConfig,
    recovery: RecoveryConfig,
    *,
    algo: str | None = None,
    fractions: Sequence[float] | None = None,
    train_steps: int | None = None,
    fit_steps: int | None = None,
    num_bridges: int | None = None,
    num_seeds: int | None = None,
) -> ScalingConfig:
    """Return the settings that a run's configuration gives; None leaves them as they are.

    Args:
        algo: None for the first line of the grid's.
        train_steps: of a policy. fit_steps: at most so many for each of the models.
        num_seeds: the first this many of the run's, or 0, 1, .. where it has fewer.

    Raises:
        UserError: for an unknown algorithm.
    """
    chosen = algo or config.grid[0].algo
    settings = config.algorithms.of(chosen)
    if train_steps is not None:
        settings = replace(settings, train_steps=train_steps)
    seeds = config.seeds if num_seeds is None else (*config.seeds, *range(num_seeds))
    return ScalingConfig(
        algo=chosen,
        settings=settings,
        fit=config.fit if fit_steps is None else _shortened(config.fit, fit_steps),
        num_bridges=num_bridges or config.augment.num_bridges,
        seeds=tuple(dict.fromkeys(seeds))[:num_seeds],
        fractions=tuple(fractions or FRACTIONS),
        num_episodes=config.evaluation.num_episodes,
        recovery=recovery,
    )


def _shortened(fit: FitConfig, most: int) -> FitConfig:
    parts = {name: getattr(fit, name) for name in ("diffusion", *HEADS)}
    return replace(fit, **{name: replace(at, train_steps=min(at.train_steps, most)) for name, at in parts.items()})


def measure_scaling(
    config: RunConfig, parts: StudyParts, asked: ScalingConfig, run: Path, seed: int, progress: OnArm | None = None
) -> Mapping[str, Any]:
    """Train and measure what is missing; return the key ``scaling``.

    Every share and arm is kept in ``study/scaling`` of the run's folder when it is done, and not repeated.
    """
    study = _Scaling.begin(config, parts, asked, run, seed)
    rows: list[dict[str, Any]] = []
    places = [(fraction, arm) for fraction in sorted(asked.fractions) for arm in ARMS]
    for number, (fraction, arm) in enumerate(places):
        if progress is not None:
            progress(number, len(places), f"{100 * fraction:g} % of the episodes, {arm}")
        rows += study.arm(fraction, arm)
    largest = [row for row in rows if row["fraction"] == max(asked.fractions)]
    return {
        "algo": asked.algo,
        "measure": study.measure(rows),
        "settings": asked.to_json(),
        "notes": study.notes,
        "rows": [_shown(row, study.measure(rows)) for row in rows],
        "comparisons": compare_cells([_shown(row, study.measure(rows)) for row in largest], study.cell),
    }


def _shown(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Return a row with the one measure that the study reports."""
    values = {name: None if row[name] is None else row[name][measure] for name in ("usual", "held_out", "train")}
    return {**row, **values}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaling:
    """The work of one measurement.

    Attributes:
        folder: of everything that is kept; its name says what it was made from.
        cell: ratio and delta of the stitched arm, the headline's.
        starts: None where the simulator cannot be put into states.
    """

    config: RunConfig
    parts: StudyParts
    asked: ScalingConfig
    folder: Path
    seed: int
    cell: tuple[str, str | None]
    starts: PoorStarts | None
    notes: list[str]

    @classmethod
    def begin(cls, config: RunConfig, parts: StudyParts, asked: ScalingConfig, run: Path, seed: int) -> "_Scaling":
        config = with_target(config, run)
        own = [asdict(replace(asked, fractions=(1.0,))), parts.dataset.fingerprint, seed]
        stitch = asdict(config.stitch)
        if config.stitch.pairs.seam_max is None:
            del stitch["pairs"]["seam_max"]  # it came later: studies from before keep their names
        content = [*own, stitch, asdict(config.augment), asdict(config.evaluation), config.headline_cell]
        name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
        ratio, delta = config.headline_cell or ("1:1", "q99")
        starts, notes = None, list[str]()
        try:
            starts = PoorStarts.of(parts, asked.recovery, seed)
        except Unavailable as error:
            notes.append(f"recovery was not measured: {error}")
        if WEIGHTS_NAME not in WEIGHTS:
            notes.append("weighted stands for return weighting (rw): the weights aw are not available")
        return cls(
            config=config,
            parts=parts,
            asked=asked,
            folder=run / STUDY / "scaling" / name,
            seed=seed,
            cell=(str(parse_ratio(ratio)), delta_text(delta)),
            starts=starts,
            notes=notes,
        )

    @cached_property
    def _windows(self) -> Mapping[str, ActionWindows]:
        return action_windows(self.parts, self.seed)

    @staticmethod
    def measure(rows: Sequence[Mapping[str, Any]]) -> str:
        known = bool(rows) and all(row["usual"]["success_rate"] is not None for row in rows)
        return MEASURES[0] if known else MEASURES[1]

    def arm(self, fraction: float, arm: str) -> list[dict[str, Any]]:
        """Return the rows of a share and arm, of every seed; none where it cannot be trained, with a note."""
        path = self.folder / f"{100 * fraction:g}" / f"{arm}.json"
        if path.is_file():
            return read_json(path)["rows"]
        try:
            rows = self._train(fraction, arm, path.parent)
        except (UserError, RunError) as error:
            self.notes.append(f"{100 * fraction:g} % {arm}: {error}")
            return []
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema_version": 1, "rows": rows})
        return rows

    def _share(self, fraction: float) -> EpisodeDataset:
        """Return the share of the training part; a smaller one is a part of every larger one."""
        order = numpy_rng(self.seed, "study", "scaling").permutation(self.parts.train)
        return self.parts.dataset.select(np.sort(order[: max(MIN_PART, round(fraction * len(order)))]))

    def _train(self, fraction: float, arm: str, folder: Path) -> list[dict[str, Any]]:
        dataset, asked = self._share(fraction), self.asked
        trial, num_bridges = self._trial(dataset, arm, folder)
        data = training_data(trial, load_inputs(trial, lambda _: dataset))
        curves: dict[int, list[dict[str, Any]]] = {at: [] for at in range(len(asked.seeds))}

        def along(step: int, policies: Mapping[int, Policy]) -> None:
            for at, policy in policies.items():
                curves[at].append({"step": step, **policy_errors(policy, self._windows)})

        every = max(1, asked.settings.train_steps // NUM_POINTS)
        policies = train_policies(
            data, asked.algo, asked.settings, trial.ratio, asked.seeds, every=every, on_every=along
        )
        rows: list[dict[str, Any]] = []
        for at, (seed, policy) in enumerate(zip(asked.seeds, policies, strict=True)):
            if isinstance(policy, RunError):
                self.notes.append(f"{100 * fraction:g} % {arm}, seed {seed}: {policy}")
                continue
            along(asked.settings.train_steps, {at: policy})
            about = {"fraction": fraction, "num_episodes": dataset.num_episodes, "num_bridges": num_bridges, "arm": arm}
            cell = {"algo": asked.algo, "data": arm, "ratio": trial.ratio, "delta": trial.delta}
            cell |= {"shaping": trial.shaping.text, "seed": seed}
            rows.append({**about, **cell, **self._measured(policy, seed), "curve": curves[at]})
        return rows

    def _measured(self, policy: Policy, seed: int) -> dict[str, Any]:
        evaluation, asked = self.config.evaluation, self.asked
        env = self.parts.dataset.env
        if env is None:
            raise UserError(f"{self.parts.dataset.name} does not say which environment it comes from")
        target = (*evaluation.fixed_targets, None)[0] if policy.uses_target_return else None
        usual = evaluate(
            policy,
            env.for_evaluation(asked.recovery.max_episode_steps),
            asked.num_episodes,
            evaluation.num_envs,
            derive_seed(seed, "evaluation"),
            target,
        )
        found = {"held_out": None, "train": None}
        if self.starts is not None:
            found = recovery(policy, self.starts, asked.recovery, seed, target)
        return {
            "usual": {name: getattr(usual, name) for name in ("return_mean", "success_rate", "score")},
            **found,
            "action_error": policy_errors(policy, self._windows),
        }

    def _trial(self, dataset: EpisodeDataset, arm: str, folder: Path) -> tuple[Trial, int]:
        """Return the trial of an arm and the number of bridges that it has, both made where they are missing."""
        config, asked = self.config, self.asked
        bundle_hash = buffer_hash = ""
        num_bridges, (ratio, delta) = 0, self.cell
        wanted = replace(config.augment, num_bridges=asked.num_bridges)
        if arm in ("joined", "stitched"):
            device = config.resources.device
            bundle = fit_bundle(dataset, asked.fit, folder / "stitcher", device)
            bundle_hash = bundle.hash
            if arm == "stitched":
                augment_local(dataset, bundle, config.stitch, wanted, out=folder / "buffer", seed=self.seed)
                buffer = open_buffer(folder / "buffer")
                buffer_hash, num_bridges = buffer.hash, buffer.num_accepted(delta or "generation")
        name: Any = WEIGHTS_NAME if WEIGHTS_NAME in WEIGHTS else "rw"
        trial = Trial(
            dataset=config.dataset_ref,
            algo=asked.algo,
            config=asked.settings,
            shaping=ShapingConfig(weights=WeightConfig(name=name)) if arm == "weighted" else ShapingConfig(),
            evaluation=config.evaluation,
            data=arm,  # pyright: ignore[reportArgumentType]
            ratio={"original": "1:0", "weighted": "0:1"}.get(arm, ratio),
            delta=delta if arm == "stitched" else None,
            inputs=InputHashes(dataset=dataset.fingerprint, bundle=bundle_hash, buffer=buffer_hash),
            bundle=str(folder / "stitcher"),
            buffer=str(folder / "buffer"),
            pairs=JoinedSettings.of(config.stitch, wanted, self.seed),
            device="cuda" if config.resources.trial_gpus > 0 else "cpu",
            memory_gib=config.resources.memory_gib,
        )
        return trial, num_bridges
