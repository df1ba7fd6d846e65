"""``raystitch buffer``: what a buffer of bridges holds."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_delta,
    add_json,
    print_json,
)
from raystitch.console import number, table
from raystitch.errors import RunError, UserError

if TYPE_CHECKING:
    from raystitch.buffer.counting import RoundCounts
    from raystitch.data.episodes import Floats


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
        help="print one bridge step by step, with a picture",
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


def _info(args: argparse.Namespace) -> None:
    from raystitch.buffer.reader import open_buffer

    buffer = open_buffer(args.buffer, allow_partial=True)
    meta = buffer.meta
    complete = meta.complete is not None
    bridges = buffer.take(buffer.accepted_rows(args.delta))
    rounds = buffer.rounds(args.delta)
    found = {
        "buffer": args.buffer,
        "complete": complete,
        "shards": len(buffer.stats),
        "candidates": buffer.num_candidates,
        "accepted": len(bridges),
        "transitions": bridges.num_transitions,
        "delta": meta.stitch.qualify.delta if args.delta == "generation" else args.delta,
        "reasons": buffer.reasons(args.delta),
        "rounds": [asdict(counts) for counts in rounds],
        "residual_median": _median(bridges.residual_max),
        "gap_mean": float(bridges.gap.mean()) if len(bridges) else None,
        "dataset": meta.dataset_name,
        "bundle": meta.bundle_hash,
        "seed": meta.seed,
        "gamma": meta.gamma,
        "stitch": asdict(meta.stitch),
    }
    if args.json:
        print_json(found)
        return
    print(f"{args.buffer}: {'complete' if complete else 'unfinished'}, {number(found['shards'])} shards")
    print(f"dataset {meta.dataset_name}, bundle {meta.bundle_hash[:19]}, seed {meta.seed}")
    delta = "off" if found["delta"] is None else found["delta"]
    print(
        f"{number(len(bridges))} accepted of {number(buffer.num_candidates)} candidates at delta {delta}: "
        f"{number(bridges.num_transitions)} transitions, mean gap {number(found['gap_mean'])}, "
        f"median largest residual {number(found['residual_median'])}"
    )
    print(table(["reason", "candidates"], found["reasons"].items()))
    columns = ["round", "candidates", "pairs", "accepted", "first attempts", "rescued by repair", "chained"]
    print(table(columns, [_of_round(counts) for counts in rounds]))


def _of_round(counts: "RoundCounts") -> list[int]:
    first = counts.accepted - counts.rescued
    numbers = (counts.candidates, counts.pairs, counts.accepted, first, counts.rescued, counts.chained)
    return [counts.chain_round, *numbers]


def _median(values: "Floats") -> float | None:
    import numpy as np

    return float(np.median(values)) if len(values) else None


def _show(args: argparse.Namespace) -> None:
    import numpy as np
    import pyarrow.compute as pc

    from raystitch.buffer.reader import open_buffer
    from raystitch.commands.picture import draw_states

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
    from raystitch.buffer.maintain import verify

    problems = verify(args.buffer)
    if args.json:
        print_json({"buffer": args.buffer, "ok": not problems, "problems": problems})
    else:
        print("\n".join(problems) if problems else f"{args.buffer}: all shards are whole")
    if problems:
        raise RunError(f"{args.buffer}: {len(problems)} {'problem' if len(problems) == 1 else 'problems'} found")


def _compact(args: argparse.Namespace) -> None:
    from raystitch.buffer.compaction import compact

    before, after = compact(args.buffer)
    print(f"{args.buffer}: {before} files before, {after} now")
