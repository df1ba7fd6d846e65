"""``raystitch study generalise`` of a buffer, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from tests.conftest import Run


def test_a_buffer_is_described_in_words_or_json(run: Run, buffer: Path, stitcher: Path) -> None:
    status, out, err = run("study", "generalise", buffer, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["split"]["known"]  # its bundle lies beside it
    assert 0 <= found["copying"]["low"] <= found["copying"]["high"]
    assert found["generator"]["action"]["ratio"] > 0
    assert "skipped" in found["policies"]
    status, out, _ = run("study", "generalise", buffer, "--stitcher", stitcher)
    assert status == 0
    assert "G1 copying: " in out
    assert "G2 coverage: " in out
    assert "undecided" in out or "memorises" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--scaling",), "--scaling goes with a run"),
        (("--algo", "bc"), "--algo goes with a run"),
        (("--stitcher", "nothing"), "nothing does not exist"),
        (("--dataset", "minari:cli/other-v0"), "other"),
    ],
)
def test_wrong_options_are_one_line(
    run: Run, buffer: Path, drift: EpisodeDataset, options: tuple[str, ...], says: str
) -> None:
    if "minari:cli/other-v0" in options:
        write_minari(replace(drift, rewards=drift.rewards + 1), "cli/other-v0")
    status, out, err = run("study", "generalise", buffer, *options)
    assert (status, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fractions", "0,50"), "--fractions: must be percentages"),
        (("--fractions", "many"), "--fractions"),
        (("--num-starts", "0"), "--num-starts"),
    ],
)
def test_wrong_values_are_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("study", "generalise", "nothing", *options)
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_neither_a_run_nor_a_buffer_is_refused(run: Run, tmp_path: Path) -> None:
    for where, says in ((tmp_path, "is neither a run"), (tmp_path / "x", "does not exist")):
        status, out, err = run("study", "generalise", where)
        assert (status, out) == (2, "")
        assert says in err
        assert len(err.splitlines()) == 1
    (tmp_path / "config.yaml").write_text("name: x\n")
    status, _, err = run("study", "generalise", tmp_path)
    assert status == 2
    assert "results.parquet" in err
    (tmp_path / "buffer.json").write_text("{}")
    status, _, err = run("study", "generalise", tmp_path)
    assert status == 2
    assert len(err.splitlines()) == 1
