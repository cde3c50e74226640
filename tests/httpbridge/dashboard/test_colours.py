"""The colours of levels in the chart and beside entries, for those who do not tell red from green."""

import itertools
import re

import pytest

from httpbridge.dashboard.pages import DIRECTORY

# Of deuteranopia, on linear RGB: Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", 2009.
_DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
_LUMINANCE = (0.2126, 0.7152, 0.0722)

STYLE = (DIRECTORY / "static" / "logs.css").read_text()
FILLS = re.findall(r"--(\w+)-fill: (#[0-9a-f]{6});", STYLE)


def luminance(colour: str, *, is_simulated: bool) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    if is_simulated:
        linear = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in _DEUTERANOPIA]
    return sum(a * min(max(b, 0.0), 1.0) for a, b in zip(_LUMINANCE, linear, strict=True))


@pytest.mark.parametrize("is_simulated", [True, False])
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_levels_that_stand_on_each_other_differ_in_lightness(scheme: int, is_simulated: bool) -> None:
    """From the bottom: error, warn, info, debug."""
    assert len(FILLS) == 8
    colours = dict(FILLS[4 * scheme : 4 * scheme + 4])
    stacked = [luminance(colours[level], is_simulated=is_simulated) for level in ("error", "warn", "info", "debug")]
    for one, other in itertools.pairwise(stacked):
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) > 1.9
