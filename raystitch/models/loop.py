"""One resumable training loop for every part of a bundle."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from raystitch.errors import RunError
from raystitch.io.checkpoints import CheckpointFile
from raystitch.seeding import derive_seed

WARMUP_STEPS = 100
CHECK_EVERY = 20
CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """The position of a fit.

    Attributes:
        part: ``diffusion``, ``dynamics``, ...
        step, total_steps: of this part.
        loss: mean since the last report.
        seconds_left: estimate for this part.
    """

    part: str
    step: int
    total_steps: int
    loss: float
    seconds_left: float


@dataclass(kw_only=True, eq=False)
class FitPart:
    """A module that the loop trains, with its loss.

    Attributes:
        loss: (step, generator) -> scalar; ``generator`` is a CPU generator seeded by (seed, part, step) alone, so a
            resumed run draws what an uninterrupted one would.
        ema_decay: the module ends with its averaged weights; None for no averaging.
        state: further tensors that ``loss`` keeps between steps; saved and restored with the weights.
    """

    name: str
    module: nn.Module
    loss: Callable[[int, torch.Generator], Tensor]
    train_steps: int
    learning_rate: float
    ema_decay: float | None = None
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def train_part(
    part: FitPart,
    *,
    seed: int,
    checkpoint: CheckpointFile | None,
    checkpoint_every: int,
    progress: Callable[[FitProgress], None] | None,
    bf16: bool = False,
) -> None:
    """Trains ``part.module`` in place with Adam, warm-up and cosine decay; continues from ``checkpoint`` where it is
    sound, else from the one before. It is written every ``checkpoint_every`` steps and at least every 20 seconds.

    Args:
        bf16: run the forward pass under autocast; weights, gradients and optimiser stay float32.

    Raises:
        RunError: when the loss is not finite (part and step named) or the checkpoint cannot be written.
    """
    module, total = part.module, part.train_steps
    device = next(module.parameters()).device
    average = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=part.learning_rate, fused=device.type in ("cpu", "cuda"))
    generator = torch.Generator()
    start = _restore(part, average, optimizer, checkpoint) if checkpoint else 0

    module.train()
    began = saved_at = time.monotonic()
    loss_sum, loss_count = torch.zeros((), device=device), 0
    for step in range(start, total):
        generator.manual_seed(derive_seed(seed, part.name, step))
        loss_sum += _train_step(part, step, optimizer, generator, bf16)
        loss_count += 1
        if part.ema_decay is not None:
            _average(average, module, min(part.ema_decay, (1 + step) / (10 + step)))
        done = step + 1
        is_due = done % checkpoint_every == 0 or done == total
        if not is_due and done % CHECK_EVERY:
            continue
        mean_loss = _finite(part, done, float(loss_sum) / loss_count)
        loss_sum, loss_count = torch.zeros((), device=device), 0
        if checkpoint and (is_due or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
            _write(part, average, optimizer, checkpoint, done)
            saved_at = time.monotonic()
        if progress:
            seconds = (time.monotonic() - began) / (done - start) * (total - done)
            progress(FitProgress(part=part.name, step=done, total_steps=total, loss=mean_loss, seconds_left=seconds))
    if part.ema_decay is not None:
        module.load_state_dict({**module.state_dict(), **average})
    module.eval().requires_grad_(False)


def _train_step(
    part: FitPart, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator, bf16: bool
) -> Tensor:
    """Changes the module by one step of the optimiser; returns the loss before it, a scalar on the device."""
    for group in optimizer.param_groups:
        group["lr"] = part.learning_rate * _rate(step, part.train_steps)
    with torch.autocast(next(part.module.parameters()).device.type, torch.bfloat16, enabled=bf16):
        loss = part.loss(step, generator)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _finite(part: FitPart, step: int, loss: float) -> float:
    if not math.isfinite(loss):
        raise RunError(
            f"fit: the loss of {part.name} is {loss} at step {step}; "
            f"lower {part.name}.learning_rate or look for extreme values with `raystitch data inspect`"
        )
    return loss


def _rate(step: int, total: int) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, max(total // 10, 1)))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / total)))


@torch.no_grad()
def _average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    # Both in the order of ``named_parameters``.
    get_ema_multi_avg_fn(decay)(list(average.values()), list(module.parameters()), 0)


def _write(
    part: FitPart, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, checkpoint: CheckpointFile, step: int
) -> None:
    checkpoint.save(
        {
            "step": step,
            "module": part.module.state_dict(),
            "average": average if part.ema_decay is not None else {},
            "optimizer": optimizer.state_dict(),
            "state": part.state,
        }
    )


def _restore(
    part: FitPart, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, checkpoint: CheckpointFile
) -> int:
    saved = checkpoint.load(next(part.module.parameters()).device)
    if saved is None:
        return 0
    part.module.load_state_dict(saved["module"])
    average.update(saved["average"])
    optimizer.load_state_dict(saved["optimizer"])
    part.state.update(saved["state"])
    return int(saved["step"])
