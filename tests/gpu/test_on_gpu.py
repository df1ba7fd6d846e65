"""The prepared check on a real GPU: ``pytest tests/gpu -m gpu``."""

from pathlib import Path

import pytest
import torch

from tests.gpu import check


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_every_check_holds_on_this_gpu(tmp_path: Path) -> None:
    assert check.main(["--out", str(tmp_path)]) == 0, (tmp_path / "summary.json").read_text()
