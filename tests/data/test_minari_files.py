"""The files of a Minari dataset: those that lead elsewhere, are of an older Minari, or did not arrive."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystitch.data.load import load_dataset
from raystitch.data.minari_io import read_minari, write_minari
from raystitch.data.minari_root import local_ids
from raystitch.errors import UserError
from tests.conftest import make_drift
from tests.data.minari_files import box, data_path, episode, store, walks

FORMATS = ("hdf5", "arrow", "parquet")
ID = "local/walks-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def _store(data_format: str = "hdf5") -> Path:
    store(ID, walks(3, 20), observation_space=box(3), action_space=box(2), data_format=data_format)
    return data_path(ID)


def _move(path: Path, target: Path) -> None:
    """Puts a file or folder elsewhere, and a link in its place."""
    shutil.move(path, target)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
def test_a_file_that_lies_outside_of_the_folder(name: str, root: Path) -> None:
    _move(_store() / name, root / "elsewhere")
    with pytest.raises(UserError, match=rf"minari:{ID}: data/{name} is a link out of the dataset's folder"):
        read_minari(ID)


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
@pytest.mark.parametrize("name", ["1", "1/part-0", "1/metadata.json"])
def test_arrow_files_outside_of_the_folder(data_format: str, name: str, root: Path) -> None:
    folder = _store(data_format)
    name = f"{name}.{data_format}" if name.endswith("part-0") else name
    _move(folder / name, root / "elsewhere")
    with pytest.raises(UserError, match=rf"data/{name} is a link out of the dataset's folder"):
        read_minari(ID)


def test_a_data_folder_outside(root: Path) -> None:
    _move(_store(), root / "elsewhere")
    with pytest.raises(UserError, match="is a link out of the dataset's folder"):
        read_minari(ID)


def test_a_whole_dataset_or_root_may_be_a_link(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_minari(ID).fingerprint if _store().exists() else ""
    _move(data_path(ID).parent, root / "large_disk")
    assert read_minari(ID).fingerprint == expected
    (root / "link").symlink_to(root / "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "link"))
    assert read_minari(ID).fingerprint == expected


def test_what_is_no_regular_file(root: Path) -> None:
    """A named pipe would be waited for without end."""
    folder = _store()
    (folder / "main_data.hdf5").unlink()
    os.mkfifo(folder / "main_data.hdf5")
    with pytest.raises(UserError, match=r"main_data\.hdf5 is missing"):
        read_minari(ID)


def test_links_in_a_circle_below_the_root(root: Path) -> None:
    _store()
    for name in "abcdefgh":
        (root / "minari" / name).symlink_to(root / "minari")
    assert local_ids() == [ID]


FIRED: list[str] = []


class _Canary(pa.ExtensionType):
    """An extension type that this process has registered, as Ray has; decoding it runs code."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.float32(), 3), "raystitch.tests.canary")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "_Canary":
        FIRED.append("decoded")
        return cls()


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
@pytest.mark.parametrize("column", ["observations", "infos"])
def test_an_extension_type_is_not_decoded(data_format: str, column: str) -> None:
    folder = _store(data_format)
    kind = _Canary()
    pa.register_extension_type(kind)
    try:
        values = pa.ExtensionArray.from_storage(kind, pa.array([[0.0, 0.0, 0.0]] * 21, kind.storage_type))
        path = folder / "1" / f"part-0.{data_format}"
        table = pa.ipc.open_file(path).read_all() if data_format == "arrow" else pq.read_table(path)
        if column in table.column_names:
            table = table.drop_columns([column])
        table = table.append_column(column, values)
        if data_format == "arrow":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, path)
        FIRED.clear()
        with pytest.raises(UserError, match=rf"part-0\.{data_format} has an extension type"):
            read_minari(ID)
        assert FIRED == []
        assert pq.read_schema(path) if data_format == "parquet" else pa.ipc.open_file(path).schema
        assert FIRED, "the canary does not work"
    finally:
        pa.unregister_extension_type(kind.extension_name)


def test_compressed_and_damaged_arrow_files() -> None:
    folder = _store("arrow")
    path = folder / "1" / "part-0.arrow"
    table = pa.ipc.open_file(path).read_all()
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"part-0\.arrow is compressed"):
        read_minari(ID)
    whole = (folder / "0" / "part-0.arrow").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part-0\.arrow is damaged"):
        read_minari(ID)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"part-0\.arrow is damaged"):
        read_minari(ID)


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_arrow_columns_that_are_no_numbers(data_format: str) -> None:
    folder = _store(data_format)
    path = folder / "2" / f"part-0.{data_format}"
    table = pa.ipc.open_file(path).read_all() if data_format == "arrow" else pq.read_table(path)
    rewards = pa.array(["much"] * 21)
    table = table.set_column(table.column_names.index("rewards"), "rewards", rewards)
    if data_format == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path)
    with pytest.raises(UserError, match="rewards must be an array of numbers without gaps, got string"):
        read_minari(ID)


@pytest.mark.parametrize("data_format", FORMATS)
def test_all_formats_read_the_same(data_format: str) -> None:
    buffers = walks(3, 20)
    folder = _store(data_format)
    dataset = read_minari(ID)
    assert folder.is_dir()
    for got, stored in zip(dataset, buffers, strict=True):
        np.testing.assert_array_equal(got.observations, stored.observations)
        np.testing.assert_array_equal(got.actions, stored.actions)
        np.testing.assert_allclose(got.rewards, np.asarray(stored.rewards, np.float32))
    assert dataset.final_observed.all()


def test_infos_and_images_beside_the_state_are_left_alone() -> None:
    """The infos hold what no reader of ours would decode; only arrays of the episode are opened."""
    buffers = [episode(b.observations, b.actions, infos={"note": ["text"] * 21}) for b in walks(2, 20)]
    store(ID, buffers, observation_space=box(3), action_space=box(2))
    assert read_minari(ID).num_transitions == 40


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_an_episode_that_lacks_its_last_observation(data_format: str) -> None:
    buffers = walks(4, 20)
    whole = store(ID, buffers, observation_space=box(3), action_space=box(2), data_format=data_format)
    assert whole.total_episodes == 4
    folder = data_path(ID)
    if data_format == "hdf5":
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            del file["episode_2/observations"]
            file["episode_2/observations"] = np.asarray(buffers[2].observations)[:20]
    else:
        path = folder / "2" / "part-0.arrow"
        table = pa.ipc.open_file(path).read_all().slice(0, 20).combine_chunks()
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    dataset = read_minari(ID)
    assert dataset.final_observed.tolist() == [True, True, False, True]
    assert dataset.lengths.tolist() == [20] * 4
    np.testing.assert_array_equal(dataset.episode(2).observations[-1], np.asarray(buffers[2].observations)[19])
    np.testing.assert_allclose(dataset.episode(2).rewards, np.asarray(buffers[2].rewards, np.float32))
    assert dataset.next_observed.sum() == 79


@pytest.mark.parametrize("data_format", FORMATS)
def test_half_a_download(data_format: str) -> None:
    folder = _store(data_format)
    if data_format == "hdf5":
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            del file["episode_2"]
    else:
        shutil.rmtree(folder / "2")
    with pytest.raises(UserError, match=rf"episode 2 is missing in .*minari download {ID}"):
        read_minari(ID)
    (folder / "main_data.hdf5").unlink(missing_ok=True)
    if data_format == "hdf5":
        with pytest.raises(UserError, match=rf"main_data\.hdf5 is missing in .*minari download {ID}"):
            read_minari(ID)
    (folder / "metadata.json").unlink()
    with pytest.raises(UserError, match=rf"metadata\.json is missing in .*minari download {ID}"):
        read_minari(ID)


def test_pointers_in_place_of_files() -> None:
    folder = _store()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (folder / "main_data.hdf5").write_text(pointer)
    with pytest.raises(UserError, match=r"main_data\.hdf5 is a Git LFS pointer, not the data"):
        read_minari(ID)
    (folder / "metadata.json").write_text(pointer)
    with pytest.raises(UserError, match=r"metadata\.json in .* is a Git LFS pointer"):
        read_minari(ID)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "does not say total_episodes"),
        ('{"total_episodes": "all"}', "does not say total_episodes"),
        ("[" * 100_000, "is damaged"),
        (
            '{"total_episodes": 3, "data_format": "rlds", "minari_version": "9.1"}',
            "'rlds' by Minari 9.1; raystitch reads",
        ),
    ],
)
def test_damaged_metadata(text: str, message: str) -> None:
    (_store() / "metadata.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_minari(ID)


def test_metadata_without_a_format_are_of_hdf5() -> None:
    folder = _store()
    metadata = json.loads((folder / "metadata.json").read_text())
    del metadata["data_format"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert read_minari(ID).num_episodes == 3


def test_a_dataset_of_minari_0_4() -> None:
    folder = _store()
    (folder / "metadata.json").unlink()
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file.attrs["total_episodes"] = 3
        file.attrs["minari_version"] = "0.4.3"
    with pytest.raises(UserError, match=r"was written by Minari 0\.4 or older.*`minari list remote`"):
        read_minari(ID)


def test_episodes_that_are_not_recorded_stay_unrecorded_in_a_view() -> None:
    """Which final observations are unknown is stored by the episode's number, not by its place in a view."""
    import minari

    drift = make_drift(num_episodes=6)
    observed = np.array([True, False, True, True, False, True])
    object.__setattr__(drift, "final_observed", observed)
    write_minari(drift, ID)
    view = minari.MinariDataset(data_path(ID), np.array([4, 0, 1]))
    assert load_dataset(view).final_observed.tolist() == [False, True, False]
