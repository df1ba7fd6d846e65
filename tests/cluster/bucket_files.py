"""Runs between folders and buckets, for tests; imports neither Ray nor pytest."""

import json
from pathlib import Path

from raystitch.buffer.opening import open_buffer
from raystitch.config import load_run_config
from raystitch.data.load import load_dataset
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.trial import InputHashes, Trial


def synced(uri: str, folder: Path) -> Path:
    """What ``aws s3 sync`` makes of a folder in a bucket."""
    storage = Storage(uri)
    for name in storage.tree():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_whole(name))
    return folder


def upload(folder: Path, uri: str) -> None:
    storage = Storage(uri)
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".lock"):
            storage.write(path.relative_to(folder).as_posix(), path.read_bytes())


def files(folder: Path) -> set[str]:
    """Files of a run; locks are no part of it."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def trial_files(uri: str) -> dict[str, tuple[int, int]]:
    """The files of all trials with size and time, but for locks."""
    return {name: version for name, version in Storage(uri).tree("trials").items() if not name.endswith(".lock")}


def finished_trials(uri: str) -> dict[str, tuple[int, int]]:
    """The ``returns.json`` of trials that were evaluated, with size and time."""
    storage, found = Storage(uri), trial_files(uri)
    named = {name: version for name, version in found.items() if name.endswith("returns.json")}
    return {name: at for name, at in named.items() if json.loads(storage.read_whole(name).to_pybytes())["evaluations"]}


def only_trial(settings: list[str]) -> Trial:
    """The only trial of the settings; the last of them is the folder with the stitcher and the buffer."""
    *settings, folder = settings
    config = load_run_config("smoke", settings)
    inputs = InputHashes(
        dataset=load_dataset(config.dataset).fingerprint,
        bundle=Bundle.load(Path(folder, "stitcher"), "cpu").hash,
        buffer=open_buffer(Path(folder, "buffer")).hash,
    )
    (trial,) = plan(config, inputs, folder)
    return trial
