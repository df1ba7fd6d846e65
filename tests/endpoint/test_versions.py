"""Versions of a model: what was served before a reload is kept, and comes back by one command."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raystitch.cli import main
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import Tokens
from raystitch.endpoint.versions import KEPT, Versions
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from tests.endpoint.conftest import Counts, Served, body, listening, refused

TOKEN = "a-token-of-more-than-16"
MODEL = "/v1/models/default"


class Fitted:
    """A folder that is fitted into again and again, here by changing a number that nothing here depends on."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.config = EndpointConfig(models={"default": ModelConfig(stitcher=str(folder))}, device="cpu")
        self._folder, self._kept = folder, kept
        self.models = self.replica()

    def replica(self) -> Models:
        """The models as a replica that starts now has them."""
        models = Models(Versions(self._kept))
        models.load(self.config)
        return models

    def fit(self, more: float) -> str:
        """A new version in the folder, taken on. Returns its hash."""
        bundle = Bundle.load(self._folder, "cpu")
        bundle = replace(bundle, reward_high=bundle.reward_high + more)
        shutil.rmtree(self._folder)
        bundle.save(self._folder)
        self.models.load(self.config)
        return Bundle.load(self._folder, "cpu").hash


@pytest.fixture
def fitted(files: ModelConfig, tmp_path: Path) -> Fitted:
    shutil.copytree(files.stitcher, tmp_path / "stitcher")
    return Fitted(tmp_path / "stitcher", tmp_path / "kept")


@pytest.fixture
def served(fitted: Fitted) -> Iterator[Served]:
    endpoint = Endpoint(fitted.config, fitted.models, Counts())
    yield Served(endpoint, create_app(endpoint, Tokens.one(TOKEN)), Counts(), {"Authorization": f"Bearer {TOKEN}"})
    endpoint.close()


def choose(served: Served, version: str) -> Any:
    return served.request("PUT", f"{MODEL}/version", json={"hash": version})


def test_the_version_before_comes_back_and_stays_after_a_restart(fitted: Fitted, served: Served) -> None:
    first = served.get(MODEL).json()["hash"]
    expected = served.post(body(num_candidates=1)).json()
    second = fitted.fit(0.5)
    said = served.get(MODEL).json()
    assert said["hash"] == second and said["versions"] == [first, second]
    response = choose(served, "previous")
    assert response.status_code == 200 and response.json()["hash"] == first
    again = served.post(body(num_candidates=1)).json()
    assert again["model"] == first and again["return_stitched"] == expected["return_stitched"]
    # A replica that starts, or a reload of the same folder, goes by the choice; new content ends it.
    assert fitted.replica().get("default").bundle.hash == first
    fitted.models.load(fitted.config)
    assert served.get(MODEL).json()["hash"] == first
    third = fitted.fit(0.7)
    assert served.get(MODEL).json()["hash"] == third


def test_a_choice_can_be_taken_back(fitted: Fitted, served: Served) -> None:
    first, second = served.get(MODEL).json()["hash"], fitted.fit(0.5)
    assert choose(served, "previous").json()["hash"] == first
    assert "no version before" in refused(choose(served, "previous"), 422)["detail"]
    assert choose(served, second).json()["hash"] == second
    assert fitted.replica().get("default").bundle.hash == second


def test_a_few_versions_are_kept(fitted: Fitted, served: Served) -> None:
    hashes = [served.get(MODEL).json()["hash"], *(fitted.fit(0.5 + number / 100) for number in range(4))]
    assert served.get(MODEL).json()["versions"] == hashes[-KEPT:]
    problem = refused(choose(served, hashes[0]), 422)
    assert hashes[0] in problem["detail"] and hashes[-1] in problem["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"hash": 3}', b'{"hash": "sha256:x"}', b"9" * 2000])
def test_other_bodies_are_refused(served: Served, content: bytes) -> None:
    assert served.request("PUT", f"{MODEL}/version", content=content).status_code in (400, 413, 422)
    assert served.request("PUT", "/v1/models/none/version", json={"hash": "previous"}).status_code == 404


def test_a_token_is_needed(fitted: Fitted, served: Served) -> None:
    response = served.request(
        "PUT", f"{MODEL}/version", json={"hash": "previous"}, headers={"Authorization": "Bearer wrong"}
    )
    refused(response, 401)
    without = Served(served.endpoint, create_app(served.endpoint), Counts())
    assert "RAYSTITCH_TOKEN" in refused(choose(without, "previous"), 403)["detail"]


def test_where_nothing_can_be_kept_the_model_is_served_all_the_same(
    fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no folder").write_text("")
    models = Models(Versions(tmp_path / "no folder"))
    models.load(fitted.config)
    assert len(models.get("default").versions) == 1 and "no copy of" in caplog.text
    with pytest.raises(UserError, match="no versions of the model"):
        Models().choose("default", "previous", fitted.config)


def test_a_damaged_copy_is_named_and_not_served(fitted: Fitted, served: Served, tmp_path: Path) -> None:
    first, second = served.get(MODEL).json()["hash"], fitted.fit(0.5)
    copy = tmp_path / "kept" / first.removeprefix("sha256:")
    (copy / "value.safetensors").write_bytes(b"x")
    assert "is damaged" in refused(choose(served, "previous"), 422)["detail"]
    assert served.get(MODEL).json()["hash"] == second
    assert served.post(body(num_candidates=1)).status_code == 200


def test_one_command(
    fitted: Fitted, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = served.get(MODEL).json()["hash"]
    fitted.fit(0.5)
    with listening(served.app) as port:
        monkeypatch.setenv("RAYSTITCH_TOKEN", TOKEN)
        assert main(["serve", "--port", str(port), "--rollback"]) == 0
        assert first in capsys.readouterr().err
        assert main(["serve", "--port", str(port), "--rollback"]) == 2
        assert "no version before" in capsys.readouterr().err
        monkeypatch.setenv("RAYSTITCH_TOKEN", "x" * 16)
        assert main(["serve", "--port", str(port), "--rollback"]) == 2
    assert main(["serve", "--port", str(port), "--rollback"]) == 1
    assert "no endpoint answers" in capsys.readouterr().err
