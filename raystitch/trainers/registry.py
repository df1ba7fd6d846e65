"""The algorithms by name; ``config.ALGORITHM_CONFIGS`` has their settings under the same names."""

from raystitch.trainers.bc import BC
from raystitch.trainers.dt import DT
from raystitch.trainers.state import Algorithm
from raystitch.trainers.td3bc import TD3BC

ALGORITHMS: dict[str, Algorithm] = {"td3bc": TD3BC, "dt": DT, "bc": BC}
