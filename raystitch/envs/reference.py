"""Reference returns for normalised scores, and where success is defined."""

import re

# (random, expert) returns as D4RL defines them (infos.py: hopper, walker2d, halfcheetah, pen).
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "HalfCheetah": (-280.178953, 12135.0),
    "AdroitHandPen": (96.262799, 3076.8331),
}
SUCCESS_FAMILIES = {"AdroitHandPen", "PointMaze"}


def _family(env_id: str) -> str:
    """``raystitch/PointMaze-v0``, ``PointMaze_UMaze-v3`` -> ``PointMaze``; a dense variant is another task."""
    name = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1].rsplit(":", 1)[-1])
    return name.split("_", 1)[0]


def normalised_score(env_id: str, raw: float, recorded: tuple[float, float] | None = None) -> float | None:
    """100 * (return - random) / (expert - random); None where no reference is known.

    Args:
        recorded: (lowest, highest) return that the data name; counts where D4RL defines none.
    """
    reference = REFERENCE_RETURNS.get(_family(env_id), recorded)
    if reference is None:
        return None
    random, expert = reference
    return 100.0 * (raw - random) / (expert - random)


def success_defined(env_id: str) -> bool:
    """Whether ``info["success"]`` of the environment tells success; an episode succeeds if any step does."""
    return _family(env_id) in SUCCESS_FAMILIES
