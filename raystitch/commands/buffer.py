"""``raystitch buffer``: the content of a buffer of bridges."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_delta,
    add_json,
    add_moved_dataset,
    buffer_dataset,
    print_json,
)
from raystitch.console import number, say, table
from raystitch.errors import RunError, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raystitch.buffer.reader import Buffer

MAX_TROUBLES = 10
"""Limit on lines about damaged, missing or failed shards, of each kind."""
WIDTH, HEIGHT = 60, 16
"""Characters of the picture of a bridge."""


def register(subparsers: Subparsers) -> None:
    group = subparsers.add_parser(
        "buffer",
        help="look at a buffer of bridges: info, show, verify, compact",
        description="Look at a buffer of bridges.",
        epilog="example: raystitch buffer info runs/demo/buffer",
    )
    actions = group.add_subparsers(metavar="ACTION", required=True, dest="action")
    info = add_command(
        actions,
        "info",
        _info,
        help="print how many candidates there are, why they were rejected, and the settings",
        example="raystitch buffer info runs/demo/buffer --json",
    )
    show = add_command(
        actions,
        "show",
        _show,
        help="print one bridge step by step, with a picture; --plot draws a better one",
        example="raystitch buffer show runs/demo/buffer --bridge 000000-0003-0",
    )
    verify = add_command(
        actions,
        "verify",
        _verify,
        help="check the checksums and references of every shard",
        example="raystitch buffer verify runs/demo/buffer",
    )
    compact = add_command(
        actions,
        "compact",
        _compact,
        help="merge small shard files",
        example="raystitch buffer compact runs/demo/buffer",
    )
    for parser in (info, show, verify, compact):
        parser.add_argument("buffer", metavar="BUFFER", help="folder of `raystitch augment`")
    for parser in (info, show, verify):
        add_json(parser)
    add_delta(info)
    show.add_argument("--bridge", metavar="ID", help="bridge_id (default: the first accepted one)")
    text = "also draw it, with the trajectories that it joins, into FILE.png or FILE.svg (reads the dataset)"
    show.add_argument("--plot", metavar="FILE", help=text)
    add_moved_dataset(show)


def _info(args: argparse.Namespace) -> None:
    from raystitch.buffer.maintain import describe
    from raystitch.buffer.schema import LACKS

    found = describe(args.buffer, args.delta)
    if args.json:
        print_json(found)
        return
    state = "complete" if found["complete"] else "unfinished"
    print(
        f"{args.buffer}: {state}, {_plural(found['shards'], 'shard')} in {_plural(found['files'], 'file')}, "
        f"{number(found['bytes'] / 2**20)} MiB"
    )
    print(f"dataset {found['dataset']}, bundle {found['bundle'][:19]}, seed {found['seed']}, gamma {found['gamma']:g}")
    if found["schema_version"] in LACKS:
        print(LACKS[found["schema_version"]])
    for line in _troubles(found):
        print(line)
    delta = "off" if found["delta"] is None else found["delta"]
    print(
        f"{number(found['accepted'])} accepted of {number(found['candidates'])} candidates at delta {delta}: "
        f"{number(found['transitions'])} transitions, mean gap {number(found['gap_mean'])}, "
        f"median largest residual {number(found['residual_median'])}"
    )
    print(table(["reason", "candidates"], found["reasons"].items()))
    columns = ["round", "candidates", "pairs", "accepted", "first attempts", "rescued by repair", "chained"]
    print(table(columns, [_of_round(counts) for counts in found["rounds"]]))
    _print_reach(found["reach"], found["reach_problem"])
    _print_pilot(found["pilot"])
    print(f"pairs split by {found['stitch']['pairs']['split']}")
    print("settings that are not the defaults: " + (", ".join(_settings(found)) or "none"))


def _print_reach(entries: list[dict[str, Any]], problem: str | None) -> None:
    """Print the reach of every round, and what follows for training."""
    from raystitch.buffer.reach_file import COLUMNS, Reach

    if problem is not None:
        print(problem)
    if not entries:
        return
    rounds = [Reach(**entry) for entry in entries]
    last = rounds[-1]
    print(
        f"reach of {_plural(last.num_starts, 'start state')}: the share from which a stitched episode, or a record, "
        f"reaches the {last.goal}; medians of the best episodes; at the settings of generation"
    )
    print(table(COLUMNS, [found.cells for found in rounds]))
    if last.advice:
        print(last.advice)


def _print_pilot(entries: list[dict[str, Any]]) -> None:
    """Print what the ways of choosing pairs brought, where a pilot chose one."""
    from raystitch.buffer.schema import PilotResult

    if entries:
        print("pairs were chosen by a pilot; the first way was taken:")
        print(table(PilotResult.COLUMNS, [PilotResult(**entry).cells for entry in entries]))


def _plural(count: int, what: str) -> str:
    return f"{number(count)} {what}" if count == 1 else f"{number(count)} {what}s"


def _troubles(found: dict[str, Any]) -> list[str]:
    """One line for each damaged, missing or failed file or shard, at most ten of a kind."""
    lines: list[str] = []
    for kind, entries, hint in (
        ("damaged", [f"shards/{name}: {why}" for name, why in found["damaged"].items()], "are damaged"),
        ("missing", [f"shard {shard}" for shard in found["missing"]], "are missing"),
        ("failed", _failed(found["failed"]), "failed"),
    ):
        lines += _limited(kind, entries, hint)
    if found["complete"] and (found["damaged"] or found["missing"]):
        lines.append("run `raystitch augment` with the same arguments to generate what is lost again")
    return lines


def _failed(failed: Mapping[int, str]) -> list[str]:
    """The last line of each error, which names its cause."""
    return [f"shard {shard}: {(why.splitlines() or [''])[-1]}" for shard, why in failed.items()]


def _limited(kind: str, entries: list[str], hint: str) -> list[str]:
    lines = [f"{kind}: {entry}" for entry in entries[:MAX_TROUBLES]]
    return lines + ([f"{number(len(entries) - MAX_TROUBLES)} more {hint}"] if len(entries) > MAX_TROUBLES else [])


def _settings(found: dict[str, Any]) -> list[str]:
    """``stitch.sampler.num_steps=20`` and so on, for all settings that differ from their defaults."""
    from raystitch.buffer.config import AugmentConfig
    from raystitch.stitching.config import PairConfig, StitchConfig

    split = found["stitch"]["pairs"]["split"]  # of what is ``auto`` the buffer says what was decided
    usual = StitchConfig(pairs=PairConfig(split=split)), AugmentConfig().resolved(split == "value")
    return [
        f"{name}{line}"
        for name, settings in zip(("stitch", "augment"), usual, strict=True)
        for line in _changed(asdict(settings), found[name])
    ]


def _changed(usual: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict):
            lines += [f".{name}{line}" for line in _changed(usual[name], value)]
        elif value != usual.get(name):
            lines.append(f".{name}={'off' if value is None else value}")
    return lines


def _of_round(counts: dict[str, int]) -> list[int]:
    first = counts["accepted"] - counts["rescued"]
    names = ("chain_round", "candidates", "pairs", "accepted")
    return [*(counts[name] for name in names), first, counts["rescued"], counts["chained"]]


def _show(args: argparse.Namespace) -> None:
    import numpy as np
    import pyarrow.compute as pc

    from raystitch.buffer.opening import open_buffer

    buffer = open_buffer(args.buffer, allow_partial=True)
    if args.bridge is None:
        rows = buffer.accepted_rows()[:1]
        if not len(rows):
            raise UserError(f"{args.buffer} holds no accepted bridge; name any candidate with --bridge ID")
    else:
        rows = np.array([pc.index(buffer.table["bridge_id"], args.bridge).as_py()])
        if rows[0] < 0:
            raise UserError(f"{args.buffer} has no bridge {args.bridge!r}; ids look like 000000-0003-0")
    row = buffer.table.slice(int(rows[0]), 1).to_pylist()[0]
    if args.plot is not None:
        _draw(args, buffer, int(rows[0]))
    elif args.dataset is not None or args.select is not None:
        raise UserError("--dataset and --select say what --plot FILE draws; give that as well")
    if args.json:
        print_json(row)
        return
    print(
        f"{row['bridge_id']}: {row['reason']}, gap {row['gap']}, attempt {row['attempt']}, round {row['chain_round']}"
    )
    print(f"leaves {_trajectory(row, 'source', 'begins')} at step {row['source_step']}, ", end="")
    print(f"enters {_trajectory(row, 'target', 'ends')} at step {row['target_step']}")
    print(f"return from there {number(row['return_source'])}, stitched {number(row['return_stitched'])}")
    print(f"residual: largest {number(row['residual_max'])}, mean {number(row['residual_mean'])}")
    states = np.asarray(row["observations"], np.float32)
    print(draw_states(states))
    steps = zip(states, [*row["actions"], None], [*row["rewards"], None], strict=True)
    rows_ = [[i, _short(state), _short(action), reward] for i, (state, action, reward) in enumerate(steps)]
    print(table(["step", "observation", "action", "reward"], rows_))


def _draw(args: argparse.Namespace, buffer: "Buffer", row: int) -> None:
    """Write the picture of a candidate."""
    from raystitch.plot.states import SIZE, bridge
    from raystitch.plot.style import picture_format, save_picture

    picture_format(args.plot)  # before the dataset is read
    dataset = buffer_dataset(buffer, args.dataset, select=args.select)
    save_picture(args.plot, lambda axes: bridge(buffer, row, dataset, ax=axes), SIZE)
    say(f"drawn into {args.plot}")


def _trajectory(row: dict[str, Any], side: str, verb: str) -> str:
    """The real episode, or the bridge whose stitched episode it is."""
    episode, parent = row[f"{side}_episode"], row[f"{side}_bridge"]
    return f"episode {episode}" if parent is None else f"what {parent} stitched, which {verb} with episode {episode},"


def _short(values: Any) -> str:
    """At most six numbers of a vector."""
    if values is None:
        return ""
    shown = " ".join(f"{value:7.3f}" for value in values[:6])
    return shown + (f" ... ({len(values)})" if len(values) > 6 else "")


def _verify(args: argparse.Namespace) -> None:
    from raystitch.buffer.maintain import failed_shards, verify

    problems = verify(args.buffer)
    failed = failed_shards(args.buffer)
    if args.json:
        print_json({"buffer": args.buffer, "ok": not problems, "problems": problems, "failed": failed})
    else:
        print("\n".join(problems) if problems else f"{args.buffer}: all shards are whole")
        for line in _limited("failed", _failed(failed), "failed"):
            print(f"note: {line}")
    if problems:
        raise RunError(f"{args.buffer}: {len(problems)} {'problem' if len(problems) == 1 else 'problems'} found")


def _compact(args: argparse.Namespace) -> None:
    from raystitch.buffer.maintain import compact, superseded

    before, after = compact(args.buffer)
    waiting = len(superseded(args.buffer))
    later = f"; {_plural(waiting, 'file')} that it replaced may still be in use: run it again after the grace period"
    print(f"{args.buffer}: {before} files before, {after} now{later if waiting else ''}")


def draw_states(states: "NDArray[np.float32]") -> str:
    """Draw states [T, O] in the plane of two dimensions: A the state left, B the state entered, o a generated one."""
    import numpy as np

    from raystitch.data.plane import two_dimensions

    x_dim, y_dim = two_dimensions(states)
    points = states[:, [x_dim, y_dim]].astype(np.float64)
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-9)
    columns = np.rint(scaled[:, 0] * (WIDTH - 1)).astype(int)
    lines = np.rint((1 - scaled[:, 1]) * (HEIGHT - 1)).astype(int)
    canvas = np.full((HEIGHT, WIDTH), " ")
    canvas[lines, columns] = "o"
    canvas[lines[0], columns[0]], canvas[lines[-1], columns[-1]] = "A", "B"
    body = "\n".join(("|" + "".join(line)).rstrip() for line in canvas)
    caption = (
        f"observation[{x_dim}] {low[0]:.3g} .. {high[0]:.3g} to the right, "
        f"observation[{y_dim}] {low[1]:.3g} .. {high[1]:.3g} up; A left, B entered, o generated"
    )
    return f"{body}\n+{'-' * WIDTH}\n{caption}"
