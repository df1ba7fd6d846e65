import torch
from torch.nn.functional import linear, silu

from raystitch.models.mlp import StackedMLP


def make() -> StackedMLP:
    return StackedMLP(3, 5, 2, 16, 2, torch.Generator().manual_seed(0))


def test_each_member_is_an_ordinary_mlp() -> None:
    mlp, rows = make(), torch.randn(7, 5)
    for member, output in enumerate(mlp(rows)):
        x = rows
        for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
            x = linear(x, weight[member].T, bias[member, 0])
            x = silu(x) if layer < 2 else x
        torch.testing.assert_close(output, x)


def test_rows_of_their_own_for_each_member() -> None:
    mlp, rows = make(), torch.randn(3, 7, 5)
    expected = torch.stack([mlp(rows[member])[member] for member in range(3)])
    torch.testing.assert_close(mlp(rows), expected)


def test_the_generator_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), make().parameters(), strict=True))
