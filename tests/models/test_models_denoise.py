"""Return guidance and the network's precision, on walks whose drift, and so whose return, only the future shows."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.returns import discounted_returns
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.denoise import Denoiser
from raystitch.models.diffusion import cosine_schedule, drop_returns
from raystitch.models.fit import fit_bundle
from raystitch.models.parts import FitJob, constant_bootstrap
from raystitch.models.samplers import SAMPLERS, seeded_noise
from raystitch.models.unet import TemporalUNet

CPU = torch.device("cpu")
DROPOUT = 0.25


def make_walks(num_episodes: int = 200, seed: int = 0) -> EpisodeDataset:
    """From the origin in some direction at some speed; the reward is the first coordinate."""
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for _ in range(num_episodes):
        drift = rng.uniform(-0.3, 0.3, 2)
        steps = drift + rng.normal(0, 0.02, (20, 2))
        states = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)]).astype(np.float32)
        episodes.append(Episode(states, steps.astype(np.float32), states[1:, 0].copy(), True, False))
    bound = np.ones(2, np.float32)
    return from_episodes(episodes, name="walks", action_low=-bound, action_high=bound)


@pytest.fixture(scope="module")
def walks() -> EpisodeDataset:
    return make_walks()


@pytest.fixture(scope="module")
def config(tiny_config: Callable[..., FitConfig]) -> FitConfig:
    tiny = tiny_config(5)
    diffusion = replace(
        tiny.diffusion,
        return_dropout=DROPOUT,
        train_steps=400,
        mask_prefix=0.7,
        mask_stitch=0.2,
        prefix_max=1,
        learning_rate=2e-3,
        batch_size=64,
    )
    return replace(tiny, diffusion=diffusion)


@pytest.fixture(scope="module")
def guided(walks: EpisodeDataset, config: FitConfig) -> Bundle:
    return fit_bundle(walks, config, None, device="cpu")


def test_a_network_without_return_is_what_it_was() -> None:
    networks: list[TemporalUNet] = []
    for takes_return in (False, True):
        torch.manual_seed(0)
        networks.append(TemporalUNet(3, 16, 8, (1, 2), add_line=True, takes_return=takes_return))
    plain, knowing = (network.state_dict() for network in networks)
    assert {name for name in knowing if name not in plain} == {
        name for name in knowing if name.startswith("embed_return.")
    }
    assert all(torch.equal(plain[name], knowing[name]) for name in plain)


def record(network: TemporalUNet) -> tuple[list[Tensor | None], Callable[..., Tensor]]:
    """The returns of each evaluation, and the network."""
    seen: list[Tensor | None] = []

    def recorded(
        noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor, return_B: Tensor | None = None
    ) -> Tensor:
        seen.append(return_B)
        return network(noisy_BHO, known_BHO, mask_BH, k_B, return_B)

    return seen, recorded


@pytest.mark.parametrize("prediction", ["clean", "noise"])
def test_weights_mix_both_predictions_of_one_batch(guided: Bundle, prediction: str) -> None:
    seen, network = record(guided.diffusion)
    generator = torch.Generator().manual_seed(0)
    noisy, known = torch.randn(2, 5, 16, 2, generator=generator)
    mask, k = torch.zeros(5, 16), torch.tensor([5, 20, 40, 60, 90])
    mask[:, 0] = 1

    def predict(weight: float) -> Tensor:
        seen.clear()
        return Denoiser(
            network=network,
            schedule=guided.schedule,
            prediction="clean" if prediction == "clean" else "noise",
            return_weight=weight,
            return_value=1.5,
        )(noisy, known, mask, k)

    without = predict(0.0)
    assert seen == [None]
    with_return = predict(1.0)
    assert len(seen) == 1
    assert seen[0] is not None
    assert seen[0].tolist() == [1.5] * 5
    for weight in (0.5, 1.2, 2.0):
        mixed = predict(weight)
        assert len(seen) == 1
        assert seen[0] is not None
        assert seen[0][:5].tolist() == [1.5] * 5
        assert seen[0][5:].isnan().all()
        torch.testing.assert_close(mixed, without + weight * (with_return - without), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(with_return, without, atol=1e-2)
    # No return for any row is the same as no return for each.
    missing = torch.full((5,), torch.nan)
    torch.testing.assert_close(
        guided.diffusion(noisy, known, mask, k), guided.diffusion(noisy, known, mask, k, missing)
    )


def test_training_tells_the_return_and_drops_the_stated_share(walks: EpisodeDataset, config: FitConfig) -> None:
    job = FitJob(walks, config, np.arange(walks.num_episodes), CPU)
    part = job.parts()[0]
    seen: list[Tensor] = []
    handle = job.unet.register_forward_pre_hook(lambda _, args: seen.append(args[4]))
    for step in range(60):
        part.loss(step, torch.Generator().manual_seed(step))
    handle.remove()
    returns = torch.cat(seen)
    assert float(returns.isnan().float().mean()) == pytest.approx(DROPOUT, abs=0.03)
    told = returns[~returns.isnan()]
    everything = discounted_returns(walks.rewards, walks.offsets, config.gamma, constant_bootstrap(walks, config.gamma))
    everything = (everything - everything.mean()) / everything.std()
    assert np.abs(everything[None] - told[:50, None].numpy()).min(1).max() < 1e-5
    assert job.windows.returns is not None
    first = torch.from_numpy(everything.reshape(-1, 20)[:, :17]).flatten()  # windows of 4 states and more of 21
    assert len(job.windows) == walks.num_episodes * 18
    torch.testing.assert_close(job.windows.returns.view(-1, 18)[:, :17].flatten(), first, rtol=1e-4, atol=1e-5)


def test_the_drawn_share_does_not_depend_on_the_values() -> None:
    kept = drop_returns(torch.arange(8000.0), 0.1, torch.Generator().manual_seed(0))
    assert float(kept.isnan().float().mean()) == pytest.approx(0.1, abs=0.015)
    present = ~kept.isnan()
    assert torch.equal(kept[present], torch.arange(8000.0)[present])


def test_asking_for_more_gives_more(guided: Bundle) -> None:
    """Rewards of imagined futures from the origin: by target, by weight, and none asked for in between."""
    known, mask = torch.zeros(200, 16, 2), torch.zeros(200, 16)
    known[:] = guided.standardizer.encode(torch.zeros(2))
    mask[:, 0] = 1

    def reward(weight: float, target: float) -> float:
        denoise = guided.denoiser(return_weight=weight, return_target=target)
        noise = seeded_noise(np.arange(200), (16, 2), CPU)
        windows = SAMPLERS["ddim"](denoise, known, mask, noise, guided.schedule, 10, 1.0)
        return float(guided.standardizer.decode(windows)[:, 1:, 0].mean())

    nothing = reward(0.0, 0.95)
    low, middle, high = (reward(1.0, target) for target in (0.05, 0.5, 0.95))
    assert low < middle < high
    assert low + 0.5 < nothing < high - 0.5
    assert high < reward(1.2, 0.95) < reward(2.0, 0.95)


def test_the_target_is_a_quantile_of_the_datas_returns(guided: Bundle, walks: EpisodeDataset) -> None:
    returns = discounted_returns(walks.rewards, walks.offsets, guided.gamma)
    standard = (returns - returns.mean()) / returns.std()
    for quantile in (0.05, 0.5, 0.95):
        assert guided.return_at(quantile) == pytest.approx(float(np.quantile(standard, quantile)), abs=0.02)


def test_a_bundle_keeps_what_return_guidance_needs(guided: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("guided")
    guided.save(folder)
    loaded = Bundle.load(folder, device="cpu")
    assert loaded.hash == guided.hash
    noisy, mask, k = torch.randn(2, 16, 2), torch.zeros(2, 16), torch.tensor([9, 50])
    mine, theirs = (
        bundle.denoiser(return_weight=1.2, return_target=0.9)(noisy, noisy, mask, k) for bundle in (guided, loaded)
    )
    assert torch.equal(mine, theirs)


def test_return_guidance_needs_a_network_that_knows_returns(bundle: Bundle) -> None:
    bundle.denoiser(return_weight=0.0)
    with pytest.raises(UserError, match=r"return_weight=1\.2 .* diffusion\.return_dropout"):
        bundle.denoiser(return_weight=1.2)


def test_compiled_networks_stay_out_of_pickles(bundle: Bundle) -> None:
    assert bundle.denoiser(compile="auto").network is bundle.diffusion
    assert bundle.denoiser(compile="on").network is bundle.denoiser(compile="on").network is not bundle.diffusion
    noisy, mask, k = torch.randn(2, 16, 4), torch.zeros(2, 16), torch.tensor([9, 50])
    copy = deepcopy(bundle)
    assert "_compiled_diffusion" in vars(bundle)
    assert "_compiled_diffusion" not in vars(copy)
    found, wanted = (b.denoiser(precision="float32", compile="off")(noisy, noisy, mask, k) for b in (copy, bundle))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_bf16_rows_do_not_depend_on_batch_mates_or_threads(name: str) -> None:
    torch.manual_seed(0)
    network = TemporalUNet(5, 16, 16, (1, 2, 4), add_line=True).eval().requires_grad_(False)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    known, mask = torch.randn(66, 16, 5), torch.zeros(66, 16)
    mask[:, :2] = mask[:, 9:] = 1

    def run(count: int, bf16: bool, threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            denoise = Denoiser(network=network, schedule=cosine_schedule(50), prediction="clean", bf16=bf16)
            noise = seeded_noise(np.arange(count), (16, 5), CPU)
            with torch.inference_mode():
                return SAMPLERS[name](denoise, known[:count], mask[:count], noise, cosine_schedule(50), 4, 1.0)
        finally:
            torch.set_num_threads(before)

    whole = run(66, True, 1)
    assert whole.dtype == torch.float32
    for count, threads in ((1, 1), (7, 2), (33, 2), (65, 3)):
        # On some CPUs (with AMX) the kernels choose their blocks by the batch, which moves a few values by a rounding.
        torch.testing.assert_close(run(count, True, threads), whole[:count], rtol=2**-6, atol=2**-6)
    plain = run(66, False, 1)
    assert 0 < float((whole - plain).abs().max()) < 0.1


def test_predicted_noise_is_not_rounded_by_auto(bundle: Bundle) -> None:
    noise = replace(
        bundle, config=replace(bundle.config, diffusion=replace(bundle.config.diffusion, prediction="noise"))
    )
    assert not noise.denoiser(precision="auto").bf16
    assert noise.denoiser(precision="bf16").bf16
    assert not bundle.denoiser(precision="float32").bf16
