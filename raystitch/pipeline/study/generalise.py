"""Does generated data help to generalise and to explore, or does a run overfit? Six measures and a verdict in words.

Nothing here chooses a bridge, a cell or a checkpoint. Bridges count only where both of their ends, and those of every
bridge that they are chained onto, lie in episodes that the models were fitted on.

``generalise.json`` has these keys; a part that could not be measured is ``{"skipped": reason}``.

``schema_version, buffer, dataset, env``
``split``: ``num_train, num_held_out`` episodes, ``known`` (False: no bundle says what the models saw, so the split is
the study's own), ``num_bridges`` accepted, ``num_inside`` the training part.

``copying`` (G1): ``value, low, high``: the chance that a generated state is nearer to the training part than to the
held-out part, as two parts of equal size would give it: 0.5 new but alike, 1 copied; 95 % bootstrap over bridges.
Both parts are searched whole and the share s of states that are nearer to the training part is rescaled to
0.5 + 0.5 (s - c) / (1 - c), c being the share of states there: of a sample of the training part copies would be missed.
``reference``: the same for real training states without their own episode. ``num_bridges, num_sampled, num_states``.
``by_delta``: the numbers of G1 and G2 when the buffer is read at ``level``.

``coverage`` (G2): ``without, with, gain``: share of held-out states within ``radius`` of the training part, and of it
and the generated states; the radius is the median distance of a training state to the nearest one of another episode.
``far_states, far_bridges``: share that is farther from all real data than ``far``, which 1 % of held-out states are
from the training part (of bridges: with any state). ``source_episodes, source_states, target_episodes,
target_states``: how many different ones are left and entered.

``generator`` (G4): ``action`` (inverse dynamics, [-1, 1] units), ``dynamics`` (judges' residual), each ``train,
held_out, ratio`` of mean squared errors; ``ranks``: Spearman's correlation of Q with the discounted return.
``policies`` (G3, G4): ``saw_held_out`` (a sweep trains on all episodes), ``measure``, ``recovery`` (settings),
``rows`` per policy: ``usual`` start, start in ``held_out`` and in ``train`` states of low-return episodes,
``action_error``; ``comparisons``: the headline's cell over the original data, see ``compare_cells``.
``alone`` (G6): the cells at ratio 0:1. ``scaling`` (G5): see scaling.py. ``verdicts``: ``algo, word, reason``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.config import RunConfig, recorded_run_config
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import confirmed_id
from raystitch.errors import UserError
from raystitch.io.files import read_json, write_json
from raystitch.models.bundle import Bundle
from raystitch.pipeline.study.copying import copying_and_coverage
from raystitch.pipeline.study.overfit import generator_errors, no_bundle
from raystitch.pipeline.study.parts import StudyParts, inside_rows, skipped
from raystitch.pipeline.study.policies import OnPolicy, measure_policies, trained_on_bridges_alone
from raystitch.pipeline.study.recovery import RecoveryConfig
from raystitch.pipeline.trials.run_folder import CONFIG_FILE
from raystitch.pipeline.trials.trial import STITCHER
from raystitch.report.files import BUFFER, read_run
from raystitch.report.generalise_words import judge

SCHEMA_VERSION = 1
GENERALISE_FILE = "generalise.json"
PARTS = ("copying", "coverage", "generator", "policies", "alone", "scaling")
NOT_SCALED = "not measured yet: `raystitch study generalise RUN --scaling` trains for it"

Found = dict[str, Any]


def study_buffer(buffer: Buffer, dataset: EpisodeDataset, bundle: Bundle | None = None) -> Found:
    """Measure what needs no policy: G1, G2 and the generator's part of G4.

    Args:
        dataset: the one the buffer was made from.
        bundle: the buffer's bundle; without it the held-out part is not what the models never saw.

    Raises:
        UserError: when there is nothing to compare: no accepted bridge, too few episodes, another dataset or bundle.
    """
    buffer = on_dataset(buffer, dataset)
    _check(buffer)
    parts = StudyParts.of(dataset, bundle, buffer.meta.seed)
    return _judged(_of_buffer(buffer, parts, bundle))


def _of_buffer(buffer: Buffer, parts: StudyParts, bundle: Bundle | None) -> Found:
    seed = buffer.meta.seed
    inside, num_bridges = inside_rows(buffer, "generation", parts.train)
    copying, coverage = copying_and_coverage(buffer, parts, seed)
    generator = no_bundle() if bundle is None else generator_errors(bundle, parts, buffer.meta.gamma, seed)
    return {
        **_header(buffer, parts.dataset),
        "split": {**parts.to_json(), "num_bridges": num_bridges, "num_inside": len(inside)},
        "copying": copying,
        "coverage": coverage,
        "generator": generator,
        "policies": skipped("a buffer has no policies; study the run"),
        "alone": skipped("a buffer has no policies; study the run"),
        "scaling": skipped("a buffer has no grid; study the run"),
    }


def _header(buffer: Buffer, dataset: EpisodeDataset) -> Found:
    return {
        "schema_version": SCHEMA_VERSION,
        "buffer": buffer.uri,
        "buffer_hash": buffer.hash,
        "dataset": dataset.name,
        "env": None if dataset.env is None else dataset.env.env_id,
    }


def _judged(found: Found) -> Found:
    return {**found, "verdicts": judge(found)}


@dataclass(frozen=True, kw_only=True, eq=False)
class StudiedRun:
    """A finished run with everything that a study reads."""

    folder: Path
    config: RunConfig
    dataset: EpisodeDataset
    bundle: Bundle
    buffer: Buffer


def open_run(folder: str | Path, moved: str | None = None, env_id: str | None = None) -> StudiedRun:
    """Open a run's files; nothing is downloaded.

    Args:
        moved: where the dataset is now; None for where it was. env_id: the environment, as the user names it.

    Raises:
        UserError: when the folder is not a run with results, a bridge and enough episodes to compare.
    """
    folder = Path(folder).expanduser().absolute()
    read_run(folder)
    config = recorded_run_config(folder / CONFIG_FILE)
    config = replace(config, env=confirmed_id(config.env, env_id, "--env "))
    ref = config.dataset_ref
    dataset = ref.load_recorded() if moved is None else replace(ref, ref=moved).load()
    bundle = Bundle.load(folder / STITCHER, "cpu")
    buffer = on_dataset(open_buffer(folder / BUFFER), dataset)
    _check(buffer)
    StudyParts.of(dataset, bundle, buffer.meta.seed)
    return StudiedRun(folder=folder, config=config, dataset=dataset, bundle=bundle, buffer=buffer)


def _check(buffer: Buffer) -> None:
    if not buffer.num_accepted():
        raise UserError(f"{buffer.uri} has no accepted bridge at its own delta; there is nothing to study")


def study_run(
    folder: str | Path,
    dataset: EpisodeDataset,
    bundle: Bundle,
    buffer: Buffer,
    *,
    recovery: RecoveryConfig | None = None,
    scale: Callable[[StudyParts], Mapping[str, Any]] | None = None,
    progress: OnPolicy | None = None,
) -> Found:
    """Measure a run and write its ``generalise.json``; parts that take long are kept from the file that is there.

    Args:
        folder: of a run with results. dataset, bundle, buffer: the run's.
        recovery: settings of G3, which acts in the environment; None to leave it as it is.
        scale: measures G5; None to leave it as it is.

    Raises:
        UserError: when the folder is not a run with results.
    """
    run, path = read_run(folder), Path(folder) / GENERALISE_FILE
    stored = _stored(path, buffer)
    try:
        parts = StudyParts.of(dataset, bundle, buffer.meta.seed)
    except UserError as error:
        found = {**_header(buffer, dataset), "split": None, **dict.fromkeys(PARTS, skipped(str(error)))}
    else:
        found = _of_buffer(buffer, parts, bundle)
        found["policies"] = measure_policies(run, parts, recovery, stored.get("policies"), buffer.meta.seed, progress)
        found["alone"] = trained_on_bridges_alone(run)
        found["scaling"] = scale(parts) if scale is not None else stored.get("scaling", skipped(NOT_SCALED))
    found = _judged(found)
    write_json(path, found)
    return found


def _stored(path: Path, buffer: Buffer) -> Mapping[str, Any]:
    """Return the file of an earlier study of the same buffer; empty where there is none, or a damaged one."""
    try:
        value = read_json(path)
    except UserError:
        return {}
    same = isinstance(value, dict) and value.get("buffer_hash") == buffer.hash
    return value if same and value.get("schema_version") == SCHEMA_VERSION else {}
