"""Dataset references."""

from pathlib import Path

import pytest

from raystitch.data.load import load_dataset, parse_ref
from raystitch.errors import UserError


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("minari:local/x-v0", ("minari", "local/x-v0")),
        ("local/x-v0", ("minari", "local/x-v0")),
        ("d4rl:data/x.hdf5", ("d4rl", "data/x.hdf5")),
        ("d4rl:data/x", ("d4rl", "data/x")),
        ("../data/x.hdf5", ("d4rl", "../data/x.hdf5")),
        ("demo:pointmaze", ("demo", "pointmaze")),
    ],
)
def test_references(ref: str, parsed: tuple[str, str]) -> None:
    assert parse_ref(ref) == parsed


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("", "use minari:ID"),
        ("minari:", "names nothing after minari:"),
        ("s3:bucket", "use minari:ID, d4rl:FILE.hdf5 or demo:pointmaze"),
        ("demo:hopper", "there is: demo:pointmaze"),
        ("nowhere.hdf5", "nowhere.hdf5 does not exist"),
    ],
)
def test_bad_references(ref: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(ref)


def test_folders_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; for a Minari root set MINARI_DATASETS_PATH"):
        load_dataset(str(tmp_path))
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="cannot be read as an HDF5 file"):
        load_dataset(str(tmp_path / "data.csv"))


def test_environment_is_for_d4rl_files_only() -> None:
    with pytest.raises(UserError, match="env_id='Hopper-v5' is for D4RL files only"):
        load_dataset("minari:local/x-v0", env_id="Hopper-v5")
