from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raystitch.config import RunConfig
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import parse_config
from raystitch.io.files import read_json
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.search import Cell, SearchLog, cell_trials, draw_cells, make_cell, value_of, with_chosen
from raystitch.pipeline.trials.trial import InputHashes
from raystitch.search_config import SearchConfig

INPUTS = InputHashes(dataset="sha256:d", bundle="sha256:b", buffer="sha256:u")


def config(**search: object) -> RunConfig:
    data: dict[str, object] = {
        "name": "test",
        "dataset": "demo:pointmaze",
        "seeds": [0, 1],
        "grid": [
            {"algo": "td3bc", "data": "original"},
            {"algo": "dt", "data": "stitched", "ratio": ["1:1"], "delta": ["q99"]},
        ],
        "search": {"algorithm": "random", "num_samples": 8, **search},
        "evaluation": {"every": 100},
    }
    return parse_config(data, RunConfig)


def refused(**search: object) -> str:
    with pytest.raises(UserError) as error:
        config(**search)
    return str(error.value)


def test_a_search_that_cannot_be_right_is_refused() -> None:
    assert "search.seeds and seeds share [1]" in refused(seeds=[1, 7])
    assert "low=2.0, high=1.0" in refused(ratio={"low": 2, "high": 1})
    assert "did you mean low" in refused(ratio={"lo": 0.1, "high": 1})
    assert "ratio=1:0" in refused(ratio=["1:0"])
    assert "delta='tight'" in refused(delta=["tight"])
    assert "algo must be one of td3bc" in refused(algo="td3")
    assert "num_samples=0" in refused(num_samples=0)
    assert "grid is always trained to its end" in refused(algorithm="none", scheduler="asha")
    with pytest.raises(ValueError, match=r"evaluation\.every must be between 1 .* got evaluation\.every=0"):
        replace(config(scheduler="asha"), evaluation=replace(config().evaluation, every=0))


def test_a_random_search_covers_the_range_in_logarithm_and_is_the_same_every_time() -> None:
    search = SearchConfig(algorithm="random", num_samples=400, delta=("q90", "off"))
    cells = draw_cells(search, 3)
    assert cells == draw_cells(search, 3) != draw_cells(search, 4)
    assert len(set(cells)) == len(cells) == 400
    shares = np.array([float(cell.ratio.removeprefix("1:")) for cell in cells])
    assert shares.min() >= 0.0995 and shares.max() <= 4.0
    assert np.median(shares) == pytest.approx(np.sqrt(0.1 * 4.0), rel=0.2)
    assert {cell.delta for cell in cells} == {"q90", "off"}


def test_lists_are_drawn_without_repetition_and_cells_have_one_name() -> None:
    search = SearchConfig(algorithm="random", num_samples=9, ratio=("1:1", "2:2", "4:1"), delta=("q90", 0.5))
    assert sorted(draw_cells(search, 0)) == sorted(
        Cell(ratio, delta) for ratio in ("1:1", "2:2", "4:1") for delta in ("q90", "0.5")
    )
    assert make_cell(0.123456, None) == Cell("1:0.123", "off")
    assert make_cell("1.0:2", 0.50) == Cell("1:2", "0.5")


def test_what_was_chosen_is_the_headline_and_in_the_grid_of_every_stitched_algorithm() -> None:
    before = config()
    after = with_chosen(before, Cell("1:0.5", "off"))
    assert after.headline_cell == ("1:0.5", "off")
    added = {(trial.algo, trial.ratio, trial.delta) for trial in plan(after)} - {
        (trial.algo, trial.ratio, trial.delta) for trial in plan(before)
    }
    assert added == {("td3bc", "1:0.5", "off"), ("dt", "1:0.5", "off")}
    assert with_chosen(after, Cell("1:0.5", "off")) == after
    seeds = {trial.seed for trial in cell_trials(before, INPUTS, Cell("1:0.5", "off"))}
    assert not seeds & set(before.seeds)


def test_the_value_is_score_then_success_then_return() -> None:
    row = {"success_rate": None, "score": None, "return_mean": 3.0}
    assert value_of([row, row | {"return_mean": 5.0}]) == 4.0
    assert value_of([row | {"score": 10.0}]) == 10.0
    assert value_of([row | {"success_rate": 0.25}, row | {"success_rate": 0.75}]) == 0.5
    assert value_of([row | {"score": 10.0, "success_rate": 0.25}]) == 10.0


def test_a_search_goes_on_from_its_file_unless_it_is_another_one(tmp_path: Path) -> None:
    log = SearchLog(tmp_path, config(num_samples=4), INPUTS)
    for index, status in enumerate(("ok", "stopped", "failed")):
        log.end(log.start(Cell(f"1:{index + 1}", "q99")), status, None if status == "failed" else 1.0 + index, 5)
    log.start(Cell("1:9", "off"))
    again = SearchLog(tmp_path, config(num_samples=4), INPUTS)
    assert not again.complete
    assert again.resume() == [Cell("1:3", "q99"), Cell("1:9", "off")]
    assert [row["status"] for row in again.rows] == ["ok", "stopped"]
    for index, value in enumerate((0.5, 1.5)):
        again.end(again.start(Cell(f"1:{index + 5}", "q90")), "ok", value, 10)
    assert again.complete
    assert again.choose() == Cell("1:6", "q90")  # the stopped cell's 2.0 is of a policy that is not trained
    stored = read_json(tmp_path / "search.json")
    assert stored["chosen"] == {"ratio": "1:6", "delta": "q90"}
    assert stored["trials"][0] == {
        "ratio": "1:1", "delta": "q99", "value": 1.0, "num_seeds": 2, "status": "ok", "step": 5,
    }  # fmt: skip
    assert SearchLog(tmp_path, config(num_samples=5), INPUTS).rows == []
    assert SearchLog(tmp_path, config(num_samples=4), replace(INPUTS, buffer="sha256:other")).rows == []


def test_nothing_can_be_chosen_when_everything_failed(tmp_path: Path) -> None:
    log = SearchLog(tmp_path, config(), INPUTS)
    log.end(log.start(Cell("1:1", "q99")), "failed", None, 0)
    with pytest.raises(RunError, match="nothing to choose from: all of its 1 cells failed"):
        log.choose()
