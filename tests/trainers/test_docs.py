"""The algorithm that docs/trainers.md shows is complete."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.config import GridCell, RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.pipeline.trials.cost import print_plan
from raystitch.pipeline.trials.groups import group_bytes
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.config import ALGORITHM_CONFIGS, AlgorithmConfigs, DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policies
from raystitch.trainers.policy import Policy
from raystitch.trainers.registry import load_policy
from tests.docs.pages import blocks

DOCS = Path(__file__).parents[2] / "docs" / "trainers.md"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The algorithm of the page as a module, registered."""
    (code,) = (block.text for block in blocks(DOCS) if block.language == "python")
    (tmp_path / "algorithm_of_the_docs.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "algorithm_of_the_docs", raising=False)
    module: Any = importlib.import_module("algorithm_of_the_docs")
    monkeypatch.setitem(ALGORITHMS, "l1", module.L1)
    algorithm_configs: dict[str, Any] = ALGORITHM_CONFIGS
    monkeypatch.setitem(algorithm_configs, "l1", module.L1Config)
    return module


def test_the_algorithm_of_the_docs_trains(page: Any, drift: EpisodeDataset, tmp_path: Path) -> None:
    data = build_data(drift, DataSpec(kind="transitions", data="duplicated", device="cpu"))
    losses: dict[int, float] = {}
    config = page.L1Config(train_steps=5, batch_size=16, hidden=8)
    policies = train_policies(
        data, "l1", config, "1:1", (0, 1), log=lambda index, row: losses.update({index: row["loss"]})
    )
    assert losses[0] != losses[1]
    policy = policies[0]
    assert isinstance(policy, Policy)
    policy.save(tmp_path / "policy")
    obs = np.zeros((3, drift.obs_dim))
    np.testing.assert_array_equal(load_policy(tmp_path / "policy", "cpu").act(obs), policy.act(obs))


def test_the_algorithm_of_the_docs_is_planned_without_flops(
    page: Any, drift: EpisodeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its settings do not say what a step computes, which the reservation of memory does without."""
    l1 = ("l1", page.L1Config, dataclasses.field(default_factory=page.L1Config))
    algorithms: Any = dataclasses.make_dataclass("WithL1", [l1], bases=(AlgorithmConfigs,), frozen=True, kw_only=True)
    both = (GridCell(algo="l1", data="original"), GridCell(algo="bc", data="original"))
    config = RunConfig(name="l1", dataset="demo:pointmaze", grid=both, seeds=(0,), algorithms=algorithms())
    print_plan(config, tmp_path)
    assert "2 trials in 2 groups" in " ".join(capsys.readouterr().out.split())
    bc = dataclasses.replace(config, grid=both[1:])
    assert group_bytes(config, drift, 1) == group_bytes(bc, drift, 1)


def test_the_docs_name_every_algorithm() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [algo for algo in ALGORITHMS if f"| `{algo}` |" not in text] == []
