"""``raystitch serve`` as a process: up, an answer, a second one on the same port, an orderly end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle

RAYSTITCH = (sys.executable, "-m", "raystitch.cli", "serve")


@pytest.fixture(scope="module")
def served(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle's folder and its dataset's file."""
    folder = tmp_path_factory.mktemp("served")
    write_d4rl(drift, folder / "drift.hdf5")
    fit_bundle(drift, tiny_fit, folder / "stitcher", device="cpu")
    return folder / "stitcher", folder / "drift.hdf5"


def post(url: str, drift: EpisodeDataset, token: str) -> dict[str, Any]:
    body = {
        name: {"observations": drift.episode(number).observations.tolist()}
        for name, number in (("source", 1), ("target", 2))
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/v1/stitch", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_up_and_down(served: tuple[Path, Path], drift: EpisodeDataset, tmp_path: Path) -> None:
    stitcher, dataset = served
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "token").write_text("a-secret-of-tests\n")
    environment = {**os.environ, "RAYSTITCH_TOKEN_FILE": str(tmp_path / "token")}
    command = [
        *RAYSTITCH,
        "--stitcher",
        str(stitcher),
        "--dataset",
        f"d4rl:{dataset}",
        "--env",
        "raystitch/PointMaze-v0",
    ]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--port", port], env=environment, stderr=out, stdout=out)
    try:
        until = time.monotonic() + 150
        while "Ctrl-C stops" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        url = re.findall(r"studio (\S+)/", log.read_text())[0]
        assert url == f"http://127.0.0.1:{port}"
        assert post(url, drift, "a-secret-of-tests")["seed"] == 0
        second = subprocess.run(
            [*command, "--port", port], env=environment, capture_output=True, text=True, timeout=100
        )
        assert second.returncode == 2
        assert f"--port {port}: Address already in use" in second.stderr
        process.send_signal(signal.SIGHUP)
        while "/v1/models says" not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    said = log.read_text()
    assert "requests that were taken on are finished" in said
    assert "a-secret-of-tests" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stitcher", "nowhere"], "nowhere does not exist"),
        (["--port", "99999"], "must be at most 65535"),
        (["--replicas", "3:1"], "must be MIN:MAX with MIN <= MAX"),
        (["--num-gpus", "1.5"], "must be in 0..1 or a whole number"),
        (["--dataset", "x=demo:pointmaze"], "--dataset x=demo:pointmaze names no stitcher"),
        (["--set", "limits.foo=1"], "limits.foo: unknown key"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from raystitch.cli import main

    try:
        status = main(["serve", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
