"""Episodes of different goals are not joined."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, Floats, from_episodes
from raystitch.data.normalise import Normalizer
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import EmbeddingConfig
from raystitch.models.fit import fit_bundle
from raystitch.stitching.config import PairConfig, StitchConfig
from raystitch.stitching.contexts import TOLERANCE, Contexts
from raystitch.stitching.pairs import SELECTORS, SourceIndex

SEEDS = np.arange(200) + 40


def with_context(world: EpisodeDataset, context_EC: Floats) -> EpisodeDataset:
    """The world with further dimensions that are constant within every episode."""
    columns = np.repeat(context_EC.astype(np.float32), world.lengths + 1, axis=0)
    return replace(world, observations=np.concatenate([world.observations, columns], 1))


def goals(world: EpisodeDataset) -> Floats:
    """One of three goals per episode, drawn independently of what it does."""
    return np.random.default_rng(3).integers(0, 3, (world.num_episodes, 1)).astype(np.float32)


def angles(world: EpisodeDataset) -> Floats:
    """A direction of its own for every episode."""
    angle = np.random.default_rng(4).uniform(0, 2 * np.pi, world.num_episodes)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


@pytest.fixture(scope="module", params=[goals, angles], ids=["goals", "angles"])
def tasks(request: pytest.FixtureRequest, world: EpisodeDataset, bundle: Bundle) -> tuple[EpisodeDataset, Bundle]:
    dataset = with_context(world, request.param(world))
    config = bundle.config
    quick = {
        name: replace(getattr(config, name), train_steps=5)
        for name in ("diffusion", "dynamics", "inverse", "reward", "termination", "value")
    }
    quick["embedding"] = EmbeddingConfig(size=8, hidden=32, train_steps=150, batch_size=64, learning_rate=3e-3)
    return dataset, fit_bundle(dataset, replace(config, **quick), None, device="cpu")


def index(dataset: EpisodeDataset, bundle: Bundle, split: str = "return", **pairs: Any) -> SourceIndex:
    fractions = {"source_fraction": 0.7, "target_fraction": 0.6} if split == "return" else {}
    settings: dict[str, Any] = {"terminal_margin": 3, "split": split} | fractions | pairs
    return SourceIndex(dataset, bundle, StitchConfig(pairs=PairConfig(**settings)))


def apart(dataset: EpisodeDataset, bundle: Bundle, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of the contexts of two episodes, standardised units."""
    states = bundle.normalizer.encode(dataset.observations[dataset.obs_offsets[:-1]])[:, 5:]
    return np.linalg.norm(states[first] - states[second], axis=-1)


@pytest.mark.parametrize("split", ["value", "return"])
@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_every_mode_pairs_within_a_context(mode: str, split: str, tasks: tuple[EpisodeDataset, Bundle]) -> None:
    matched = index(*tasks, split, mode=mode).select(SEEDS)
    assert apart(*tasks, matched.source_episode, matched.target_episode).max() <= TOLERANCE
    assert (matched.source_episode != matched.target_episode).all()
    assert len(np.unique(matched.source_episode)) > 10


def test_contexts_can_be_ignored(tasks: tuple[EpisodeDataset, Bundle]) -> None:
    ignored = index(*tasks, mode="random", context="ignore").select(SEEDS)
    assert (apart(*tasks, ignored.source_episode, ignored.target_episode) > TOLERANCE).mean() > 0.3


def test_a_source_without_a_partner_is_never_left(tasks: tuple[EpisodeDataset, Bundle]) -> None:
    dataset, bundle = tasks
    pools = index(dataset, bundle, mode="random").pools
    targets = np.unique(pools.targets.episode)
    for episode in np.arange(dataset.num_episodes):
        others = targets[targets != episode]
        near = (apart(dataset, bundle, np.full(len(others), episode), others) <= TOLERANCE).any()
        assert not np.isin(episode, pools.source_episodes) or near


@pytest.mark.parametrize("split", ["value", "return"])
def test_draws_reach_every_target_of_the_context_and_no_other(split: str, tasks: tuple[EpisodeDataset, Bundle]) -> None:
    dataset, bundle = tasks
    pools = index(dataset, bundle, split, mode="random").pools
    assert pools.partners is not None
    for episode in pools.source_episodes[:8]:
        count = int(pools.partners.count(np.array([episode]))[0])
        picked = pools.partners.pick(np.full(count, episode), np.arange(count))
        near = apart(dataset, bundle, np.full(len(pools.targets.episode), episode), pools.targets.episode) <= TOLERANCE
        near &= pools.targets.episode != episode
        assert sorted(picked) == np.flatnonzero(near).tolist()


def test_nothing_in_common_is_explained(world: EpisodeDataset, bundle: Bundle) -> None:
    strangers = with_context(world, 10.0 * np.arange(world.num_episodes, dtype=np.float32)[:, None])
    wide = replace(bundle, normalizer=Normalizer.fit(strangers.observations))
    lonely = replace(strangers, observations=strangers.observations)
    few = lonely.subset(np.arange(9))
    with pytest.raises(UserError, match=r"dimensions 5 are a context, 9 different ones in 9 episodes.*context: ignore"):
        index(few, replace(wide, normalizer=Normalizer.fit(few.observations)), mode="random")


def test_data_without_contexts_have_none(world: EpisodeDataset, bundle: Bundle) -> None:
    assert Contexts.find(world, bundle.normalizer, world.num_episodes) is None


def test_a_context_that_changes_at_a_seam_is_still_one(world: EpisodeDataset) -> None:
    """Stitched trajectories follow the recorded ones in a chain round, and may change their context."""
    dataset = with_context(world, goals(world))
    observations = dataset.observations.copy()
    last = int(dataset.lengths.argmax())
    observations[dataset.obs_offsets[last] + 2, 5] += 1
    order = np.concatenate([np.delete(np.arange(world.num_episodes), last), [last]])
    chained = replace(dataset, observations=observations).subset(order)
    normalizer = Normalizer.fit(chained.observations)
    assert Contexts.find(chained, normalizer, world.num_episodes) is None
    found = Contexts.find(chained, normalizer, world.num_episodes - 1)
    assert found is not None
    assert found.dims.tolist() == [5]


@pytest.mark.parametrize("mode", sorted(SELECTORS))
def test_no_episode_is_stitched_to_itself_for_want_of_another(mode: Any, world: EpisodeDataset, bundle: Bundle) -> None:
    """Of every goal there are two episodes, a long and a short one: random draws hardly ever leave the long one."""
    episodes: list[Episode] = []
    for at in range(8):
        recorded = world.episode(at)
        rows = np.arange(13 if at % 2 else 900) % len(recorded.actions)
        goal = np.full((len(rows) + 1, 1), at // 2, np.float32)
        states = np.concatenate([recorded.observations[np.append(rows, 0)], goal], 1)
        rewards = np.full(len(rows), 100.0 * (at >= 6) / len(rows), np.float32)
        episodes.append(Episode(states, recorded.actions[rows], rewards, terminated=False, truncated=True))
    dataset = from_episodes(episodes, name="two each", action_low=world.action_low, action_high=world.action_high)
    config = bundle.config
    quick = {name: replace(head, train_steps=5) for name, head in config.heads.items()}
    known = fit_bundle(dataset, replace(config, diffusion=replace(config.diffusion, train_steps=5), **quick))
    pairs = PairConfig(mode=mode, split="return", source_fraction=1.0, target_fraction=1.0)
    chosen = SourceIndex(dataset, known, StitchConfig(pairs=pairs))
    for selected in (chosen.select(SEEDS), chosen.nearest(SEEDS)):
        assert (selected.source_episode != selected.target_episode).all()
