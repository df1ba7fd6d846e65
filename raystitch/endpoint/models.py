"""The bundles that an endpoint serves, by name, and their description for clients."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.plane import maze_floor, principal_axes
from raystitch.data.ref import DatasetRef
from raystitch.endpoint.config import EndpointConfig, LimitsConfig, ModelConfig
from raystitch.endpoint.problems import Problem, invalid
from raystitch.endpoint.request import ModelSizes
from raystitch.endpoint.versions import Versions
from raystitch.errors import UserError
from raystitch.io.files import is_remote
from raystitch.io.stage import local_copy
from raystitch.models.bundle import STITCHER_FILE, Bundle
from raystitch.models.calibration import AUTO
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.stitcher import Stitcher

SHOWN_QUANTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_VIEW_STATES = 50_000


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One bundle, ready to stitch. Requests keep the one that they began with, whatever is loaded meanwhile.

    Attributes:
        error: why the latest attempt to read it again failed; the one before is served on.
        versions: hashes of what its folder held, the latest last, as far as they can be brought back.
    """

    name: str
    bundle: Bundle
    stitcher: Stitcher
    dataset: EpisodeDataset | None
    error: str | None = field(default=None)
    versions: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> ModelSizes:
        diffusion = self.bundle.config.diffusion
        bundle, has_auto = self.bundle, self._auto is not None
        return ModelSizes(bundle.obs_dim, bundle.act_dim, diffusion.gap_min, diffusion.gap_max, has_auto)

    @cached_property
    def _auto(self) -> Floats | None:
        """The delta ``auto`` per gap; None where the calibration has none."""
        try:
            return self.bundle.calibration.threshold(AUTO, self.bundle.calibration.gaps)
        except UserError:
            return None

    @cached_property
    def _view(self) -> dict[str, Any]:
        """How the studio draws states."""
        bundle = self.bundle
        with suppress(UserError):  # a bundle from elsewhere may name an environment that cannot be made here
            maze = maze_floor(bundle.env)
            if maze is not None:
                marks = [{"kind": kind, "x": x, "y": y} for kind, x, y in maze.marks]
                return {"kind": "maze", "dims": [0, 1], "walls": maze.walls, "marks": marks}
        active, axes = bundle.normalizer.active, np.zeros((2, bundle.obs_dim))
        if self.dataset is None:
            for row, dim in enumerate(np.flatnonzero(active)[:2]):
                axes[row, dim] = 1
        else:
            states = self.dataset.observations[:: max(1, len(self.dataset.observations) // _VIEW_STATES)]
            standardised = bundle.normalizer.encode(states)[:, active].astype(np.float64)
            axes[:, active] = principal_axes(standardised).T
        return {"kind": "components", "mean": bundle.normalizer.mean, "std": bundle.normalizer.std, "axes": axes}

    def describe(self, limits: LimitsConfig) -> dict[str, Any]:
        """Return the answer of ``/v1/models/NAME``, as JSON with numpy arrays for lists."""
        bundle, dataset, calibration = self.bundle, self.dataset, self.bundle.calibration
        thresholds = [calibration.threshold(f"q{quantile:g}", calibration.gaps) for quantile in SHOWN_QUANTILES]
        default = self.stitcher.config.qualify.delta
        return {
            "name": self.name,
            "hash": bundle.hash,
            "obs_dim": bundle.obs_dim,
            "act_dim": bundle.act_dim,
            "action_low": bundle.action_low,
            "action_high": bundle.action_high,
            "gap_min": self.sizes.gap_min,
            "gap_max": self.sizes.gap_max,
            "gamma": bundle.gamma,
            "env_id": None if bundle.env is None else bundle.env.env_id,
            "dataset": None if dataset is None else {"ref": dataset.name, "num_episodes": dataset.num_episodes},
            "delta": {
                "default": "off" if default is None else default,
                "gaps": calibration.gaps,
                "auto": self._auto,
                "quantiles": SHOWN_QUANTILES,
                "values": np.ascontiguousarray(np.stack(thresholds, axis=1)),
            },
            "view": self._view,
            "limits": {
                "max_steps": limits.max_steps,
                "max_candidates": limits.max_candidates,
                "max_body_bytes": limits.max_body_bytes,
                "deadline_seconds": limits.deadline_seconds,
            },
            "error": self.error,
            "versions": self.versions or (self.bundle.hash,),
        }

    @property
    def previous(self) -> str | None:
        """The version before the one that is served; None when there is none."""
        before = self.versions[: self.versions.index(self.bundle.hash)] if self.bundle.hash in self.versions else ()
        return before[-1] if before else None


def load_model(name: str, config: ModelConfig, stitch: StitchConfig, device: str) -> ServedModel:
    """Read a bundle, of a URI a copy on this machine, and its dataset where one is named.

    Raises:
        UserError: a bundle or dataset that cannot be read, or that do not belong together.
    """
    folder = config.stitcher
    if is_remote(folder):
        folder = local_copy(folder, STITCHER_FILE, "a stitcher bundle (made by `raystitch fit`)")
    bundle = Bundle.load(folder, device)
    bundle.calibration.check([stitch.qualify.delta])
    dataset = None
    if config.dataset is not None:
        dataset = DatasetRef(config.dataset, env=config.env).load(bundle.env)
        bundle.check_dataset(dataset)
    return ServedModel(name, bundle, Stitcher(bundle, stitch), dataset)


class ModelSet:
    """The models that are served at one moment, by name."""

    def __init__(self, served: Mapping[str, ServedModel]) -> None:
        self._served = served

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    @property
    def numbers_per_step(self) -> int:
        """Sizes of observation, action and reward together, for the largest model."""
        return max((model.bundle.obs_dim + model.bundle.act_dim + 1 for model in self), default=1)

    def find(self, name: str) -> ServedModel | None:
        return self._served.get(name)

    def get(self, name: str, *, field: str | None = None) -> ServedModel:
        """The model of a name.

        Args:
            field: of the request that names it; None where it is part of the address.

        Raises:
            Problem: 422 (404 for an address) with the names there are.
        """
        model = self.find(name)
        if model is not None:
            return model
        known = ", ".join(sorted(self._served)) or "none"
        if field is None:
            raise Problem(404, f"there is no model {name[:64]!r}; there is: {known}")
        raise invalid(field, f"there is no model {name[:64]!r}; there is: {known}")


class Models:
    """The models served now. ``load`` replaces them all at once.

    Args:
        versions: where copies are kept, so that ``choose`` can bring one back; None keeps none.
    """

    def __init__(self, versions: Versions | None = None) -> None:
        self._now = ModelSet({})
        self._versions = versions

    def now(self) -> ModelSet:
        """Return the models served at this moment; a request keeps them until it is answered."""
        return self._now

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def get(self, name: str) -> ServedModel:
        """The model of a name that is part of an address.

        Raises:
            Problem: 404 with the names there are.
        """
        return self._now.get(name)

    def load(self, config: EndpointConfig) -> None:
        """Read all bundles of the configuration, then serve them. When a bundle cannot be read, the one served under
        its name stays, with the error beside it.

        Raises:
            UserError: when there is no model of that name to fall back to.
        """
        fresh: dict[str, ServedModel] = {}
        for name, model in config.models.items():
            try:
                fresh[name] = self._read(name, model, config)
            except UserError as error:
                before = self._now.find(name)
                if before is None:
                    raise
                fresh[name] = replace(before, name=name, error=str(error))
        self._now = ModelSet(fresh)

    def choose(self, name: str, version: str, config: EndpointConfig) -> None:
        """Serve this version of a model, now and after a restart on this machine, until its folder holds another.

        Raises:
            UserError: the version is not kept here.
        """
        model = config.models.get(name)
        if self._versions is None or model is None:
            raise UserError(f"no versions of the model {name!r} are kept here")
        self._versions.choose(model.stitcher, version)
        self._now = ModelSet({one.name: one for one in self._now} | {name: self._read(name, model, config)})

    def _read(self, name: str, model: ModelConfig, config: EndpointConfig) -> ServedModel:
        """The folder's bundle, or the version that was chosen instead of it."""
        served = load_model(name, model, config.stitch, config.device)
        if self._versions is None:
            return served
        latest = served.bundle.hash
        versions = tuple(self._versions.keep(model.stitcher, served.bundle))
        chosen = self._versions.chosen(model.stitcher, latest)
        if chosen is not None and chosen != latest:
            bundle = Bundle.load(self._versions.path(chosen), config.device)
            served = ServedModel(name, bundle, Stitcher(bundle, config.stitch), _if_its(bundle, served.dataset))
        return replace(served, versions=versions)


def _if_its(bundle: Bundle, dataset: EpisodeDataset | None) -> EpisodeDataset | None:
    """Return the dataset if the bundle was fitted on it; an older version may have had another."""
    try:
        if dataset is not None:
            bundle.check_dataset(dataset)
    except UserError:
        return None
    return dataset
