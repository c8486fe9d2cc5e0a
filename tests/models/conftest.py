"""Fixtures of the model tests."""

import pytest
import torch
from toy_models import make_padded_prompts


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of 12 random ids below 100, (2, 12)."""
    return torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def prompts() -> dict[str, torch.Tensor]:
    return make_padded_prompts()
