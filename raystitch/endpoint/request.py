"""Requests: options and two trajectories, and the checks that both formats of the wire share.

Legend: O observation size, A action size, T states of a trajectory.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError

from raystitch.data.episodes import Floats
from raystitch.endpoint.config import DEFAULT_MODEL, LimitsConfig
from raystitch.endpoint.problems import FieldError, Problem, invalid
from raystitch.models.calibration import AUTO

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact."""
DEFAULT_CANDIDATES = 16
"""The default for requests, unless the endpoint's limit is lower."""
MAX_NUMBER = 1e15
"""Larger numbers are refused: their squares, and sums of these, would not be finite float32."""
Role = Literal["source", "target"]
ROLES: tuple[Role, Role] = ("source", "target")
_MAX_FIELD = 200


def _whole(value: Any) -> Any:
    """Turn 8.0 into 8, because JSON does not distinguish them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)


class Options(BaseModel):
    """How the two trajectories are stitched."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    delta: (
        Annotated[float, Field(ge=0, allow_inf_nan=False)]
        | Annotated[str, Field(pattern=r"^(off|auto|q([0-9]{1,2}(\.[0-9]{1,6})?|100))$")]
        | None
    ) = Field(
        None,
        description="Largest residual of an accepted bridge (squared L2, standardised units): a number, a quantile of "
        "real data such as `q99`, `auto` (should keep 95 % of the bridges below real data with noise; for models "
        "whose `delta.auto` is not null), or `off`. null takes what the model is configured with.",
    )
    gap: Annotated[int, Field(ge=1, le=100_000), _Whole] | None = Field(
        None,
        description="States to generate; null lets the models choose. The model's `gap_min` and `gap_max` bound it.",
    )
    num_candidates: Annotated[int, Field(ge=1), _Whole] = Field(
        DEFAULT_CANDIDATES, description="Bridges to try; the best is returned."
    )
    return_all: bool = Field(False, description="Return all candidates, the best first.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), _Whole] = Field(0, description="Same request and seed, same answer.")
    cut: Literal["best", "ends"] = Field(
        "best",
        description="`best` finds where to leave the source and enter the target; `ends` joins the source's end to the "
        "target's start.",
    )
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=64, description="Name of a model of `/v1/models`.")

    @field_validator("delta", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Report one error instead of one for each alternative."""
        try:
            return check(value)
        except ValidationError:
            raise PydanticCustomError("delta", "use a number >= 0, a quantile such as q99, auto, or off") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenTrajectory:
    """observations: float32 [T, O]; actions: float32 [T - 1, A]; rewards: float32 [T - 1]; None where left out."""

    observations: Floats
    actions: Floats | None
    rewards: Floats | None
    terminated: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class StitchRequest:
    """A request whose shapes and numbers are right for its model."""

    source: GivenTrajectory
    target: GivenTrajectory
    options: Options


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model's trajectories; ``has_auto``: whether its calibration has a delta ``auto``."""

    obs_dim: int
    act_dim: int
    gap_min: int
    gap_max: int
    has_auto: bool = True


def checked_options(options: Options, sizes: ModelSizes, limits: LimitsConfig, prefix: str = "options") -> Options:
    """Return the options for this model within this endpoint's limits.

    Raises:
        Problem: 422.
    """
    if "num_candidates" not in options.model_fields_set and options.num_candidates > limits.max_candidates:
        options = options.model_copy(update={"num_candidates": limits.max_candidates})
    if options.num_candidates > limits.max_candidates:
        raise invalid(
            f"{prefix}.num_candidates", f"{options.num_candidates} is more than {limits.max_candidates}, the limit here"
        )
    if options.gap is not None and not sizes.gap_min <= options.gap <= sizes.gap_max:
        raise invalid(
            f"{prefix}.gap",
            f"{options.gap} is outside {sizes.gap_min}..{sizes.gap_max}, which the model {options.model!r} was "
            "fitted on",
        )
    if options.delta == AUTO and not sizes.has_auto:
        raise invalid(f"{prefix}.delta", f"the model {options.model!r} has no auto; use a quantile such as q99")
    return options


def check_length(role: Role, num_states: int, limits: LimitsConfig) -> None:
    """Raises: Problem 422 for a trajectory that is too short or too long."""
    field = f"{role}.observations"
    if num_states < 2:
        raise invalid(field, f"has {num_states} state{'s' if num_states != 1 else ''}, a trajectory needs at least 2")
    if num_states > limits.max_steps:
        raise invalid(field, f"has {num_states} states, more than {limits.max_steps}, the limit here")


def finite_float32(field: str, values: NDArray[Any]) -> Floats:
    """Return the values as float32.

    Raises:
        Problem: 422 that names the first one that is not finite, or beyond ``MAX_NUMBER``.
    """
    bad = np.argwhere(~(np.abs(values) <= MAX_NUMBER))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        place = field + "".join(f"[{i}]" for i in index)
        raise invalid(place, f"{values[index]} is not a number between {-MAX_NUMBER:g} and {MAX_NUMBER:g}")
    return np.ascontiguousarray(values, np.float32)


def check_rows(field: str, num_rows: int, num_states: int) -> None:
    """Raises: Problem 422 unless there is one row per transition."""
    if num_rows != num_states - 1:
        raise invalid(
            field,
            f"has {num_rows} rows, expected {num_states - 1}: one for each transition between {num_states} states",
        )


def validation_problem(error: ValidationError, prefix: str = "") -> Problem:
    """400 when the text is not JSON, 422 otherwise, naming each field."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return Problem(400, f"{prefix or 'the body'} is not JSON: {details[0]['msg'].removeprefix('Invalid JSON: ')}")
    errors = [
        FieldError(_path(prefix, detail["loc"]), detail["msg"][:1].lower() + detail["msg"][1:])
        for detail in details[:8]
    ]
    return Problem(422, f"{errors[0].field}: {errors[0].message}", errors)


def _path(prefix: str, loc: tuple[int | str, ...]) -> str:
    """``source.observations[3][1]``."""
    path = prefix
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return (path or "body")[:_MAX_FIELD]
