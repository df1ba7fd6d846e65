import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raystitch.buffer.config import AugmentConfig
from raystitch.config import RunConfig, default_out, find_config, load_run_config, recorded_run_config
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.config_file import load_config
from raystitch.models.config import FitConfig
from raystitch.stitching.config import PairConfig, StitchConfig

MINIMAL = """\
dataset: demo:pointmaze
fit:
  diffusion:
    learning_rate: 5e-4
grid:
  - {algo: dt, data: original}
  - {algo: dt, data: stitched, ratio: [1:1, 2:1], delta: [q99, off, 0.5]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_reads_yaml_as_people_write_it(tmp_path: Path) -> None:
    config = load_run_config(
        write(tmp_path, MINIMAL), ["seeds=[3, 4]", "fit.diffusion.train_steps=7", "grid.1.algo=td3bc"]
    )
    assert config.name == "mine"
    assert config.seeds == (3, 4)
    assert config.fit.diffusion.learning_rate == 5e-4
    assert config.fit.diffusion.train_steps == 7
    assert config.grid[0].combinations == [("1:0", None)]
    assert config.grid[1].algo == "td3bc"
    assert config.grid[1].combinations == [(r, d) for r in ("1:1", "2:1") for d in ("q99", "off", 0.5)]
    assert config.headline_cell == ("1:1", "q99")


def test_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, MINIMAL))
    again = load_run_config(write(tmp_path, config.to_yaml()))
    assert dataclasses.replace(again, headline=None) == config
    assert again.headline_cell == config.headline_cell
    assert yaml.safe_load(config.to_yaml())["grid"][1]["ratio"] == ["1:1", "2:1"]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL.replace("learning_rate", "learningrate"), [], "mine.yaml:4: fit.diffusion.learningrate: unknown"),
        (MINIMAL.replace("5e-4", "fast"), [], "mine.yaml:4: fit.diffusion.learning_rate: input should be"),
        (MINIMAL.replace("5e-4", "-1"), [], "mine.yaml:3: fit.diffusion: learning_rate must be positive, got"),
        (MINIMAL.replace("data: original", "data: orginal"), [], "mine.yaml:6: grid.0.data: input should be"),
        (MINIMAL.replace("1:1", "0:0"), [], "mine.yaml:7: grid.1: ratio 0:0"),
        (MINIMAL.replace("0.5", "-0.5"), [], "delta must be >= 0, got delta=-0.5"),
        (
            MINIMAL,
            ["stitch.pairs.split=value", "stitch.pairs.source_fraction=0.7"],
            "source_fraction=0.7 belongs to pairs.split: return",
        ),
        (
            MINIMAL,
            ["stitch.pairs.split=value", "stitch.pairs.target_fraction=0.1"],
            "target_fraction=0.1 belongs to pairs.split: return",
        ),
        (
            MINIMAL,
            ["stitch.pairs.split=return", "evaluation.target_returns=auto"],
            "what stitched episodes promise where stitch.pairs.split is value, got split=return",
        ),
        (MINIMAL, ["evaluation.target_returns=best"], "evaluation.target_returns: input should be"),
        (MINIMAL, ["augment.chain_rounds=autom"], "or 'auto', got 'autom'"),
        (MINIMAL, ["evaluation.target_returns=atuo"], "or 'auto', got 'atuo'"),
        (MINIMAL, ["grid.0.weights={name: aw, temperature: .inf}"], "temperature must be finite, got temperature=inf"),
        (MINIMAL, ["augment.bridges_per_round=0"], "bridges_per_round must be at least 1, got bridges_per_round=0"),
        (MINIMAL.replace("dataset: demo:pointmaze\n", ""), [], "dataset: required but missing"),
        (MINIMAL + "grid: []\n", [], "mine.yaml:8: not valid YAML: the key 'grid' appears twice"),
        (MINIMAL + "seed: [1\n", [], "mine.yaml:9: not valid YAML"),
        ("- 1\n", [], "mine.yaml: "),
        ("", [], "mine.yaml: "),
        (MINIMAL, ["fit.diffusion.horizn=3"], "--set fit.diffusion.horizn=3: fit.diffusion.horizn: unknown"),
        (MINIMAL, ["resorces.device=cpu"], "resorces: unknown key; did you mean resources?"),
        (MINIMAL, ["seeds=[1, 1]"], "seeds must be distinct"),
        (MINIMAL, ["grid=[]"], "grid is empty"),
        (MINIMAL, ["headline={ratio: 1:9, delta: q99}"], "headline is not a stitched cell of the grid: ratio=1:9"),
        (MINIMAL, ["fit.diffusion"], "write it as key=value"),
        (MINIMAL, ["grid.5.algo=dt"], "grid has only 2 items"),
        (MINIMAL, ["dataset.x=1"], "--set dataset.x=1: "),
        (MINIMAL, ["fit.num_judges=9"], "num_judges must be in 1..dynamics.num_members - 1 = 3, got num_judges=9"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_place(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run_config(write(tmp_path, text), overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_names_resolve_and_unknown_ones_list_what_there_is() -> None:
    assert find_config("demo").name == "demo.yaml"
    assert find_config("tune_configs/smoke.yaml").name == "smoke.yaml"
    assert find_config("study/capped").parent.name == "study"
    assert find_config("tune_configs/study/capped.yaml").name == "capped.yaml"
    with pytest.raises(UserError, match=r"no configuration 'demoo'.*demo, .*study/capped"):
        load_run_config("demoo")


SHIPPED = Path(__file__).parents[1] / "tune_configs"


@pytest.mark.parametrize("name", [str(file.relative_to(SHIPPED).with_suffix("")) for file in SHIPPED.rglob("*.yaml")])
def test_shipped_configs_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run_config(name)
    assert config.name == Path(name).name
    monkeypatch.setenv("RAYSTITCH_RUNS", "/elsewhere")
    assert default_out(config) == Path("/elsewhere") / config.name
    assert (config.headline_cell is not None) == any(line.data == "stitched" for line in config.grid)


def test_part_of_a_nested_section_keeps_its_parents_other_defaults(tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("dynamics: {hidden: 9}\ntermination: {hidden: 7}\n")
    config = load_config(path, FitConfig, ["value.hidden=5"])
    assert (config.dynamics.num_members, config.dynamics.hidden) == (FitConfig().dynamics.num_members, 9)
    assert (config.termination.num_members, config.value.train_steps) == (1, FitConfig().value.train_steps)


def test_run_config_is_frozen(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, MINIMAL))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(config, RunConfig)


def test_what_raystitch_wrote_before_there_was_a_split_is_by_return(tmp_path: Path) -> None:
    content = yaml.safe_load(load_run_config(write(tmp_path, MINIMAL)).to_yaml())
    assert content["stitch"]["pairs"].pop("split") == "auto"
    content["stitch"]["pairs"]["source_fraction"] = 0.7
    content["augment"] |= {"chain_rounds": 2}
    path = write(tmp_path, yaml.safe_dump(content))
    pairs = recorded_run_config(path).stitch.pairs
    assert (pairs.split, pairs.source_fraction) == ("return", 0.7)
    assert load_run_config(path).stitch.pairs.split == "auto"  # a file of a user means today's defaults
    assert "split" not in recorded_run_config(path).stitch.identity()["pairs"]
    assert StitchConfig(pairs=PairConfig(split="value")).identity()["pairs"]["split"] == "value"
    assert "curiosity" not in StitchConfig().identity()["pairs"]


@pytest.mark.parametrize(
    ("asked", "goal", "dense"),
    [
        ({}, "value", "return"),
        ({"split": "value"}, "value", "value"),
        ({"split": "return"}, "return", "return"),
        ({"source_fraction": 0.7}, "return", "return"),
        ({"curiosity": 2.0}, "value", "value"),
    ],
)
def test_the_split_is_decided_by_the_dataset(
    drift: EpisodeDataset, asked: dict[str, Any], goal: str, dense: str
) -> None:
    rewards = np.zeros_like(drift.rewards)
    rewards[drift.offsets[1:][drift.terminated] - 1] = 1
    pairs = PairConfig(**asked)
    assert pairs.for_dataset(drift) == dataclasses.replace(pairs, split=dense)
    assert pairs.for_dataset(dataclasses.replace(drift, rewards=rewards)) == dataclasses.replace(pairs, split=goal)


def test_the_user_is_told_why(drift: EpisodeDataset) -> None:
    plain, curious = PairConfig(), PairConfig(curiosity=2.0)
    told = [asked.split_text(asked.for_dataset(drift)) for asked in (plain, curious)]
    assert told[0] == "pairs.split: auto chose return (rewards are not sparse)"
    assert told[1] == "pairs.split: auto chose value (which other settings of pairs ask for)"


def test_curiosity_is_no_part_of_a_split_by_return() -> None:
    for asked in ({"split": "return"}, {"source_fraction": 0.7}):
        with pytest.raises(ValueError, match=r"curiosity=2.0 belongs to pairs.split: value"):
            PairConfig(curiosity=2.0, **asked)  # pyright: ignore[reportArgumentType]


def test_what_episodes_promise_is_not_asked_for_where_pairs_are_then_split_by_return(
    drift: EpisodeDataset, tmp_path: Path
) -> None:
    config = load_run_config(write(tmp_path, MINIMAL), ["evaluation.target_returns=auto"])
    with pytest.raises(
        UserError,
        match=r"drift: .*target_returns: auto .* auto chose return; give numbers or set stitch\.pairs\.split=value",
    ):
        config.for_dataset(drift)


def test_curiosity_wants_a_second_round(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    curious = ("stitch.pairs.curiosity=2", "augment.chain_rounds=1")
    assert load_run_config(path, curious).stitch.pairs.curiosity == 2
    with pytest.raises(UserError, match=r"augment.chain_rounds=0 is a single round; let chain_rounds be auto"):
        load_run_config(path, ("stitch.pairs.curiosity=2", "augment.chain_rounds=0"))


def test_rounds_go_on_by_themselves_only_where_pairs_are_split_by_value() -> None:
    config = AugmentConfig(num_bridges=2500)
    assert config.chain_rounds == "auto"
    assert config.resolved(by_value=True) == config
    assert config.resolved(by_value=False).chain_rounds == 0
    assert config.round_bridges(0) == config.round_bridges(7) == 1000
    assert AugmentConfig(num_bridges=10).round_bridges(0) == 10
    asked = AugmentConfig(num_bridges=10, chain_rounds=2)
    assert asked.resolved(by_value=False) == asked
