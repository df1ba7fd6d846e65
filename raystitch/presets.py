"""Named settings of fitting and stitching, from quick to published; torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from raystitch.errors import UserError
from raystitch.models.config import DiffusionConfig, FitConfig, HeadConfig
from raystitch.stitching.config import (
    GapConfig,
    GuidanceConfig,
    PairConfig,
    QualifyConfig,
    RepairConfig,
    SamplerConfig,
    StitchConfig,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of ``raystitch fit`` and ``raystitch augment`` behind one name.

    Attributes:
        purpose: what it is for, in a few words.
    """

    purpose: str
    fit: FitConfig
    stitch: StitchConfig


def _balanced_fit() -> FitConfig:
    """Twice the default training of everything, and a wider U-Net."""
    base = FitConfig()
    diffusion = replace(base.diffusion, width=64, train_steps=2 * base.diffusion.train_steps)
    heads: dict[str, Any] = {name: replace(head, train_steps=2 * head.train_steps) for name, head in base.heads.items()}
    return replace(base, diffusion=diffusion, **heads)


def _published_fit() -> FitConfig:
    """DiffStitch (Li et al., ICML 2024), as far as its settings carry over."""
    head = HeadConfig(hidden=200, num_layers=4, train_steps=100_000)
    return FitConfig(
        num_judges=5,
        reward_inputs="sa",
        precision="float32",
        diffusion=DiffusionConfig(
            horizon=100,
            width=128,
            multipliers=(1, 4, 8),
            num_blocks=2,
            num_diffusion_steps=100,
            prediction="noise",
            gap_min=10,
            gap_max=39,
            prefix_max=1,
            train_steps=1_000_000,
            batch_size=64,
            learning_rate=2e-4,
            ema_decay=0.995,
            return_dropout=0.25,
        ),
        dynamics=replace(head, num_members=7),
        inverse=head,
        reward=head,
    )


def _published_stitch() -> StitchConfig:
    """Return the same paper's generation.

    Its delta (0.8 - 1.5) is on another scale: here it is a squared L2 norm in standardised units.
    """
    return StitchConfig(
        pairs=PairConfig(mode="random", split="return", source_cut="ends", target_cut="ends"),
        gap=GapConfig(mode="imagine", similarity="cosine"),
        sampler=SamplerConfig(name="ddpm", num_steps=100, noise_scale=0.5, return_weight=1.2, precision="float32"),
        guidance=GuidanceConfig(schedule="off"),
        repair=RepairConfig(rounds=0),
        qualify=QualifyConfig(delta=1.0, kappa=0.0),
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset(purpose="the defaults: minutes on two cores", fit=FitConfig(), stitch=StitchConfig()),
        "balanced": Preset(
            purpose="a wider network, twice the training, two moves of guidance, four rounds of repair",
            fit=_balanced_fit(),
            stitch=StitchConfig(
                sampler=SamplerConfig(name="dpmpp_2m", num_steps=5),
                guidance=GuidanceConfig(moves=2),
                repair=RepairConfig(rounds=4, gap_shift=3),
            ),
        ),
        "diffstitch": Preset(
            purpose="the published settings of DiffStitch: a GPU and many hours",
            fit=_published_fit(),
            stitch=_published_stitch(),
        ),
    }
)


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: for an unknown name, listing the known ones.
    """
    if name not in PRESETS:
        known = "; ".join(f"{key} ({preset.purpose})" for key, preset in PRESETS.items())
        raise UserError(f"no preset is called {name!r}; there are: {known}")
    return PRESETS[name]
