"""The canaries that the tests of untrusted input plant, and the environment specifications that carry them."""

import json
import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from raystitch.cli import main
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from raystitch.envs.make import make_env
from raystitch.envs.simulator import open_simulator
from raystitch.errors import RunError, UserError

MODULE, COMMAND = "raystitch_canary", "canary-command-ran"
FIRED: list[str] = []
WATCHING = Event()
"""Set while a test has planted its canaries."""
IN_OPEN = 0x20


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not WATCHING.is_set():
        return
    if event == "import" and str(args[0]).split(".")[0] == MODULE:
        FIRED.append(f"import of {args[0]}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn") and COMMAND in str(args):
        FIRED.append(f"{event} {str(args)[:200]}")
    elif event == "pickle.find_class" and args[0] in ("os", "posix"):
        FIRED.append(f"unpickling of {args[0]}.{args[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        FIRED.append(f"{event} {args[0]}")
    elif event == "socket.connect" and args[0].family != socket.AF_UNIX:
        FIRED.append(f"connection to {args[1]}")


sys.addaudithook(_audit)


@dataclass(frozen=True)
class Canary:
    """The planted things; ``fired`` lists those that something touched."""

    secret: Path
    command_ran: Path
    imported: Path
    notifier: int

    @property
    def command(self) -> str:
        return f"touch {self.command_ran}"

    @property
    def pickled(self) -> bytes:
        """Unpickling it runs the command."""

        class Runs:
            def __reduce__(_self) -> Any:
                return os.system, (self.command,)

        return pickle.dumps(Runs())

    def fired(self) -> list[str]:
        found = list(FIRED)
        found += [f"{path} was written" for path in (self.command_ran, self.imported) if path.exists()]
        try:
            os.read(self.notifier, 4096)
            found.append(f"{self.secret} was opened")
        except BlockingIOError:
            pass
        return found


Plant = Callable[[Canary], dict[str, Any]]

PLANTS: dict[str, Plant] = {
    "module in the id": lambda c: {"id": f"{MODULE}:Env-v0", "kwargs": {}},
    "maze with a module": lambda c: {"id": f"{MODULE}:PointMaze-v0", "kwargs": {}},
    "entry point of a module": lambda c: {"id": "Planted-v0", "entry_point": f"{MODULE}:Env"},
    "entry point of a command": lambda c: {
        "id": "Planted-v0",
        "entry_point": "os:system",
        "kwargs": {"command": c.command},
    },
    "vector entry point": lambda c: {"id": "Planted-v0", "vector_entry_point": f"{MODULE}:Env"},
    "wrapper of a module": lambda c: {"id": "Pendulum-v1", "additional_wrappers": [_wrapper("W", f"{MODULE}:W")]},
    "wrapper that calls itself Gymnasium's": lambda c: {
        "id": "Pendulum-v1",
        "additional_wrappers": [_wrapper("ClipAction", f"{MODULE}:ClipAction")],
    },
    "wrapper that is not allowed": lambda c: {
        "id": "Pendulum-v1",
        "additional_wrappers": [_wrapper("TransformReward", "gymnasium.wrappers:TransformReward", func="os:system")],
    },
    "model file": lambda c: {"id": "Hopper-v5", "kwargs": {"xml_file": str(c.secret)}},
    "model file of a maze": lambda c: {"id": "AntMaze_UMaze-v5", "kwargs": {"xml_file": str(c.secret)}},
    "model file by a relative path": lambda c: {
        "id": "Hopper-v5",
        "kwargs": {"xml_file": os.path.relpath(c.secret, "/usr")},
    },
    "spec inside the arguments": lambda c: {
        "id": "Pendulum-v1",
        "kwargs": {"g": {"env_spec": [{"id": "X-v0", "entry_point": f"{MODULE}:Env"}]}},
    },
    "evaluation environment": lambda c: {
        "id": "Pendulum-v1",
        "evaluation": {"id": "Planted-v0", "entry_point": f"{MODULE}:Env"},
    },
}


def _wrapper(name: str, entry_point: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "entry_point": entry_point, "kwargs": kwargs}


def own(spec: dict[str, Any]) -> dict[str, Any]:
    """The same in raystitch's own layout, with every name a file could try."""
    wrappers = [item | {"name": item["entry_point"]} for item in spec.get("additional_wrappers", [])]
    value = {name: item for name, item in spec.items() if name not in ("id", "evaluation")}
    value |= {"env_id": spec["id"], "kwargs": spec.get("kwargs", {}), "max_episode_steps": 50, "named": True}
    value |= {"observation_keys": None, "module": MODULE, "wrappers": wrappers}
    return value | ({"evaluation": own(spec["evaluation"])} if "evaluation" in spec else {})


def gymnasiums(spec: dict[str, Any]) -> str:
    """The same as Gymnasium writes it into a Minari dataset."""
    usual = {"reward_threshold": None, "nondeterministic": False, "max_episode_steps": 50, "order_enforce": True}
    usual |= {"entry_point": None, "disable_env_checker": False, "kwargs": {}, "additional_wrappers": []}
    usual |= {"vector_entry_point": None}
    return json.dumps(usual | {name: value for name, value in spec.items() if name != "evaluation"})


def attempt(call: Callable[[], Any]) -> Any:
    """Runs it; a refusal is fine, anything that nobody meant is not."""
    try:
        return call()
    except (UserError, RunError):
        return None


def command(*argv: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(arg) for arg in argv]) in (0, 1, 2, None)
    assert "unexpected" not in capsys.readouterr().err


def used(dataset: EpisodeDataset | None) -> None:
    """What training, evaluation, validation and export do with a dataset's environment."""
    if dataset is None or dataset.env is None:
        return
    for env in (dataset.env, getattr(dataset.env, "evaluation", None) or dataset.env):
        made = attempt(partial(make_env, env))
        if made is not None:
            made.close()
    attempt(partial(open_simulator, dataset.env))
    attempt(partial(write_minari, dataset, "again/x-v0"))
