"""Archives from strangers: damaged ones, ones of another kind, and ones that declare more than they hold."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from raystitch.data import checks
from raystitch.data.npz import open_npz
from raystitch.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(1000.0).reshape(100, 10), b=np.asfortranarray(np.eye(3, dtype=np.float32)))
    return path


def test_arrays_come_back_as_they_were(path: Path) -> None:
    with open_npz(path) as archive:
        a, b = archive.numbers("a"), archive.numbers("b")
        assert archive.names() == ["a", "b"] and archive.shape("a") == (100, 10)
        assert archive.numbers("c") is None and archive.shape("c") is None
    assert a is not None and a.dtype == np.float64
    np.testing.assert_array_equal(a, np.arange(1000.0).reshape(100, 10))
    np.testing.assert_array_equal(b, np.eye(3))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message), open_npz(path) as archive:
        archive.numbers("a")


def test_other_files(tmp_path: Path) -> None:
    refused(tmp_path / "no.npz", "no.npz does not exist")
    refused(tmp_path, "is a folder, not a .npz file")
    for start, message in (
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file; in the D4RL layout it is d4rl:"),
        (b"\x93NUMPY", "is a NumPy .npy array"),
        (b"\x80\x04", "looks like a pickle, which can run any code when it is opened, so raystitch never opens one"),
        (b"version https://git-lfs", "is a Git LFS pointer"),
        (b"hello", "is not a .npz file"),
        (b"", "is not a .npz file"),
        (b"PK\x03\x04 and no more", "cannot be read as a .npz file: .*; it is damaged or incomplete"),
    ):
        (tmp_path / "other.npz").write_bytes(start)
        refused(tmp_path / "other.npz", message)


def test_every_truncation_and_a_changed_byte_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(4, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path, "cannot be read as a .npz file")
    for at in range(60, 1000, 97):  # inside the first array's compressed bytes
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        refused(path, "cannot be read as a .npz file|declares")


def declaring(path: Path, shape: tuple[int, ...], held: int, descr: str = "<f8") -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head.getvalue() + bytes(held))


def test_sizes_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    declaring(path, (10**12, 10), 80)
    refused(path, "a declares 1,000,000,000,000 x 10 numbers of 8 bytes, but holds 80 bytes; it is damaged, or made to")
    declaring(path, (5,), 80)
    refused(path, "declares 5 numbers of 8 bytes, but holds 80")
    declaring(path, (-10,), 80)
    refused(path, "but holds 80")
    declaring(path, (), 8)
    refused(path, "must be an array of numbers, got float64 of shape")
    declaring(path, (2**17,), 2**20)
    monkeypatch.setattr(checks, "free_memory", lambda: 2**19)
    refused(path, "of memory are free")


def test_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    for values, message in (
        (np.array(["a"]), "must be an array of numbers, got <U1"),
        (np.zeros(2, "M8[s]"), "must be an array of numbers, got datetime64"),
        (np.zeros(2, [("x", "f4")]), "must be an array of numbers, got"),
        (np.zeros(2, [("é", "f4")]), "must be an array of numbers, got"),
        (np.zeros(2, complex), "must be an array of numbers, got complex128"),
        (np.array([{}]), "a pickle, which can run any code when it is opened, so raystitch never opens one"),
    ):
        np.savez(path, a=values)
        refused(path, message)
