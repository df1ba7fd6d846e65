"""The engine and the trainers on a pretended GPU (see ``simulated``): all is on the right device, nothing waits.

Inner loops may not make tensors on the CPU, copy between the two or ask for a value, except for what is named here.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.models import loop as fit_loop
from raystitch.models.bundle import Bundle
from raystitch.models.config import PARTS, FitConfig
from raystitch.models.embedding import embed
from raystitch.models.fit import fit_bundle
from raystitch.models.samplers import Sampler
from raystitch.shaping.config import ReturnConfig, ShapingConfig, WeightConfig
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher
from raystitch.stitching.values import fitted_values
from raystitch.trainers import loop as train_loop
from raystitch.trainers import value as train_value
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig, IQLConfig, TD3BCConfig, TrainerSettings
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policies
from raystitch.trainers.policy import Policy
from tests.conftest import make_drift, small_fit
from tests.gpu.simulated import DEVICE, Simulation, pretended_cuda
from tests.trainers.conftest import make_bridges

MADE, TO_DEVICE, TO_CPU, WAITED = "made on the CPU", "copied to the device", "copied to the CPU", "waited"
COSTLY = (MADE, TO_DEVICE, TO_CPU, WAITED)
STEPS = 4


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with pretended_cuda() as made:
        yield made


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, simulation: Simulation) -> Callable[..., list[str]]:
    """Make a function's calls collect what they cost into the list that is returned, after the first ``after`` ones."""

    def watch(owner: Any, name: str, *kinds: str, after: int = 0) -> list[str]:
        original, found, calls = getattr(owner, name), [], [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            simulation.begin()
            result = original(*args, **kwargs)
            calls[0] += 1
            if calls[0] > after:
                found.extend(event for event in simulation.of(*kinds) if event not in found)
            return result

        monkeypatch.setattr(owner, name, call)
        return found

    return watch


def fit_config() -> FitConfig:
    """Settings of a fit of a few steps, in which values are asked about time-outs once."""
    config = small_fit(diffusion_steps=STEPS, head_steps=STEPS)
    return replace(config, precision="float32", embedding=replace(config.embedding, train_steps=STEPS))


@pytest.fixture(scope="module")
def data() -> EpisodeDataset:
    return make_drift()


@pytest.fixture(scope="module")
def bundle(data: EpisodeDataset) -> Bundle:
    """Fitted on the CPU for a second."""
    return fit_bundle(data, replace(small_fit(), precision="float32"), device="cpu")


def moved(bundle: Bundle) -> Bundle:
    """The same models on the pretended device; those given stay where they are."""
    return replace(deepcopy(bundle), device=DEVICE)


def weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.cpu() for part in PARTS for name, value in getattr(bundle, part).state_dict().items()
    }


@pytest.mark.parametrize("dropout", [None, 0.25])
def test_a_fit_waits_for_nothing_within_its_steps(
    data: EpisodeDataset, watched: Any, simulation: Simulation, dropout: float | None
) -> None:
    config = fit_config()
    config = replace(config, diffusion=replace(config.diffusion, return_dropout=dropout))
    on_cpu = weights(fit_bundle(data, config, device="cpu"))
    waits = watched(fit_loop, "_train_step", TO_CPU, WAITED)
    elsewhere = watched(fit_loop, "_average", *COSTLY)
    on_device = weights(fit_bundle(data, config, device=str(DEVICE)))
    # Once per round of the value's training the states at time-outs get their new values, by numpy.
    assert [wait for wait in waits if " targets: " not in wait] == []
    assert not elsewhere
    # Distances do not depend on the embedding's last bias: its gradient is rounding, which differs between machines.
    last_bias = max(name for name in on_cpu if name.startswith("embedding.mlp.biases."))
    for name, value in on_cpu.items():
        if name == last_bias:
            continue
        torch.testing.assert_close(on_device[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_networks_cost_nothing_beside_their_products(bundle: Bundle, simulation: Simulation) -> None:
    on_device = moved(bundle)
    obs, act, next_obs = (torch.randn(5, size).to(DEVICE) for size in (4, 2, 4))
    simulation.begin()
    on_device.dynamics.residual_and_spread(obs, act, next_obs, "judges")
    on_device.dynamics.derivatives(obs, act, "proposers")
    on_device.inverse.with_spread(obs, next_obs)
    on_device.reward(obs, act, next_obs)
    on_device.termination(next_obs)
    on_device.value(obs)
    on_device.embedding.distance(obs, next_obs)
    assert not simulation.of(*COSTLY)


def stitch_config(sampler: str, num_steps: int, solver: str, **repair: Any) -> StitchConfig:
    config = StitchConfig()
    return replace(
        config,
        sampler=replace(config.sampler, name=sampler, num_steps=num_steps, precision="float32", compile="off"),
        guidance=replace(config.guidance, solver=solver),
        repair=replace(config.repair, **repair),
    )


@pytest.mark.parametrize(
    ("sampler", "num_steps", "solver"), [("ddim", 2, "newton"), ("ddpm", 3, "gradient"), ("dpmpp_2m", 3, "newton")]
)
def test_stitching_waits_for_nothing_while_it_samples(
    bundle: Bundle, data: EpisodeDataset, watched: Any, sampler: str, num_steps: int, solver: str
) -> None:
    # Every bridge is tried again: a repair is sampled like a first attempt.
    config = stitch_config(sampler, num_steps, solver, rounds=1, repair_delta=0.0)
    seeds = np.arange(6)
    pairs = SourceIndex(data, bundle, config).select(seeds)
    on_cpu = Stitcher(bundle, config).stitch(pairs, seeds)
    costs = watched(Sampler, "__call__", *COSTLY, after=1)
    stitched = Stitcher(moved(bundle), config).stitch(pairs, seeds)
    noise = [cost for cost in costs if cost.startswith("raystitch/models/samplers.py") and TO_DEVICE in cost]
    assert costs == noise
    assert len(stitched) == len(on_cpu) == 2 * len(pairs)
    np.testing.assert_array_equal(stitched.accepted, on_cpu.accepted)
    np.testing.assert_allclose(stitched.observations, on_cpu.observations, atol=1e-4)
    np.testing.assert_allclose(stitched.actions, on_cpu.actions, atol=1e-4)
    np.testing.assert_allclose(stitched.residual_max, on_cpu.residual_max, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("mode", ["imagine", "distance"])
@pytest.mark.parametrize("split", ["value", "return"])
def test_pairs_are_selected_as_on_the_cpu(
    bundle: Bundle, data: EpisodeDataset, simulation: Simulation, mode: str, split: str
) -> None:
    config = stitch_config("ddim", 2, "newton")
    config = replace(config, pairs=replace(config.pairs, mode=mode, split=split))
    seeds = np.arange(8)
    on_cpu, on_device = (SourceIndex(data, models, config).select(seeds) for models in (bundle, moved(bundle)))
    np.testing.assert_array_equal(on_cpu.source_episode, on_device.source_episode)
    np.testing.assert_array_equal(on_cpu.target_step, on_device.target_step)


def test_whole_datasets_are_judged_in_chunks(bundle: Bundle, data: EpisodeDataset, simulation: Simulation) -> None:
    on_device = moved(bundle)
    np.testing.assert_allclose(
        fitted_values(on_device, data.observations), fitted_values(bundle, data.observations), atol=1e-4
    )
    np.testing.assert_allclose(
        embed(on_device.embedding, data.observations), embed(bundle.embedding, data.observations), atol=1e-4
    )


TRAINERS: dict[str, tuple[str, TrainerSettings]] = {
    "td3bc": ("td3bc", TD3BCConfig(train_steps=STEPS, batch_size=8, hidden=16, decay="cosine")),
    "td3bc decoupled": ("td3bc", TD3BCConfig(train_steps=STEPS, batch_size=8, hidden=16, decoupled=True)),
    "td3bc bf16": ("td3bc", TD3BCConfig(train_steps=STEPS, batch_size=8, hidden=16, precision="bf16")),
    "iql": ("iql", IQLConfig(train_steps=STEPS, batch_size=8, hidden=16)),
    "bc": ("bc", BCConfig(train_steps=STEPS, batch_size=8, hidden=16)),
    "dt": ("dt", DTConfig(train_steps=STEPS, batch_size=8, width=16, num_layers=2, context=5)),
    "dt of all kinds": (
        "dt",
        DTConfig(train_steps=STEPS, batch_size=8, width=16, num_layers=2, context=5, prompt="both", fourier=1.0),
    ),
}


def actions(policy: Policy, data: EpisodeDataset, simulation: Simulation | None = None) -> np.ndarray:
    """The actions of a policy in three environments side by side, of which one ends; ``simulation`` sees the last."""
    policy.reset(3, policy.default_target)
    taken = policy.act(data.observations[:3])
    policy.observe(np.ones(3))
    policy.keep(np.array([0, 2]))
    if simulation is not None:
        simulation.begin()
    return np.concatenate([taken, policy.act(data.observations[4:6])])


@pytest.mark.parametrize("name", TRAINERS)
def test_training_never_leaves_the_device(
    data: EpisodeDataset, watched: Any, simulation: Simulation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    algo, config = TRAINERS[name]
    needs = config.data_needs()
    kind = "transitions" if needs.context is None else "sequences"
    shaping = ShapingConfig(weights=WeightConfig(name="rw" if needs.decoupled else "uniform"))
    spec = DataSpec(
        kind=kind,
        data="stitched",
        synthetic=needs.synthetic,
        decoupled=needs.decoupled,
        device="cpu",
        shaping=shaping,
    )
    bridges = make_bridges(data)
    seeds = (3, 4)
    on_cpu = train_policies(build_data(data, spec, bridges=bridges), algo, config, "1:1", seeds)
    there = build_data(data, replace(spec, device=str(DEVICE)), bridges=bridges)
    costs = watched(train_loop._Run, "advance", *COSTLY)
    on_device = train_policies(there, algo, config, "1:1", seeds)
    assert not costs
    for one, other in zip(on_cpu, on_device, strict=True):
        assert isinstance(one, Policy) and isinstance(other, Policy)
        expected = actions(one, data)
        np.testing.assert_allclose(actions(other, data, simulation), expected, atol=1e-4)
        act_costs = simulation.of(*COSTLY)
        assert all(cost.startswith("raystitch/trainers/policy.py") for cost in act_costs), act_costs
        assert not simulation.of(WAITED) and len(simulation.of(TO_CPU)) == 1


def test_values_of_returns_are_fitted_without_waiting(data: EpisodeDataset, watched: Any) -> None:
    returns = ReturnConfig(name="qdt", steps=STEPS, batch_size=8, hidden=16)
    spec = DataSpec(kind="sequences", device=str(DEVICE), shaping=ShapingConfig(returns=returns))
    waits = watched(train_value, "smaller", TO_CPU, WAITED)
    build_data(data, spec)
    assert not waits
