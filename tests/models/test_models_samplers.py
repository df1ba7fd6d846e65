import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from raystitch.models.diffusion import cosine_schedule
from raystitch.models.samplers import SAMPLERS, Denoise, Start, row_noise, seeded_noise, step_indices
from raystitch.models.unet import TemporalUNet

CPU = torch.device("cpu")


def test_row_noise_is_standard_normal_and_independent() -> None:
    noise = row_noise(np.arange(2000), (25, 3)).reshape(2000, 75)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise.T) - np.eye(75)
    assert np.abs(correlation).max() < 0.12
    neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    streams = np.corrcoef(noise.ravel(), row_noise(np.arange(2000), (25, 3), 1).ravel())[0, 1]
    assert max(abs(neighbours), abs(streams)) < 0.01


def test_row_noise_depends_on_the_rows_own_seed_only() -> None:
    seeds = np.array([5, -3, 2**62, 5], np.int64)
    together = row_noise(seeds, (4, 3), stream=2)
    assert together.dtype == np.float32
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(row_noise(np.array([seed]), (4, 3), stream=2)[0], together[row])
    np.testing.assert_array_equal(together[0], together[3])
    assert not np.array_equal(together[0], row_noise(seeds, (4, 3), stream=3)[0])


def test_row_noise_is_pinned() -> None:
    """Stored buffers are reproducible only as long as these numbers stay."""
    expected = [[-2.164696, 1.737943, 1.141175, -0.158181], [1.42123, 0.075311, -0.13068, 0.936912]]
    np.testing.assert_allclose(row_noise(np.array([0, 42]), (4,), stream=1), expected, rtol=1e-4)


def test_row_noise_is_fast() -> None:
    began = time.process_time()
    row_noise(np.arange(512), (32, 17))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 99, 100, 500])
def test_step_indices_start_at_the_noisiest_and_descend(count: int) -> None:
    visited = step_indices(100, count)
    assert visited[0] == 99
    assert len(visited) == min(count, 100)
    assert all(a > b for a, b in pairwise(visited))
    assert visited[-1] >= 0


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_results_do_not_depend_on_batch_mates(name: str) -> None:
    torch.manual_seed(0)
    unet = TemporalUNet(3, 16, 8, (1, 2), add_line=False).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.leave.weight, std=0.1)
    schedule, seeds = cosine_schedule(50), np.arange(10, 17)
    known, mask = torch.randn(7, 16, 3), torch.zeros(7, 16)
    mask[:, :2] = mask[:, 9:] = 1

    def run(rows: slice) -> torch.Tensor:
        noise = seeded_noise(seeds[rows], (16, 3), CPU)
        return SAMPLERS[name](unet, known[rows], mask[rows], noise, schedule, 4, 1.0)

    whole = run(slice(0, 7))
    torch.testing.assert_close(torch.cat([run(slice(0, 3)), run(slice(3, 7))]), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        whole, SAMPLERS[name](unet, known, mask, seeded_noise(seeds + 1, (16, 3), CPU), schedule, 4, 1.0)
    )


def test_noise_scale_zero_is_deterministic() -> None:
    unet = TemporalUNet(3, 16, 8, (1, 2), add_line=False).eval().requires_grad_(False)
    known, mask = torch.randn(2, 16, 3), torch.zeros(2, 16)
    mask[:, 0] = 1
    first, second = (
        SAMPLERS["ddpm"](
            unet, known, mask, seeded_noise(np.array([s, s + 1]), (16, 3), CPU), cosine_schedule(50), 4, 0.0
        )
        for s in (0, 5)
    )
    assert torch.equal(first, second)


def make_window(count: int = 3) -> tuple[Tensor, Tensor]:
    """known [B, 16, 3] and mask [B, 16]: prefix, gap, suffix."""
    known, mask = torch.randn(count, 16, 3, generator=torch.Generator().manual_seed(4)), torch.zeros(count, 16)
    mask[:, :2] = mask[:, 9:] = 1
    return known, mask


def squash(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
    return torch.tanh(noisy_BHO) * 0.8


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_refine_sees_every_step_and_what_it_returns_is_used(name: str) -> None:
    known, mask = make_window()
    seen: list[tuple[int, int]] = []

    def refine(clean_BHO: Tensor, index: int, num_steps: int) -> Tensor:
        assert torch.equal(clean_BHO[mask > 0.5], known[mask > 0.5])
        seen.append((index, num_steps))
        return torch.full_like(clean_BHO, float(index))

    inputs: list[Tensor] = []

    def denoise(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
        inputs.append(noisy_BHO)
        return squash(noisy_BHO, known_BHO, mask_BH, k_B)

    noise = seeded_noise(np.arange(3), (16, 3), CPU)
    result = SAMPLERS[name](denoise, known, mask, noise, cosine_schedule(50), 4, 1.0, refine=refine)
    assert seen == [(i, 4) for i in range(4)]
    assert torch.equal(result[mask > 0.5], known[mask > 0.5])
    assert (result[mask < 0.5] == 3).all()
    plain = inputs[:4].copy()
    inputs.clear()
    SAMPLERS[name](denoise, known, mask, noise, cosine_schedule(50), 4, 1.0)
    assert torch.equal(inputs[0], plain[0])
    assert not torch.allclose(inputs[1], plain[1])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_start_with_little_noise_stays_near_it(name: str) -> None:
    known, mask = make_window()
    clean = torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(5))
    visited: list[int] = []

    def trusting(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
        visited.append(int(k_B[0]))
        return noisy_BHO

    def run(level: float, num_steps: int = 2, scale: float = 1.0) -> Tensor:
        visited.clear()
        noise = seeded_noise(np.arange(3), (16, 3), CPU)
        start = Start(clean, level)
        return SAMPLERS[name](trusting, known, mask, noise, cosine_schedule(100), num_steps, scale, start=start)

    unknown = mask < 0.5
    distances = []
    for level in (0.001, 0.05, 0.4, 1.0):
        result = run(level)
        assert torch.equal(result[~unknown], known[~unknown])
        distances.append(float((result - clean)[unknown].abs().mean()))
    assert distances[0] < 0.05
    assert distances == sorted(distances)
    run(0.001)
    assert visited == [0]
    run(0.4, num_steps=4)
    assert visited == [39, 29, 19, 9]
    run(1.0, num_steps=4)
    assert visited == step_indices(100, 4)
    torch.testing.assert_close(run(0.05, 1, 0.0)[unknown], (cosine_schedule(100).alpha_bar[4].sqrt() * clean)[unknown])


def test_a_start_needs_a_noise_level() -> None:
    for level in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"noise_level={level}"):
            Start(torch.zeros(1, 4, 2), level)


def test_interleaved_runs_of_the_multistep_sampler_do_not_meet() -> None:
    """Two threads that take turns at every network evaluation, against each run alone."""
    known, mask = make_window()
    schedule, barrier = cosine_schedule(50), threading.Barrier(2, timeout=20)

    def run(seed: int, denoise: Denoise) -> Tensor:
        noise = seeded_noise(np.arange(seed, seed + 3), (16, 3), CPU)
        return SAMPLERS["dpmpp_2m"](denoise, known, mask, noise, schedule, 6, 1.0)

    def taking_turns(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
        barrier.wait()
        return squash(noisy_BHO, known_BHO, mask_BH, k_B)

    together: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: together.update({seed: run(seed, taking_turns)})) for seed in (0, 50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, windows in together.items():
        assert torch.equal(windows, run(seed, squash))
    assert len(together) == 2


def test_dpm_solver_is_second_order() -> None:
    """Halving the steps' size divides its error by about four; DDIM's by about two."""
    known, mask = torch.zeros(3, 16, 3).double(), torch.zeros(3, 16)
    schedule = cosine_schedule(1024)
    noise = torch.from_numpy(row_noise(np.arange(3), (16, 3)).astype(np.float64)).unsqueeze(0)

    def gaussian(noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor) -> Tensor:
        """The exact posterior mean of states that are normal with mean 1 and variance 1/4."""
        signal, level = schedule.signal_and_noise(k_B)
        return (0.25 * signal * noisy_BHO + level**2) / (0.25 * signal**2 + level**2)

    def error(name: str, num_steps: int) -> float:
        exact, coarse = (
            SAMPLERS[name](gaussian, known, mask, noise, schedule, steps, 1.0) for steps in (1024, num_steps)
        )
        return float((coarse - exact).abs().mean())

    for name, order in (("ddim", 1), ("dpmpp_2m", 2)):
        assert 0.6 * 2**order < error(name, 16) / error(name, 32) < 1.7 * 2**order
    assert error("dpmpp_2m", 16) < 0.3 * error("ddim", 16)
