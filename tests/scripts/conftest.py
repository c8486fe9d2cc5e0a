import pytest
from training.toy_run import ToyRun, make_toy_run

from tools.finetune_sts import main as train


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp("toy_run"))


@pytest.fixture(scope="session")
def stage2(toy_run, tmp_path_factory):
    """A trained model with one MTP module; its run has extracted the codes."""
    folder = tmp_path_factory.mktemp("stage2")
    train(toy_run.flags(folder, config_name=toy_run.config(1), max_steps=1, extract_codes=True))
    return folder
