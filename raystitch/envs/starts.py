"""The states in which a task starts, as its environment draws them."""

import numpy as np
from numpy.typing import NDArray

from raystitch.envs.make import make_env
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.seeding import derive_seed

NUM_STARTS = 64


def start_observations(env: EnvSpec, obs_dim: int, count: int = NUM_STARTS) -> NDArray[np.float32] | None:
    """Return the observations after ``count`` resets, float32 [count, obs_dim], the same in every call.

    None where the environment is not installed, cannot be made, or observes something else than the data.
    """
    try:
        made = make_env(env)
    except UserError:
        return None
    try:
        drawn = [made.reset(seed=derive_seed(0, "start", index) % 2**31)[0] for index in range(count)]
    finally:
        made.close()
    starts = np.asarray(drawn, np.float32).reshape(count, -1)
    return starts if starts.shape[1] == obs_dim and np.isfinite(starts).all() else None
