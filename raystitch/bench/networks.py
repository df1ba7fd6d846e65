"""The share of the machine's matrix-multiply peak that the networks reach, in float32 and in bf16.

Legend: B windows, V steps of bridges.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from raystitch.bench.machine import MATMUL_FLOPS, Row, interleaved_seconds, matmul
from raystitch.models.bundle import Bundle
from raystitch.stitching.config import SamplerConfig

ROUNDS = 7
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Work = Callable[[], object]


def network_rows(bundle: Bundle, published: Bundle, published_rows: int) -> list[Row]:
    """Rows with the speed of each network and its share of the peak, which is measured in turn with them.

    The U-Net gets a micro-batch, the dynamics and its derivatives the steps of as many bridges of average gaps, and the
    published network ``published_rows`` windows.
    """
    micro_batch = SamplerConfig().micro_batch
    diffusion = bundle.config.diffusion
    num_steps = micro_batch * ((diffusion.gap_min + diffusion.gap_max) // 2 + 1)
    works: dict[str, Callable[[bool], Work]] = {
        f"U-Net, {micro_batch} windows of {bundle.horizon}": lambda bf16: _denoising(bundle, micro_batch, bf16),
        f"dynamics, {num_steps} steps": lambda bf16: _dynamics(bundle, num_steps, bf16, derivatives=False),
        f"dynamics' derivatives, {num_steps} steps": lambda bf16: _dynamics(bundle, num_steps, bf16, derivatives=True),
    }
    found: list[Row] = []
    for name, dtype in DTYPES.items():
        use_bf16 = dtype == torch.bfloat16
        run = {what: make(use_bf16) for what, make in works.items()}
        if not use_bf16:
            what = f"published network, {published_rows} windows of {published.horizon}"
            run[what] = _denoising(published, published_rows, False)
        peak = f"matmul {name}"
        seconds = interleaved_seconds({peak: matmul(dtype, bundle.device.type), **run}, rounds=ROUNDS)
        peak_gflops = MATMUL_FLOPS / seconds[peak] / 1e9
        found.append(Row(f"{peak}, beside the networks", peak_gflops, "GFLOP/s"))
        for what, work in run.items():
            gflops = _flops(work) / seconds[what] / 1e9
            found.append(Row(f"{what}, {name}", gflops, "GFLOP/s", peak, gflops / peak_gflops))
    return found


def _flops(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _denoising(bundle: Bundle, num_windows: int, bf16: bool) -> Work:
    """Return work that evaluates the U-Net once."""
    shape = (num_windows, bundle.horizon, bundle.obs_dim)
    noisy_BHO, known_BHO = torch.randn(2, *shape, device=bundle.device)
    mask_BH = torch.zeros(shape[:2], device=bundle.device)
    k_B = torch.full((num_windows,), bundle.schedule.num_steps // 2, device=bundle.device)
    denoise = bundle.denoiser(precision="bf16" if bf16 else "float32", compile="off")
    return torch.inference_mode()(lambda: denoise(noisy_BHO, known_BHO, mask_BH, k_B))


def _dynamics(bundle: Bundle, num_steps: int, bf16: bool, *, derivatives: bool) -> Work:
    """Return work that predicts all members' next states, or the derivatives that guidance needs for a Newton step."""
    obs_VO = torch.randn(num_steps, bundle.obs_dim, device=bundle.device)
    act_VA = torch.rand(num_steps, bundle.act_dim, device=bundle.device)
    dynamics = bundle.dynamics

    def work() -> None:
        with torch.inference_mode(), torch.autocast(bundle.device.type, torch.bfloat16, enabled=bf16):
            if derivatives:
                dynamics.derivatives(obs_VO, act_VA, "proposers")
            else:
                dynamics.member_next(obs_VO, act_VA, "all")

    return work
