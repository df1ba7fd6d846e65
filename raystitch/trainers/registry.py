"""The algorithms by name, and policies read by the name of theirs.

``config.AlgorithmConfigs`` has the algorithms' settings under the same names.
"""

import hashlib
from pathlib import Path

from raystitch.device import resolve_device
from raystitch.errors import DamagedError, UserError, check_choice
from raystitch.io.digest import read_sealed
from raystitch.trainers.bc import BC
from raystitch.trainers.dt import DT
from raystitch.trainers.iql import IQL
from raystitch.trainers.policy import SCHEMA_VERSION, Policy, PolicyMeta
from raystitch.trainers.state import Algorithm
from raystitch.trainers.td3bc import TD3BC

ALGORITHMS: dict[str, Algorithm] = {"td3bc": TD3BC, "iql": IQL, "dt": DT, "bc": BC}


def find_algorithm(algo: str) -> Algorithm:
    """Return an algorithm by name.

    Raises:
        UserError: for an unknown one.
    """
    check_choice("algo", algo, ALGORITHMS)
    return ALGORITHMS[algo]


def load_policy(folder: str | Path, device: str = "auto") -> Policy:
    """Load a policy written by ``Policy.save``.

    Raises:
        DamagedError: when its files are not the ones that were saved.
        UserError: when the folder holds none, or one of another version.
    """
    from safetensors.torch import load  # policies are trained where it is not installed

    folder = Path(folder)
    if not (folder / "policy.json").is_file():
        raise UserError(f"{folder} is not a policy: it has no policy.json (look for the policy/ folder of a trial)")
    value = read_sealed(folder / "policy.json")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{folder}/policy.json is not a policy of schema_version {SCHEMA_VERSION}; train it again")
    try:
        weights = (folder / "policy.safetensors").read_bytes()
        meta = PolicyMeta.from_json(value)
        if "sha256:" + hashlib.sha256(weights).hexdigest() != value["hash"]:
            raise DamagedError(f"{folder}/policy.safetensors is damaged: its hash is not the one in policy.json")
        algorithm = ALGORITHMS[meta.algo]
        network = algorithm.network(**meta.network)
        network.load_state_dict(load(weights))
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{folder} cannot be read as a policy: {error!r}") from error
    return algorithm.policy(meta, network.to(resolve_device(device)).eval())
