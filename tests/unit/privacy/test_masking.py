"""Masks: what is added is taken off again, to the bit; what is left to see looks like noise."""

import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.privacy import masking
from orchestrator.privacy.masking import Mask, Ring, add_masks


def mask(plus: bool = True) -> Mask:
    return Mask(secrets.token_bytes(32), plus)


@pytest.mark.parametrize("ring", [np.uint32, np.uint16])
@given(size=st.sampled_from([0, 1, 7, 8, 65535, 65536, 65537, 200_001]), num=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_what_is_added_is_taken_off_again(ring: type, size: int, num: int) -> None:
    vector = np.arange(size).astype(ring)
    before, masks = vector.copy(), [mask(bool(i % 2)) for i in range(num)]
    add_masks(vector, masks)
    assert size < 8 or not np.array_equal(vector, before)
    add_masks(vector, [each.undone for each in reversed(masks)])
    assert np.array_equal(vector, before)


@pytest.mark.parametrize("ring", [np.uint32, np.uint16])
def test_the_piece_does_not_matter(ring: type, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, seen = [mask(), mask(False)], []
    for piece in (1 << 10, 1 << 14, 1 << 20):
        monkeypatch.setattr(masking, "PIECE_BYTES", piece)
        vector: Ring = np.zeros(100_003, ring)
        add_masks(vector, masks)
        seen.append(vector.tobytes())
    assert len(set(seen)) == 1


def test_a_short_key_makes_no_mask() -> None:
    for size in (0, 4, 15, 16, 31, 33):
        with pytest.raises(ValueError, match="masks are made from 256"):
            add_masks(np.zeros(4, np.uint32), [Mask(bytes(size), True)])


@pytest.mark.parametrize("ring", [np.uint32, np.uint16])
def test_zeros_and_data_look_the_same_under_a_mask(ring: type) -> None:
    """Chi-square over bytes: what is seen of masked zeros, of masked data and of their difference from flat noise
    is within what chance gives; unmasked data is nowhere near."""
    size = 1 << 18
    data = (np.random.default_rng(1).standard_normal(size) * 1000).astype(np.int64).astype(ring)
    assert p_value(data) < 1e-100
    seen = []
    for content in (np.zeros(size, ring), data):
        vector = content.copy()
        add_masks(vector, [mask(), mask(False)])
        assert p_value(vector) > 1e-6
        seen.append(np.bincount(vector.view(np.uint8), minlength=256))
    assert stats.chi2_contingency(seen).pvalue > 1e-6


def p_value(vector: Ring) -> float:
    return float(stats.chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue)
