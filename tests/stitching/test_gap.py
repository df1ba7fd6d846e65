import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.gap import GAPS, gap_of_steps
from raystitch.stitching.pairs import SourceIndex

SEEDS = np.arange(100)


def test_distance_is_the_time_recorded_between_states_of_one_episode(world: EpisodeDataset, bundle: Bundle) -> None:
    """States on the way north, before the flight hovers at its goal and time no longer shows."""
    flights = np.flatnonzero((np.arange(world.num_episodes) % 3 == 2) & (world.lengths >= 20))
    rng = np.random.default_rng(0)
    episode, step, gap = rng.choice(flights, 100), rng.integers(0, 4, 100), rng.integers(2, 14, 100)
    pairs = SourceIndex(world, bundle, StitchConfig(pairs=PairConfig(mode="random"))).select(SEEDS)
    row = world.obs_offsets[episode] + step
    pairs.prefix[:, -1], pairs.suffix[:, 0] = world.observations[row], world.observations[row + gap + 1]
    found = GAPS["distance"](bundle, StitchConfig(), pairs, SEEDS)
    assert np.abs(found - gap).mean() < 2
    assert np.corrcoef(found, gap)[0, 1] > 0.8


def test_a_gap_is_one_less_than_the_steps_and_in_range() -> None:
    steps = np.array([0.0, 3.4, 3.6, 9.0, 99.0, np.nan, np.inf])
    assert gap_of_steps(steps, 2, 16).tolist() == [2, 2, 3, 8, 16, 2, 2]
