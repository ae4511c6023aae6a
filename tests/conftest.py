"""What all tests share."""

import atexit
import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import settings

# Prefect of these tests is their own: no server, profile or database of whoever runs them.
HOME = tempfile.mkdtemp(prefix="engram-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
# Nor is there anything to reach but this machine, and no terminal.
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
for setting in list(os.environ):
    if setting.startswith("PREFECT_") or setting.lower() in PROXIES or setting in ("FORCE_COLOR", "PY_COLORS"):
        del os.environ[setting]
os.environ |= {
    "PREFECT_HOME": HOME,
    "PREFECT_PROFILES_PATH": f"{HOME}/profiles.toml",
    # A flow that is called without a server would start one of Prefect's, and give it twenty seconds to come up.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "_TYPER_FORCE_DISABLE_TERMINAL": "1",  # where tests run for GitHub, Typer would colour all the same
}

# How long an example takes says something of the machine, not of the code.
settings.register_profile("engram", deadline=None)
settings.load_profile("engram")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each of the processes that share the machine: more would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

LONGEST = ("test_gpu_script.py", "test_spread.py", "test_postgres.py", "test_serve.py", "test_audit.py")
"""Files whose tests take minutes together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the longest files begun first: else one process is at them in the end while the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
