"""Training data in files give the same batches as in memory."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.io.cache import Scratch
from raystitch.trainers.batches import Kind, RatioSampler, TrainData
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.ratio import parse_ratio


def batches(data: TrainData) -> list[torch.Tensor]:
    """All tensors of ten batches."""
    generators = [torch.Generator().manual_seed(5)]
    sampler = RatioSampler(data, parse_ratio("1:1"), 64, generators)
    found: list[torch.Tensor] = []
    for _ in range(10):
        drawn = sampler.draw()
        batch = data.windows(*drawn, 5) if data.kind == "sequences" else data.transitions(drawn[0], drawn[1])
        found += [getattr(batch, field.name) for field in fields(batch) if field.name != "actor"]
    return found


@pytest.mark.parametrize("kind", ["transitions", "sequences"])
def test_files_and_memory_give_the_same_bits(
    drift: EpisodeDataset, bridges: BridgeSet, tmp_path: Path, kind: Kind
) -> None:
    scratch = Scratch("pools", parent=tmp_path)
    memory = build_data(drift, DataSpec(kind=kind, data="stitched", device="cpu"), bridges=bridges)
    mapped = build_data(
        drift, DataSpec(kind=kind, data="stitched", device="cpu", memory_gib=0), bridges=bridges, scratch=scratch
    )
    for one, other in zip(batches(memory), batches(mapped), strict=True):
        assert torch.equal(one, other)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_one_pool_serves_all_trials_and_another_buffer_has_its_own(
    drift: EpisodeDataset, bridges: BridgeSet, tmp_path: Path
) -> None:
    scratch = Scratch("pools", parent=tmp_path)

    def pools(of: BridgeSet) -> list[int]:
        build_data(
            drift,
            DataSpec(kind="transitions", data="stitched", device="cpu", memory_gib=0),
            bridges=of,
            scratch=scratch,
        )
        folders = [path for path in tmp_path.iterdir() if path.is_dir()]
        return sorted((folder / "rewards.bin").stat().st_ino for folder in folders)

    first = pools(bridges)
    assert pools(bridges) == first
    assert len(pools(bridges.take(range(10)))) == 2  # pyright: ignore[reportArgumentType]


def test_the_same_file_with_other_action_bounds_has_its_own_pool(drift: EpisodeDataset, tmp_path: Path) -> None:
    """Actions are stored scaled to the bounds, which ``--env`` may replace; the trajectories stay the same."""
    scratch = Scratch("pools", parent=tmp_path)
    wider = replace(drift, action_low=3 * drift.action_low, action_high=3 * drift.action_high)
    assert wider.fingerprint == drift.fingerprint
    narrow, wide = (
        build_data(dataset, DataSpec(kind="transitions", device="cpu", memory_gib=0), scratch=scratch).actions
        for dataset in (drift, wider)
    )
    torch.testing.assert_close(wide, narrow / 3)
    elsewhere = replace(drift, env=EnvSpec(env_id="Pendulum-v1"))
    assert len({dataset.scaling_fingerprint for dataset in (drift, wider, elsewhere, replace(drift))}) == 3


def test_scratch_folders_are_whole_or_not_there_and_the_oldest_go(tmp_path: Path) -> None:
    scratch = Scratch("pools", parent=tmp_path, max_bytes=250)

    def write(folder: Path) -> None:
        (folder / "data").write_bytes(b"x" * 100)

    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        scratch.folder("a", fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    scratch.folder("a", write)
    scratch.folder("b", write)
    scratch.folder("a", fail)  # is there, so nothing is written; and used now
    scratch.folder("c", write)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "c"]


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTITCH_CACHE_GIB", "lots")
    with pytest.raises(UserError, match="lots"):
        Scratch("pools")
