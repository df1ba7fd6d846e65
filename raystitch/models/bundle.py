"""Everything that was fitted on one dataset, in memory and as a folder of safetensors + ``stitcher.json``.

What only files need is imported where they are read or written: bundles are fitted where it is not installed.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raystitch.data.episodes import Bools, EpisodeDataset, Floats, wrong_dataset
from raystitch.data.normalise import Normalizer
from raystitch.device import Precision, resolve_device, uses_bf16
from raystitch.envs.spec import EnvSpec
from raystitch.errors import DamagedError, UserError
from raystitch.io.digest import read_sealed
from raystitch.io.files import atomic_path, write_json
from raystitch.models.calibration import Calibration
from raystitch.models.config import PARTS, FitConfig
from raystitch.models.denoise import Denoiser
from raystitch.models.diffusion import Network, Schedule, cosine_schedule
from raystitch.models.embedding import TemporalEmbedding
from raystitch.models.heads import (
    DynamicsEnsemble,
    InverseDynamics,
    RewardModel,
    TerminationModel,
    ValueModel,
    build_heads,
)
from raystitch.models.scales import HeadScales, Standardizer
from raystitch.models.unet import TemporalUNet

SCHEMA_VERSION = 3
STITCHER_FILE = "stitcher.json"


def build_unet(obs_dim: int, config: FitConfig) -> TemporalUNet:
    """An untrained U-Net of the configured size."""
    diffusion = config.diffusion
    return TemporalUNet(
        obs_dim,
        diffusion.horizon,
        diffusion.width,
        diffusion.multipliers,
        add_line=diffusion.prediction == "clean",
        takes_return=diffusion.return_dropout is not None,
        num_blocks=diffusion.num_blocks,
    )


def return_quantiles(returns: Floats) -> Floats:
    """The percentiles 0..100 of ``returns`` [N], float32 [101]; what ``Bundle.return_at`` reads."""
    return np.quantile(returns, np.linspace(0, 1, 101)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """The fitted models of one dataset; all on ``device``, in evaluation mode.

    Attributes:
        dataset_name, dataset_fingerprint, env, max_episode_steps: where it came from.
        selected_from: fingerprint of the whole dataset where it was fitted on a part; it can stitch all of it.
        normalizer: of the observations; ``standardizer`` is the same as a torch module.
        action_low, action_high: float32 [A], the bounds of the actions, finite.
        reward_low, reward_high: the range of the data's rewards.
        diffusion: U-Net (averaged weights); ``denoiser`` wraps it for the samplers.
        schedule: the noise levels of the U-Net.
        return_quantiles: float32 [101], percentiles of the data's standardised discounted returns.
        dynamics, inverse, reward, termination, value, embedding: see ``models.heads`` and ``models.embedding``.
        calibration: quantiles of every criterion's number on real windows, per gap.

    Examples:
        >>> loaded = rs.Bundle.load("stitcher", device="cpu")
        >>> loaded.hash == bundle.hash, loaded.obs_dim, loaded.act_dim, loaded.horizon
        (True, 4, 2, 16)
        >>> loaded.calibration.threshold("q99", np.array([2, 8])).shape  # what q99 is as delta, at two gaps
        (2,)
    """

    config: FitConfig
    dataset_name: str
    dataset_fingerprint: str
    env: EnvSpec | None
    max_episode_steps: int | None
    normalizer: Normalizer
    action_low: Floats
    action_high: Floats
    reward_low: float
    reward_high: float
    diffusion: TemporalUNet
    schedule: Schedule
    return_quantiles: Floats
    dynamics: DynamicsEnsemble
    inverse: InverseDynamics
    reward: RewardModel
    termination: TerminationModel
    value: ValueModel
    embedding: TemporalEmbedding
    calibration: Calibration
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    selected_from: str | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            self._module(part).to(self.device).eval().requires_grad_(False)
        object.__setattr__(self, "schedule", self.schedule.to(self.device))

    @property
    def obs_dim(self) -> int:
        """The size of an observation, O."""
        return len(self.normalizer.mean)

    @property
    def act_dim(self) -> int:
        """The size of an action, A."""
        return len(self.action_low)

    @property
    def gamma(self) -> float:
        """The discount of returns and values."""
        return self.config.gamma

    @property
    def horizon(self) -> int:
        """The states of a window, known and generated ones."""
        return self.config.diffusion.horizon

    @cached_property
    def standardizer(self) -> Standardizer:
        """The normalizer as a torch module."""
        with torch.inference_mode(False):  # also when first asked for in it: gradients must be able to pass through
            return Standardizer(self.normalizer).to(self.device)

    def within_sensors(self, states: Floats) -> Floats:
        """Raw states [.., O] as they would be recorded: not beyond the ends of their sensors. What is not finite
        stays so, to be rejected for it."""
        ends = self.dynamics.low.cpu().numpy(), self.dynamics.high.cpu().numpy()
        return np.where(np.isfinite(states), np.clip(states, *ends), states)

    @cached_property
    def still(self) -> Bools:
        """Dimensions that no recorded transition changes, bool [O]: constants, and contexts such as a goal."""
        change = self.dynamics.delta
        return ((change.active == 0) & (change.mean == 0)).cpu().numpy()

    def denoiser(
        self,
        *,
        return_weight: float = 0.0,
        return_target: float = 0.95,
        precision: Precision = "auto",
        compile: Literal["auto", "on", "off"] = "auto",
    ) -> Denoiser:
        """Return the network as the samplers call it.

        Args:
            return_weight: see ``Denoiser``; not 0 needs a network fitted with ``diffusion.return_dropout``.
            return_target: the quantile of the data's discounted returns that is asked for.
            precision: ``auto`` is bf16 where the machine multiplies it faster and the network predicts clean states:
                predicted noise is divided by a signal that vanishes, and so would the rounding be.
            compile: ``auto`` is CUDA only; a CPU gains too little for the minute it takes.

        Raises:
            UserError: return guidance asked of a network that knows no return.
        """
        self.check_return_weight(return_weight)
        diffusion = self.config.diffusion
        compiles = self.device.type == "cuda" if compile == "auto" else compile == "on"
        return Denoiser(
            network=self._compiled_diffusion if compiles else self.diffusion,
            schedule=self.schedule,
            prediction=diffusion.prediction,
            return_weight=return_weight,
            return_value=self.return_at(return_target),
            bf16=uses_bf16(precision, self.device) and (precision == "bf16" or diffusion.prediction == "clean"),
        )

    def check_return_weight(self, return_weight: float) -> None:
        """Raises: UserError when return guidance is asked of a network that takes no return."""
        if return_weight != 0 and self.config.diffusion.return_dropout is None:
            raise UserError(
                f"return_weight={return_weight} needs a stitcher whose network takes a return: fit one with "
                f"diffusion.return_dropout (0.25 is the published share), or set return_weight to 0"
            )

    def return_at(self, quantile: float) -> float:
        """The standardised discounted return that this share of the data's states stays below."""
        return float(np.interp(quantile, np.linspace(0, 1, len(self.return_quantiles)), self.return_quantiles))

    @cached_property
    def _compiled_diffusion(self) -> Network:
        return torch.compile(self.diffusion)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_compiled_diffusion"}

    def _module(self, part: str) -> nn.Module:
        return getattr(self, part)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        """File name -> safetensors content."""
        from safetensors.torch import save as save_tensors

        return {
            f"{part}.safetensors": save_tensors(
                {name: tensor.detach().cpu().contiguous() for name, tensor in self._module(part).state_dict().items()}
            )
            for part in PARTS
        }

    @cached_property
    def _description(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": {
                "name": self.dataset_name,
                "fingerprint": self.dataset_fingerprint,
                "env": None if self.env is None else self.env.to_json(),
                "max_episode_steps": self.max_episode_steps,
                **({} if self.selected_from is None else {"selected_from": self.selected_from}),
            },
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "normalizer": {
                "mean": self.normalizer.mean.tolist(),
                "std": self.normalizer.std.tolist(),
                "active": self.normalizer.active.tolist(),
            },
            "action_low": self.action_low.tolist(),
            "action_high": self.action_high.tolist(),
            "reward_low": self.reward_low,
            "reward_high": self.reward_high,
            "num_reward_levels": len(self.reward.levels),
            "return_quantiles": self.return_quantiles.tolist(),
            "calibration": self.calibration.to_json(),
            "config": asdict(self.config),
            "files": {name: _sha256(content) for name, content in self._files.items()},
        }

    @cached_property
    def hash(self) -> str:
        """``sha256:...`` over the weights and everything in ``stitcher.json``."""
        return _description_hash(self._description)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the folder; ``stitcher.json`` last, so a folder that has it is complete. All is on the disk then.

        Raises:
            RunError: when the disk is full or the folder cannot be written.
        """
        folder = Path(path)
        for name, content in self._files.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
        write_json(folder / STITCHER_FILE, {**self._description, "hash": self.hash})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "auto") -> "Bundle":
        """Reads a folder that ``save`` wrote and checks its hashes.

        Raises:
            DamagedError: damaged or incomplete.
            UserError: not a bundle, or of another version.
        """
        folder = Path(path)
        source, description = folder / STITCHER_FILE, _read_description(folder)
        config = config_from_json(description["config"], where=source)
        weights = {part: _read_part(folder, part, description["files"]) for part in PARTS}
        resolved = resolve_device(device)
        scales = HeadScales.blank(description["obs_dim"], description["act_dim"], description["num_reward_levels"])
        with torch.random.fork_rng(devices=[]):  # initialisation draws from the global generator: leave it as it was
            unet = build_unet(description["obs_dim"], config)
        heads = build_heads(config, scales, torch.Generator())
        normalizer = description["normalizer"]
        env = description["dataset"]["env"]
        modules: dict[str, nn.Module] = {"diffusion": unet, **vars(heads)}
        for part, module in modules.items():
            try:
                module.load_state_dict(weights[part])
            except RuntimeError as error:
                raise UserError(f"{folder / part}.safetensors does not fit {STITCHER_FILE}; fit again") from error
        return cls(
            config=config,
            dataset_name=description["dataset"]["name"],
            dataset_fingerprint=description["dataset"]["fingerprint"],
            env=None if env is None else EnvSpec.from_json(env),
            max_episode_steps=description["dataset"]["max_episode_steps"],
            normalizer=Normalizer(
                np.asarray(normalizer["mean"], np.float32),
                np.asarray(normalizer["std"], np.float32),
                np.asarray(normalizer["active"], np.bool_),
            ),
            action_low=np.asarray(description["action_low"], np.float32),
            action_high=np.asarray(description["action_high"], np.float32),
            reward_low=description["reward_low"],
            reward_high=description["reward_high"],
            diffusion=unet,
            schedule=cosine_schedule(config.diffusion.num_diffusion_steps),
            return_quantiles=np.asarray(description["return_quantiles"], np.float32),
            **vars(heads),
            calibration=Calibration.from_json(description["calibration"]),
            device=resolved,
            selected_from=description["dataset"].get("selected_from"),
        )

    def check_dataset(self, dataset: EpisodeDataset) -> None:
        """Refuse a dataset of other trajectories than this bundle was fitted on; it may hold more or fewer of them.

        Raises:
            UserError: another observation or action size, or other trajectories; says which.
        """
        for what, mine, theirs in (
            ("observation", self.obs_dim, dataset.obs_dim),
            ("action", self.act_dim, dataset.act_dim),
        ):
            if mine != theirs:
                raise UserError(
                    f"the stitcher was fitted on {self.dataset_name} with {what} size {mine}, "
                    f"but {dataset.name} has {what} size {theirs}; fit a stitcher on {dataset.name}"
                )
        whole = self.selected_from or self.dataset_fingerprint
        if dataset.whole_fingerprint != whole:
            remedy = "use that dataset or fit a stitcher on this one"
            raise UserError(wrong_dataset("the stitcher", self.dataset_name, whole, dataset, remedy))


def bundle_plan(folder: Path) -> dict[str, Any]:
    """Return the dataset, action bounds and settings that a bundle was fitted with, from ``stitcher.json`` alone.

    Raises:
        DamagedError, UserError: as ``Bundle.load``.
    """
    description = _read_description(folder)
    bounds = {name: description[name] for name in ("action_low", "action_high")}
    return {"dataset": description["dataset"]["fingerprint"], **bounds, **description["config"]}


def _read_description(folder: Path) -> dict[str, Any]:
    """``stitcher.json`` without its hash, which is checked."""
    source = folder / STITCHER_FILE
    if not source.is_file():
        raise UserError(f"{folder} is not a stitcher bundle (no {STITCHER_FILE}); make one with `raystitch fit`")
    description = read_sealed(source)
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{source}: schema_version is {version!r}, this raystitch reads {SCHEMA_VERSION}; fit again")
    stored_hash = description.pop("hash", None)
    if _description_hash(description) != stored_hash:
        raise DamagedError(f"{source} was changed after it was written (its hash differs); fit again")
    return description


def config_from_json(value: Any, *, where: str | os.PathLike[str]) -> FitConfig:
    """A FitConfig from the JSON that ``dataclasses.asdict`` gave.

    Raises:
        UserError: naming the field.
    """
    from raystitch.io.config_file import parse_config

    return parse_config(value, FitConfig, {(): f"{where}: config "})


def _read_part(folder: Path, part: str, hashes: dict[str, str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    file = folder / f"{part}.safetensors"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror}): the bundle is incomplete; fit again") from error
    if _sha256(content) != hashes.get(file.name):
        raise DamagedError(f"{file} is damaged (its hash differs from {STITCHER_FILE}); fit again")
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file: {error}") from error


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _description_hash(description: dict[str, Any]) -> str:
    return _sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
