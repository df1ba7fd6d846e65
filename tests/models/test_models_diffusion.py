from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from raystitch.models.config import DiffusionConfig
from raystitch.models.diffusion import cosine_schedule, diffusion_loss, predict_clean, training_masks
from raystitch.models.unet import TemporalUNet, fill_between, ignored_positions

CONFIG = DiffusionConfig(horizon=16, width=8, multipliers=(1, 2), gap_min=3, gap_max=9, prefix_max=3)


def stitch_masks(count: int, valid: torch.Tensor) -> torch.Tensor:
    config = replace(CONFIG, mask_stitch=1.0, mask_prefix=0.0)
    return training_masks(config, valid, torch.Generator().manual_seed(0)).bool()


def test_stitch_masks_are_prefix_gap_suffix() -> None:
    valid = torch.randint(CONFIG.gap_min + 2, 17, (4000,), generator=torch.Generator().manual_seed(1))
    gaps, prefixes = set(), set()
    for mask, length in zip(stitch_masks(4000, valid).tolist(), valid.tolist(), strict=True):
        assert not any(mask[length:])
        prefix = mask.index(False)
        enter = mask.index(True, prefix)
        end = max(i for i, known in enumerate(mask) if known) + 1
        assert all(mask[enter:end])
        gaps.add(enter - prefix)
        prefixes.add(prefix)
    assert gaps == set(range(CONFIG.gap_min, CONFIG.gap_max + 1))
    assert prefixes == {1, 2, 3}


def test_mask_kinds_come_in_their_shares() -> None:
    masks = training_masks(CONFIG, torch.full((8000,), 16), torch.Generator().manual_seed(0))
    assert masks[:, 0].all()
    runs = (masks[:, 1:] != masks[:, :-1]).sum(1)
    prefix_only = (runs == 1) & (masks[:, -1] == 0)
    assert float(prefix_only.float().mean()) == pytest.approx(CONFIG.mask_prefix, abs=0.03)


def test_fill_between_draws_straight_lines() -> None:
    known = torch.tensor([[0.0, 1, 99, 99, 4, 99]]).unsqueeze(-1)
    mask = torch.tensor([[0.0, 1, 0, 0, 1, 0]])
    assert fill_between(known, mask).flatten().tolist() == [1, 1, 2, 3, 4, 4]
    nothing = fill_between(torch.zeros(1, 6, 1), torch.zeros(1, 6))
    assert nothing.flatten().tolist() == [0] * 6


def test_ignored_positions_are_outside_the_known_span_of_a_bridge() -> None:
    masks = torch.tensor([[0.0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1]])
    expected = [[1, 0, 0, 0, 0, 1], [0] * 6, [0] * 6, [1, 1, 0, 0, 0, 0]]
    assert ignored_positions(masks).tolist() == expected


def make_unet() -> TemporalUNet:
    torch.manual_seed(0)
    unet = TemporalUNet(3, 16, 8, (1, 2), add_line=False)
    torch.nn.init.normal_(unet.leave.weight)
    return unet.eval()


def test_what_is_unknown_or_ignored_cannot_reach_the_network() -> None:
    unet, mask = make_unet(), torch.zeros(2, 16)
    mask[:, :2] = mask[:, 8:10] = 1
    noisy, known, k = torch.randn(2, 16, 3), torch.randn(2, 16, 3), torch.tensor([0, 50])
    wanted = unet(noisy, known, mask, k)[:, 2:8]
    other_known = torch.where(mask.unsqueeze(-1) > 0.5, known, torch.full_like(known, 7.0))
    other_noisy = noisy.clone()
    other_noisy[:, 10:] = 5.0
    other_noisy[:, :2] = -5.0
    torch.testing.assert_close(unet(other_noisy, other_known, mask, k)[:, 2:8], wanted)
    changed = known.clone()
    changed[:, 9] += 1
    assert not torch.allclose(unet(noisy, changed, mask, k)[:, 2:8], wanted)


def test_the_loss_prefers_smooth_errors_to_jitter() -> None:
    """Two predictions equally far from the truth, one constantly and one alternately off."""
    schedule, mask, valid = cosine_schedule(100), torch.zeros(1, 16), torch.tensor([16])
    mask[:, :2] = mask[:, 12:] = 1
    clean, k = torch.zeros(1, 16, 3), torch.tensor([5])

    class Off(TemporalUNet):
        error = torch.ones(16)

        def forward(
            self, noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor, return_B: Tensor | None = None
        ) -> Tensor:
            return self.error.view(1, 16, 1).expand(1, 16, 3)

    network, losses = Off(3, 16, 8, (1, 2), add_line=True), []
    for error in (torch.ones(16), (-1.0) ** torch.arange(16)):
        network.error = error
        for weight in (0.0, 2.0):
            config = replace(CONFIG, difference_weight=weight)
            losses.append(
                diffusion_loss(network, schedule, config, clean, mask, valid, k, torch.zeros(1, 16, 3)).item()
            )
    # 11 steps touch the gap: only the two seams change with a constant error, all of them with an alternating one.
    assert losses == pytest.approx([1.0, 1.0 + 2 * 2 / 11, 1.0, 1.0 + 2 * (2 + 9 * 4) / 11])


@pytest.mark.parametrize("prediction", ["clean", "noise"])
def test_loss_counts_unknown_recorded_positions_only(prediction: Literal["clean", "noise"]) -> None:
    unet, schedule = make_unet(), cosine_schedule(100)
    config = replace(CONFIG, prediction=prediction)
    mask = torch.zeros(2, 16)
    mask[:, :2] = mask[:, 8:10] = 1
    valid = torch.tensor([10, 12])
    clean, noise, k = torch.randn(2, 16, 3), torch.randn(2, 16, 3), torch.tensor([20, 70])

    def loss(states: torch.Tensor) -> float:
        return float(diffusion_loss(unet, schedule, config, states, mask, valid, k, noise).detach())

    padded = clean.clone()
    padded[:, 12:] = 100.0
    assert loss(padded) == pytest.approx(loss(clean), rel=1e-5)
    moved = clean.clone()
    moved[:, 4] += 1.0
    assert loss(moved) != pytest.approx(loss(clean), rel=1e-3)


def test_a_noise_prediction_is_turned_into_clean_states() -> None:
    schedule = cosine_schedule(100)
    clean, noise, k = torch.randn(4, 16, 3), torch.randn(4, 16, 3), torch.tensor([0, 10, 50, 90])
    signal, level = schedule.signal_and_noise(k)

    class Oracle(TemporalUNet):
        def forward(
            self, noisy_BHO: Tensor, known_BHO: Tensor, mask_BH: Tensor, k_B: Tensor, return_B: Tensor | None = None
        ) -> Tensor:
            return noise

    oracle = Oracle(3, 16, 8, (1, 2), add_line=False)
    mask = torch.zeros(4, 16)
    recovered = predict_clean(oracle, schedule, "noise", signal * clean + level * noise, clean, mask, k)
    torch.testing.assert_close(recovered, clean, rtol=1e-3, atol=1e-3)


def test_growing_is_a_transposed_convolution() -> None:
    grow, x = make_unet().grow[0], torch.randn(3, 16, 8)
    assert isinstance(grow, torch.nn.ConvTranspose1d)
    torch.testing.assert_close(grow(x), torch.nn.ConvTranspose1d.forward(grow, x))
    assert grow(x).shape == (3, 8, 16)


def test_a_block_normalises_then_scales_and_shifts_each_row_by_its_own_embedding() -> None:
    block, x, embed = make_unet().middle, torch.randn(3, 16, 8), torch.randn(3, 32)
    torch.nn.init.normal_(block.norm_in.weight)
    torch.nn.init.normal_(block.norm_in.bias)
    scale, shift = block.film(embed).unsqueeze(-1).chunk(2, 1)
    y = torch.nn.functional.silu(block.norm_in(block.conv_in(x)) * (1 + scale) + shift)
    expected = x + torch.nn.functional.silu(block.norm_out(block.conv_out(y)))
    torch.testing.assert_close(block(x, embed), expected, rtol=1e-4, atol=1e-5)
