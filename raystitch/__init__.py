"""raystitch: Ray-distributed trajectory stitching for offline reinforcement learning.

The public names are imported when they are first used, so ``import raystitch`` is quick. The examples in their
docstrings go on with the session of docs/api.md: 40 episodes of a point in a plane and tiny settings.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystitch import plot
    from raystitch.buffer.opening import open_buffer
    from raystitch.data.episodes import EpisodeDataset
    from raystitch.data.load import load_dataset
    from raystitch.errors import RunError, UserError
    from raystitch.models.bundle import Bundle
    from raystitch.models.config import FitConfig
    from raystitch.models.fit import fit_bundle as fit
    from raystitch.pipeline.trials.train import train
    from raystitch.stitching.config import StitchConfig
    from raystitch.stitching.stitcher import Stitcher

    __version__: str

_PUBLIC = {
    "Bundle": "raystitch.models.bundle:Bundle",
    "EpisodeDataset": "raystitch.data.episodes:EpisodeDataset",
    "FitConfig": "raystitch.models.config:FitConfig",
    "RunError": "raystitch.errors:RunError",
    "StitchConfig": "raystitch.stitching.config:StitchConfig",
    "Stitcher": "raystitch.stitching.stitcher:Stitcher",
    "UserError": "raystitch.errors:UserError",
    "fit": "raystitch.models.fit:fit_bundle",
    "load_dataset": "raystitch.data.load:load_dataset",
    "open_buffer": "raystitch.buffer.opening:open_buffer",
    "plot": "raystitch.plot",
    "train": "raystitch.pipeline.trials.train:train",
}

__all__ = [
    "Bundle",
    "EpisodeDataset",
    "FitConfig",
    "RunError",
    "StitchConfig",
    "Stitcher",
    "UserError",
    "__version__",
    "fit",
    "load_dataset",
    "open_buffer",
    "plot",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("raystitch")
    elif name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        value = import_module(module)
        value = getattr(value, attribute) if attribute else value
    else:
        raise AttributeError(f"module 'raystitch' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
