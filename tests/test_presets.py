"""Presets: what they promise, and that they say the same as the shipped file."""

import argparse

import pytest

from raystitch.commands import augment, fit
from raystitch.commands.options import stage_config
from raystitch.config import load_run_config
from raystitch.errors import UserError
from raystitch.models.config import FitConfig
from raystitch.presets import PRESETS, find_preset
from raystitch.stitching.config import StitchConfig


def test_fast_is_the_default_settings() -> None:
    assert PRESETS["fast"].fit == FitConfig()
    assert PRESETS["fast"].stitch == StitchConfig()


def test_balanced_trains_longer_and_works_harder_than_fast() -> None:
    fast, balanced = PRESETS["fast"], PRESETS["balanced"]
    assert balanced.fit.diffusion.width > fast.fit.diffusion.width
    for part in ("diffusion", "dynamics", "inverse", "reward", "termination", "value", "embedding"):
        assert getattr(balanced.fit, part).train_steps == 2 * getattr(fast.fit, part).train_steps
    assert balanced.stitch.guidance.moves > fast.stitch.guidance.moves
    assert balanced.stitch.repair.rounds > fast.stitch.repair.rounds


def test_diffstitch_is_the_shipped_configuration_of_the_published_settings() -> None:
    config = load_run_config("diffstitch")
    assert config.fit == PRESETS["diffstitch"].fit
    assert config.stitch == PRESETS["diffstitch"].stitch


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no preset is called 'quick'.*fast.*balanced.*diffstitch"):
        find_preset("quick")


def test_settings_lie_on_top_of_a_preset() -> None:
    config = stage_config(FitConfig, "fit", None, ["diffusion.train_steps=7"], "diffstitch")
    assert config.diffusion.train_steps == 7
    assert (config.diffusion.horizon, config.diffusion.multipliers) == (100, (1, 4, 8))
    assert config.dynamics == PRESETS["diffstitch"].fit.dynamics
    with pytest.raises(UserError, match="widht: unknown key; did you mean width"):
        stage_config(FitConfig, "fit", None, ["diffusion.widht=7"], "diffstitch")


def test_a_preset_and_a_file_exclude_each_other() -> None:
    with pytest.raises(UserError, match="--preset fast and --config demo exclude each other"):
        stage_config(StitchConfig, "stitch", "demo", [], "fast")


@pytest.mark.parametrize("argv", [["fit", "x", "--out", "y"], ["augment", "x", "--stitcher", "s", "--out", "y"]])
def test_commands_take_a_preset(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    fit.register(subparsers)
    augment.register(subparsers)
    extra = ["--num-bridges", "3"] if argv[0] == "augment" else []
    assert parser.parse_args([*argv, *extra, "--preset", "balanced"]).preset == "balanced"
