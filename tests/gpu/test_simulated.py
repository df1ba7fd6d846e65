"""The pretended GPU itself: it refuses what a real one refuses, and notices what costs time there."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from raystitch.models.denoise import Denoiser
from raystitch.models.diffusion import cosine_schedule
from raystitch.models.samplers import ddim
from tests.gpu.simulated import DEVICE, Simulation, pretended_cuda


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with pretended_cuda() as made:
        yield made


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.zeros(3),
        lambda x: torch.cat([x, torch.zeros(1)]),
        lambda x: torch.zeros(3)[x.long().clamp(0, 2)],
        lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator()),
        lambda x: torch.randn(3, generator=torch.Generator(DEVICE)),
        lambda x: x.numpy(),
        lambda x: nn.Linear(3, 1)(x),
    ],
)
def test_refuses_both_devices_together(simulation: Simulation, wrong: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises((RuntimeError, TypeError)):
        wrong(x)


@pytest.mark.parametrize(
    ("kind", "costly"),
    [
        ("made on the CPU", lambda x: torch.zeros(3)),
        ("made on the CPU", lambda x: torch.arange(len(x))),
        ("copied to the device", lambda x: torch.tensor([1.0], device=x.device)),
        ("copied to the device", lambda x: torch.tensor(5, device=x.device)),
        ("copied to the device", lambda x: x[torch.zeros(1, dtype=torch.int64)]),
        ("copied to the CPU", lambda x: x.cpu()),
        ("copied to the CPU", lambda x: x.tolist()),
        ("waited", lambda x: float(x.sum())),
        ("waited", lambda x: bool((x > 0).all())),
        ("waited", lambda x: x[x > 0]),
        ("waited", lambda x: x.nonzero()),
    ],
)
def test_notices_what_costs_time(simulation: Simulation, kind: str, costly: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=DEVICE)
    assert not simulation.events
    costly(x)
    assert simulation.of(kind)


def test_computes_what_the_cpu_computes(simulation: Simulation) -> None:
    """Values, gradients, views, in-place changes and a generator's numbers."""
    network, x = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)), torch.randn(5, 3)
    found: list[list[Tensor]] = []
    for device in (torch.device("cpu"), DEVICE):
        network = network.to(device)
        network.zero_grad()
        noise = torch.randn(5, 3, device=device, generator=torch.Generator(device).manual_seed(1))
        rows = x.to(device) + noise
        rows[1:3] *= 2
        loss = network(rows).square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert len(gradients) == 4
        found.append([value.detach().cpu().clone() for value in (loss, *gradients)])
    torch.testing.assert_close(found[1], found[0])
    assert all(parameter.device == DEVICE for parameter in network.parameters())


@pytest.mark.parametrize("place", ["denoiser", "refine"])
def test_a_tensor_without_a_device_in_an_inner_loop_is_noticed(simulation: Simulation, place: str) -> None:
    """What a careless change of the denoising loop would bring: one that is used, and one that is not even used."""

    def network(noisy: Tensor, known: Tensor, mask: Tensor, k: Tensor, wanted: Tensor | None) -> Tensor:
        return noisy * (torch.ones(noisy.shape[-1]) if place == "denoiser" else 1)

    def refine(clean: Tensor, step: int, num_steps: int) -> Tensor:
        torch.zeros(len(clean))
        return clean

    schedule = cosine_schedule(10).to(DEVICE)
    known, mask, noise = (torch.ones(shape).to(DEVICE) for shape in ((2, 4, 3), (2, 4), (2, 4, 3)))
    denoise = Denoiser(network=network, schedule=schedule, prediction="clean")
    assert schedule.levels
    simulation.begin()
    if place == "denoiser":
        with pytest.raises(RuntimeError, match=r"on the CPU \[\(3,\)\] and on the device"):
            ddim(denoise, known, mask, lambda draw: noise, schedule, 2, 1.0)
    else:
        ddim(denoise, known, mask, lambda draw: noise, schedule, 2, 1.0, refine=refine)
        assert simulation.of("made on the CPU")
