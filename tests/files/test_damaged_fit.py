"""Damaged files of a fit: each is named in a line, nothing is resumed from it, and the bundle is that of an undisturbed
fit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import DamagedError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.loop import FitProgress
from tests.files.damage import DAMAGES, Stop, cut, empty, flip, named


@pytest.fixture(scope="module")
def half_fit(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the second part, with checkpoints at 10 and 20 of 30 steps."""
    out = tmp_path_factory.mktemp("fit") / "bundle"

    def stop(report: FitProgress) -> None:
        if (report.part, report.step) == ("dynamics", 20):
            raise Stop

    with pytest.raises(Stop):
        fit_bundle(drift, tiny_fit, out, "cpu", stop, checkpoint_every=10)
    return out


@pytest.fixture(scope="module")
def fitted(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "bundle"
    fit_bundle(drift, tiny_fit, out, "cpu")
    return out


@pytest.mark.parametrize(("part", "damage"), [("diffusion", "empty"), ("dynamics", "middle byte")])
def test_a_fit_steps_back_from_a_damaged_checkpoint(
    part: str,
    damage: str,
    drift: EpisodeDataset,
    tiny_fit: FitConfig,
    half_fit: Path,
    fitted: Path,
    tmp_path: Path,
) -> None:
    break_it, why = DAMAGES[damage]
    out = tmp_path / "bundle"
    shutil.copytree(half_fit, out)
    path = out / ".fit" / f"{part}.pt"
    break_it(path)
    notes: list[str] = []
    bundle = fit_bundle(drift, tiny_fit, out, "cpu", checkpoint_every=10, note=notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(f"{path} cannot be resumed from: {why}")
    assert bundle.hash == Bundle.load(fitted, "cpu").hash
    assert not (out / ".fit").exists()


@pytest.mark.parametrize("break_it", [empty, flip], ids=named)
def test_a_damaged_plan_does_not_stop_a_fit(
    break_it: Callable[[Path], None],
    drift: EpisodeDataset,
    tiny_fit: FitConfig,
    half_fit: Path,
    fitted: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(half_fit, out)
    break_it(out / ".fit" / "plan.json")
    notes: list[str] = []
    bundle = fit_bundle(drift, tiny_fit, out, "cpu", note=notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(f"{out / '.fit' / 'plan.json'} is damaged")
    assert bundle.hash == Bundle.load(fitted, "cpu").hash


def test_checkpoints_say_their_action_bounds_where_the_plan_is_damaged(
    drift: EpisodeDataset, tiny_fit: FitConfig, half_fit: Path, tmp_path: Path
) -> None:
    out, notes = tmp_path / "bundle", list[str]()
    shutil.copytree(half_fit, out)
    flip(out / ".fit" / "plan.json")
    wider = replace(drift, action_low=3 * drift.action_low, action_high=3 * drift.action_high)
    bundle = fit_bundle(wider, tiny_fit, out, "cpu", note=notes.append)
    assert {"diffusion.pt", "dynamics.pt"} <= {Path(note.split()[0]).name for note in notes}
    assert bundle.hash == fit_bundle(wider, tiny_fit, device="cpu").hash


@pytest.mark.parametrize("name", ["stitcher.json", "diffusion.safetensors"])
def test_a_damaged_bundle_is_named_and_fitted_again(
    name: str, drift: EpisodeDataset, tiny_fit: FitConfig, fitted: Path, tmp_path: Path
) -> None:
    for break_it in (empty, cut, flip):
        out = tmp_path / break_it.__name__
        shutil.copytree(fitted, out)
        break_it(out / name)
        with pytest.raises(DamagedError, match=str(out / name)):
            Bundle.load(out, "cpu")
    if name != "stitcher.json":
        with pytest.raises(UserError, match="other settings"):  # where it says what it was fitted with, that counts
            fit_bundle(drift.subset(np.arange(30)), tiny_fit, out, "cpu")
    notes: list[str] = []
    again = fit_bundle(drift, tiny_fit, out, "cpu", note=notes.append)
    assert len(notes) == 1
    assert str(out / name) in notes[0]
    assert again.hash == Bundle.load(fitted, "cpu").hash == Bundle.load(out, "cpu").hash
