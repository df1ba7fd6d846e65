"""The prepared check of a GPU itself: that it runs, imports what it may, loses nothing and says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from raystitch.models.denoise import Denoiser
from tests.gpu import check
from tests.gpu.record import TINY
from tests.gpu.simulated import pretended_cuda

ROOT = Path(__file__).parents[2]
REFUSED = [
    "ray",
    "pyarrow",
    "minari",
    "gymnasium",
    "gymnasium_robotics",
    "fastapi",
    "safetensors",
    "pydantic",
    "yaml",
    "rich",
    "matplotlib",
    "mujoco",
    "h5py",
    "orjson",
    "httpx",
    "aiohttp",
    "boto3",
    "fsspec",
    "obstore",
    "pandas",
]
WITHOUT = f"""
import sys

sys.modules.update(dict.fromkeys({REFUSED!r}))  # to Python, a module that is None is not installed
"""


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run code where only torch, numpy and scipy are installed."""
    command = [sys.executable, "-c", WITHOUT + code, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)


def lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [line for line in check.lines_of(folder) if line["kind"] in kinds]


def test_fitting_stitching_and_training_import_little() -> None:
    names = "models.fit stitching.stitcher stitching.pairs trainers.data trainers.loop trainers.registry"
    code = "import importlib, sys\nsys.modules['xxhash'] = None\n"  # which checkpoints alone need
    done = python(code + f"\nfor name in {names.split()!r}: importlib.import_module('raystitch.' + name)")
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_part_runs_where_little_is_installed(tmp_path: Path) -> None:
    code = "from tests.gpu.check import main\nsys.exit(main(sys.argv[1:]))"
    done = python(code, "--device", "cpu", "--tiny", "--here", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line["part"] for line in lines(tmp_path, "ended")] == list(check.PARTS)
    assert not lines(tmp_path, "failed")
    checks, measured = lines(tmp_path, "check"), lines(tmp_path, "measured")
    assert len(checks) > 20 and all(line["ok"] for line in checks)
    assert any("resumed" in line["what"] for line in checks)
    assert {line["unit"] for line in measured} >= {"candidates/s", "bridges/s", "TFLOP/s", "ms", "s"}
    assert json.loads((tmp_path / "summary.json").read_text())["checks"] == len(checks)
    assert len(done.stdout.splitlines()) == len(check.lines_of(tmp_path)) + 1  # and a line of summary


def crowded(limit: int) -> Any:
    """A denoiser that has memory for so many rows at once."""
    original = Denoiser.__call__

    def call(self: Denoiser, noisy: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if len(noisy) > limit:
            raise torch.OutOfMemoryError("no memory for so many rows")
        return original(self, noisy, *others)

    return mock.patch.object(Denoiser, "__call__", call)


@pytest.mark.slow
def test_the_script_itself_runs_on_a_pretended_gpu(tmp_path: Path) -> None:
    """All but compiling and CUDA graphs, which need the real one, with memory that runs out."""
    properties = mock.Mock(total_memory=2**34)
    patches = {
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "NVIDIA H200",
        "max_memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "get_device_properties": lambda device=None: properties,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    }
    argv = ["--device", "cuda:0", "--tiny", "--here", "--out", str(tmp_path), "--parts"]
    with pretended_cuda(), mock.patch.multiple(torch.cuda, **patches):
        assert check.main([*argv, "fit,engine,trainers"]) == 1  # nothing is checked by these
        with mock.patch("tests.gpu.parts_correct.resumed"):  # pretended tensors cannot be saved
            assert check.main([*argv, "correct"]) == 0
        with crowded(TINY.crowd // 4):
            assert check.main([*argv, "memory"]) == 0
    assert not lines(tmp_path, "failed")
    (rows,) = (line for line in lines(tmp_path, "measured") if "rows at once" in line["what"])
    assert rows["value"] == TINY.crowd // 4
    assert any(line["ratio_to"] == "data sheet" for line in lines(tmp_path, "measured"))


def test_parts_are_processes_with_limits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", "fit,machine"]
    assert check.main([*argv, "--seconds", "1.2"]) == 1
    failed = lines(tmp_path, "failed")
    assert [line["what"] for line in failed] == ["fit", "machine"]
    assert "stopped after 1 s" in failed[0]["error"] and "no time" in failed[1]["error"]
    check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", "machine"])
    first = len(lines(tmp_path, "ended"))
    check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", "machine"])  # is done: not again
    assert first == len(lines(tmp_path, "ended")) == 1


def test_a_part_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Any) -> None:
        task.record.check("as it should be", 2.0, 1.0)
        raise ValueError("broken")

    monkeypatch.setattr(check, "PARTS", {"first": (broken, 10), "second": (lambda task: None, 10)})
    assert check.main(["--device", "cpu", "--here", "--out", str(tmp_path), "--parts", "first,second"]) == 1
    (failed,) = lines(tmp_path, "failed")
    assert failed["error"] == "ValueError: broken" and "test_check.py" in failed["where"]
    assert [line["part"] for line in lines(tmp_path, "ended")] == ["first", "second"]
    assert json.loads((tmp_path / "summary.json").read_text())["wrong"][0]["value"] == 2.0


def test_what_is_asked_for_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--parts", "speed"], ["--device", "cuda:0"]):
        with pytest.raises(SystemExit):
            check.main(["--out", str(tmp_path), *argv])
    assert "no part is called speed" in (said := capsys.readouterr().err)
    assert "no CUDA device" in said
