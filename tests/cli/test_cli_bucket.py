"""Commands of one stage that read from a bucket and write into it."""

import json
from pathlib import Path

import pytest

from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.io.storage import Storage
from tests.conftest import Run


def names(uri: str) -> set[str]:
    return {name for name in Storage(uri).tree() if not name.endswith(".lock")}


def test_fit_into_a_bucket_and_serve_what_is_there(
    run: Run, ref: str, stitcher: Path, config_file: Path, s3: str
) -> None:
    uri = f"{s3}/cli/stitcher"
    status, said, _ = run("fit", ref, "--out", uri, "--config", config_file)
    assert status == 0
    assert names(uri) == {path.name for path in stitcher.iterdir() if path.is_file()}
    here = json.loads((stitcher / "stitcher.json").read_text())
    assert said == f"{uri}: {here['hash']}\n"
    before = Storage(uri).tree()
    status, said, err = run("fit", ref, "--out", uri, "--config", config_file)
    assert (status, said) == (0, f"{uri}: {here['hash']}\n") and "diffusion" not in err
    assert {name: version for name, version in Storage(uri).tree().items() if name in names(uri)} == {
        name: version for name, version in before.items() if name in names(uri)
    }
    models = Models()
    models.load(EndpointConfig(models={"default": ModelConfig(stitcher=uri, dataset=ref)}, device="cpu"))
    assert models.get("default").bundle.hash == here["hash"]
    # Fitted into again and reloaded, the new bundle is served.
    other = ("fit", ref, "--out", f"{s3}/cli/other", "--config", config_file, "--set", "seed=5")
    assert run(*other)[0] == 0
    for name in names(f"{s3}/cli/other"):
        Storage(uri).write(name, Storage(f"{s3}/cli/other").read_whole(name))
    models.load(EndpointConfig(models={"default": ModelConfig(stitcher=uri, dataset=ref)}, device="cpu"))
    assert models.get("default").bundle.hash != here["hash"]


def test_train_into_a_bucket_and_evaluate_what_is_there(run: Run, ref: str, config_file: Path, s3: str) -> None:
    uri = f"{s3}/cli/trial"
    command = ("train", ref, "--algo", "td3bc", "--config", config_file, "--out", uri, "--device", "cpu")
    status, said, _ = run(*command)
    assert status == 0 and said.endswith(f"policy: {uri}/policy\n")
    files = {"config.json", "metrics.jsonl", "returns.json", "policy/policy.json", "policy/policy.safetensors"}
    assert names(uri) == files
    before = {name: Storage(uri).tree()[name] for name in files}
    assert run(*command)[0] == 0  # nothing is left to do
    assert {name: Storage(uri).tree()[name] for name in files} == before
    status, said, _ = run("evaluate", uri, "--num-episodes", 2, "--device", "cpu", "--json")
    assert status == 0 and json.loads(said)["policy"] == f"{uri}/policy"
    status, _, err = run(*command, "--seed", 7)
    assert status == 2 and f"{uri} holds a trial with other settings: seed" in err


def test_what_cannot_be_done_in_a_bucket_is_said_before_work_begins(
    run: Run, ref: str, config_file: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", ref, "--algo", "td3bc", "--config", config_file)
    for command, message in (
        ((*train, "--out", f"{s3}/cli/logs", "--logging", "csv"), "logs are written into a folder"),
        ((*train, "--out", "s3://raystitch-nowhere/x"), "the bucket does not exist"),
        (("fit", ref, "--out", "s3://a:b@bucket/x"), "s3://bucket/x: leave the credentials out of the URI"),
        (("export", "x", "--format", "parquet", "--out", f"{s3}/x.parquet"), "this is written on this machine only"),
        (("data", "select", ref, "--out", f"{s3}/x.hdf5"), "this is written on this machine only"),
        (("data", "make", "ogbench-pointmaze-medium-stitch", "--out", f"{s3}/x.npz"), "on this machine only"),
    ):
        status, _, err = run(*command)
        assert status == 2 and message in err, err
    monkeypatch.setenv("RAYSTITCH_RUNS", "s3://bucket/runs")
    status, _, err = run("serve")
    assert status == 2 and "RAYSTITCH_RUNS: the demo's bundle is not fitted into s3://bucket/runs/demo" in err
    assert not names(f"{s3}/cli/logs")
