"""Our samplers against diffusers' schedulers, with a fixed nonlinear "network" and no known states."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from raystitch.models.diffusion import cosine_schedule, predict_clean
from raystitch.models.samplers import SAMPLERS, step_indices

NUM_TRAIN_STEPS = 100
COMMON = {
    "num_train_timesteps": NUM_TRAIN_STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


def denoise(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
    return torch.tanh(noisy_BHO * (1 + k_B.view(-1, 1, 1) / 200)) * 0.8


def test_the_schedule_is_the_cosine_schedule() -> None:
    oracle = DDPMScheduler(**COMMON)
    torch.testing.assert_close(cosine_schedule(NUM_TRAIN_STEPS).alpha_bar, oracle.alphas_cumprod, rtol=2e-4, atol=1e-7)


# diffusers' DDIM steps by K // num_steps, so only divisors of K visit the same pairs of steps.
@pytest.mark.parametrize(
    ("name", "num_steps"), [*(("ddim", n) for n in (1, 2, 5, 20, 100)), *(("ddpm", n) for n in (1, 2, 7, 20, 100))]
)
def test_same_windows_as_diffusers(name: str, num_steps: int) -> None:
    oracle = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[name](**COMMON)
    oracle.set_timesteps(num_steps)
    assert oracle.timesteps.tolist() == step_indices(NUM_TRAIN_STEPS, num_steps)
    shape = (3, 8, 4)
    known, mask = torch.zeros(shape), torch.zeros(shape[:2])
    noise = torch.randn(num_steps, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    drawn = iter(noise[1:])
    sample = noise[0]
    for k in oracle.timesteps:
        clean = denoise(sample, known, mask, k.expand(3))
        if name == "ddpm":
            sample = _ddpm_step(oracle, clean, int(k), sample, drawn)
        else:
            sample = oracle.step(clean, k, sample, eta=0.0).prev_sample

    ours = SAMPLERS[name](denoise, known.double(), mask, noise, cosine_schedule(NUM_TRAIN_STEPS), num_steps, 1.0)
    torch.testing.assert_close(ours, sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 20])
def test_dpm_solver_gives_the_same_windows_as_diffusers(num_steps: int, prediction_type: str) -> None:
    """Whether the network predicts clean states or noise: ``predict_clean`` in front, as ``Bundle.denoise`` has it."""
    oracle = DPMSolverMultistepScheduler(
        **{
            "num_train_timesteps": NUM_TRAIN_STEPS,
            "beta_schedule": "squaredcos_cap_v2",
            "timestep_spacing": "trailing",
            "prediction_type": prediction_type,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
        }
    )
    oracle.set_timesteps(num_steps)
    visited = step_indices(NUM_TRAIN_STEPS, num_steps)
    assert oracle.timesteps.tolist() == visited
    shape, schedule = (3, 8, 4), cosine_schedule(NUM_TRAIN_STEPS)
    known, mask = torch.zeros(shape).double(), torch.zeros(shape[:2])
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x: Tensor, known: Tensor, mask: Tensor, k_B: Tensor, return_B: Tensor | None = None) -> Tensor:
        signal, level = schedule.signal_and_noise(k_B)
        clean = denoise(x, known, mask, k_B)
        return clean if prediction_type == "sample" else (x - signal * clean) / level

    sample = noise[0]
    for k in oracle.timesteps:
        sample = oracle.step(network(sample, known, mask, k.expand(3)), k, sample, return_dict=False)[0]

    def ours(x: Tensor, known: Tensor, mask: Tensor, k_B: Tensor) -> Tensor:
        return predict_clean(
            network, schedule, "clean" if prediction_type == "sample" else "noise", x, known, mask, k_B
        )

    windows = SAMPLERS["dpmpp_2m"](ours, known, mask, noise, schedule, num_steps, 1.0)
    torch.testing.assert_close(windows, sample, rtol=2e-3, atol=2e-4)


def _ddpm_step(oracle: object, clean: Tensor, k: int, sample: Tensor, drawn: object) -> Tensor:
    """diffusers' step with our noise: its own mean (a fixed generator twice) plus its variance times the noise."""
    last = k == oracle.timesteps[-1]  # pyright: ignore
    stepped = oracle.step(clean, k, sample, generator=torch.Generator().manual_seed(3)).prev_sample  # pyright: ignore
    if last:
        return stepped
    theirs = torch.randn(sample.shape, generator=torch.Generator().manual_seed(3), dtype=sample.dtype)
    sigma = oracle._get_variance(k) ** 0.5  # pyright: ignore
    return stepped + sigma * (next(drawn) - theirs)  # pyright: ignore


def test_known_states_end_in_the_result_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(3, 8, 4, generator=generator)
    mask = (torch.rand(3, 8, generator=generator) < 0.4).float()
    for sampler in SAMPLERS.values():
        noise = torch.randn(5, 3, 8, 4, generator=generator)
        result = sampler(denoise, known, mask, noise, cosine_schedule(NUM_TRAIN_STEPS), 5, 1.0)
        assert torch.equal(result[mask > 0.5], known[mask > 0.5])
        assert not torch.equal(result[mask < 0.5], known[mask < 0.5])


@pytest.mark.parametrize(("name", "expected"), [("ddim", 6.392505), ("ddpm", 5.490387), ("dpmpp_2m", 6.414535)])
def test_golden_numbers(name: str, expected: float) -> None:
    known = torch.linspace(-1, 1, 16).view(1, 8, 2)
    mask = torch.tensor([[1.0, 1, 0, 0, 0, 0, 1, 1]])
    noise = torch.stack([torch.linspace(-2 + i, 2 - i, 16).view(1, 8, 2) for i in range(4)])
    result = SAMPLERS[name](denoise, known, mask, noise, cosine_schedule(NUM_TRAIN_STEPS), 4, 0.5)
    assert float(result.square().sum()) == pytest.approx(expected, abs=1e-4)
