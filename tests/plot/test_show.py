"""``raystitch buffer show --plot``: a picture of a bridge as a file."""

import json
from pathlib import Path

import pytest

import raystitch as rs
from raystitch.buffer.reader import Buffer
from raystitch.data.minari_io import write_minari
from tests.conftest import Run


@pytest.fixture(scope="module")
def ref(drift: rs.EpisodeDataset) -> str:
    write_minari(drift, "plot/drift-v0")
    return "minari:plot/drift-v0"


@pytest.mark.parametrize(("name", "start"), [("bridge.png", b"\x89PNG"), ("bridge.SVG", b"<?xml")])
def test_a_bridge_is_drawn_into_a_file(
    name: str, start: bytes, run: Run, buffer: Buffer, ref: str, tmp_path: Path
) -> None:
    file, drawn = tmp_path / name, set[bytes]()
    for _ in range(2):
        status, out, err = run("buffer", "show", buffer.uri, "--plot", file, "--dataset", ref, "--json")
        assert (status, err) == (0, f"drawn into {file}\n")
        assert json.loads(out)["accepted"]
        drawn.add(file.read_bytes())
    assert len(drawn) == 1
    assert drawn.pop().startswith(start)
    assert list(tmp_path.iterdir()) == [file]


def test_the_picture_shows_the_bridge_that_is_asked_for(run: Run, buffer: Buffer, ref: str, tmp_path: Path) -> None:
    name = buffer.table["bridge_id"][buffer.num_candidates - 1].as_py()
    assert run("buffer", "show", buffer.uri, "--bridge", name, "--plot", tmp_path / "x.svg", "--dataset", ref)[0] == 0
    assert f"Bridge {name}: gap" in (tmp_path / "x.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plot", "bridge.gif"], "bridge.gif: a picture is a file that ends in .png or .svg"),
        (["--plot", "bridge.png"], "if it moved, name it with --dataset REF"),
        (["--plot", "bridge.png", "--dataset", "{ref}", "--select", "best=0.1"], "refers to episode"),
        (["--dataset", "{ref}"], "--dataset and --select say what --plot FILE draws"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    options: list[str],
    says: str,
    run: Run,
    buffer: Buffer,
    ref: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("buffer", "show", buffer.uri, *(option.format(ref=ref) for option in options))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert list(tmp_path.iterdir()) == []
