from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.seeding import uniforms
from raystitch.stitching.config import PairConfig
from raystitch.stitching.pools import Pools, States
from raystitch.stitching.values import fitted_values

SEEDS = np.arange(500)
BY_VALUE = PairConfig(split="value")


def sources(pools: Pools, tries: int = 4) -> States:
    return pools.draw_sources(uniforms(SEEDS, 1, 1), uniforms(SEEDS, tries, 2))


def test_sources_leave_before_a_termination_and_from_low_returns(world: EpisodeDataset, bundle: Bundle) -> None:
    config = PairConfig(split="return", terminal_margin=5)
    drawn = sources(Pools(world, bundle, config))
    limit = world.lengths - np.where(world.terminated, config.terminal_margin, 0)
    assert (drawn.step >= 0).all()
    assert (drawn.step <= limit[drawn.episode]).all()
    assert world.returns[drawn.episode].max() <= np.median(world.returns)
    assert (drawn.step == world.lengths[drawn.episode]).any()  # a time-out's final state may be left
    assert len(np.unique(drawn.episode)) > 20


def test_ends_are_the_last_state_and_the_first(world: EpisodeDataset, bundle: Bundle) -> None:
    pools = Pools(world, bundle, PairConfig(source_cut="ends", target_cut="ends", terminal_margin=4))
    drawn = sources(pools)
    expected = world.lengths - np.where(world.terminated, 4, 0)
    assert (drawn.step == expected[drawn.episode]).all()
    assert (pools.targets.step == 0).all()


def test_targets_have_a_recorded_transition_after_them(world: EpisodeDataset, bundle: Bundle) -> None:
    cut = replace(world, final_observed=np.zeros(world.num_episodes, np.bool_))
    for dataset, last in ((world, world.lengths - 1), (cut, world.lengths - 2)):
        pools = Pools(dataset, bundle, PairConfig())
        latest = np.zeros(world.num_episodes, np.int64)
        np.maximum.at(latest, pools.targets.episode, pools.targets.step)
        used = np.unique(pools.targets.episode)
        assert (latest[used] == last[used]).all()
        assert (sources(pools).step <= pools.last_state[sources(pools).episode]).all()


def test_needs_future_keeps_the_smallest_gap_free(world: EpisodeDataset, bundle: Bundle) -> None:
    drawn = sources(Pools(world, bundle, PairConfig(terminal_margin=1), needs_future=True))
    reached = drawn.step + bundle.config.diffusion.gap_min + 1
    assert (reached <= world.lengths[drawn.episode] - world.terminated[drawn.episode]).all()


def test_target_draws_are_uniform_outside_the_own_episode(world: EpisodeDataset, bundle: Bundle) -> None:
    pools = Pools(world, bundle, PairConfig(split="return", source_fraction=1.0, target_fraction=1.0))
    own = np.full((200, 50), pools.targets.episode[100])
    drawn = pools.draw_targets(uniforms(np.arange(200), 50, 9), own)
    assert (pools.targets.episode[drawn] != own).all()
    counts = np.bincount(drawn.ravel(), minlength=len(pools.targets.episode))
    assert (counts[pools.targets.episode != own[0, 0]] > 0).mean() > 0.99


def test_returns_bootstrap_time_outs_only(world: EpisodeDataset, bundle: Bundle) -> None:
    pools = Pools(world, bundle, PairConfig(split="return"))
    for index in (0, 1, 2, int(np.flatnonzero(world.terminated)[0])):
        episode = world.episode(index)
        value = 0.0 if episode.terminated else float(fitted_values(bundle, episode.observations[-1:])[0])
        expected = [value]
        for reward in episode.rewards[::-1]:
            expected.insert(0, float(reward) + bundle.gamma * expected[0])
        start = world.obs_offsets[index]
        np.testing.assert_allclose(pools.returns[start : start + len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_gain_compares_from_the_same_state(world: EpisodeDataset, bundle: Bundle) -> None:
    pools = Pools(world, bundle, PairConfig())
    source, target = sources(pools, 1).at(np.arange(50)), pools.targets.at(np.arange(50))
    source = States(source.episode[:, 0], source.step[:, 0])
    gap = np.arange(50) % 7
    gains = pools.gain(source, target, gap)
    for row in range(50):
        first, second = world.episode(int(source.episode[row])), world.episode(int(target.episode[row]))
        rewards = [first.rewards[min(source.step[row], len(first.rewards) - 1)], second.rewards[target.step[row]]]
        stitched = sum(bundle.gamma**j * np.mean(rewards) for j in range(gap[row] + 1))
        stitched += bundle.gamma ** (gap[row] + 1) * pools.returns[pools.rows(target)][row]
        np.testing.assert_allclose(gains[row], stitched - pools.returns[pools.rows(source)][row], atol=1e-4)


def test_says_why_nothing_can_be_left(world: EpisodeDataset, bundle: Bundle) -> None:
    fallen = replace(world, terminated=np.ones(world.num_episodes, np.bool_))
    with pytest.raises(UserError, match=r"no state to leave.*30 terminate.*100.*terminal_margin"):
        Pools(fallen, bundle, PairConfig(split="return", terminal_margin=100))


def test_says_why_nothing_can_be_entered(world: EpisodeDataset, bundle: Bundle) -> None:
    short = np.flatnonzero(world.lengths >= 1)[:1]
    one_step = world.subset(np.array([0, int(short[0])]))
    one_step = replace(
        one_step,
        observations=one_step.observations[:4],
        actions=one_step.actions[:2],
        rewards=one_step.rewards[:2],
        offsets=np.array([0, 1, 2]),
        final_observed=np.zeros(2, np.bool_),
    )
    with pytest.raises(UserError, match="no state to enter"):
        Pools(one_step, bundle, PairConfig())


def test_one_episode_cannot_be_stitched_to_itself(world: EpisodeDataset, bundle: Bundle) -> None:
    with pytest.raises(UserError, match="only source episode is also the only target"):
        Pools(world.subset(np.array([1])), bundle, PairConfig())


def test_all_constant_observations_are_refused(world: EpisodeDataset, bundle: Bundle) -> None:
    frozen = replace(bundle.normalizer, active=np.zeros(world.obs_dim, np.bool_))
    with pytest.raises(UserError, match="constant"):
        Pools(world, replace(bundle, normalizer=frozen), PairConfig())


def test_the_split_by_value_does_not_send_people_to_fractions(world: EpisodeDataset, bundle: Bundle) -> None:
    fallen = replace(world, terminated=np.ones(world.num_episodes, np.bool_))
    with pytest.raises(UserError, match=r"no state to leave in the 60 source episodes: 60 terminate") as raised:
        Pools(fallen, bundle, PairConfig(split="value", terminal_margin=100))
    assert "fraction" not in str(raised.value)
    with pytest.raises(UserError, match=r"stitching needs two \(add episodes\)"):
        Pools(world.subset(np.array([1])), bundle, BY_VALUE)


def test_by_value_any_state_may_be_left_and_entered(world: EpisodeDataset, bundle: Bundle) -> None:
    pools = Pools(world, bundle, PairConfig(split="value", terminal_margin=1))
    known = pools.state_values
    assert known is not None and known.num_rounds == 0
    assert len(pools.targets.episode) == world.num_transitions
    usable = world.lengths >= np.where(world.terminated, 1, 0)
    assert pools.source_episodes.tolist() == np.flatnonzero(usable).tolist()
    np.testing.assert_array_equal(pools.returns, known.value.astype(np.float32))
    # What is guessed counts for less than the guess, by its own error, and for no less than the worst for ever.
    final = world.obs_offsets[1:] - 1
    guess = fitted_values(bundle, world.observations[final])
    assert (known.value[final][world.terminated] == 0).all()
    cut = ~world.terminated
    assert (known.value[final][cut] <= np.maximum(guess[cut], 0)).all()
    assert known.value[final][cut].min() >= min(world.rewards.min() / (1 - bundle.gamma), 0) - 1e-6
    assert known.floor == known.value.min()
    # Episodes beside states that are worth much are drawn more often than others.
    often = np.bincount(pools.drawn_episodes, minlength=world.num_episodes)
    assert often[pools.source_episodes].min() == 1
    assert often.max() > 1


def test_states_left_in_vain_are_not_drawn_unless_all_were(world: EpisodeDataset, bundle: Bundle) -> None:
    known = Pools(world, bundle, BY_VALUE).state_values
    assert known is not None
    kept = np.zeros(len(known.value), np.bool_)
    kept[world.obs_offsets[[0, 3]] + 1] = True
    pools = Pools(world, bundle, BY_VALUE, state_values=replace(known, failed=~kept))
    drawn = sources(pools)
    assert set(drawn.episode.ravel().tolist()) == {0, 3}
    assert (drawn.step == 1).all()
    everything = Pools(world, bundle, BY_VALUE, state_values=replace(known, failed=np.ones_like(kept)))
    assert len(everything.source_episodes) == len(Pools(world, bundle, BY_VALUE).source_episodes)


def test_starts_are_the_states_within_a_step_or_the_nearest(world: EpisodeDataset, bundle: Bundle) -> None:
    known = Pools(world, bundle, BY_VALUE).state_values
    assert known is not None
    here = world.observations[[5, 40]]
    ends = world.observations[world.obs_offsets[1:] - 1]
    last = known.starting_at(ends, bundle.normalizer)  # nothing is recorded from there on, so nobody starts in it
    assert np.isin(last.start_row, world.obs_index).all()
    found = known.starting_at(np.concatenate([here, here[:1] + 100]), bundle.normalizer)
    assert np.unique(found.start).tolist() == [0, 1, 2]
    assert {5} <= set(found.start_row[found.start == 0].tolist())
    assert {40} <= set(found.start_row[found.start == 1].tolist())
    assert (found.start == 2).sum() == 1
    encode = bundle.normalizer.encode
    step = np.linalg.norm(np.diff(encode(world.episode(0).observations), axis=0), axis=-1)
    near = encode(world.observations[found.start_row[found.start == 0]]) - encode(here[:1])
    assert np.linalg.norm(near, axis=-1).max() < 10 * np.median(step)
    here = known.value[np.unique(found.start_row)].mean()
    assert found.worth == pytest.approx((known.value.mean(), here))
