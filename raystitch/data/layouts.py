"""Names files that hold trajectories in other layouts than D4RL's, and tells how to convert them."""

import re
from pathlib import Path

from raystitch.data.hdf5 import Hdf5Group
from raystitch.errors import UserError

PAGE = "docs/data.md shows how"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (
        b"PK\x03\x04",
        "is a NumPy .npz or zip archive, not HDF5; one of OGBench's is ogbench:FILE, of others write the arrays to "
        f"HDF5 under D4RL's names ({PAGE})",
    ),
    (b"\x93NUMPY", f"is a NumPy .npy array, not HDF5; write all arrays to one HDF5 file under D4RL's names ({PAGE})"),
    (
        b"\x80",
        "looks like a pickle, which can run any code when it is opened, so raystitch never opens one; load it yourself "
        f"if you trust it, and write its arrays to HDF5 under D4RL's names ({PAGE})",
    ),
    (b"PAR1", f"is a Parquet file, not HDF5; write its columns to HDF5 under D4RL's names ({PAGE})"),
    (b"ARROW1", f"is an Arrow file, not HDF5; write its columns to HDF5 under D4RL's names ({PAGE})"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file; fetch it with `git lfs pull`"),
    (b"<", "is a web page, not HDF5: the download went wrong; get the file itself"),
)
OTHER_NAMES = {
    "observations": ("obs", "states", "state", "observation", "s"),
    "next_observations": ("next_obs", "next_states", "next_state", "next_observation"),
    "actions": ("action", "acts", "a"),
    "rewards": ("reward", "rews", "r"),
    "terminals": ("dones", "done", "terminations", "terminated", "terminal"),
    "timeouts": ("truncations", "truncated", "timeout"),
}
SHOWN_NAMES, SHOWN_CHARACTERS = 8, 40


def check_file(path: Path) -> None:
    """Raises:
    UserError: naming the kind of file, where its first bytes are those of another kind than HDF5.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    with path.open("rb") as file:
        start = file.read(32)
    for magic, what in MAGIC:
        if start.startswith(magic):
            raise UserError(f"{path} {what}")


def other_layout(path: Path, root: Hdf5Group, missing: str) -> str:
    """The message for an HDF5 file that lacks a required array: which layout it has, and what to do."""
    names = root.names()
    for pattern, what in LAYOUTS:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"{path} has no array {missing!r}: {what}"
    shown = [name[:SHOWN_CHARACTERS] for name in sorted(names)[:SHOWN_NAMES]]
    more = f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
    renamed = [f"{other} to {name}" for name, others in OTHER_NAMES.items() for other in others if other in names]
    hint = f"; rename {', '.join(renamed)} ({PAGE})" if renamed else f"; {PAGE}"
    return f"{path} has no array {missing!r}; it has {shown}{more}{hint}"


LAYOUTS: tuple[tuple[str, str], ...] = (
    (
        r"episode_\d+",
        "it is the main_data.hdf5 of a Minari dataset; name the dataset by its id (minari:ID, its folder below "
        "MINARI_DATASETS_PATH)",
    ),
    (
        r"observations_\d+",
        "it has numbered arrays, one per episode, as d3rlpy's ReplayBuffer.dump writes; join them one after "
        f"another ({PAGE})",
    ),
    (
        r"data",
        f"it has groups of demonstrations, as robomimic writes; join them one after another ({PAGE})",
    ),
)
