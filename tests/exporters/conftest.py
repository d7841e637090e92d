import pytest

from gpuwatch.config import Config
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.store import State


@pytest.fixture
def state(tmp_path):
    state = State(str(tmp_path / "runs"))
    yield state
    state.close()


@pytest.fixture
def config():
    return Config()


@pytest.fixture
def stats():
    return SelfStats()
