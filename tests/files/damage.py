"""Ways to damage a file, and the reason that is given for not resuming from it."""

import io
from collections.abc import Callable
from pathlib import Path

import torch

from raystitch.io.checkpoints import CheckpointFile
from raystitch.io.digest import digest


class Stop(Exception):
    pass


def flip(path: Path, at: float = 0.5, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= bit
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    """Zero bytes, as a file system leaves them that kept a file's size and lost its data."""
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, 1)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def path_payload(path: Path) -> io.BytesIO:
    """A checkpoint without its first line."""
    return io.BytesIO(path.read_bytes().partition(b"\n")[2])


def other_settings(path: Path) -> None:
    state = torch.load(path_payload(path), weights_only=True)["state"]
    for _ in range(2):
        CheckpointFile(path=path, settings="others").save(state)


def newer(path: Path) -> None:
    payload = path_payload(path).read()
    path.write_bytes(f"raystitch-checkpoint 9 {digest(b'9', payload)}\n".encode() + payload)


def older(path: Path) -> None:
    path.write_bytes(path_payload(path).read())


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (empty, "it is empty"),
    "zeros": (zeros, "it is empty"),
    "cut": (cut, "it is damaged"),
    "cut short": (cut_short, "it is damaged"),
    "first byte": (flip_first, "it is damaged"),
    "middle byte": (flip, "it is damaged"),
    "last byte": (flip_last, "it is damaged"),
    "folder": (to_folder, "it is a folder"),
    "other settings": (other_settings, "it belongs to other settings"),
    "newer": (newer, "another raystitch wrote it, with schema 9; this one reads 1"),
    "older": (older, "an older raystitch wrote it, without a digest"),
}


def named(function: Callable[[Path], None]) -> str:
    return function.__name__
