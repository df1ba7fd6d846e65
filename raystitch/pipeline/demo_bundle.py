"""The demo's bundle: where ``make demo`` leaves it, fitted there when it is not."""

from pathlib import Path

from raystitch.config import default_out, load_run_config
from raystitch.console import Progress, duration, say
from raystitch.data.load import load_dataset
from raystitch.models.bundle import STITCHER_FILE
from raystitch.models.fit import FitProgress, fit_bundle


def demo_bundle(device: str = "auto") -> tuple[Path, str]:
    """The folder of the demo's stitcher, absolute, and the reference of its dataset; an interrupted fit is resumed.

    Raises:
        UserError, RunError: as ``fit_bundle``.
    """
    config = load_run_config("demo", [])
    folder = (default_out(config) / "stitcher").absolute()
    if not (folder / STITCHER_FILE).is_file():
        say(f"fitting the demo's models into {folder}; this is done once and takes some minutes")
        with Progress() as progress:

            def show(at: FitProgress) -> None:
                note = f"loss {at.loss:.4g}, {duration(at.seconds_left)} left"
                progress.update(at.part, at.step, at.total_steps, note)

            fit_bundle(load_dataset(config.dataset), config.fit, folder, device=device, progress=show)
    return folder, config.dataset
