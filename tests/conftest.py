"""What all tests share."""

import atexit
import os
import shutil
import tempfile

import torch
from hypothesis import settings

# Prefect of these tests is their own: no server, profile or database of whoever runs them.
HOME = tempfile.mkdtemp(prefix="engram-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {"PREFECT_HOME": HOME, "PREFECT_PROFILES_PATH": f"{HOME}/profiles.toml"}
for setting in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(setting, None)

# How long an example takes says something of the machine, not of the code.
settings.register_profile("engram", deadline=None)
settings.load_profile("engram")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each of the processes that share the machine: more would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
