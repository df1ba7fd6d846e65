"""What is done to a cell's data: keys of the grid, ids, tables, headline, search, options."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.config_file import parse_config
from raystitch.io.files import write_json
from raystitch.pipeline.trials.cost import print_plan
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.plan import plan, result_rows
from raystitch.pipeline.trials.run_folder import other_rows
from raystitch.pipeline.trials.search import Cell, SearchLog, cell_trials, with_chosen
from raystitch.pipeline.trials.train import run_trial, train
from raystitch.pipeline.trials.trial import InputHashes, LoadedInputs, Trial
from raystitch.report.summary import cell_label
from raystitch.report.table import RESULTS_SCHEMA, read_rows, write_results
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.trainers.config import BCConfig

INPUTS = InputHashes(dataset="sha256:d", bundle="sha256:b", buffer="sha256:u")
SOFT = {"name": "rw", "temperature": 0.5}


def config(*grid: dict[str, Any], **changes: Any) -> RunConfig:
    data = {"name": "test", "dataset": "demo:pointmaze", "seeds": [0, 1], "grid": list(grid)}
    return parse_config(data | changes, RunConfig)


def stitched(**keys: Any) -> dict[str, Any]:
    return {"algo": "td3bc", "data": "stitched", "ratio": ["1:1"], "delta": ["q99"]} | keys


def weighted(**keys: Any) -> dict[str, Any]:
    return {"algo": "td3bc", "data": "weighted", "ratio": ["0:1"]} | keys


def cells(run: RunConfig) -> list[tuple[str, str, str]]:
    return [(trial.data, trial.ratio, trial.shaping.text) for trial in plan(run, INPUTS) if trial.seed == 0]


def test_a_line_has_a_cell_for_every_rule() -> None:
    run = config(stitched(weights=["uniform", "rw", SOFT], ratio=["1:0", "1:1"]), weighted(weights=SOFT))
    assert cells(run) == [
        ("original", "1:0", ""),
        ("stitched", "1:1", ""),
        ("stitched", "1:1", "weights rw 0.1"),
        ("stitched", "1:1", "weights rw 0.5"),
        ("weighted", "0:1", "weights rw 0.5"),
    ]
    assert len(group_trials(plan(run, INPUTS), 2, slots=1, on_gpu=False)) == 5


def test_weighted_data_are_rw_unless_the_weights_are_named() -> None:
    bare, named, uniform = (config(weighted(**keys)) for keys in ({}, {"weights": "rw"}, {"weights": ["uniform"]}))
    assert plan(bare, INPUTS) == plan(named, INPUTS)
    assert cells(uniform) == [("duplicated", "0:1", "")]
    assert plan(uniform, INPUTS) == plan(config(weighted(data="duplicated")), INPUTS)


def test_a_grid_without_these_keys_is_written_as_it_always_was() -> None:
    content = yaml.safe_load(config(stitched(), weighted()).to_yaml())
    assert [sorted(line) for line in content["grid"]] == [["algo", "data", "delta", "ratio"]] * 2
    assert not {"weights", "rewards", "returns"} & set(content["search"])
    assert sorted(content["headline"]) == ["delta", "ratio"]


def test_a_resolved_grid_reads_back_as_the_same_trials() -> None:
    run = config(stitched(weights=[SOFT, "rw"]), headline={"ratio": "1:1", "delta": "q99", "shaping": "weights rw 0.1"})
    again = parse_config(yaml.safe_load(run.to_yaml()), RunConfig)
    assert plan(again, INPUTS) == plan(run, INPUTS)
    assert again.resolved_headline == run.resolved_headline


def test_the_headline_is_the_stitched_cell_as_it_is() -> None:
    assert config(stitched(weights=["rw", "uniform"])).resolved_headline == config(stitched()).resolved_headline
    shaped = config(stitched(weights=["rw"])).resolved_headline
    assert shaped is not None
    assert shaped.shaping == "weights rw 0.1"
    with pytest.raises(UserError, match=r"shaping='weights aw 1'; with these ratio and delta there is .*rw 0\.1'"):
        config(stitched(weights="rw"), headline={"ratio": "1:1", "delta": "q99", "shaping": "weights aw 1"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (stitched(weights="rww"), "grid.0.weights: input should be 'uniform'"),
        (
            stitched(weights={"name": "rw", "temprature": 1}),
            "weights.temprature: unknown key; did you mean temperature",
        ),
        (stitched(weights=["rw", {"name": "rw", "heat": 1}]), "weights.1.heat: unknown key; the keys here are name"),
        (stitched(weights={"name": "rw", "temperature": 0}), "temperature must be positive, got temperature=0"),
        (stitched(weights={"name": "uniform", "temperature": 1}), "uniform does not read temperature=1.0"),
        ({"algo": "bc", "data": "original", "weights": "rw"}, "original data do not have; use data: weighted"),
        (weighted(data="duplicated", weights="rw"), "write data: weighted"),
    ],
)
def test_mistakes_are_one_line(line: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        config(line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_say_what_was_done_and_older_tables_that_nothing_was(tmp_path: Path) -> None:
    trials = plan(config(stitched(weights=["uniform", SOFT])), INPUTS, tmp_path)
    rows = result_rows(trials, {trial.trial_id: "RunError: no" for trial in trials}, lambda _: None)
    write_results(rows, tmp_path / "results.parquet")
    found = read_rows(tmp_path / "results.parquet")
    assert [row["shaping"] for row in found] == ["", "weights rw 0.5"] * 2
    assert cell_label(found[1]) == "stitched 1:1, delta q99, weights rw 0.5"
    assert trials[1].label == "td3bc stitched 1:1 delta q99 weights rw 0.5 seed 0"

    import pyarrow.parquet as pq

    older = pq.read_table(tmp_path / "results.parquet").drop_columns(["shaping"])
    pq.write_table(older, tmp_path / "older.parquet")
    assert {row["shaping"] for row in read_rows(tmp_path / "older.parquet")} == {""}
    assert RESULTS_SCHEMA.names.index("shaping") > RESULTS_SCHEMA.names.index("error")


def test_the_plan_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(config(stitched()), tmp_path)
    assert "shaping" not in capsys.readouterr().out
    print_plan(config(stitched(weights=["uniform", "rw"])), tmp_path)
    shown = capsys.readouterr().out
    assert "shaping" in shown and "weights" in shown


def test_a_search_may_shape_its_cells() -> None:
    search = {"algorithm": "random", "algo": "td3bc", "weights": SOFT}
    run = config({"algo": "td3bc", "data": "original"}, stitched(), search=search)
    cell = Cell("1:0.5", "off")
    assert {trial.shaping.text for trial in cell_trials(run, INPUTS, cell)} == {"weights rw 0.5"}
    after = with_chosen(run, cell)
    assert after.resolved_headline is not None
    assert after.resolved_headline.shaping == "weights rw 0.5"
    assert cells(after)[-1] == ("stitched", "1:0.5", "weights rw 0.5")
    assert with_chosen(after, cell) == after


def test_an_unshaped_search_is_the_one_it_always_was(tmp_path: Path) -> None:
    settings = SearchLog(tmp_path, config(stitched(), search={"algorithm": "random"}), INPUTS).settings["search"]
    assert not {"weights", "rewards", "returns", "shaping"} & set(settings)


BC = BCConfig(train_steps=3, hidden=8, batch_size=16)


def test_a_finished_trial_says_what_was_done(drift: EpisodeDataset, tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "abc"
    shaping = ShapingConfig(weights=WeightConfig(name="rw", temperature=0.5))
    settings: dict[str, Any] = {"algo": "bc", "config": BC, "data": "weighted", "ratio": "0:1", "device": "cpu"}
    run_trial(
        Trial(trial_id="abc", folder=str(folder), shaping=shaping, evaluate=False, **settings),
        LoadedInputs(dataset=drift),
    )
    for name in ("config.json", "returns.json"):
        assert json.loads((folder / name).read_text())["shaping"] == {"weights": SOFT}
    record = json.loads((folder / "policy" / "policy.json").read_text())["record"]
    assert record["shaping"] == {"weights": SOFT}
    finished = json.loads((folder / "returns.json").read_text()) | {"evaluations": [{"headline": True}]}
    finished.pop("digest", None)
    write_json(folder / "returns.json", finished)
    (row,), notes = other_rows(tmp_path, (), INPUTS, lambda _: None)
    assert (row["shaping"], notes) == ("weights rw 0.5", [])


def test_rs_train_takes_a_shaping(drift: EpisodeDataset, tmp_path: Path) -> None:
    soft = ShapingConfig(weights=WeightConfig(name="rw", temperature=0.5))
    acts: list[Any] = []
    for shaping in (soft, ShapingConfig(weights=WeightConfig(name="rw", temperature=0.01))):
        policy = train(drift, "bc", ratio="0:1", config=BC, shaping=shaping, device="cpu")
        acts.append(policy.act(drift.observations[:5]))
    assert not np.array_equal(*acts)
    with pytest.raises(UserError, match="original data do not have; use data: weighted, at 0:1"):
        train(drift, "bc", config=BC, shaping=soft, device="cpu")
    trial = Trial(
        folder=str(tmp_path), algo="bc", config=BC, data="duplicated", ratio="1:1", shaping=soft, evaluate=False
    )
    with pytest.raises(UserError, match="write data: weighted"):
        run_trial(trial, LoadedInputs(dataset=drift))
