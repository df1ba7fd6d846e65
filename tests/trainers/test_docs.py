"""The algorithm that docs/trainers.md shows is complete."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policies
from raystitch.trainers.policy import Policy, load_policy
from tests.docs.pages import blocks

DOCS = Path(__file__).parents[2] / "docs" / "trainers.md"


def test_the_algorithm_of_the_docs_trains(
    drift: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (block.text for block in blocks(DOCS) if block.language == "python")
    (tmp_path / "algorithm_of_the_docs.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module("algorithm_of_the_docs")
    monkeypatch.setitem(ALGORITHMS, "l1", module.L1)
    data = build_data(drift, "transitions", "duplicated", device="cpu")
    losses: dict[int, float] = {}
    config = module.L1Config(train_steps=5, batch_size=16, hidden=8)
    policies = train_policies(
        data, "l1", config, "1:1", (0, 1), log=lambda index, row: losses.update({index: row["loss"]})
    )
    assert losses[0] != losses[1]
    policy = policies[0]
    assert isinstance(policy, Policy)
    policy.save(tmp_path / "policy")
    obs = np.zeros((3, drift.obs_dim))
    np.testing.assert_array_equal(load_policy(tmp_path / "policy", "cpu").act(obs), policy.act(obs))


def test_the_docs_name_every_algorithm() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [algo for algo in ALGORITHMS if f"| `{algo}` |" not in text] == []
