"""Schemathesis on the OpenAPI document: nothing is answered that the document does not say."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.models import Models
from tests.endpoint.conftest import JSON, STITCH, Served, serving

MAY_FAIL = {503, 504}


@pytest.fixture
def metered(models: Models) -> Iterator[Served]:
    """With something behind ``/metrics``, and a token; not shared, as schemathesis ends the application's lifespan."""

    async def scrape() -> str:
        return "# TYPE up gauge\nup 1\n"

    with serving(
        models, token="a-secret-of-tests", limits=LimitsConfig(max_candidates=8), allowed_hosts=("testserver",)
    ) as served:
        served.endpoint.scrape = scrape
        served.headers = {"Authorization": "Bearer a-secret-of-tests"}
        yield served


def _run(schema: Any, seen: Counter[tuple[str, int]]) -> list[str]:
    """What schemathesis finds; counts the answers by operation and status."""
    found: list[str] = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            label = event.recorder.label
            for interaction in event.recorder.interactions.values():
                if interaction.response is not None:
                    seen[label, interaction.response.status_code] += 1
            for checks in event.recorder.checks.values():
                found += [
                    f"{label}: {check.name}: {check.failure_info.failure.message}\n{check.failure_info.code_sample}"
                    for check in checks
                    if check.failure_info is not None
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(event))
        elif isinstance(event, events.SchemaAnalysisWarnings):
            found += [str(warning) for warning in event.warnings]
    return found


def _config(max_examples: int, accepted: list[str], mode: str = "all") -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "headers": {"Authorization": "Bearer a-secret-of-tests"},
            "checks": {"positive_data_acceptance": {"expected-statuses": accepted}},
            "generation": {"mode": mode, "deterministic": True, "max-examples": max_examples, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
        }
    )


def test_nothing_is_answered_that_the_document_does_not_say(metered: Served) -> None:
    """Requests that keep to the document, which cannot say how wide a model's rows are, and requests that do not."""
    seen: Counter[tuple[str, int]] = Counter()
    config = _config(25, ["2XX", "404", "422"])
    schema = schemathesis.openapi.from_asgi("/openapi.json", metered.app, config=config)
    assert _run(schema, seen) == []
    assert {status for _, status in seen if status >= 500} <= MAY_FAIL
    operations = {label for label, _ in seen}
    assert len(operations) == 9 and seen.total() > 300
    for status in (200, 400, 401, 404, 405, 422):
        assert any(answered == status for _, answered in seen), status
    assert metered.is_idle()


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document for the tiny model alone: what keeps to it can be stitched."""
    document = copy.deepcopy(document)
    content = document["paths"][STITCH]["post"]["requestBody"]["content"]
    del content["application/vnd.apache.arrow.stream"]
    for role in ("source", "target"):
        fields = content[JSON]["schema"]["properties"][role]["properties"]
        fields["observations"] |= {"minItems": 12, "maxItems": 16}
        fields["observations"]["items"] |= {"minItems": 4, "maxItems": 4}
        fields["actions"] = fields["rewards"] = {"type": "null"}
    options = content[JSON]["schema"]["properties"]["options"]["properties"]
    options["model"] = {"enum": ["default", "bare"]}
    options["gap"] = {"type": ["integer", "null"], "minimum": 2, "maximum": 8}
    return document


def test_what_keeps_to_the_document_and_to_the_model_is_stitched(metered: Served) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    document = narrowed(metered.get("/openapi.json").json())
    document["paths"] = {STITCH: document["paths"][STITCH]}
    schema = schemathesis.openapi.from_dict(document, config=_config(40, ["2XX"], "positive"))
    schema.app = metered.app
    assert _run(schema, seen) == []
    assert seen[f"POST {STITCH}", 200] > 20
    assert metered.is_idle()
