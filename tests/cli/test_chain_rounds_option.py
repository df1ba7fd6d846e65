"""``--chain-rounds``: a number or ``auto``, and nothing else."""

import pytest

from raystitch.cli import build_parser, main

ASKED = ["augment", "demo:pointmaze", "--stitcher", "s", "--out", "b", "--num-bridges", "10", "--chain-rounds"]


def test_a_number_or_auto(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    assert [parser.parse_args([*ASKED, text]).chain_rounds for text in ("0", "3", "auto")] == [0, 3, "auto"]
    for text in ("-1", "1.5", "all"):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*ASKED, text])
        assert f"must be a whole number >= 0 or auto, got '{text}'" in capsys.readouterr().err
