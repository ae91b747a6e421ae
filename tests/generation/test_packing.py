"""Exact: where thoughts are laid, by hand and by what must hold for any lengths."""

import numpy as np

from dwrl_jax.generation.packing import pack


def test_four_branches_in_two_lanes_by_hand():
    packing = pack(np.array([[[3, 5, 2, 4], [1, 1, 1, 1]]]), 8)
    assert packing.place.tolist() == [[[5, 0, 12, 8], [0, 1, 2, 3]]]  # 5 + 3 and 4 + 2; the second row needs one lane
    first, second = packing.source[0, 0]
    assert first.tolist() == [8, 9, 10, 11, 12, 0, 1, 2]
    assert second.tolist() == [24, 25, 26, 27, 16, 17, -1, -1]


def test_every_token_has_one_place():
    rng = np.random.default_rng(0)
    lengths, size = rng.integers(1, 6, (3, 2, 8)), 16
    packing = pack(lengths, size)
    lanes = packing.source.shape[2]
    assert lanes in (2, 4)
    for b, s in np.ndindex(3, 2):
        flat = packing.source[b, s].reshape(-1)
        expected = [g * size + t for g in range(8) for t in range(lengths[b, s, g])]
        assert sorted(flat[flat >= 0].tolist()) == expected
        for g in range(8):
            start, count = packing.place[b, s, g], lengths[b, s, g]
            assert start // size == (start + count - 1) // size  # in one lane
            assert flat[start : start + count].tolist() == list(range(g * size, g * size + count))


def test_what_does_not_fit_is_left_as_it_is():
    assert pack(np.full((1, 2, 8), 9), 16) is None
    assert pack(np.array([[[16, 16, 16, 16, 16, 1, 1, 1], [1] * 8]]), 16) is None
    assert pack(np.full((1, 2, 1), 1), 16) is None


def test_two_branches_in_one_lane_by_hand():
    packing = pack(np.array([[[1, 2]]]), 3)
    np.testing.assert_array_equal(packing.source, [[[[3, 4, 0]]]])
    np.testing.assert_array_equal(packing.place, [[[2, 0]]])


def test_no_more_lanes_than_are_needed():
    assert [pack(np.full((1, 2, 8), length), 8).source.shape[2] for length in (1, 2, 3, 4)] == [2, 2, 4, 4]
