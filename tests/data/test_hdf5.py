"""An HDF5 file of a stranger gives its own arrays and nothing else, in both readers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.checks import MemoryBudget, free_memory
from raystitch.data.d4rl import read_d4rl
from raystitch.data.hdf5 import SOFT_LINKS, open_hdf5
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import read_minari
from raystitch.errors import UserError
from tests.data.minari_files import SECRET, box, data_path, store, walks

ROWS = 40


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def _secret(root: Path) -> Path:
    """A file beside the dataset, whose bytes must never be seen."""
    path = root / "secret.bin"
    path.write_bytes(np.full(4000, SECRET, np.float32).tobytes())
    return path


def _other(root: Path) -> Path:
    path = root / "other.hdf5"
    with h5py.File(path, "w") as file:
        file["x"] = np.full((ROWS + 1, 3), SECRET, np.float32)
    return path


def _external_storage(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.create_dataset(name, shape, np.float32, external=[(str(_secret(root)), 0, 16_000)])


def _external_link(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group[name] = h5py.ExternalLink(str(_other(root)), "/x")


def _virtual(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[:] = h5py.VirtualSource(str(_other(root)), "x", (ROWS + 1, 3))[: shape[0], : shape[1]]
    group.create_virtual_dataset(name, layout)


def _soft_link_out(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.file["out"] = h5py.ExternalLink(str(_other(root)), "/")
    group[name] = h5py.SoftLink("/out/x")


def _circle(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.file["round"] = h5py.SoftLink(f"{group.name}/{name}")
    group[name] = h5py.SoftLink("/round")


def _bomb(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.create_dataset(name, (10**12, 3), np.float32, chunks=(1024, 3), compression="gzip")


def _chunk_bomb(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.create_dataset(
        name, shape, np.float32, chunks=(10**8, 3), maxshape=(None, 3), compression="gzip", fillvalue=1
    )


def _foreign_filter(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(shape)
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # Blosc, of a library that HDF5 would look for
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, plist)


def _strings(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group[name] = ["left"] * shape[0]


def _variable(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    values = group.create_dataset(name, shape[:1], h5py.vlen_dtype(np.uint8))
    for row in range(shape[0]):
        values[row] = np.arange(3, dtype=np.uint8)


def _compound(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group[name] = np.zeros(shape[:1], [("x", np.float32), ("y", np.float32)])


def _references(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    values = group.create_dataset(name, shape[:1], h5py.ref_dtype)
    values[0] = group.file.ref


def _opaque(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group[name] = np.zeros(shape[:1], np.void(b"\0" * 12).dtype)


def _group(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group.create_group(name)[name] = h5py.SoftLink(group.name)


def _empty(group: Any, name: str, root: Path, shape: tuple[int, ...]) -> None:
    group[name] = h5py.Empty(np.float32)


Plant = Callable[[Any, str, Path, tuple[int, ...]], None]
PLANTED: list[tuple[Plant, str]] = [
    (_external_storage, "is an array with external storage: its content lies outside"),
    (_external_link, "is an external link: its content lies outside"),
    (_virtual, "is a virtual dataset: its content lies outside"),
    (_soft_link_out, "is an external link: its content lies outside"),
    (_circle, "is a circular link"),
    (_bomb, r"declares 1,000,000,000,000 x 3 numbers \(11,175\.9 GiB\), but the file of [\d,]+ bytes holds 0 bytes"),
    (_chunk_bomb, r"declares \d+ x 3 numbers .*holds 0 bytes"),
    (_foreign_filter, r"is compressed by filter 32001 .*h5repack"),
    (_strings, "must be an array of numbers, got HDF5 type string"),
    (_variable, "must be an array of numbers, got HDF5 type variable length"),
    (_compound, "must be an array of numbers, got HDF5 type compound"),
    (_references, "must be an array of numbers, got HDF5 type reference"),
    (_opaque, "must be an array of numbers, got HDF5 type opaque"),
    (_group, "must be an array of numbers, but it is a group"),
    (_empty, "must be an array of numbers, but it is a single value"),
]
IDS = [plant.__name__.strip("_") for plant, _ in PLANTED]


def _d4rl(path: Path, leave_out: str = "") -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(ROWS, 3)),
        "actions": rng.uniform(-1, 1, (ROWS, 2)),
        "rewards": rng.normal(size=ROWS),
        "terminals": np.zeros(ROWS, bool),
        "timeouts": np.arange(ROWS) % 10 == 9,
    }
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if name != leave_out:
                file[name] = values
    return path


@pytest.mark.parametrize(("plant", "message"), PLANTED, ids=IDS)
def test_d4rl_files(plant: Plant, message: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _d4rl(root / "planted.hdf5", leave_out="observations")
    with h5py.File(path, "a") as file:
        plant(file, "observations", root, (ROWS, 3))
    with pytest.raises(UserError, match=f"observations {message}") as error:
        read_d4rl(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert main(["data", "inspect", f"d4rl:{path}"]) == 2
    assert "observations" in capsys.readouterr().err


@pytest.mark.parametrize(("plant", "message"), PLANTED, ids=IDS)
def test_minari_datasets(plant: Plant, message: str, root: Path) -> None:
    store("local/planted-v0", walks(3, ROWS), observation_space=box(3), action_space=box(2))
    with h5py.File(data_path("local/planted-v0") / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        plant(file["episode_1"], "observations", root, (ROWS + 1, 3))
    with pytest.raises(UserError, match=f"episode_1/observations {message}"):
        read_minari("local/planted-v0")


@pytest.mark.parametrize("plant", [_external_link, _soft_link_out], ids=["external_link", "soft_link_out"])
def test_a_whole_episode_elsewhere(plant: Plant, root: Path) -> None:
    store("local/planted-v0", walks(3, ROWS), observation_space=box(3), action_space=box(2))
    with h5py.File(data_path("local/planted-v0") / "main_data.hdf5", "a") as file:
        del file["episode_1"]
        plant(file, "episode_1", root, (ROWS + 1, 3))
    with pytest.raises(UserError, match="episode_1 is an external link"):
        read_minari("local/planted-v0")


def test_every_array_of_the_layout_is_looked_at(root: Path) -> None:
    for name in ("actions", "rewards", "terminals", "timeouts", "next_observations"):
        path = _d4rl(root / f"{name}.hdf5", leave_out=name)
        with h5py.File(path, "a") as file:
            _external_storage(file, name, root, (ROWS, 3))
        with pytest.raises(UserError, match=f"{name} is an array with external storage"):
            read_d4rl(path)


def test_links_within_the_file_are_followed(root: Path) -> None:
    path = _d4rl(root / "linked.hdf5")
    expected = load_dataset(str(path)).fingerprint
    with h5py.File(path, "a") as file:
        file.move("observations", "kept/states")
        file["observations"] = h5py.SoftLink("here")
        file["here"] = h5py.SoftLink("/kept/states")
    assert load_dataset(str(path)).fingerprint == expected
    with open_hdf5(path) as group:
        assert group.numbers("kept/states") is not None
        assert group.numbers("kept/nothing") is None
        assert group.numbers("observations/deeper") is None


def test_many_links_end(root: Path) -> None:
    """A chain of links, each of which names the next one many times, is not walked to its end."""
    path = _d4rl(root / "chain.hdf5", leave_out="observations")
    with h5py.File(path, "a") as file:
        file["observations"] = h5py.SoftLink("/link0")
        for index in range(SOFT_LINKS + 1):
            file[f"link{index}"] = h5py.SoftLink(f"/link{index + 1}")
    with pytest.raises(UserError, match="is a circular link"):
        read_d4rl(path)


def test_small_arrays_that_were_never_written_are_zeros(root: Path) -> None:
    path = _d4rl(root / "unwritten.hdf5", leave_out="terminals")
    with h5py.File(path, "a") as file:
        file.create_dataset("terminals", (ROWS,), bool, chunks=True, compression="gzip")
    assert not read_d4rl(path).terminated.any()


def test_many_names_for_one_array_do_not_fill_the_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard links make a small file of a thousand large episodes."""
    store("local/links-v0", walks(1, 5000), observation_space=box(3), action_space=box(2))
    with h5py.File(data_path("local/links-v0") / "main_data.hdf5", "a") as file:
        for index in range(1, 1000):
            file[f"episode_{index}"] = file["episode_0"]
    metadata = data_path("local/links-v0") / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"total_episodes": 1', '"total_episodes": 1000'))
    monkeypatch.setattr("raystitch.data.checks.free_memory", lambda: 4 * 2**20)
    with pytest.raises(UserError, match=r"local/links-v0: reading it takes 0\.0 GiB or more, but 0\.0 GiB"):
        read_minari("local/links-v0")


def test_memory_is_counted() -> None:
    assert 2**20 < free_memory() < 2**50
    budget = MemoryBudget("it", limit=10 * 2**30)
    budget.take(6 * 2**30)
    with pytest.raises(UserError, match=r"it: reading it takes 12\.0 GiB or more, but 10\.0 GiB of memory are free"):
        budget.take(6 * 2**30)


def test_a_large_attribute_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _d4rl(root / "attribute.hdf5")
    with h5py.File(path, "a") as file:
        file.attrs["unknown"] = np.zeros(1000)
        file.attrs["action_low"] = np.zeros(1000)
    monkeypatch.setattr("raystitch.data.hdf5.UNQUESTIONED_BYTES", 4000)
    with pytest.raises(UserError, match="the attribute action_low declares 8,000 bytes"):
        read_d4rl(path)
