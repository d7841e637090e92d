"""A run in good health, for the rules about what is around it."""

import pytest

from tests.detectors.around import Around


@pytest.fixture
def around() -> Around:
    made = Around()
    made.play(400)
    assert made.simulation.opened == [], "twice the time that the slowest of these rules looks at, and nothing is wrong"
    return made
