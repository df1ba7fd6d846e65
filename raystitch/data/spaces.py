"""The spaces of a dataset: which observations are read, and what to do when they are not vectors of numbers."""

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from raystitch.envs.make import observation_keys_of
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError

KEYS_MARK = "#"
IMAGE_SIDE = 32
"""Arrays with two sides of this size or more are images, whatever their numbers."""
ONE_HOT = "record discrete ones as a Box, for example one-hot"


def split_keys(name: str) -> tuple[str, tuple[str, ...] | None]:
    """Split ``ID#observation,desired_goal`` into a dataset id and the entries of a Dict observation to read.

    Raises:
        UserError: when nothing, or one entry twice, follows the mark.
    """
    dataset_id, mark, listed = name.partition(KEYS_MARK)
    if not mark:
        return dataset_id, None
    keys = tuple(listed.split(","))
    if not all(keys) or len(set(keys)) < len(keys):
        raise UserError(
            f"minari:{name}: after {KEYS_MARK} come entries of the observation, each once, in the order in which they "
            f"are put together: minari:{dataset_id}{KEYS_MARK}observation,desired_goal"
        )
    return dataset_id, keys


def check_action_space(space: spaces.Space[Any], where: str) -> None:
    """Raises:
    UserError: for actions that are not a Box.
    """
    if isinstance(space, spaces.Box):
        return
    if isinstance(space, spaces.Dict | spaces.Tuple):
        advice = "record its parts side by side in one vector, as one Box"
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        if not all(isinstance(part, spaces.Box) for part in parts):
            advice += f"; {ONE_HOT}"
    else:
        advice = f"actions have to be continuous: {ONE_HOT}"
    raise UserError(f"{where}: the action space must be a Box, got {_short(space)}; {advice}")


def observation_keys(
    space: spaces.Space[Any], asked: Sequence[str] | None, dataset_id: str, where: str
) -> tuple[str, ...] | None:
    """Return the entries of a Dict observation that are read: those asked for, else the usual ones; None for a Box.

    Raises:
        UserError: for observations that are not a Box or a Dict of Boxes, or are images, with what to do.
    """
    if not isinstance(space, spaces.Dict):
        advice = _advice(space)
        if advice:
            raise UserError(f"{where}: {advice}")
        if asked is not None:
            raise UserError(f"{where}: its observations are one Box without entries; leave out {','.join(asked)!r}")
        return None
    entries = space.spaces
    keys = tuple(asked) if asked is not None else observation_keys_of(space)
    assert keys is not None
    missing = [key for key in keys if key not in entries]
    if missing:
        raise UserError(f"{where}: its observations have no entry {missing[0]!r}; they have {', '.join(entries)}")
    for key in keys:
        advice = _advice(entries[key])
        if advice:
            readable = [name for name in sorted(entries) if not _advice(entries[name])]
            others = f"minari:{dataset_id}{KEYS_MARK}{','.join(readable)}"
            other = f"; or read the other entries alone: {others}" if readable else ""
            raise UserError(f"{where}, entry {key!r}: {advice}{other}")
    return keys


def is_image(space: spaces.Space[Any]) -> bool:
    """Return True if a Box holds images, or stacks of them, rather than a vector of numbers."""
    if not isinstance(space, spaces.Box) or len(space.shape) < 2:
        return False
    return space.dtype == "uint8" or sorted(space.shape)[-2] >= IMAGE_SIDE


def _advice(space: spaces.Space[Any]) -> str | None:
    """Return the reason why a space cannot be read and what to do about it, None when it can be read."""
    if is_image(space):
        return (
            f"the observations are images, {_short(space)}, not a vector of numbers; record the state, or what an "
            "encoder makes of the image, as a Box of one dimension"
        )
    if isinstance(space, spaces.Box):
        return None
    how = next((how for kind, how in HOW if isinstance(space, kind)), "record it as a Box of numbers")
    return f"the observation space must be a Box or a Dict of Boxes, got {_short(space)}; {how}"


HOW: tuple[tuple[type[spaces.Space[Any]], str], ...] = (
    (spaces.Dict, "record its entries as Boxes of one Dict that is not nested, or side by side as one Box"),
    (spaces.Tuple, "record its parts as a Dict of Boxes, or side by side as one Box"),
    (spaces.MultiBinary, "record it as a Box of zeros and ones"),
    (spaces.Discrete, "record it as a Box, one-hot"),
    (spaces.MultiDiscrete, "record it as a Box, every part one-hot"),
)


def layout_note(env: EnvSpec | None) -> list[str]:
    """Say what observations hold that were entries of a Dict, for whoever gets them as one vector; [] for a Box."""
    keys = None if env is None else env.observation_keys
    if env is None or not keys:
        return []
    listed = f"the entry {keys[0]!r} alone" if len(keys) == 1 else f"the entries {', '.join(map(repr, keys))}, joined"
    return [f"observations are one Box, not the Dict of {env.env_id}: {listed}"]


def _short(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
