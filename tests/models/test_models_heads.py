from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.normalise import Normalizer
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.heads import DynamicsEnsemble, InverseDynamics
from raystitch.models.scales import HeadScales, finite_bounds, sensor_ends
from tests.models.clipped import clipped_walk

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fresh_transitions(step: Step, count: int = 500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(9)
    obs = rng.normal(0, 1, (count, 4)) * [1, 1, 0.5, 0.5]
    act = np.clip(rng.normal(0, 0.9, (count, 2)), -1, 1)
    states = [obs, act, step(obs, act)]
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in states)  # pyright: ignore[reportReturnType]


def test_dynamics_tell_real_from_wrong_transitions(bundle: Bundle, point_mass_step: Step) -> None:
    obs, act, next_obs = fresh_transitions(point_mass_step)
    for members in ("judges", "proposers", "all"):
        real = bundle.dynamics.residual(obs, act, next_obs, members)
        wrong = bundle.dynamics.residual(obs, act, next_obs.roll(1, 0), members)
        assert real.shape == (500,)
        assert real.median() < 0.02 < 1 < wrong.median()
    residual, spread = bundle.dynamics.residual_and_spread(obs, act, next_obs, "judges")
    torch.testing.assert_close(residual, bundle.dynamics.residual(obs, act, next_obs, "judges"))
    torch.testing.assert_close(spread, bundle.dynamics.residual_and_spread(obs, act, obs, "judges")[1])
    far = bundle.dynamics.residual_and_spread(obs * 10, act, obs, "judges")[1]
    assert spread.median() < far.median()


def test_judges_and_proposers_share_nothing(bundle: Bundle, point_mass_step: Step) -> None:
    obs, act, _ = fresh_transitions(point_mass_step, 4)
    judges, proposers, everyone = (bundle.dynamics.member_next(obs, act, m) for m in ("judges", "proposers", "all"))
    assert len(judges) == bundle.config.num_judges
    assert torch.equal(torch.cat([proposers, judges]), everyone)


def test_any_leading_shape(bundle: Bundle, point_mass_step: Step) -> None:
    obs, act, next_obs = (x.reshape(50, 10, -1) for x in fresh_transitions(point_mass_step))
    for value in (
        bundle.dynamics.residual(obs, act, next_obs, "judges"),
        bundle.inverse(obs, next_obs)[..., 0],
        bundle.reward(obs, act, next_obs)[0],
        bundle.reward(obs, act, next_obs)[1],
        bundle.termination(next_obs),
        bundle.value(obs),
    ):
        assert value.shape == (50, 10)


def test_inverse_dynamics_recovers_actions_within_the_bounds(bundle: Bundle, point_mass_step: Step) -> None:
    obs, act, next_obs = fresh_transitions(point_mass_step)
    recovered, spread = bundle.inverse.with_spread(obs, next_obs)
    assert torch.equal(recovered, bundle.inverse(obs, next_obs))
    assert (recovered - act).abs().mean() < 0.08
    assert recovered.abs().max() <= 1.0
    assert (spread >= 0).all()
    assert torch.isfinite(bundle.inverse(obs, obs + 100)).all()


def test_overshooting_a_saturated_action_costs_nothing(bundle: Bundle, dataset: EpisodeDataset) -> None:
    inverse = InverseDynamics(
        bundle.config.inverse,
        HeadScales.measure(dataset, bundle.normalizer, dataset.rewards),
        torch.Generator().manual_seed(0),
    )
    inverse.requires_grad_(False)
    obs, next_obs = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
    inverse.mlp.weights[-1].zero_()
    inverse.mlp.biases[-1].fill_(3.0)
    assert inverse.loss(obs, torch.ones(2, 1, 2), next_obs) == 0
    assert inverse.loss(obs, torch.full((2, 1, 2), 0.9), next_obs) > 4
    assert inverse.loss(obs, -torch.ones(2, 1, 2), next_obs).item() == pytest.approx(4.0)


def test_reward_follows_the_data_and_stays_in_its_range(bundle: Bundle, point_mass_step: Step) -> None:
    obs, act, next_obs = fresh_transitions(point_mass_step)
    mean, std = bundle.reward(obs, act, next_obs)
    assert (mean - (1 - next_obs[:, :2].abs().sum(1) / 6)).abs().mean() < 0.05
    assert (std >= 0).all()
    extreme, _ = bundle.reward(obs * 100, act, next_obs * 100)
    assert extreme.min() >= bundle.reward_low
    assert extreme.max() <= bundle.reward_high


def test_termination_knows_the_arena(bundle: Bundle, dataset: EpisodeDataset) -> None:
    final = dataset.observations[dataset.obs_offsets[1:] - 1]
    inside = torch.from_numpy(final[np.abs(final[:, :2]).max(1) < 2.5])
    outside = torch.from_numpy(final[dataset.terminated])
    assert len(inside) > 5 < len(outside)
    assert bundle.termination(inside).max() < 0.5
    assert bundle.termination(outside).mean() > 0.5


def test_values_bootstrap_time_outs(
    bundle: Bundle, dataset: EpisodeDataset, tiny_config: Callable[..., FitConfig]
) -> None:
    """Episodes cut after a few steps, never terminated: values must be those of the endless task."""
    endless = replace(
        dataset,
        terminated=np.zeros_like(dataset.terminated),
        truncated=np.ones_like(dataset.truncated),
        rewards=np.ones_like(dataset.rewards),
    )
    config = replace(tiny_config(5), gamma=0.9)
    config = replace(config, value=replace(config.value, train_steps=400))
    fitted = fit_bundle(endless, config, None, device="cpu")
    value = fitted.value(torch.from_numpy(dataset.observations))
    assert value.mean().item() == pytest.approx(10.0, rel=0.05)
    assert not fitted.termination(torch.full((3, 4), 50.0)).any()
    # Two levels at most: the reward model returns levels that the data has.
    assert set(fitted.reward(*(torch.randn(20, n) for n in (4, 2, 4)))[0].tolist()) == {1.0}
    assert bundle.value(torch.zeros(1, 4)) > bundle.value(torch.tensor([[2.9, 0, 1.0, 0]]))


def test_unbounded_actions_take_the_datas_extremes(dataset: EpisodeDataset) -> None:
    unbounded = replace(dataset, action_low=np.full(2, -np.inf, np.float32))
    low, high = finite_bounds(unbounded)
    np.testing.assert_array_equal(low, dataset.actions.min(0))
    np.testing.assert_array_equal(high, dataset.action_high)


def test_constant_dimensions_count_in_no_distance(dataset: EpisodeDataset) -> None:
    observations = np.concatenate([dataset.observations, np.full((len(dataset.observations), 1), 7.0)], 1)
    wide = replace(dataset, observations=observations.astype(np.float32))
    scales = HeadScales.measure(wide, Normalizer.fit(wide.observations), wide.rewards)
    assert scales.state.active.tolist() == [True] * 4 + [False]
    assert scales.delta.active.tolist() == [True] * 4 + [False]


def test_where_sensors_end() -> None:
    low, high = sensor_ends(clipped_walk().observations)
    assert high.tolist() == [1, np.inf]
    assert low.tolist() == [-np.inf, -np.inf]  # hardly ever so slow
    assert sensor_ends(np.zeros((5, 1), np.float32))[1].tolist() == [np.inf]  # too few to say


def test_a_velocity_at_the_end_of_its_sensor_is_one_that_was_at_least_as_large() -> None:
    walk = clipped_walk()
    scales = HeadScales.measure(walk, Normalizer.fit(walk.observations), np.zeros(walk.num_transitions, np.float32))
    dynamics = DynamicsEnsemble(HeadConfig(num_members=2, hidden=16, num_layers=1), 1, scales, torch.Generator())
    inside, at_end, act = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1, 1)
    inside, at_end, act = (x.expand(2, -1, -1) for x in (inside, at_end, act))
    with torch.no_grad():
        for bias in dynamics.mlp.biases:
            bias[..., 0] += 50  # far beyond the end
    assert (dynamics.member_next(inside[0], act[0])[..., 0] == 1).all()
    with torch.no_grad():
        beyond = dynamics.loss(inside, act, at_end)
        short = dynamics.loss(inside, act, inside)
    assert short > beyond + 1  # only what was recorded inside pulls it back
    by_obs, by_act = dynamics.derivatives(inside[0], act[0], "proposers")
    assert not by_obs[:, 0].any()
    assert not by_act[:, 0].any()
    assert by_obs[:, 1].any()


def test_dynamics_of_an_earlier_version_know_no_ends() -> None:
    walk = clipped_walk()
    scales = HeadScales.measure(walk, Normalizer.fit(walk.observations), np.zeros(walk.num_transitions, np.float32))
    config = HeadConfig(num_members=2, hidden=16, num_layers=1)
    old = dict(DynamicsEnsemble(config, 1, scales, torch.Generator()).state_dict())
    del old["low"], old["high"]
    blank = DynamicsEnsemble(config, 1, HeadScales.blank(2, 1, 0), torch.Generator())
    blank.load_state_dict(old)
    assert torch.isinf(blank.low).all()
    assert torch.isinf(blank.high).all()
    assert blank.state_dict().keys() == old.keys()  # so that its files, and their hash, stay what they were


def test_ends_are_kept() -> None:
    walk = clipped_walk()
    scales = HeadScales.measure(walk, Normalizer.fit(walk.observations), np.zeros(walk.num_transitions, np.float32))
    config = HeadConfig(num_members=2, hidden=16, num_layers=1)
    blank = DynamicsEnsemble(config, 1, HeadScales.blank(2, 1, 0), torch.Generator())
    blank.load_state_dict(DynamicsEnsemble(config, 1, scales, torch.Generator()).state_dict())
    assert blank.high.tolist() == [1, np.inf]
    assert blank.low.tolist() == [-np.inf, -np.inf]


def test_a_flag_that_only_final_states_have_is_no_end_of_a_sensor() -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            np.column_stack([rng.normal(size=13), np.arange(13) == 12]).astype(np.float32),
            np.zeros((12, 1), np.float32),
            np.zeros(12, np.float32),
            terminated=True,
            truncated=False,
        )
        for _ in range(40)
    ]
    dataset = from_episodes(episodes, name="flag", action_low=[-1], action_high=[1])
    scales = HeadScales.measure(dataset, Normalizer.fit(dataset.observations), dataset.rewards)
    assert (scales.state_low[1], scales.state_high[1]) == (0, 1)
