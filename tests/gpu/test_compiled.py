"""The compiled network: one graph without breaks, and not a new one for every number of rows.

On a GPU the sampler compiles by itself, and repairs ask for as many rows as there are bridges in doubt: a network
compiled anew for each number would never be done compiling, and give up after eight.
"""

from dataclasses import replace

import torch
import torch._dynamo.utils

from raystitch.models.bundle import build_unet
from tests.conftest import small_fit

ROWS = (16, 11, 5, 1)


def test_one_graph_for_any_number_of_rows() -> None:
    config = small_fit()
    config = replace(config, diffusion=replace(config.diffusion, return_dropout=0.25))
    torch.manual_seed(0)
    network = build_unet(4, config).eval()
    torch.nn.init.normal_(network.leave.weight)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for rows in ROWS:
            shape = (rows, config.diffusion.horizon)
            noisy, known = torch.randn(2, *shape, 4)
            mask, k = (torch.rand(shape) > 0.5).float(), torch.full((rows,), 3)
            wanted = torch.randn(rows)
            expected = network(noisy, known, mask, k, wanted)
            torch.testing.assert_close(compiled(noisy, known, mask, k, wanted), expected, atol=1e-4, rtol=1e-4)
    # The first number of rows, then any number, then a single row, which torch always treats alone.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
