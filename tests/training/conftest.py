import pytest
from toy_run import ToyRun, make_toy_run


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp("toy_run"))
