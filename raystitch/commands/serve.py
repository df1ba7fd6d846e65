"""``raystitch serve``: the endpoint and the studio."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raystitch.commands.options import Subparsers, add_command, add_device, count, require_folder
from raystitch.console import say
from raystitch.errors import RunError, UserError

if TYPE_CHECKING:
    from raystitch.cluster.signals import Requests
    from raystitch.endpoint.config import EndpointConfig, ModelConfig

ROLLBACK_SECONDS = 90.0
"""A rollback reads and checks a bundle before it answers."""


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "serve",
        _serve,
        help="answer requests over HTTP: two trajectories in, the bridge between them out; the studio is its page",
        example="raystitch serve --stitcher stitcher --dataset demo:pointmaze --port 8000",
    )
    parser.add_argument(
        "--stitcher",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="bundle of `raystitch fit`, a folder or URI; repeatable with names (default: the demo's, fitted first if "
        "there is none)",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="[NAME=]REF",
        help="the dataset that the bundle was fitted on, for the studio (default: none; the demo's with the demo)",
    )
    parser.add_argument("--env", metavar="ENV_ID", help="environment, in place of the one that the datasets record")
    _add_address(parser)
    _add_replicas(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML file of the endpoint's settings (see docs/endpoint.md)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting; repeatable")
    add_device(parser)
    parser.add_argument("--address", metavar="A", help="Ray cluster to use (default: this machine)")
    parser.add_argument(
        "--stop",
        action="store_true",
        help="end the endpoint of that --name, such as one left by a killed command (default --address: auto)",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    """Add where the endpoint listens and what it is called."""
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, metavar="P", help="default: %(default)s")
    parser.add_argument(
        "--rollback",
        nargs="?",
        const="default",
        metavar="NAME",
        help="let the endpoint that runs at --host and --port serve the version of a model from before; then exit",
    )
    parser.add_argument(
        "--name",
        type=_name,
        default="raystitch",
        metavar="N",
        help="of the application on its cluster (default: %(default)s)",
    )
    parser.add_argument(
        "--route-prefix",
        type=_prefix,
        default="/",
        metavar="/P",
        help="what all its paths begin with, for several endpoints on a cluster (default: /)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="H",
        help="a name that callers use, besides localhost and addresses; *.H: all below it; *: any; repeatable",
    )


def _add_replicas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replicas", type=_replicas, default=(1, 1), metavar="N", help="or MIN:MAX to add and remove them (default: 1)"
    )
    parser.add_argument("--num-cpus", type=_share, default=1.0, metavar="C", help="of one replica (default: 1)")
    parser.add_argument("--num-gpus", type=_share, default=0.0, metavar="G", help="of one replica (default: 0)")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"must be made of letters, digits, '-', '_' and '.', got {text!r}")
    return text


def _prefix(text: str) -> str:
    """``/`` or ``/team/stitch``; paths that begin with ``/-`` belong to Ray Serve."""
    if text != "/" and not re.fullmatch(r"(/[A-Za-z0-9_.~][A-Za-z0-9_.~-]*)+", text):
        raise argparse.ArgumentTypeError(f"must be / or a path such as /team, without a slash at its end, got {text!r}")
    return text


def _port(text: str) -> int:
    value = count(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"must be at most 65535, got {text}")
    return value


def _share(text: str) -> float:
    """A fraction of one, or a whole number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"must be in 0..1 or a whole number, got {text}")
    return value


def _replicas(text: str) -> tuple[int, int]:
    """Read ``2`` or ``1:4`` as (least, most)."""
    least, _, most = text.rpartition(":")
    low, high = count(least or most), count(most)
    if low > high:
        raise argparse.ArgumentTypeError(f"must be MIN:MAX with MIN <= MAX, got {text}")
    return low, high


def _serve(args: argparse.Namespace) -> None:
    if args.rollback is not None:
        roll_back(f"http://{args.host}:{args.port}{args.route_prefix.rstrip('/')}", args.rollback)
        return
    from raystitch.cluster import signals

    # The handlers are installed before the slow imports, so that no signal is missed.
    with signals.requests() as asked:
        if args.stop:
            _stop(args, asked)
        else:
            _run(args, asked)


def _stop(args: argparse.Namespace, asked: "Requests") -> None:
    with asked.held():
        from raystitch.cluster.serve.run import stop_endpoint

    stop_endpoint(args.name, args.address)


def _run(args: argparse.Namespace, asked: "Requests") -> None:
    with asked.held():
        from raystitch.console import say
        from raystitch.endpoint.config import EndpointConfig
        from raystitch.io.config_file import load_config

    config = load_config(args.config, EndpointConfig, args.set)
    config = replace(config, device=args.device if args.device != "auto" else config.device)
    config = replace(config, allowed_hosts=_hosts(args, config), models=_models(args, config))
    # These imports take seconds, so the arguments are checked first.
    with asked.held():
        from raystitch.cluster.serve.application import with_demo
        from raystitch.cluster.serve.run import run_endpoint

    config = with_demo(config)

    def ready(url: str) -> None:
        named = ", ".join(f"{name} ({model.stitcher})" for name, model in config.models.items())
        say(f"serving {named}\nstudio {url}/  requests {url}/v1/stitch  reference {url}/docs  Ctrl-C stops")

    run_endpoint(
        config,
        asked,
        host=args.host,
        port=args.port,
        name=args.name,
        prefix=args.route_prefix,
        replicas=args.replicas,
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
        address=args.address,
        ready=ready,
    )


def _hosts(args: argparse.Namespace, config: "EndpointConfig") -> tuple[str, ...]:
    """The names of the configuration and of the arguments, and the name that it listens on."""
    given = list(args.allowed_host)
    if not re.fullmatch(r"[0-9.]+|.*:.*", args.host):
        given.append(args.host)
    for name in args.allowed_host:
        try:
            replace(config, allowed_hosts=(name,))
        except ValueError as error:
            raise UserError(f"--allowed-host {name}: {error}") from error
    return tuple(dict.fromkeys((*config.allowed_hosts, *given)))


def _models(args: argparse.Namespace, config: "EndpointConfig") -> "dict[str, ModelConfig]":
    """The models of the configuration and of the arguments; folders are absolute, because replicas run elsewhere."""
    from raystitch.endpoint.config import DEFAULT_MODEL, ModelConfig
    from raystitch.io.files import is_remote

    given = _by_name("--stitcher", args.stitcher, DEFAULT_MODEL)
    datasets = _by_name("--dataset", args.dataset, DEFAULT_MODEL)
    models = dict(config.models)
    for name, folder in given.items():
        models[name] = ModelConfig(stitcher=folder)
    for name, ref in datasets.items():
        if name not in models:
            known = ", ".join(models) or "none"
            raise UserError(f"--dataset {name}={ref} names no stitcher; there is: {known}")
        models[name] = replace(models[name], dataset=ref)
    for name, model in models.items():
        folder = require_folder(model.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
        # Replicas copy a URI's bundle themselves.
        stitcher = model.stitcher if is_remote(model.stitcher) else str(folder.absolute())
        models[name] = replace(model, stitcher=stitcher, env=args.env or model.env)
    return models


def _by_name(option: str, values: Sequence[str], default: str) -> dict[str, str]:
    """Read ``NAME=VALUE``, or a bare value for the default name."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or "/" in name or ":" in name or Path(value).exists():
            name, rest = default, value
        if name in found:
            raise UserError(f"{option} {value}: {name} is there twice; name each, as in {option} NAME={rest}")
        found[name] = rest
    return found


def roll_back(url: str, model: str) -> None:
    """Ask an endpoint to serve a model's version from before, and print the version that it serves now.

    Raises:
        UserError: the endpoint refuses. RunError: it does not answer.
    """
    import httpx

    from raystitch.endpoint.tokens import read_tokens

    tokens = read_tokens()
    headers = {} if tokens is None else {"Authorization": f"Bearer {tokens.first}"}
    try:
        answer = httpx.put(
            f"{url}/v1/models/{model}/version",
            json={"hash": "previous"},
            headers=headers,
            timeout=ROLLBACK_SECONDS,
            trust_env=False,
        )
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RunError(f"no endpoint answers at {url}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise UserError(f"{url}: {found.get('detail', answer.status_code)}")
    say(f"{model} is served as {found['hash']}, until its folder is fitted into again and reloaded")
