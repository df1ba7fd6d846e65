from dataclasses import replace

import pytest

from raystitch.bench.fit import MEASURED_PARTS, measure_part
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.config import FitConfig


@pytest.mark.parametrize("part", MEASURED_PARTS)
def test_every_part_is_timed_and_judged(part: str, drift: EpisodeDataset, tiny_fit: FitConfig) -> None:
    seconds, quality = measure_part(drift, tiny_fit, part, 0.5)
    assert seconds > 0
    assert quality
    assert all(value == value for value in quality.values())


def test_more_training_is_better(drift: EpisodeDataset, tiny_fit: FitConfig) -> None:
    config = replace(tiny_fit, dynamics=replace(tiny_fit.dynamics, train_steps=100))
    little, much = (measure_part(drift, config, "dynamics", factor) for factor in (0.1, 4.0))
    name = "squared one-step error (standardised), median"
    assert much[1][name] < 0.8 * little[1][name]
    assert much[0] > little[0]
