"""The algorithms by name; ``config.AlgorithmConfigs`` has their settings under the same names."""

from raystitch.trainers.bc import BC
from raystitch.trainers.dt import DT
from raystitch.trainers.iql import IQL
from raystitch.trainers.state import Algorithm
from raystitch.trainers.td3bc import TD3BC

ALGORITHMS: dict[str, Algorithm] = {"td3bc": TD3BC, "iql": IQL, "dt": DT, "bc": BC}
