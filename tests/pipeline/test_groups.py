from itertools import chain

import pytest

from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.trial import Trial


def trials(num_cells: int, num_seeds: int) -> list[Trial]:
    """Seed by seed, as the plan has them."""
    return [
        Trial(trial_id=f"{cell}-{seed}", algo="bc", data="stitched", ratio=f"1:{cell}", delta="q99", seed=seed)
        for seed in range(num_seeds)
        for cell in range(num_cells)
    ]


@pytest.mark.parametrize(
    ("cells", "seeds", "slots", "most"),
    [(5, 5, 2, 5), (4, 5, 2, 5), (3, 5, 2, 4), (1, 5, 2, 1), (2, 6, 2, 5), (1, 3, 16, 1), (1, 1, 1, 1), (2, 4, 1, 4)],
)
def test_auto_leaves_two_groups_for_every_slot(cells: int, seeds: int, slots: int, most: int) -> None:
    groups = group_trials(trials(cells, seeds), "auto", slots, on_gpu=False)
    fewest = cells * -(-seeds // most)
    assert len(groups) == fewest
    assert fewest >= min(2 * slots, cells * seeds)
    assert most == seeds or cells * -(-seeds // (most + 1)) < 2 * slots


def test_a_gpu_takes_all_seeds_of_a_cell_and_a_number_is_a_number() -> None:
    assert [len(group) for group in group_trials(trials(2, 5), "auto", 16, on_gpu=True)] == [5, 5]
    assert [len(group) for group in group_trials(trials(1, 5), 3, 1, on_gpu=True)] == [2, 3]
    assert [len(group) for group in group_trials(trials(1, 5), 1, 1, on_gpu=True)] == [1] * 5
    assert group_trials([], "auto", 2, on_gpu=False) == []


def test_groups_hold_one_cell_each_trial_once_and_whole_tables_first() -> None:
    all_trials = trials(3, 5)
    missing = all_trials[4:]
    groups = group_trials(missing, 2, 2, on_gpu=False)
    assert sorted(trial.trial_id for trial in chain(*groups)) == sorted(trial.trial_id for trial in missing)
    assert all(len({trial.ratio for trial in group}) == 1 for group in groups)
    assert len({group[0].ratio for group in groups[:3]}) == 3
