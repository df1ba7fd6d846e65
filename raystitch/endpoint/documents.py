"""The parts of the OpenAPI document that the functions' own signatures do not give."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raystitch.endpoint import arrow_wire, json_wire, problems
from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.json_wire import StitchBody
from raystitch.endpoint.request import DEFAULT_CANDIDATES, Options
from raystitch.endpoint.security import PROTECTED

_DESCRIPTION = """Two trajectories in, the bridge between them out. See `docs/endpoint.md` of the repository."""

_STATUS = {
    400: "Malformed: no JSON, no Arrow stream, a damaged encoding, a body that was cut off.",
    401: "The token is missing or wrong.",
    403: "The endpoint has no token, without which nobody may change what it serves.",
    404: "There is no such model, episode or dataset.",
    406: "None of the formats in `Accept` is offered.",
    408: "The body did not arrive in time.",
    413: "The body is too large, before or after decompression.",
    415: "The body's type or encoding is not read here.",
    421: "This endpoint does not answer to the name in the Host header.",
    422: "A field is wrong; `errors` names it and the first bad index.",
    429: "Too much is waiting already, or asked for by this token; `Retry-After` says when to come back.",
    503: "Starting, stopping, or failed; `Retry-After` says when to come back.",
    504: "The deadline passed.",
}


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    request_id: str
    errors: list[dict[str, str]] | None = None


class StitchedBody(BaseModel):
    """The trajectory: M states, M - 1 transitions. null stands for a number that is not finite."""

    observations: list[list[float | None]]
    actions: list[list[float | None]]
    rewards: list[float | None]
    is_synthetic: list[bool] = Field(description="Of each transition: whether it was generated.")


class _Bridge(BaseModel):
    accepted: bool
    reason: str = Field(description="`ok`, or the first criterion that it fails.")
    gap: int = Field(description="Generated states.")
    source_step: int = Field(description="State of the source that is left.")
    target_step: int = Field(description="State of the target that is entered.")
    residuals: list[float | None] = Field(description="The judges' residual of each of the gap + 1 steps.")
    delta: float | None = Field(description="The largest residual allowed; null where that is off.")
    return_source: float | None = Field(description="Discounted return of the source from source_step on.")
    return_stitched: float | None = Field(description="The same of the stitched trajectory, pessimistic.")


class CandidateBody(_Bridge):
    """One bridge that was tried."""

    attempt: int = Field(description="0, then repairs.")
    pair: int
    failed: list[str] = Field(description="Every criterion that it fails.")
    residual_max: float | None
    spread_max: float | None
    rollout_deviation: float | None
    termination_max: float | None
    observations: list[list[float | None]]
    actions: list[list[float | None]]
    rewards: list[float | None]


class AnswerBody(_Bridge):
    """The best of the bridges that were tried, and the trajectory that it makes."""

    request_id: str
    inferred: list[str] = Field(description="Columns that were left out and filled in by the models.")
    num_candidates: int = Field(description="Bridges tried, repairs among them.")
    num_accepted: int
    model: str
    seed: int
    trajectory: StitchedBody
    candidates: list[CandidateBody] | None


class EpisodeSummary(BaseModel):
    index: int
    steps: int
    return_: float = Field(alias="return")
    terminated: bool


class EpisodesBody(BaseModel):
    """Some episodes of a model's dataset."""

    total: int
    episodes: list[EpisodeSummary]


class EpisodeBody(BaseModel):
    """One episode: T states, T - 1 transitions."""

    index: int
    return_: float = Field(alias="return")
    observations: list[list[float]]
    actions: list[list[float]]
    rewards: list[float]
    terminated: bool


class StateBody(BaseModel):
    status: str


class ModelBody(BaseModel):
    """The model that is served under one name."""

    name: str
    hash: str
    obs_dim: int
    act_dim: int
    action_low: list[float]
    action_high: list[float]
    gap_min: int
    gap_max: int
    gamma: float
    env_id: str | None
    dataset: dict[str, Any] | None
    delta: dict[str, Any] = Field(description="The default, and what quantiles of real data and `auto` are, by gap.")
    view: dict[str, Any] = Field(description="How the studio draws states.")
    limits: dict[str, float]
    error: str | None = Field(description="Why the latest reload failed; the model before is served on.")
    versions: list[str] = Field(
        description="Hashes of what its folder held, the latest last: each can be served again."
    )


class VersionBody(BaseModel):
    """Which version of a model is served."""

    model_config = ConfigDict(extra="forbid", strict=True)

    hash: str = Field(
        pattern=r"^(previous|sha256:[0-9a-f]{64})$",
        description="One of `versions`, or `previous`: the one before what is served now.",
    )


class ModelsBody(BaseModel):
    models: list[ModelBody]


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route: its errors."""
    return {
        code: {
            "description": _STATUS[code],
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for code in codes
    }


def stitch_extra(limits: LimitsConfig) -> dict[str, Any]:
    """``openapi_extra`` of the stitch route: the two bodies and the two answers."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    body = StitchBody.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = body.pop("$defs")
    definitions[Options.__name__]["properties"]["num_candidates"] |= {
        "maximum": limits.max_candidates,
        "default": min(DEFAULT_CANDIDATES, limits.max_candidates),
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                json_wire.MEDIA_TYPE: {"schema": _inlined(body, definitions)},
                arrow_wire.MEDIA_TYPE: binary,
            },
        },
        "responses": {
            "200": {
                "description": "The best bridge, accepted or not.",
                "content": {
                    json_wire.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/AnswerBody"}},
                    arrow_wire.MEDIA_TYPE: binary,
                },
            }
        },
    }


def version_extra() -> dict[str, Any]:
    """``openapi_extra`` of the route that chooses a version: its body."""
    return {
        "requestBody": {
            "required": True,
            "content": {json_wire.MEDIA_TYPE: {"schema": VersionBody.model_json_schema()}},
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema with its definitions in place of references to them."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(item, definitions) for item in schema] if isinstance(schema, list) else schema


def document(base: dict[str, Any], *, protected: bool) -> dict[str, Any]:
    """FastAPI's document with the models that only ``openapi_extra`` refers to, and the token.

    Args:
        protected: whether there is a token.
    """
    base["info"]["description"] = _DESCRIPTION
    schemas = base.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (ProblemBody, AnswerBody):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for methods in base["paths"].values():
        for method in methods.values():
            # FastAPI adds a 422 in its own form to every route with a parameter.
            if "HTTPValidationError" in str(method["responses"].get("422")):
                del method["responses"]["422"]
    if protected:
        base["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in base["paths"].items():
            if path.startswith(PROTECTED):
                for method in methods.values():
                    method["security"] = [{"token": []}]
    return base
