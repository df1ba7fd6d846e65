"""``raystitch validate``: bridges against the simulator."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystitch.commands.options import (
    Subparsers,
    add_command,
    add_env,
    add_json,
    add_moved_dataset,
    buffer_dataset,
    bundle_beside,
    count,
    print_json,
    require_folder,
)
from raystitch.console import number, table

if TYPE_CHECKING:
    from raystitch.buffer.reader import Buffer


def register(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "validate",
        _validate,
        help="compare bridges with the simulator",
        example="raystitch validate runs/demo/buffer --max-bridges 200",
    )
    parser.add_argument("buffer", metavar="BUFFER", help="folder of `raystitch augment`")
    add_moved_dataset(parser)
    add_env(parser)
    parser.add_argument(
        "--stitcher", metavar="DIR", help="bundle, to compare with inverse-dynamics actions on real data"
    )
    parser.add_argument("--max-bridges", type=count, default=500, metavar="N", help="default: %(default)s")
    add_json(parser)


def _validate(args: argparse.Namespace) -> None:
    from raystitch.buffer.episodes import on_dataset
    from raystitch.buffer.opening import open_buffer
    from raystitch.models.bundle import Bundle
    from raystitch.pipeline.validate.truth import validate

    buffer = open_buffer(args.buffer)
    dataset = buffer_dataset(buffer, args.dataset, args.env, args.select)
    folder = _bundle_folder(args, buffer)
    bundle = Bundle.load(folder, "cpu") if folder is not None else None
    found = validate(on_dataset(buffer, dataset), dataset, bundle, max_bridges=args.max_bridges)
    if args.json:
        print_json(found)
        return
    _print(found)


def _bundle_folder(args: argparse.Namespace, buffer: "Buffer") -> Path | None:
    """``--stitcher``, else the folder beside the buffer in a run when its bundle is the buffer's."""
    if args.stitcher is not None:
        return require_folder(args.stitcher, "a stitcher bundle (made by `raystitch fit`)", "stitcher.json")
    return bundle_beside(buffer)


PARTS_OF_ACCEPTED = ("first_attempts", "repaired")
"""Sets of windows that are indented below ``accepted``."""
COUNTS = ("alone", "first", "only")
LEVELS_SHOWN = ("q50", "q90", "q99", "q99.9", "auto")


def _print(found: dict[str, Any]) -> None:
    accepted, candidates = number(found["num_accepted"]), number(found["num_candidates"])
    against = f", against {found['env']}" if found["unavailable"] is None else ""
    print(f"{found['buffer']}: {accepted} accepted of {candidates} candidates{against}")
    attempts = found["attempts"]
    share = _percent(attempts["first_accepted_share"])
    repairs = f"; repair rescued {attempts['rescued']:,} pairs in {attempts['num_repairs']:,} further attempts"
    print(f"accepted at the first attempt: {share} of {attempts['num_pairs']:,} pairs{repairs}")
    if found["unavailable"] is None:
        _print_truth(found)
    else:
        print(f"simulator truth is unavailable: {found['unavailable']}")
    if found["real_accepted_share"] is not None:
        share = _percent(found["real_accepted_share"])
        print(f"real windows with inverse-dynamics actions that delta = {found['delta']} accepts: {share}")
    auto = found["auto"]
    _print_calibration([*found["calibration"], *([auto] if auto["unavailable"] is None else [])])
    from raystitch.report.table import promise

    print(promise(auto))
    _print_criteria(found["criteria"])
    _print_novelty(found["novelty"])


def _print_truth(found: dict[str, Any]) -> None:
    from raystitch.report.table import SET_NAMES

    print("\nsquared distance to the simulator's next state, standardised units")
    headers = ("", "windows", "usable steps", "step: median", "step: p90", "largest: median", "largest < 0.5")
    rows = [
        [
            f"  {label}" if name in PARTS_OF_ACCEPTED else label,
            found["sets"][name]["num_windows"],
            _percent(found["sets"][name]["usable_share"]),
            found["sets"][name]["step_error"]["median"],
            found["sets"][name]["step_error"]["p90"],
            found["sets"][name]["largest_error"]["median"],
            _percent(found["sets"][name]["largest_below"]["share"]),
        ]
        for name, label in SET_NAMES.items()
        if name in found["sets"]
    ]
    print(table(headers, rows))
    verdict = {True: "below", False: "not below", None: "not comparable with"}[found["below_noise"]]
    print(f"the median step of accepted bridges is {verdict} that of real data with noise {found['noise']}")
    ranks = found["rank_correlation"]
    if ranks["value"] is not None:
        print(
            "rank correlation of the judges' largest residual with the simulator's largest error: "
            f"{ranks['value']:.2f} [{ranks['low']:.2f}, {ranks['high']:.2f}] over {ranks['count']} first attempts"
        )


def _print_calibration(curve: list[dict[str, Any]]) -> None:
    print("\nwhat reading at a delta accepts")
    rows: list[list[Any]] = []
    for found in curve:
        if found["level"] in LEVELS_SHOWN:
            simulator = found["simulator"]
            steps = [None] * 2 if simulator is None else [simulator["step_error"][key] for key in ("median", "p90")]
            below = None if simulator is None else simulator["largest_below"]["share"]
            row = [found["level"], found["delta"], *(_percent(found[k]) for k in ("real_accepted", "first_accepted"))]
            rows.append([*row, found["num_bridges"], *steps, _percent(below)])
    headers = ("delta", "median", "real windows", "first attempts", "bridges", "step: median", "p90", "largest < 0.5")
    print(table(headers, rows))


def _print_criteria(criteria: list[dict[str, Any]]) -> None:
    print("\nwhat each criterion removes (median of a bridge's largest simulator error)")
    rows: list[list[Any]] = []
    for found in criteria:
        errors = [None if found[part] is None else found[part]["largest_median"] for part in ("removed", "kept")]
        threshold = "" if found["threshold"] in (None, True) else str(found["threshold"])
        state = "on" if found["on"] else "off, as if on"
        rows.append([found["name"], f"{state} {threshold}".rstrip(), *(found[k] for k in COUNTS), *errors])
    print(table(("criterion", "", *COUNTS, "removed", "kept"), rows))


def _print_novelty(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    medians = [number(found[name]["median"]) for name in ("bridges", "bridges_other_episodes", "real")]
    print(
        f"\nnovelty: distance to the nearest real window {medians[0]}, of another episode {medians[1]}; held-out real "
        f"windows {medians[2]}; nearer than 5 % of those: {_percent(found['copied_share'])}; coverage "
        f"{_percent(found['coverage']['share'])} (real data: 50.0 %)"
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"
