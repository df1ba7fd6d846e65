"""A loss of power at any moment: what was promised is there, and what goes on ends as if nothing had happened."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import write_minari
from raystitch.io.checkpoints import CheckpointFile
from raystitch.io.files import atomic_folder, atomic_path, make_folder
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.trials.train import run_trial, run_trials
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.trainers.config import BCConfig, EvalConfig
from tests.files.powercut import PowerCut, Remains

SETTINGS: dict[str, Any] = {
    "algo": "bc",
    "config": BCConfig(train_steps=300, batch_size=16, hidden=8),
    "evaluation": EvalConfig(num_episodes=1, num_envs=1),
    "device": "cpu",
}


def write(path: Path, text: str) -> None:
    path.write_text(text)


def test_the_harness_drops_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root / "old", "old")
    with PowerCut(root) as cut:
        write(root / "new", "new data")
        os.replace(root / "new", root / "old")
    trees = {(remains.way, tuple(remains.tree.items())) for remains in cut.remains}
    assert ("nothing", (("old", b"old"),)) in trees
    assert ("names", (("old", b""),)) in trees  # renamed without a sync: the classic empty file
    assert ("torn", (("old", b"new "),)) in trees
    assert not any(("old", b"new data") in tree for _, tree in trees)
    with PowerCut(root) as cut:
        (root / "other").mkdir()
        write(root / "other" / "copy", "copy")
        os.unlink(root / "old")
    assert ("removals", ()) in {(remains.way, tuple(remains.tree.items())) for remains in cut.remains}


def test_the_harness_sees_a_promise_that_was_not_kept(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with PowerCut(tmp_path / "root") as cut:
        with atomic_path(tmp_path / "root" / "file", durable=False) as temporary:
            write(temporary, "content")
        cut.promise("written")
    left = {remains.way: remains.tree.get("file") for remains in cut.remains if remains.promised}
    assert left == {"nothing": None, "names": b"", "torn": b"con"}


def test_a_file_that_was_written_is_there_and_no_other_state_but_before(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with PowerCut(root) as cut:
        for text in ("first", "second"):
            with atomic_path(root / "a" / "b" / "file") as temporary:
                write(temporary, text)
            cut.promise(text)
        with atomic_folder(root / "c" / "folder") as temporary:
            make_folder(temporary / "inside")
            write(temporary / "inside" / "file", "third")
        cut.promise("third")
    assert len(cut.remains) > 10
    for remains in cut.remains:
        file, folder = remains.tree.get("a/b/file"), remains.tree.get("c/folder/inside/file")
        assert file in ((None, b"first", b"second") if remains.promised is None else (b"first", b"second"))
        assert folder in (None, b"third") or "c/folder" not in remains.tree
        assert file == b"second" or remains.promised in (None, "first")
        assert folder == b"third" or remains.promised != "third"


def test_a_checkpoint_that_was_saved_is_never_lost(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()

    def file(folder: Path) -> CheckpointFile:
        return CheckpointFile(path=folder / "checkpoint" / "state.pt", note=lambda line: None)

    with PowerCut(root) as cut:
        for step in (1, 2, 3):
            file(root).save({"step": step, "weights": torch.full((20,), step)})
            cut.promise(step)
    for number, remains in enumerate(cut.remains):
        found = file(remains.put(tmp_path / str(number))).load()
        step = 0 if found is None else found["step"]
        assert step >= (remains.promised or 0), remains.when
        assert found is None or torch.equal(found["weights"], torch.full((20,), step))


def rows(out: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]


def cut_trial(drift: EpisodeDataset, root: Path) -> PowerCut:
    root.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, PowerCut(root) as cut:
        patch.setattr("raystitch.pipeline.trials.trial_folder.CHECKPOINT_SECONDS", 0.0)
        run_trial(Trial(folder=str(root / "trials" / "a"), **SETTINGS), LoadedInputs(dataset=drift))
        cut.promise("finished")
    return cut


def check_trials(drift: EpisodeDataset, whole: Path, found: list[Remains], folder: Path) -> None:
    expected = finished(whole)
    assert expected is not None
    for number, remains in enumerate(found):
        out = remains.put(folder / str(number)) / "trials" / "a"
        if remains.promised:
            assert finished(out) is not None, remains.when
        (result,) = run_trials(
            [Trial(folder=str(out), **SETTINGS)], LoadedInputs(dataset=drift), note=lambda line: None
        )
        assert isinstance(result, dict)
        assert result["evaluations"] == expected["evaluations"], remains.when
        assert rows(out) == rows(whole), remains.when
        weights = [(path / "policy" / "policy.safetensors").read_bytes() for path in (out, whole)]
        assert weights[0] == weights[1], remains.when


def test_a_trial_ends_the_same_after_a_cut(drift: EpisodeDataset, tmp_path: Path) -> None:
    cut = cut_trial(drift, tmp_path / "root")
    promised = [remains for remains in cut.remains if remains.promised]
    finishing = [remains for remains in cut.remains if "trials/a/policy" in remains.tree and not remains.promised]
    assert promised
    assert len(finishing) > 5
    some = [*finishing[:: max(1, len(finishing) // 6)], *promised[:3]]
    check_trials(drift, tmp_path / "root" / "trials" / "a", some, tmp_path)


@pytest.mark.slow
def test_a_trial_ends_the_same_after_a_cut_at_any_moment(drift: EpisodeDataset, tmp_path: Path) -> None:
    cut = cut_trial(drift, tmp_path / "root")
    check_trials(drift, tmp_path / "root" / "trials" / "a", cut.remains, tmp_path)


def cut_fit(drift: EpisodeDataset, config: FitConfig, root: Path) -> PowerCut:
    root.mkdir(parents=True)
    with PowerCut(root) as cut:
        fit_bundle(drift, config, root / "runs" / "bundle", "cpu", checkpoint_every=15)
        cut.promise("fitted")
    return cut


def check_fits(drift: EpisodeDataset, config: FitConfig, whole: Path, found: list[Remains], folder: Path) -> None:
    expected = Bundle.load(whole, "cpu").hash
    for number, remains in enumerate(found):
        out = remains.put(folder / str(number)) / "runs" / "bundle"
        if remains.promised:
            assert Bundle.load(out, "cpu").hash == expected, remains.when
        again = fit_bundle(drift, config, out, "cpu", note=lambda line: None)
        assert again.hash == expected, remains.when
        assert Bundle.load(out, "cpu").hash == expected, remains.when


def test_a_fit_ends_the_same_after_a_cut(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path) -> None:
    cut = cut_fit(drift, tiny_fit, tmp_path / "root")
    promised = [remains for remains in cut.remains if remains.promised]
    saving = [remains for remains in cut.remains if "runs/bundle/value.safetensors" in remains.tree]
    saving = [remains for remains in saving if not remains.promised]
    assert promised
    assert len(saving) > 5
    some = [*saving[:: max(1, len(saving) // 5)], *promised[:2]]
    check_fits(drift, tiny_fit, tmp_path / "root" / "runs" / "bundle", some, tmp_path)


@pytest.mark.slow
def test_a_fit_ends_the_same_after_a_cut_at_any_moment(
    drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    cut = cut_fit(drift, tiny_fit, tmp_path / "root")
    check_fits(drift, tiny_fit, tmp_path / "root" / "runs" / "bundle", cut.remains, tmp_path)


def test_a_d4rl_file_is_whole_or_not_there(drift: EpisodeDataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with PowerCut(root) as cut:
        write_d4rl(drift, root / "out" / "data.hdf5")
        cut.promise("written")
    for remains in cut.remains:
        content = remains.tree.get("out/data.hdf5")
        assert content in (None, (root / "out" / "data.hdf5").read_bytes()), remains.when
        assert content is not None or not remains.promised, remains.when


def test_a_minari_dataset_is_whole_or_not_there(
    drift: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    with PowerCut(root) as cut:
        write_minari(drift.subset(np.arange(3)), "made/drift-v0")
        cut.promise("written")
    fingerprint = load_dataset("minari:made/drift-v0").fingerprint
    names = {name for name in cut.remains[-1].tree if name.startswith("made/")}
    for number, remains in enumerate(cut.remains):
        if "made/drift-v0" not in remains.tree:
            assert not remains.promised, remains.when
            continue
        assert names <= remains.tree.keys(), remains.when
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(remains.put(tmp_path / str(number))))
        assert load_dataset("minari:made/drift-v0").fingerprint == fingerprint, remains.when
