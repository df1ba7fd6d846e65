from dataclasses import replace

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.config import GuidanceConfig, PairConfig, RepairConfig, SamplerConfig, StitchConfig
from raystitch.stitching.guidance import DynamicsGuide
from raystitch.stitching.newton import Steps, newton_step
from raystitch.stitching.pairs import select_pairs
from raystitch.stitching.qualify import step_residuals
from raystitch.stitching.stitcher import Stitcher

SEEDS = np.arange(40) + 5
CONFIG = StitchConfig(
    pairs=PairConfig(mode="successor", terminal_margin=2, max_target_reuse=0),
    sampler=SamplerConfig(num_steps=2),
    repair=RepairConfig(rounds=0),
)


@pytest.fixture(scope="module")
def pairs(world: EpisodeDataset, bundle: Bundle) -> Pairs:
    return select_pairs(world, bundle, CONFIG, SEEDS)


def propose(bundle: Bundle, pairs: Pairs, **guidance: object) -> Candidates:
    config = replace(CONFIG, guidance=GuidanceConfig(**guidance))  # pyright: ignore[reportArgumentType]
    return Stitcher(bundle, config).propose(pairs, SEEDS)


def median_residual(bundle: Bundle, rows: Candidates, members: str) -> float:
    residuals = step_residuals(bundle, rows.observations, rows.actions, rows.gap, members)[0]  # pyright: ignore
    return float(np.nanmedian(residuals))


@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_guidance_lowers_the_residual_also_for_the_judges(solver: str, bundle: Bundle, pairs: Pairs) -> None:
    plain = propose(bundle, pairs, schedule="off")
    moves = {"newton": 2, "gradient": 20}[solver]
    guided = propose(bundle, pairs, solver=solver, moves=moves)
    for members in ("proposers", "judges"):
        assert median_residual(bundle, guided, members) < 0.8 * median_residual(bundle, plain, members)


def test_known_states_and_constant_dimensions_stay(bundle: Bundle, pairs: Pairs) -> None:
    guided = propose(bundle, pairs, moves=3)
    rows = np.arange(len(guided))
    np.testing.assert_array_equal(guided.observations[:, 0], pairs.prefix[:, -1])
    np.testing.assert_array_equal(guided.observations[rows, guided.gap + 1], pairs.suffix[:, 0])
    steps = np.arange(guided.observations.shape[1]) <= guided.gap[:, None] + 1
    assert (guided.observations[..., 4][steps] == 7.0).all()


def test_which_steps_are_guided(bundle: Bundle) -> None:
    def shares(**guidance: object) -> list[float]:
        config = GuidanceConfig(**guidance)  # pyright: ignore[reportArgumentType]
        guide = DynamicsGuide(bundle, torch.ones(1, bundle.horizon), config)
        return [guide.share(step, 4) for step in range(4)]

    assert shares(schedule="off", last_steps=2) == [0, 0, 0, 0]
    assert shares(schedule="constant", last_steps=2) == [0, 0, 1, 1]
    assert shares(schedule="scheduled", last_steps=2) == [0, 0, 0.5, 1]
    assert shares(schedule="constant", last_steps=9) == [1, 1, 1, 1]


def test_the_newton_step_solves_a_linear_system_exactly() -> None:
    """For linear dynamics s' = A s + B a one undamped step makes every residual what no action can explain: 0 here."""
    generator = torch.Generator().manual_seed(0)
    size, lengths = 3, [4, 1, 6]
    by_state = torch.eye(size) + 0.2 * torch.randn(size, size, generator=generator)
    horizon = 9
    states = torch.randn(3, horizon, size, generator=generator, dtype=torch.float64)
    free, wanted = torch.zeros(3, horizon, dtype=torch.bool), torch.zeros(3, horizon, dtype=torch.bool)
    for row, length in enumerate(lengths):
        free[row, 2 : 2 + length] = True
        wanted[row, : 3 + length] = True
    steps = Steps.of(free, wanted)
    assert steps.unknown_B.tolist() == lengths
    by_state = by_state.double()

    def residual(of: torch.Tensor) -> torch.Tensor:
        return of[steps.row_V, steps.position_V + 1] - of[steps.row_V, steps.position_V] @ by_state.T

    def total(of: torch.Tensor) -> torch.Tensor:
        return residual(of).square().sum()

    count = len(steps.row_V)
    move = newton_step(
        residual(states),
        by_state.expand(count, -1, -1),
        torch.zeros(count, size, 1, dtype=torch.float64),
        steps,
        damping=1e-9,
    )
    moved = states.clone()
    for row, length in enumerate(lengths):
        moved[row, 2 : 2 + length] += move[row, :length]
        assert not move[row, length:].any()
    variable = moved.requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(variable), variable)
    assert total(moved) < total(states)
    assert gradient[free].abs().max() < 1e-6


def test_what_an_action_explains_costs_nothing() -> None:
    free = torch.tensor([[False, True, False]])
    steps = Steps.of(free, torch.ones_like(free))
    residual = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    by_state = torch.zeros(2, 2, 2)
    explains = torch.tensor([[[1.0], [0.0]], [[1.0], [0.0]]])
    stays = newton_step(residual, by_state, explains, steps, damping=0.1)
    goes = newton_step(residual, by_state, torch.zeros(2, 2, 1), steps, damping=0.1)
    assert stays.abs().max() < 0.05
    torch.testing.assert_close(goes[0, 0], torch.tensor([-0.5 / 1.1, 0.0]))


def test_a_row_that_is_not_finite_stays_and_spoils_no_other(bundle: Bundle) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3, bundle.horizon, bundle.obs_dim, generator=generator)
    mask = torch.ones(3, bundle.horizon)
    mask[:, 3:9] = 0
    broken = clean.clone()
    broken[1, 5] = float("nan")
    guide = DynamicsGuide(bundle, mask, GuidanceConfig(moves=2))
    whole, spoiled = guide(clean, 0, 1), guide(broken, 0, 1)
    torch.testing.assert_close(spoiled[[0, 2]], whole[[0, 2]], rtol=1e-4, atol=1e-4)
    assert spoiled[1, 5].isnan().all()
    assert not torch.equal(whole, clean)


def windows_of(bundle: Bundle, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of noise, some of it large, with runs of 2 to 8 unknown states, and their mask."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.05, 1, count)[:, None, None]
    clean = scale * torch.randn(count, bundle.horizon, bundle.obs_dim, generator=generator)
    mask = torch.ones(count, bundle.horizon)
    for row in range(count):
        mask[row, 3 : 5 + row % 7] = 0
    return clean, mask


def largest(bundle: Bundle, clean: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The proposers' largest residual in each window, by a loop over its steps."""
    found = torch.zeros(len(clean))
    raw = bundle.standardizer.decode(clean)
    for row in range(len(clean)):
        for step in range(2, int((mask[row] == 0).nonzero().max()) + 1):
            state, after = raw[row, step][None], raw[row, step + 1][None]
            act = bundle.inverse(state, after)
            residual = bundle.dynamics.residual(state, act, after, "proposers")
            found[row] = torch.maximum(found[row], residual[0])
    return found


@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_rows_are_moved_until_they_are_good(solver: str, bundle: Bundle) -> None:
    clean, mask = windows_of(bundle)
    with torch.no_grad():
        before = largest(bundle, clean, mask)
        limit = float(before.median())
        config = GuidanceConfig(solver=solver, moves=6, until=limit)  # pyright: ignore[reportArgumentType]
        moved = DynamicsGuide(bundle, mask, config)(clean, 0, 1)
        after = largest(bundle, moved, mask)
        every = DynamicsGuide(bundle, mask, replace(config, until=None))(clean, 0, 1)
    good = before <= limit
    assert good.any() and not good.all()
    assert torch.equal(moved[good], clean[good]), "rows that are good stay as they are"
    assert (after[~good] < before[~good]).float().mean() > 0.7
    still = ~good & (after > limit)
    torch.testing.assert_close(moved[still], every[still], rtol=1e-4, atol=1e-4)  # all six moves, as without a limit


def test_a_limit_that_nothing_meets_or_everything_does(bundle: Bundle) -> None:
    clean, mask = windows_of(bundle)
    every = DynamicsGuide(bundle, mask, GuidanceConfig(moves=3))(clean, 0, 1)
    never = DynamicsGuide(bundle, mask, GuidanceConfig(moves=3, until=0.0))(clean, 0, 1)
    torch.testing.assert_close(never, every, rtol=1e-4, atol=1e-4)
    assert torch.equal(DynamicsGuide(bundle, mask, GuidanceConfig(moves=3, until=1e9))(clean, 0, 1), clean)


def test_how_often_a_row_is_moved_does_not_depend_on_its_batch_mates(bundle: Bundle) -> None:
    clean, mask = windows_of(bundle)
    config = GuidanceConfig(moves=4, until="q50")
    whole = DynamicsGuide(bundle, mask, config)(clean, 0, 1)
    for row in range(len(clean)):
        alone = DynamicsGuide(bundle, mask[row : row + 1], config)(clean[row : row + 1], 0, 1)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-4)
    broken = clean.clone()
    broken[5, 4] = float("nan")
    spoiled = DynamicsGuide(bundle, mask, config)(broken, 0, 1)
    others = torch.arange(len(clean)) != 5
    torch.testing.assert_close(spoiled[others], whole[others], rtol=1e-4, atol=1e-4)


def test_until_is_a_number_or_a_quantile_and_keeps_what_was_made_before() -> None:
    assert GuidanceConfig(until="off").until is None
    with pytest.raises(ValueError, match="until='much'"):
        GuidanceConfig(until="much")
    assert "until" not in StitchConfig().identity()["guidance"]
    assert StitchConfig(guidance=GuidanceConfig(until="q90")).identity()["guidance"]["until"] == "q90"
