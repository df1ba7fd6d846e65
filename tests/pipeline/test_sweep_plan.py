import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raystitch.buffer.reader import Buffer
from raystitch.config import RunConfig, load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.io.config_file import parse_config
from raystitch.io.files import write_json
from raystitch.pipeline.trials.cost import Machines, estimate, plan_groups
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.plan import delta_values, make_trial, plan, result_rows
from raystitch.pipeline.trials.preflight import asked_deltas, check_run
from raystitch.pipeline.trials.rehearsal import RunPace
from raystitch.pipeline.trials.trial import InputHashes, Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.table import RESULTS_SCHEMA, write_results
from raystitch.shaping.config import ShapingConfig, WeightConfig

INPUTS = InputHashes(dataset="sha256:d", bundle="sha256:b", buffer="sha256:u")


def config(**changes: object) -> RunConfig:
    data: dict[str, object] = {
        "name": "test",
        "dataset": "demo:pointmaze",
        "seeds": [0, 1],
        "grid": [
            {"algo": "dt", "data": "original"},
            {"algo": "dt", "data": "joined"},
            {"algo": "dt", "data": "stitched", "ratio": ["1:0", "1:1", "0:1"], "delta": ["q99", 0.5]},
            {"algo": "td3bc", "data": "stitched", "ratio": ["1:1"], "delta": ["off"]},
        ],
    }
    return parse_config(data | changes, RunConfig)


def cells(trials: list[Trial]) -> list[tuple[str, str, str, str | None, int]]:
    return [(trial.algo, trial.data, trial.ratio, trial.delta, trial.seed) for trial in trials]


def test_every_cell_runs_once_per_seed_and_original_only_once() -> None:
    expected = [
        ("dt", "original", "1:0", None),
        ("dt", "joined", "1:1", None),
        ("dt", "stitched", "1:1", "q99"),
        ("dt", "stitched", "1:1", "0.5"),
        ("dt", "stitched", "0:1", "q99"),
        ("dt", "stitched", "0:1", "0.5"),
        ("td3bc", "stitched", "1:1", "off"),
    ]
    trials = plan(config(), INPUTS)
    assert cells(trials) == [(*cell, seed) for seed in (0, 1) for cell in expected]
    assert len({trial.trial_id for trial in trials}) == len(trials)
    assert plan(config(), INPUTS) == trials


def ids(trials: list[Trial], data: str) -> set[str]:
    return {trial.trial_id for trial in trials if trial.data == data}


def test_ids_change_with_what_a_trial_depends_on_and_nothing_else() -> None:
    before = plan(config(), INPUTS)
    other_buffer = plan(config(), InputHashes(dataset="sha256:d", bundle="sha256:b", buffer="sha256:other"))
    assert ids(before, "original") == ids(other_buffer, "original")
    assert ids(before, "joined") == ids(other_buffer, "joined")
    assert not ids(before, "stitched") & ids(other_buffer, "stitched")
    more_seeds = plan(config(seeds=[0, 1, 2], headline={"ratio": "0:1", "delta": "q99"}), INPUTS)
    assert {trial.trial_id for trial in before} < {trial.trial_id for trial in more_seeds}
    longer = plan(config(evaluation={"num_episodes": 9}), INPUTS)
    assert not {trial.trial_id for trial in before} & {trial.trial_id for trial in longer}
    other_dt = plan(config(algorithms={"dt": {"train_steps": 9}}), INPUTS)
    kept = {trial.trial_id for trial in before} & {trial.trial_id for trial in other_dt}
    assert kept == {trial.trial_id for trial in before if trial.algo == "td3bc"}


def test_ids_and_folders_of_the_smoke_run_are_what_they_always_were() -> None:
    """Runs that were made before are taken up only where their ids are computed as they were then."""
    smoke = load_run_config("smoke", ["stitch.pairs.split=return"])
    trials = plan(smoke, INPUTS, "/runs/smoke")
    assert {(trial.algo, trial.data): trial.trial_id for trial in trials} == {
        ("dt", "original"): "10c65088c14ecaf5",
        ("dt", "stitched"): "10f9974a2bdb1cfb",
        ("td3bc", "joined"): "1709303d60a9a9fb",
        ("td3bc", "stitched"): "16e46e4c32125811",
    }
    assert [trial.trial_id for trial in plan(smoke)] == [
        "73c017ad836f23a0",
        "a11b496f2349508e",
        "949445458cf5367d",
        "3be8fded3bfc1b33",
    ]
    assert trials[1].folder == "/runs/smoke/trials/10f9974a2bdb1cfb"
    assert trials[1].record == {
        "trial_id": trials[1].trial_id,
        "delta": "off",
        "bundle": "sha256:b",
        "buffer": "sha256:u",
    }
    assert trials[2].record == {"trial_id": trials[2].trial_id, "delta": None, "bundle": "sha256:b"}


@pytest.mark.parametrize(("text", "value"), [("generation", "generation"), ("off", None), ("0.25", 0.25), ("q9", "q9")])
def test_outside_of_a_run_a_trial_records_its_buffer_and_the_delta_as_a_value(text: str, value: object) -> None:
    assert Trial(algo="bc").record == {}
    trial = Trial(algo="bc", data="stitched", ratio="1:1", delta=text, inputs=INPUTS)
    assert trial.record == {"buffer": "sha256:u", "delta": value}


def test_another_shaping_is_another_trial() -> None:
    cell: dict[str, Any] = {"algo": "dt", "data": "original", "ratio": "1:0", "delta": None, "seed": 0}
    as_recorded = make_trial(config(), INPUTS, "", **cell)
    shaped = make_trial(config(), INPUTS, "", **cell, shaping=ShapingConfig(weights=WeightConfig(name="rw")))
    assert as_recorded == plan(config(), INPUTS)[0]
    assert shaped.trial_id != as_recorded.trial_id
    assert len(group_trials([as_recorded, shaped], 2, slots=1, on_gpu=False)) == 2


def test_a_trial_is_a_value_and_may_be_a_key() -> None:
    for trial in plan(config(), INPUTS, "/runs/test"):
        again = copy.deepcopy(trial)
        assert again == trial
        assert {again: 1}[trial] == 1


def returns(success: float | None, target: float | None, headline: bool) -> dict[str, object]:
    measured = {"return_mean": 1.5, "return_std": 0.5, "success_rate": success, "score": None, "num_eval_episodes": 2}
    return {"headline": headline, "target_return": target, **measured, "returns": [1.0, 2.0], "lengths": [3, 4]}


def test_results_have_a_row_per_trial_and_target(tmp_path: Path) -> None:
    trials = plan(config(), INPUTS, tmp_path)
    first, second, third = trials[2], trials[-1], trials[0]
    content = {"status": "ok", "train_steps": 5, "train_seconds": 1.5}
    evaluations = [returns(1.0, 3.0, True), returns(0.5, 1.0, False)]
    write_json(Path(first.folder) / "returns.json", content | {"evaluations": evaluations})
    write_json(Path(second.folder) / "returns.json", content | {"evaluations": [returns(None, None, True)]})
    rows = result_rows(trials, {third.trial_id: "RunError: no"}, {"q99": 0.3, "off": None}.get)
    write_results(rows, tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.schema.equals(RESULTS_SCHEMA)
    got = [(r["trial_id"], r["status"], r["target_return"], r["headline"], r["delta_value"]) for r in table.to_pylist()]
    assert got == [
        (third.trial_id, "failed", None, True, None),
        (first.trial_id, "ok", 3.0, True, 0.3),
        (first.trial_id, "ok", 1.0, False, 0.3),
        (second.trial_id, "ok", None, True, None),
    ]


@pytest.mark.parametrize("text", ["", '{"status": "ok"', "{}", "[]"])
def test_half_a_result_is_not_a_finished_trial(tmp_path: Path, text: str) -> None:
    assert finished(tmp_path) is None
    (tmp_path / "returns.json").write_text(text)
    assert finished(tmp_path) is None


class Steady(dict[Any, float]):
    """A pace that is the same for all algorithms and for any number of seeds."""

    def __missing__(self, key: Any) -> float:
        return 0.01


PACE = RunPace(fit=60.0, candidate=0.005, group_step=Steady(), episode=Steady(), environment=0.01)


def seconds(asked: RunConfig, num_cpus: int) -> dict[str, float]:
    """Return what each stage takes on one machine."""
    machines = Machines.here(asked, num_cpus)
    costs = estimate(asked, plan_groups(asked.resources, plan(asked), machines.slots), machines, PACE)
    return {stage: cost.seconds for stage, cost in costs.items()}


def test_more_cpus_cost_less_time() -> None:
    few, many = seconds(config(), 2), seconds(config(), 8)
    assert set(few) == {"fit", "augment", "trials", "the rest"}
    assert few["fit"] == 60
    assert 0 < many["trials"] < few["trials"]
    assert 0 < many["augment"] <= few["augment"]


def test_evaluations_count_too() -> None:
    assert PACE.group_seconds(config(), "bc", 1) == pytest.approx(
        0.01 * config().algorithms.bc.train_steps + 50 * 0.01 + 25 * 0.01
    )
    curves = {"every": 10000, "every_episodes": 2, "target_returns": [1, 2]}
    often = config(evaluation={"num_episodes": 10, "num_envs": 5, **curves})
    curve = (often.algorithms.bc.train_steps - 1) // 10000
    assert PACE.group_seconds(often, "bc", 3) == pytest.approx(
        0.01 * often.algorithms.bc.train_steps + 3 * 2 * (10 + curve * 2) * 0.01 + 5 * 0.01
    )  # the environments are made once


def test_stacked_seeds_cost_less_than_one_after_the_other_and_a_search_costs_too() -> None:
    alone, stacked = (
        seconds(config(seeds=[0, 1, 2, 3], resources={"stacked_seeds": most}), 2)["trials"] for most in (1, 4)
    )
    assert 0.25 * alone < stacked < alone
    searching = config(search={"algorithm": "random", "num_samples": 10, "seeds": [5, 6]})
    few, many = (seconds(searching, num_cpus)["search"] for num_cpus in (2, 20))
    assert few > many > 0


def test_every_delta_of_a_run_is_asked_about_and_another_grid_s_has_no_number(truth_buffer: Buffer) -> None:
    grid = "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: [q50, auto]}]"
    search = "search={algorithm: random, algo: bc, seeds: [99], delta: [0.5]}"
    assert asked_deltas(load_run_config("smoke", [grid, "headline=null"])) == ["off", "q50", "auto"]
    assert asked_deltas(load_run_config("smoke", [grid, "headline=null", search])) == ["off", "q50", "auto", 0.5]
    value = delta_values(truth_buffer)
    assert value("q50") == pytest.approx(0.5) and value("auto") is None  # its calibration has none


def test_a_selection_is_part_of_a_run_and_all_changes_nothing(tmp_path: Path) -> None:
    plain = config()
    assert plain.select == "all"
    assert "\nselect:" not in plain.to_yaml()
    assert plan(config(select="all")) == plan(plain)
    part = config(select=[{"best": 0.5}, "clean"])
    assert part.select == "best=0.5,clean"
    assert part.dataset_ref.select == "best=0.5,clean"
    (tmp_path / "run.yaml").write_text(part.to_yaml())
    assert load_run_config(tmp_path / "run.yaml").select == part.select
    assert not {trial.trial_id for trial in plan(plain)} & {trial.trial_id for trial in plan(part)}
    # Once the data are read, their fingerprint says what was selected.
    assert [trial.trial_id for trial in plan(plain, INPUTS)] == [trial.trial_id for trial in plan(part, INPUTS)]
    assert {trial.dataset for trial in plan(part, INPUTS)} == {part.dataset_ref}


def test_a_run_is_checked_on_its_selection_and_says_what_it_kept(drift: EpisodeDataset, tmp_path: Path) -> None:
    write_d4rl(drift, tmp_path / "drift.hdf5")
    small = {
        "dataset": f"d4rl:{tmp_path}/drift.hdf5",
        "fit": {"diffusion": {"horizon": 16, "width": 8, "multipliers": [1, 2], "gap_min": 2, "gap_max": 8}},
        "grid": [{"algo": "bc", "data": "original"}],
    }
    checked = check_run(config(**small, select={"best": 0.5}), tmp_path / "run")
    assert checked.dataset.num_episodes == 20
    assert "select best=0.5 keeps 20 of 40 episodes" in checked.notes[0]
    with pytest.raises(UserError, match="keeps 1 of 40 episodes; at least 2 are needed"):
        check_run(config(**small, select="episodes=[3]"), tmp_path / "run")


@pytest.mark.parametrize(("rule", "what"), [("bonus", "standard deviation"), ("shift", "mean")])
def test_rewards_that_cannot_be_measured_are_refused_before_the_fit(
    drift: EpisodeDataset, tmp_path: Path, rule: str, what: str
) -> None:
    sign = np.ones_like(drift.rewards)
    if rule == "shift":
        sign[: len(sign) // 2] = -1
        sign[len(sign) // 2 * 2 :] = 0
    write_d4rl(replace(drift, rewards=sign), tmp_path / "flat.hdf5")
    flat = config(
        dataset=f"d4rl:{tmp_path}/flat.hdf5",
        fit={"diffusion": {"horizon": 16, "width": 8, "multipliers": [1, 2], "gap_min": 2, "gap_max": 8}},
        grid=[{"algo": "td3bc", "data": "original", "rewards": rule}],
    )
    with pytest.raises(UserError, match=f"rewards cannot be measured by their {what}, which is 0"):
        check_run(flat, tmp_path / "run")
