"""Things die under ``augment``, for real; the buffer has to be the one that nothing disturbed.

`raystitch bench chaos` is the long version of this, with every fault done several times. `make test` kills actors and
drivers in tests/cluster.
"""

from pathlib import Path

import pytest

from raystitch.bench.chaos.augment_faults import AUGMENT_FAULTS, run_augment_fault
from raystitch.bench.chaos.augment_target import AugmentTarget, make_augment_target

FAULTS = (
    "proposer",
    "qualifier",
    "driver",
    "node",
    "full disk",
    "two drivers (different)",
    "two drivers on S3 (stale read)",
    "unreadable folder",
)
RECOVER = ("proposer", "qualifier", "driver")
"""Where nothing else could have finished the run."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> AugmentTarget:
    return make_augment_target(tmp_path_factory.mktemp("chaos"), num_shards=6, pairs_per_shard=128)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_nothing_doubled(fault: str, target: AugmentTarget, tmp_path: Path) -> None:
    assert fault in AUGMENT_FAULTS
    result = run_augment_fault(fault, tmp_path / "disturbed", target)
    if result.impossible:
        pytest.skip(result.impossible)
    assert (result.lost, result.doubled, result.changed, result.problems) == (0, 0, 0, ()), result.what_happened
    assert result.ids > 0
    assert result.seconds_to_recover is not None or fault not in RECOVER, result.what_happened
