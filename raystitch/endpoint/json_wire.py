"""Requests and answers as JSON."""

import re
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from raystitch.data.episodes import Floats
from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.problems import invalid
from raystitch.endpoint.request import (
    MAX_NUMBER,
    ROLES,
    GivenTrajectory,
    ModelSizes,
    Options,
    Role,
    StitchRequest,
    check_length,
    check_rows,
    checked_options,
    finite_float32,
    validation_problem,
)

MEDIA_TYPE = "application/json"

# Checking both bounds on whole arrays is quicker.
_BOUNDS: JsonDict = {"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
Number = Annotated[float, Field(allow_inf_nan=False, json_schema_extra=_BOUNDS)]
# Fail fast: a million wrong numbers are one error.
Row = Annotated[list[Number], Field(fail_fast=True)]
Rows = Annotated[list[Row], Field(fail_fast=True)]
_MAX_KEYS = 1000
_LONG = re.compile(rb'"(source|target|observations|actions|rewards)"')


class TrajectoryBody(BaseModel):
    """T states of size O and, where known, T - 1 actions of size A and T - 1 rewards."""

    model_config = ConfigDict(extra="forbid", strict=True)

    observations: Rows = Field(description="T states of O numbers, raw units.")
    actions: Rows | None = Field(None, description="T - 1 actions of A numbers; null: inferred from the states.")
    rewards: Row | None = Field(None, description="T - 1 rewards; null: inferred by the reward model.")
    terminated: bool = Field(
        False, description="The environment ended the episode: the source is then not left near its end."
    )


class StitchBody(BaseModel):
    """A request of `POST /v1/stitch`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: TrajectoryBody
    target: TrajectoryBody
    options: Options = Options()  # pyright: ignore[reportCallIssue]


def refuse_floods(body: bytes, limits: LimitsConfig, numbers_per_step: int) -> None:
    """Bound the cost of parsing, which is up to a hundred times a body's size: refuse bodies with more keys or values
    than an honest one has.

    Args:
        numbers_per_step: observation, action and reward of the largest model.

    Raises:
        Problem: 422, naming the trajectory that is too long where it is one.
    """
    if body.count(b":") > _MAX_KEYS:
        raise invalid("body", f"has more than {_MAX_KEYS} keys")
    most = len(ROLES) * limits.max_steps * numbers_per_step + _MAX_KEYS
    if body.count(b",") <= most:
        return
    role = ""
    names = list(islice(_LONG.finditer(body), _MAX_KEYS))
    for name, end in zip(names, [*(name.start() for name in names[1:]), len(body)], strict=False):
        key = name[1].decode()
        if key in ROLES:
            role = key
        elif body.count(b"[" if key != "rewards" else b",", name.end(), end) > limits.max_steps + 1:
            raise invalid(f"{role}.{key}", f"has more than {limits.max_steps} rows, the limit here")
    raise invalid("body", f"has more than {most} values, which is more than two trajectories of the longest kind have")


def read_json_request(body: bytes, sizes_of: Callable[[str], ModelSizes], limits: LimitsConfig) -> StitchRequest:
    """Read and check a request.

    Args:
        sizes_of: a model's sizes by its name; raises Problem for names that it does not know.

    Raises:
        Problem: 400 when the body is not JSON, 422 naming the field and the first bad index.
    """
    try:
        read = StitchBody.model_validate_json(body)
    except ValidationError as error:
        raise validation_problem(error) from None
    sizes = sizes_of(read.options.model)
    options = checked_options(read.options, sizes, limits)
    return StitchRequest(
        source=_trajectory("source", read.source, sizes, limits),
        target=_trajectory("target", read.target, sizes, limits),
        options=options,
    )


def _trajectory(role: Role, body: TrajectoryBody, sizes: ModelSizes, limits: LimitsConfig) -> GivenTrajectory:
    num_states = len(body.observations)
    check_length(role, num_states, limits)
    actions = rewards = None
    observations = _matrix(f"{role}.observations", body.observations, sizes.obs_dim)
    if body.actions is not None:
        check_rows(f"{role}.actions", len(body.actions), num_states)
        actions = _matrix(f"{role}.actions", body.actions, sizes.act_dim)
    if body.rewards is not None:
        check_rows(f"{role}.rewards", len(body.rewards), num_states)
        rewards = finite_float32(f"{role}.rewards", np.array(body.rewards, np.float64))
    return GivenTrajectory(observations=observations, actions=actions, rewards=rewards, terminated=body.terminated)


def _matrix(field: str, rows: Sequence[Sequence[float]], width: int) -> Floats:
    for index, row in enumerate(rows):
        if len(row) != width:
            raise invalid(f"{field}[{index}]", f"has {len(row)} numbers, the model needs {width}")
    flat = np.fromiter(chain.from_iterable(rows), np.float64, len(rows) * width)
    return finite_float32(field, flat.reshape(len(rows), width))


def write_json(content: Any) -> bytes:
    """Write compact JSON: numpy arrays as lists, float32 with the fewest digits, null for a number that is not
    finite."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
