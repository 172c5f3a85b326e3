import re

import pytest

from mmtrain.report.chart import (
    MAX_POINTS,
    Series,
    line_chart,
    nice_ticks,
    running_median,
    short_number,
    thin,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 8, [0, 2, 4, 6, 8]),
        (0.13, 0.89, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 7, [-5, 0, 5, 10]),
        (5, 5, [4.5, 5, 5.5]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (1e-9, 4e-9, [1e-9, 2e-9, 3e-9, 4e-9]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, count=4) == pytest.approx(ticks)


def test_ticks_inside_leave_out_what_is_beyond() -> None:
    assert nice_ticks(3, 97, count=5, inside=True, least=1) == [20, 40, 60, 80]
    assert nice_ticks(7, 7, count=5, inside=True) == [7]
    assert nice_ticks(1, 3, count=5, inside=True, least=1) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (2.659260, "2.659"),
        (1200, "1,200"),
        (84_480, "84.5k"),
        (2_000_000, "2M"),
        (3.2e9, "3.2G"),
        (2.5e-4, "2.5e-4"),
        (-0.5, "-0.5"),
        (9.5e-7, "9.5e-7"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_thinning_keeps_the_mean_and_the_ends() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    few = thin(points, 100)
    assert len(few) == 100 and few[-1][0] == 999
    assert sum(y for _, y in few) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thin(points[:100], 100) == points[:100]


def test_the_median_starts_where_the_values_do_and_ignores_a_spike() -> None:
    values = [10.0 - x / 10 for x in range(60)]
    assert running_median(values, reach=5)[0] == 10.0
    values[30] = 1e6
    medians = running_median(values, reach=5)
    assert max(medians) == 10.0
    assert medians[29] == pytest.approx(7.1, abs=0.2)


def test_a_spike_does_not_flatten_the_rest() -> None:
    points = [(float(x), 1.0 + x % 2) for x in range(300)]
    points[150] = (150.0, 1e6)
    svg = line_chart([Series(points=points)], label="x", smooth=True)
    assert "M" not in "".join(re.findall(r'text-anchor="end">([^<]*)<', svg))
    inside = [float(y) for y in re.findall(r"[ML][\d.]+ (-?[\d.]+)", svg)]
    assert min(inside) >= 0


def test_a_single_point_and_a_flat_line_are_drawn() -> None:
    for points in ([(5.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)]):
        assert "<path" in line_chart([Series(points=points)], label="x")


def test_every_line_is_thinned() -> None:
    many = [(float(x), float(x)) for x in range(10 * MAX_POINTS)]
    svg = line_chart([Series(points=many, name="a"), Series(points=many, name="b")], label="x")
    assert len(svg) < 40_000
