"""What all tests share."""

import os

import torch
from hypothesis import settings

# How long an example takes says something of the machine, not of the code.
settings.register_profile("engram", deadline=None)
settings.load_profile("engram")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each of the processes that share the machine: more would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
