"""A rehearsal against the stages that it stands for."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.config import GridCell, RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.io.config_file import parse_config
from raystitch.models import fit
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle, time_fit
from raystitch.pipeline.trials import rehearsal
from raystitch.pipeline.trials.cost import plan_groups
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.rehearsal import LONG_EPISODE, rehearse, valued
from raystitch.pipeline.trials.train import training_data
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.search_config import SearchConfig
from raystitch.trainers.evaluate import SharedEnvs, evaluate
from raystitch.trainers.loop import train_policy

SEARCH = {"algorithm": "random", "algo": "bc", "seeds": [5, 6, 7]}


@pytest.fixture
def config(tiny_fit: FitConfig) -> RunConfig:
    small = {"train_steps": 20, "batch_size": 16}
    values: dict[str, Any] = {
        "dataset": "demo:pointmaze",
        "seeds": [0, 1],
        "augment": {"num_bridges": 20, "pairs_per_shard": 8},
        "algorithms": {
            "bc": {**small, "hidden": 8},
            "dt": {**small, "context": 2, "width": 8, "num_layers": 1, "prompt": "both"},
        },
        "grid": [{"algo": "bc", "data": "original"}, {"algo": "dt", "data": "stitched"}],
        "search": SEARCH,
        "evaluation": {"num_episodes": 4, "num_envs": 2},
    }
    return replace(parse_config(values, RunConfig), fit=tiny_fit)


def test_every_stage_has_a_pace_and_nothing_is_changed(drift: EpisodeDataset, config: RunConfig) -> None:
    decided, threads, state = config.for_dataset(drift), torch.get_num_threads(), torch.random.get_rng_state()
    groups = plan_groups(decided.resources, plan(decided), 2)
    pace = rehearse(decided, drift, groups)
    assert set(pace.group_step) == {(group[0].algo, len(group)) for group in groups} | {("bc", 3)}
    assert set(pace.episode) == {"bc", "dt"}
    assert pace.asked_beside == {"bc": 0, "dt": 1}
    found = [pace.fit, pace.candidate, pace.environment, *pace.group_step.values(), *pace.episode.values()]
    assert np.isfinite(found).all() and min(found) >= 0 and pace.fit > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_evaluation_takes_about_as_long_as_its_rehearsal_says(
    drift: EpisodeDataset, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds of the processor, within a factor of five, also where environments are slow to make."""
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=time.process_time))
    decided = config.for_dataset(drift)
    pace = rehearse(decided, drift, plan_groups(decided.resources, plan(decided), 2))
    assert drift.env is not None
    trained = train_policy(
        training_data(Trial(algo="bc", config=decided.algorithms.bc, device="cpu"), LoadedInputs(dataset=drift)),
        "bc",
        decided.algorithms.bc,
    )
    with SharedEnvs(drift.env.for_evaluation(None)) as made:
        evaluate(trained, made, 2, 2)
        began = time.process_time()
        result = evaluate(trained, made, 8, 2)
        step = (time.process_time() - began) / int(result.lengths.sum())
    said = pace.episode["bc"] / min(60, float(np.quantile(drift.lengths, LONG_EPISODE)))
    assert step / 5 < said < 5 * step


def test_v_of_relabelled_returns_has_its_pace(drift: EpisodeDataset, config: RunConfig) -> None:
    line = {"algo": "dt", "data": "original", "returns": ["plain", {"name": "qdt", "steps": 500, "hidden": 8}]}
    asked = replace(config, grid=(parse_config(line, GridCell),), search=SearchConfig()).for_dataset(drift)
    groups = plan_groups(asked.resources, plan(asked), 2)
    (seconds,) = rehearse(asked, drift, groups).values.values()
    assert seconds > 0
    assert [bool(valued(group[0])) for group in groups].count(True) * 2 == len(groups)


def test_a_fit_takes_about_as_long_as_its_rehearsal_says(
    drift: EpisodeDataset, tiny_fit: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds of the processor, because other tests run meanwhile, and within a factor of five; all parts count."""
    monkeypatch.setattr(fit, "time", SimpleNamespace(perf_counter=time.process_time, monotonic=time.monotonic))
    longer = replace(tiny_fit, dynamics=replace(tiny_fit.dynamics, train_steps=400))
    began = time.process_time()
    fit_bundle(drift, longer, None, device="cpu")
    took = time.process_time() - began
    said = time_fit(drift, longer)[1]
    assert took / 5 < said < 5 * took
