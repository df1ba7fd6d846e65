"""The return that Decision Transformers are asked for where a run says ``target_returns: auto``."""

from dataclasses import replace
from pathlib import Path

from raystitch.buffer.reach_file import REACH_FILE, read_reach
from raystitch.config import RunConfig
from raystitch.errors import RunError
from raystitch.report.names import BUFFER


def with_target(config: RunConfig, run: Path) -> RunConfig:
    """Return the run with the target return that the buffer of its folder promises, where that is what it asks for.

    Raises:
        RunError: when the buffer does not say.
        UserError: when what says it is damaged.
    """
    if config.evaluation.target_returns != "auto":
        return config
    found = read_reach(run / BUFFER)
    if not found:
        raise RunError(
            f"{run / BUFFER / REACH_FILE} is missing, which evaluation.target_returns=auto is read from; let "
            "stitch.pairs.split be value, or give numbers"
        )
    promised = round(found[-1].promised, 6)
    return replace(config, evaluation=replace(config.evaluation, target_returns=(promised,)))
