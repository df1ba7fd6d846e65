"""The stacked networks against torch's layers and torch's autograd."""

import pytest
import torch

from raystitch.trainers.mlp import PADDED, StackedMLP
from tests.trainers.conftest import plain

STACK, ROWS = (3, 2), 7


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("out_dim", [1, 3])
def test_outputs_and_gradients_are_torchs(num_layers: int, out_dim: int) -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(5, out_dim, 8, num_layers, stack=STACK)
    x = torch.randn(*STACK, ROWS, 5, requires_grad=True)
    weight = torch.randn(*STACK, ROWS, out_dim)
    of_x, of_weights = torch.autograd.grad((mlp(x) * weight).sum(), (x, mlp.weights))
    shell = StackedMLP(5, out_dim, 8, num_layers, stack=STACK)
    shell.weights.data.copy_(of_weights)
    for seed in range(3):
        for twin in range(2):
            net = plain(mlp, seed, twin)
            own = x.detach()[seed, twin].requires_grad_()
            out = net(own)
            torch.testing.assert_close(mlp(x)[seed, twin], out)
            (out * weight[seed, twin]).sum().backward()
            torch.testing.assert_close(of_x[seed, twin], own.grad)
            for theirs, ours in zip(net.parameters(), plain(shell, seed, twin).parameters(), strict=True):
                torch.testing.assert_close(ours.detach(), theirs.grad)


def test_the_gradient_of_what_goes_in_through_one_of_two() -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(5, 1, 8, 2, stack=STACK)
    x = torch.randn(3, ROWS, 5, requires_grad=True)
    (found,) = torch.autograd.grad(mlp.of(x, 1).sum(), x)
    own = x.detach()[2].requires_grad_()
    plain(mlp, 2, 1)(own).sum().backward()
    torch.testing.assert_close(found[2], own.grad)


def test_bf16_is_close_and_its_gradients_too() -> None:
    torch.manual_seed(0)
    exact, rounded = StackedMLP(5, 2, 64, 3), StackedMLP(5, 2, 64, 3, bf16=True)
    rounded.load_state_dict(exact.state_dict())
    x = torch.randn(1, 50, 5)
    found = [torch.autograd.grad(mlp(x).square().sum(), mlp.weights)[0] for mlp in (exact, rounded)]
    assert (exact(x) - rounded(x)).abs().max() < 0.01
    assert torch.nn.functional.cosine_similarity(found[0], found[1], dim=-1).item() > 0.999
    assert not torch.equal(found[0], found[1])


def test_starts_as_torchs_layers_do_and_pads_with_nothing() -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(7, 3, 200, 2)
    for (weight, bias), inputs in zip(mlp.layers(), (7, 200, 200), strict=True):
        for values in (weight, bias):
            assert values.abs().max() <= inputs**-0.5
        assert weight.std().item() == pytest.approx((inputs * 3) ** -0.5, rel=0.1)
    count = 8 * 200 + 201 * 200 + 201 * 3
    assert mlp.weights.shape == (1, -(-count // PADDED) * PADDED)
    assert not mlp.weights[0, count:].any()
