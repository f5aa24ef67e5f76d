"""Settings that every test needs."""

import os

# Two cores: more threads than cores make small networks many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("shared_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_machine")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1)
