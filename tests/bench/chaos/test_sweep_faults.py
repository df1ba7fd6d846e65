"""Things die under ``sweep`` while it trains, for real; the run has to be the one that nothing disturbed.

`raystitch bench chaos` is the long version of this, with every fault done several times.
"""

from pathlib import Path

import pytest

from raystitch.bench.chaos.sweep_faults import SWEEP_FAULTS, run_sweep_fault
from raystitch.bench.chaos.sweep_target import SweepTarget, make_sweep_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUICK = ("trial worker", "driver of a sweep", "node of a sweep", "clock back an hour", "two drivers of a sweep")
"""All but the full disk, which has to wait for a checkpoint."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> SweepTarget:
    return make_sweep_target(tmp_path_factory.mktemp("chaos"), train_steps=800, with_long=False)


@pytest.mark.parametrize("fault", QUICK)
def test_no_trial_is_lost_or_repeated(fault: str, target: SweepTarget, tmp_path: Path) -> None:
    assert fault in SWEEP_FAULTS
    result = run_sweep_fault(fault, tmp_path / "disturbed", target)
    if result.impossible:
        pytest.skip(result.impossible)
    assert (result.repeated, result.lost, result.doubled, result.changed) == (0, 0, 0, 0), result.what_happened
    assert result.trials == 6
