"""Damaged files of a trial: each is named in a line, nothing is resumed from it, and the result is that of an
undisturbed run."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import DamagedError
from raystitch.io.checkpoints import CheckpointFile
from raystitch.pipeline.trials.train import run_trial, run_trials
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.trainers.config import BCConfig, EvalConfig
from raystitch.trainers.registry import load_policy
from tests.files.damage import DAMAGES, Stop, cut, empty, flip, named, to_folder

SETTINGS: dict[str, Any] = {
    "algo": "bc",
    "config": BCConfig(train_steps=300, batch_size=16, hidden=8),
    "evaluation": EvalConfig(num_episodes=1, num_envs=1, every=150, every_episodes=1),
    "device": "cpu",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named_and_stepped_back_from(damage: str, tmp_path: Path) -> None:
    notes: list[str] = []
    file = CheckpointFile(path=tmp_path / "x" / "state.pt", settings="mine", note=notes.append)
    for step in (1, 2, 3):
        file.save({"step": step, "weights": torch.arange(50) * step})
    break_it, why = DAMAGES[damage]
    before = file.before.read_bytes()
    break_it(file.path)
    file.before.write_bytes(before)
    found = file.load()
    assert found is not None
    assert found["step"] == 2
    assert torch.equal(found["weights"], torch.arange(50) * 2)
    assert len(notes) == 1
    assert notes[0].startswith(f"{file.path} cannot be resumed from: {why}")
    assert file.load() is not None  # said once
    file.save({"step": 3})
    assert (file.load() or {})["step"] == 3
    assert len(notes) == 1


def test_no_byte_of_a_checkpoint_changes_unnoticed(tmp_path: Path) -> None:
    file = CheckpointFile(path=tmp_path / "state.pt", note=lambda line: None)
    file.save({"step": 1})
    content = file.path.read_bytes()
    for at in range(len(content)):
        file.path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        assert file.load() is None


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


@pytest.fixture(scope="module")
def whole(drift: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "trial"
    run_trial(Trial(folder=str(out), **SETTINGS), LoadedInputs(dataset=drift))
    return out


@pytest.fixture(scope="module")
def interrupted(drift: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of 300 steps with checkpoints at 100 and 200."""
    out = tmp_path_factory.mktemp("interrupted") / "trial"

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 300:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raystitch.pipeline.trials.trial_folder.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Stop):
            run_trial(Trial(folder=str(out), **SETTINGS), LoadedInputs(dataset=drift), stop)
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == ["state.before.pt", "state.pt"]
    return out


def resume(drift: EpisodeDataset, out: Path) -> tuple[list[str], list[int]]:
    """Finishes a trial: the notes, and the steps of the rows that were made."""
    notes: list[str] = []
    made: list[int] = []
    (result,) = run_trials(
        [Trial(folder=str(out), **SETTINGS)],
        LoadedInputs(dataset=drift),
        note=notes.append,
        log=lambda _, row: made.append(row["step"]),
    )
    assert isinstance(result, dict)
    assert all("\n" not in note for note in notes)
    return notes, made


def same(out: Path, whole: Path) -> None:
    found, expected = finished(out), finished(whole)
    assert found is not None
    assert expected is not None
    assert found["evaluations"] == expected["evaluations"]
    assert rows(out) == rows(whole)
    weights = [(path / "policy" / "policy.safetensors").read_bytes() for path in (out, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("damage", ["empty", "middle byte", "folder"])
def test_a_trial_steps_back_from_a_damaged_checkpoint(
    damage: str, drift: EpisodeDataset, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    break_it, why = DAMAGES[damage]
    out = tmp_path / "trial"
    shutil.copytree(interrupted, out)
    state = out / "checkpoint" / "state.pt"
    break_it(state)
    notes, made = resume(drift, out)
    assert made[0] == 150  # the evaluation after the checkpoint at 100
    assert len(notes) == 1
    assert notes[0].startswith(f"{state} cannot be resumed from: {why}")
    assert "training goes on from the checkpoint before it" in notes[0]
    same(out, whole)


def test_a_trial_with_two_damaged_checkpoints_starts_again(
    drift: EpisodeDataset, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trial"
    shutil.copytree(interrupted, out)
    for name in ("state.pt", "state.before.pt"):
        flip(out / "checkpoint" / name)
    notes, made = resume(drift, out)
    assert [note.split(" cannot")[0] for note in notes] == [
        str(out / "checkpoint" / name) for name in ("state.pt", "state.before.pt")
    ]
    assert all("training starts again" in note for note in notes)
    assert made[0] == 100
    same(out, whole)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """What root may read says nothing about what others may."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_checkpoint_that_may_not_be_read_is_stepped_back_from(
    drift: EpisodeDataset, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    out = tmp_path / "trial"
    shutil.copytree(interrupted, out)
    (out / "checkpoint" / "state.pt").chmod(0)
    with as_nobody(tmp_path):
        notes, made = resume(drift, out)
    assert made[0] == 150
    assert len(notes) == 1
    assert "it cannot be read (Permission denied)" in notes[0]
    same(out, whole)


@pytest.mark.parametrize(
    ("name", "break_it"),
    [("metrics.jsonl", cut), ("metrics.jsonl", flip), ("metrics.jsonl", to_folder), ("config.json", flip)],
)
def test_a_trial_survives_damage_beside_its_checkpoints(
    name: str, break_it: Callable[[Path], None], drift: EpisodeDataset, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trial"
    shutil.copytree(interrupted, out)
    break_it(out / name)
    notes, _ = resume(drift, out)
    assert notes
    assert all(name in note for note in notes)
    same(out, whole)


@pytest.mark.parametrize("break_it", [empty, flip, to_folder], ids=named)
def test_a_trial_whose_result_is_damaged_is_done_again(
    break_it: Callable[[Path], None], drift: EpisodeDataset, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trial"
    shutil.copytree(whole, out)
    break_it(out / "returns.json")
    assert finished(out) is None
    notes, made = resume(drift, out)
    assert made[0] == 100
    assert notes[0].startswith(f"{out / 'returns.json'} ")
    assert "it is done again" in notes[0]
    same(out, whole)


def test_no_byte_of_a_result_changes_unnoticed(whole: Path, tmp_path: Path) -> None:
    path, expected = tmp_path / "returns.json", finished(whole)
    assert expected is not None
    values = {name: value for name, value in expected.items() if name != "digest"}
    content = (whole / "returns.json").read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 7)]) + content[at + 1 :])
        found = finished(tmp_path)
        if found is not None:  # white space, or the name of the digest itself
            assert {name: found[name] for name in values} == values


def test_a_damaged_policy_is_named_file_by_file(whole: Path, tmp_path: Path) -> None:
    for name in ("policy.json", "policy.safetensors"):
        for break_it in (empty, cut, flip):
            folder = tmp_path / f"{name}-{break_it.__name__}"
            shutil.copytree(whole / "policy", folder)
            break_it(folder / name)
            with pytest.raises(DamagedError, match=rf"{name} is damaged"):
                load_policy(folder, "cpu")


def test_a_policy_that_is_damaged_before_it_was_evaluated_is_trained_again(
    drift: EpisodeDataset, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trial"
    run_trial(Trial(folder=str(out), **SETTINGS, evaluate=False), LoadedInputs(dataset=drift))
    flip(out / "policy" / "policy.safetensors")
    notes, made = resume(drift, out)
    assert len(notes) == 1
    assert "policy.safetensors is damaged" in notes[0]
    assert "the trial is done again" in notes[0]
    assert made[0] == 100
    same(out, whole)
