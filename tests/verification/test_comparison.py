"""The arithmetic of the comparison, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_port.errors import CaffePortError
from caffe_port.verification.comparison import Tolerance, compare, difference
from caffe_port.verification.references.trace import Trace

INF, NAN = math.inf, math.nan
T = Tolerance(atol=0.01, rtol=0.1)


def test_within_and_outside() -> None:
    expected = np.array([[0.1, -0.2, 0.0], [0.5, 0.5, 0.5]], np.float32)
    actual = np.array([[0.1, -0.2, 0.02], [0.5, 0.55, 0.4]], np.float32)
    found = difference(expected, actual, T)
    assert not found.passed
    assert found.reason == ""
    assert found.greatest == pytest.approx(0.1)  # at (1, 2): allowed 0.01 + 0.05
    assert found.at == (1, 2)
    assert (found.expected, found.actual) == pytest.approx((0.5, 0.4))
    assert found.outside == 2  # 0.02 > 0.01 where the reference is 0; 0.1 > 0.06; 0.05 < 0.06
    assert found.count == 6
    assert found.needed_atol == pytest.approx(0.05)  # 0.1 - 0.1 * 0.5
    assert found.relative == pytest.approx(math.sqrt((0.02**2 + 0.05**2 + 0.1**2) / (0.01 + 0.04 + 0.75)), rel=1e-6)
    assert difference(expected, actual, Tolerance(0.0501, 0.1)).passed
    assert not difference(expected, actual, Tolerance(0.0499, 0.1)).passed


def test_the_edge_passes() -> None:
    assert difference(np.array([0.0, 0.5]), np.array([0.25, 0.5]), Tolerance(0.25, 0.0)).passed
    assert not difference(np.array([0.0, 0.5]), np.array([np.nextafter(0.25, 1), 0.5]), Tolerance(0.25, 0.0)).passed


def test_atol_counts_in_the_tops_own_size() -> None:
    expected = np.array([300.0, -400.0, 0.0, 0.0])  # rms = sqrt((9e4 + 16e4) / 4) = 250
    found = difference(expected, np.array([300.0, -400.0, 2.0, 0.0]), Tolerance(0.01, 0.0))
    assert found.unit == 250
    assert found.passed  # 2 <= 0.01 * 250
    assert found.needed_atol == pytest.approx(2 / 250)
    assert not difference(expected, np.array([300.0, -400.0, 2.6, 0.0]), Tolerance(0.01, 0.0)).passed
    small = difference(expected / 1000, np.array([0.3, -0.4, 0.02, 0.0]), Tolerance(0.01, 0.0))
    assert small.unit == 1  # never below one
    assert not small.passed


def test_expected_all_zero() -> None:
    zero = np.zeros((2, 3))
    assert difference(zero, zero).passed
    assert difference(zero, zero).relative == 0
    found = difference(zero, np.full((2, 3), 1e-3))
    assert not found.passed
    assert found.relative == INF
    assert found.needed_atol == 1e-3
    assert difference(zero, np.full((2, 3), 1e-6)).passed


@pytest.mark.parametrize(
    ("expected", "actual", "outside"),
    [
        ([1.0, NAN], [1.0, 2.0], 1),
        ([1.0, 2.0], [NAN, 2.0], 1),
        ([INF, 1.0], [1.0, 1.0], 1),
        ([1.0, 1.0], [1.0, -INF], 1),
        ([INF, 1.0], [-INF, 1.0], 1),
        ([NAN, INF], [INF, NAN], 2),
        ([NAN, INF, -INF, 1.0], [NAN, INF, -INF, 1.0], 0),
    ],
)
def test_nan_and_infinity(expected: list[float], actual: list[float], outside: int) -> None:
    found = difference(np.array(expected), np.array(actual))
    assert found.passed == (outside == 0)
    assert found.outside == outside
    if outside:
        elements = "1 element" if outside == 1 else f"{outside} elements"
        assert found.reason == f"NaN or infinity on one side only, in {elements}"
        assert found.greatest == found.needed_atol == INF
        assert found.at == (next(i for i in range(2) if not _alike(expected[i], actual[i])),)
    else:
        assert found.greatest == 0


def _alike(e: float, a: float) -> bool:
    return e == a or (math.isnan(e) and math.isnan(a))


def test_a_number_beside_nan_still_counts() -> None:
    found = difference(np.array([NAN, 1.0, 2.0]), np.array([NAN, 1.0, 2.5]))
    assert found.greatest == 0.5
    assert found.at == (2,)
    assert found.relative == pytest.approx(0.5 / math.sqrt(5))


def test_shape_mismatch() -> None:
    found = difference(np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 3, 4)))
    assert not found.passed
    assert found.reason == "shape (2, 3, 3, 4), expected (2, 3, 4, 4)"
    assert math.isnan(found.greatest)
    assert found.needed_atol == INF
    assert not difference(np.zeros((6, 1)), np.zeros((6,))).passed


def test_empty_and_scalar() -> None:
    found = difference(np.zeros((0, 3)), np.zeros((0, 3)))
    assert found.passed
    assert (found.count, found.at, found.greatest) == (0, None, 0.0)
    found = difference(np.array(2.0), np.array(3.0))
    assert not found.passed
    assert (found.greatest, found.at, found.count) == (1.0, (), 1)


def test_integers_and_mixed_types() -> None:
    found = difference(np.array([250, 3], np.uint8), np.array([3, 250], np.uint8))
    assert found.greatest == 247  # not 9 by wrapping round
    assert difference(np.array([1, 2], np.int64), np.array([1.0, 2.0], np.float32)).passed
    assert difference(np.array([True, False]), np.array([1.0, 0.0], np.float16)).passed


def test_float64_is_compared_in_float64() -> None:
    found = difference(np.array([1.0]), np.array([1.0 + 1e-12]), Tolerance(0.0, 0.0))
    assert found.greatest == pytest.approx(1e-12, rel=1e-3)


def test_huge_numbers_do_not_overflow_into_agreement() -> None:
    found = difference(np.array([1e308, 1.0]), np.array([-1e308, 1.0]))
    assert not found.passed
    assert found.greatest == INF


def test_large_arrays_are_taken_in_pieces() -> None:
    expected = np.zeros((3, 1 << 18), np.float32)
    actual = expected.copy()
    actual[2, 77] = 0.5
    actual[0, 5] = 0.25
    found = difference(expected, actual)
    assert (found.greatest, found.at, found.outside, found.count) == (0.5, (2, 77), 2, 3 << 18)
    actual[1, 3] = NAN
    found = difference(expected, actual)
    assert (found.greatest, found.at, found.outside) == (INF, (1, 3), 3)


def test_strides_do_not_matter() -> None:
    base = np.arange(24.0).reshape(2, 3, 4)
    assert difference(base.transpose(2, 0, 1), np.ascontiguousarray(base.transpose(2, 0, 1))).passed


@pytest.mark.parametrize("bad", [-1e-6, NAN, INF])
def test_tolerances_make_sense(bad: float) -> None:
    with pytest.raises(CaffePortError, match="tolerances must be finite"):
        Tolerance(atol=bad)
    with pytest.raises(CaffePortError, match="tolerances must be finite"):
        Tolerance(rtol=bad)


def _tops(**values: float) -> dict[tuple[str, int], np.ndarray]:
    return {(name, 0): np.full((2, 3), value) for name, value in values.items()}


def test_traces() -> None:
    reference = Trace(_tops(a=1, b=2, c=3, lost=4), {}, provenance={"producer": "R"})
    candidate = Trace(_tops(a=1, b=2.5, c=3.5, extra=0), {}, provenance={"producer": "C"})
    isolated = Trace(_tops(a=1, b=2.5, c=3), {})
    report = compare(reference, candidate, isolated=isolated)
    assert [(r.layer, r.status, r.broken) for r in report.rows] == [
        ("a", "passed", False),
        ("b", "failed", True),
        ("c", "failed", False),
        ("lost", "not compared", False),
        ("extra", "not compared", False),
    ]
    assert (report.compared, report.failed, report.not_compared, report.passed) == (3, 2, 2, False)
    assert report.first is not None
    assert report.first.layer == "b"
    assert report.worst is not None
    assert report.worst.layer == "b"
    assert [r.note for r in report.rows[3:]] == ["not in the candidate", "not in the reference"]
    assert (report.reference, report.candidate) == ("R", "C")


def test_nothing_compared_is_no_pass() -> None:
    report = compare(Trace(_tops(a=1), {}), Trace(_tops(b=1), {}))
    assert (report.compared, report.failed, report.passed) == (0, 0, False)
    assert report.first is None
    assert report.worst is None


def test_accumulated_error_alone_is_located_where_it_shows() -> None:
    report = compare(Trace(_tops(a=1, b=1), {}), Trace(_tops(a=1, b=1.5), {}), isolated=Trace(_tops(a=1, b=1), {}))
    assert report.broken == []
    assert report.first is not None
    assert report.first.layer == "b"
    assert not report.passed
