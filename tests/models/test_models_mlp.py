import torch
from torch.nn.functional import linear, silu

from raystitch.models.mlp import EnsembleMLP


def make() -> EnsembleMLP:
    return EnsembleMLP(3, 5, 2, 16, 2, torch.Generator().manual_seed(0))


def test_each_member_is_an_ordinary_residual_mlp() -> None:
    mlp, rows = make(), torch.randn(7, 5)
    for member, output in enumerate(mlp(rows)):
        enter, inner, leave = (
            (weight[member].T, bias[member, 0]) for weight, bias in zip(mlp.weights, mlp.biases, strict=True)
        )
        x = linear(rows, *enter)
        x = x + linear(silu(x), *inner)
        torch.testing.assert_close(output, linear(silu(x), *leave))


def test_rows_of_their_own_for_each_member() -> None:
    mlp, rows = make(), torch.randn(3, 7, 5)
    expected = torch.stack([mlp(rows[member])[member] for member in range(3)])
    torch.testing.assert_close(mlp(rows), expected)


def test_the_generator_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), make().parameters(), strict=True))


def test_the_jacobian_is_that_of_each_member() -> None:
    mlp, rows = make(), torch.randn(7, 5)
    outputs, jacobian = mlp.jacobian(rows, slice(1, None))
    torch.testing.assert_close(outputs, mlp(rows, slice(1, None)))
    for row in range(7):
        by_row = torch.autograd.functional.jacobian(lambda x: mlp(x[None])[1:, 0], rows[row])
        torch.testing.assert_close(jacobian[:, row].transpose(1, 2), by_row)
