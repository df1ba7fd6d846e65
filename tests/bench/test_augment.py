"""``raystitch bench augment`` with tiny sizes: every number is there, and those that must be are about one."""

import json

import pytest

from raystitch.bench.augment import ONE, PLAIN, AugmentSizes, examine
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle


@pytest.mark.slow
def test_rows_of_augment(maze: EpisodeDataset, tiny_fit: FitConfig) -> None:
    bundle = fit_bundle(maze, tiny_fit)
    found = examine(maze, bundle, AugmentSizes(shard_seconds=0.3, num_shards=2, tiny_shards=(2, 6)))
    json.dumps([row.to_json() for row in found], allow_nan=False)
    by_name = {row.what: row for row in found}
    plain, one = by_name[PLAIN], by_name[ONE]
    assert one.ratio == pytest.approx(one.value / plain.value)
    assert 0.1 < one.value / plain.value < 4  # the same work, whatever else this machine does
    two = [row for row in found if row.what.startswith("Ray, two samplers")]
    assert [row.ratio_to for row in two] == [ONE, PLAIN, "two plain loops at once"]
    assert all(row.value > 0 for row in found if "memory growth" not in row.what)
    assert any("1,000 GPUs" in row.what for row in found)
