"""A search is killed half-way: no finished trial is trained again, and the searcher goes on from what it knew."""

from pathlib import Path

import pytest

from raystitch.bench.chaos.processes import Driver, until
from raystitch.errors import UserError
from raystitch.pipeline.trials.search import read_search
from tests.cluster.conftest import Prepared
from tests.cluster.test_sweep_killed import results

pytestmark = [pytest.mark.timeout(3000), pytest.mark.slow]


def ended(run: Path) -> dict[tuple[str, str], tuple[str, int]]:
    """Cell -> status and step of those that ended."""
    try:
        rows = read_search(run).get("trials", [])
    except UserError:
        return {}
    return {(row["ratio"], row["delta"]): (row["status"], row["step"]) for row in rows if row["status"] != "running"}


@pytest.mark.parametrize(("scheduler", "num_cells", "seconds"), [("fifo", 200, 1500), ("asha", 16, 900)])
def test_a_search_killed_half_way_goes_on(
    prepared: Prepared, tmp_path: Path, scheduler: str, num_cells: int, seconds: int
) -> None:
    pytest.importorskip("optuna")
    run = prepared.copy(tmp_path / "run")
    settings = (
        *prepared.settings,
        "grid=[{algo: bc, data: original}]",
        "headline=null",
        "seeds=[0]",
        "algorithms.bc={train_steps: 60, batch_size: 16, hidden: 8}",
        "evaluation={num_episodes: 1, num_envs: 1, every: 20, every_episodes: 1, max_episode_steps: 20}",
        f"search={{algorithm: optuna, algo: bc, num_samples: {num_cells}, seeds: [7], delta: ['off', q99], "
        f"scheduler: {scheduler}}}",
    )
    command = ["sweep", "smoke", "--out", str(run), *(f"--set={text}" for text in settings)]
    with Driver(command) as driver:
        until(lambda: driver.status is not None or len(ended(run)) >= num_cells // 2, "half of it is done", seconds)
        driver.kill()
    cells, before = ended(run), results(run)
    assert num_cells // 2 <= len(cells) < num_cells, driver.lines()
    with Driver(command) as driver:
        assert driver.wait(seconds) == 0, driver.lines()[-20:]
    after, whole = results(run), ended(run)
    assert {trial: after[trial] for trial in before} == before
    assert {cell: whole[cell] for cell in cells} == cells
    assert len(read_search(run)["trials"]) == num_cells
    assert {status for status, _ in whole.values()} <= {"ok", "stopped"}
    print(f"{scheduler}: {len(cells)} of {num_cells} cells and {len(before)} results before, {len(after)} after")
    assert (run / "report.html").stat().st_size < 2_000_000
