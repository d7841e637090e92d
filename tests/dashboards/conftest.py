import pytest

from tests.dashboards.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """The whole stack, started once for all tests that look at it."""
    started = Stack(tmp_path_factory.mktemp("stack"))
    yield started
    started.close()
