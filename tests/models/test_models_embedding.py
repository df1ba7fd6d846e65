from dataclasses import replace

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import holdout_split
from raystitch.models.bundle import Bundle
from raystitch.models.config import EmbeddingConfig
from raystitch.models.embedding import TemporalEmbedding, embed, embedding_quality
from raystitch.seeding import derive_seed


def test_distances_tell_time_on_held_out_episodes(bundle: Bundle, dataset: EpisodeDataset) -> None:
    config = bundle.config
    held_out = holdout_split(dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout"))[1]
    quality = embedding_quality(bundle.embedding, dataset, held_out, config.diffusion.gap_max + 1)
    untrained = TemporalEmbedding(config.embedding, bundle.normalizer, torch.Generator().manual_seed(0))
    before = embedding_quality(untrained, dataset, held_out, config.diffusion.gap_max + 1)
    assert quality.rank_correlation > max(0.8, before.rank_correlation)
    assert quality.mean_error < min(2.5, before.mean_error)
    assert quality.separation > max(0.8, before.separation)


def test_distance_is_a_norm_of_the_embedded_states(bundle: Bundle, dataset: EpisodeDataset) -> None:
    obs, goal = torch.from_numpy(dataset.observations[:20]), torch.from_numpy(dataset.observations[20:40])
    phi = embed(bundle.embedding, dataset.observations[:40])
    expected = np.linalg.norm(phi[:20] - phi[20:], axis=-1)
    np.testing.assert_allclose(bundle.embedding.distance(obs, goal), expected, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(bundle.embedding.distance(obs, goal), bundle.embedding.distance(goal, obs))
    assert bundle.embedding.distance(obs, obs).max() < 0.01


def test_constant_dimensions_have_no_say(bundle: Bundle) -> None:
    frozen = replace(bundle.normalizer, active=np.array([True, True, False, True]))
    embedding = TemporalEmbedding(EmbeddingConfig(), frozen, torch.Generator().manual_seed(0))
    obs = torch.randn(5, 4)
    moved = obs + torch.tensor([0.0, 0.0, 3.0, 0.0])
    assert torch.equal(embedding(obs), embedding(moved))
    assert not torch.equal(embedding(obs), embedding(moved + 1))


def test_a_low_expectile_leans_towards_the_shortest(bundle: Bundle) -> None:
    """The same two states, recorded 2 and 10 steps apart equally often."""
    obs = torch.zeros(64, 4)
    goal = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(64, 4)
    steps = torch.tensor([2.0, 10.0]).repeat(32)

    def fitted(expectile: float) -> float:
        config = EmbeddingConfig(size=4, hidden=16, num_layers=1, expectile=expectile)
        embedding = TemporalEmbedding(config, bundle.normalizer, torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(embedding.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            embedding.loss(obs, goal, steps, goal, reach=1.0).backward()
            optimizer.step()
        return embedding.distance(obs[0], goal[0]).item()

    shortest, middle = fitted(0.05), fitted(0.5)
    assert 1.9 < shortest < 3.2
    assert shortest + 0.5 < middle < 8


@pytest.mark.parametrize("batch_size", [0, -3])
def test_settings_are_checked(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        EmbeddingConfig(batch_size=batch_size)
