"""The ratio r: parsing, and counts that are the same in every batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystitch.errors import UserError
from raystitch.trainers.ratio import Ratio, parse_ratio


@pytest.mark.parametrize(
    ("text", "batch_size", "counts"),
    [
        ("1:0", 64, (64, 0)),
        ("0:1", 64, (0, 64)),
        ("1:1", 64, (32, 32)),
        ("1:1", 65, (32, 33)),
        ("2:1", 64, (43, 21)),
        ("0.5:1.5", 64, (16, 48)),
        ("1000:1", 64, (63, 1)),
    ],
)
def test_counts(text: str, batch_size: int, counts: tuple[int, int]) -> None:
    assert parse_ratio(text).counts(batch_size) == counts


@pytest.mark.parametrize("text", ["0:0", "-1:2", "1", "a:b", "1:1:1", "nan:1", "inf:1", ""])
def test_wrong_ratio(text: str) -> None:
    with pytest.raises(UserError, match="ratio"):
        parse_ratio(text)


def test_batch_too_small() -> None:
    with pytest.raises(UserError, match="batch_size=1"):
        parse_ratio("1:1").counts(1)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(2, 512))
def test_counts_add_up(original: int, augmented: int, batch_size: int) -> None:
    if original + augmented == 0:
        return
    ratio = Ratio(original, augmented)
    counts = ratio.counts(batch_size)
    assert sum(counts) == batch_size
    assert [count > 0 for count in counts] == [original > 0, augmented > 0]
    if all(counts) and min(counts) > 1:
        assert abs(counts[1] - batch_size * augmented / (original + augmented)) <= 0.5
    assert parse_ratio(str(ratio)) == ratio
