"""The containers, without containers: that compose file and Dockerfile name what there is, and keep to the rules."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deployments import POOLS
from flows.serve import RUNS_AT_ONCE, environment

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def compose(given: dict[str, str]) -> dict[str, Any]:
    """The compose file with its variables put in, as `docker compose config` does it."""

    def put(found: re.Match[str]) -> str:
        name, kind, words = found.groups()
        if kind == "?" and not given.get(name):
            raise KeyError(f"{name}: {words}")
        return given.get(name) or (words if kind == "-" else "")

    return dict(yaml.safe_load(VARIABLE.sub(put, (DOCKER / "compose.yaml").read_text())))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    filled_in = {"ENGRAM_AUTH": "auditor:secret", "POSTGRES_PASSWORD": "hidden"}
    return dict(compose(filled_in)["services"])


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in services.items() if each["image"].startswith("engram:")}


def test_a_service_for_each_part(services: dict[str, Any]) -> None:
    workers = {f"worker-{pool}": pool for pool in POOLS}
    assert set(services) == {"database", "server", "deployments", *workers}
    for name, pool in workers.items():
        command = services[name]["command"]
        assert command[command.index("--pool") + 1] == pool
        assert int(command[command.index("--limit") + 1]) == RUNS_AT_ONCE[pool]
    assert [name for name, each in services.items() if each.get("profiles") == ["gpu"]] == ["worker-gpu"]
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["worker-gpu"]["build"]["args"] == {"DEVICE": "gpu"}


def test_nothing_is_bound_beyond_loopback(services: dict[str, Any]) -> None:
    assert {name: each["ports"] for name, each in services.items() if "ports" in each} == {
        "server": ["127.0.0.1:4200:4200"]
    }


@pytest.mark.parametrize("missing", ["ENGRAM_AUTH", "POSTGRES_PASSWORD"])
def test_nothing_starts_without_passwords(missing: str) -> None:
    filled_in = {"ENGRAM_AUTH": "auditor:secret", "POSTGRES_PASSWORD": "hidden"}
    with pytest.raises(KeyError, match=rf"{missing}: set it in docker/\.env"):
        compose(filled_in | {missing: ""})


def test_the_example_names_every_variable_and_no_secret() -> None:
    variables = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "env.example").read_text(), re.MULTILINE))
    used = {found[1] for found in VARIABLE.finditer((DOCKER / "compose.yaml").read_text())}
    assert set(variables) == used
    assert set(variables.values()) == {""}
    assert (DOCKER / ".gitignore").read_text().split() == [".env"]


def test_who_runs_for_long_is_looked_after(services: dict[str, Any]) -> None:
    for name, each in services.items():
        if name == "deployments":
            assert each["restart"] == "no"
        else:
            assert each["healthcheck"]["test"][0] == "CMD"
            assert each["restart"] == "unless-stopped"
        for waits_for, how in each.get("depends_on", {}).items():
            awaited = services[waits_for]
            assert how["condition"] == ("service_healthy" if "healthcheck" in awaited else
                                        "service_completed_successfully")  # fmt: skip


def test_volumes_are_declared_and_shared_by_those_who_work(services: dict[str, Any]) -> None:
    mounted = {
        name: [volume.split(":")[0] for volume in each.get("volumes", []) if ":" in volume]  # others are its own
        for name, each in services.items()
    }
    assert {volume for volumes in mounted.values() for volume in volumes} == set(
        compose({"ENGRAM_AUTH": "a:b", "POSTGRES_PASSWORD": "c"})["volumes"]
    )
    assert mounted["deployments"] == mounted["worker-cpu"] == mounted["worker-gpu"] == ["data"]


def test_the_server_has_the_settings_of_engram_serve(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "auditor:secret")
    wanted = environment("http://127.0.0.1:4200", Path("/srv/prefect"))
    elsewhere = {"PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_API_URL"}
    variables = services["server"]["environment"]
    assert {name: variables.get(name) for name in wanted.keys() - elsewhere} == {
        name: value for name, value in wanted.items() if name not in elsewhere
    }
    for each in ours(services).values():
        assert each["environment"]["PREFECT_API_URL"] == "http://server:4200/api"
        assert each["environment"]["PREFECT_API_AUTH_STRING"] == "auditor:secret"


def test_the_server_is_reached_by_the_names_that_others_use(services: dict[str, Any]) -> None:
    """The names of this network, and the one that a browser on this machine has it by."""
    words = services["server"]["command"]
    (name,) = (words[at + 1] for at, word in enumerate(words) if word == "--name")
    for each in ours(services).values():
        assert each["environment"]["PREFECT_API_URL"] == f"{name}/api"
    (published,) = services["server"]["ports"]
    assert services["server"]["environment"]["PREFECT_UI_URL"] == f"http://{published.rpartition(':')[0]}"
    given = {"ENGRAM_AUTH": "a:b", "POSTGRES_PASSWORD": "c", "ENGRAM_UI_URL": "https://audits.example.com"}
    variables = compose(given)["services"]["server"]["environment"]
    assert variables["PREFECT_UI_URL"] == "https://audits.example.com"


def test_commands_are_there_and_know_their_options(services: dict[str, Any]) -> None:
    helps: dict[tuple[str, ...], str] = {}
    for each in ours(services).values():
        program, *group = each["command"][: {"engram": 2}.get(each["command"][0], 3)]
        named = (program, *group)
        if named not in helps:
            command = [str(Path(sys.executable).with_name(program)), *group, "--help"]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            helps[named] = found.stdout
        for option in each["command"][len(named) :]:
            if option.startswith("--"):
                assert option in helps[named], (named, option)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_is_made_of_what_is_there_and_runs_as_no_root() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    copied = [word for kind, words in instructions() if kind == "COPY" for word in shlex.split(words)[:-1]]
    assert ignored[0] == "*"
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in ignored
    users = [words for kind, words in instructions() if kind == "USER"]
    assert users == ["engram"]


def test_the_image_installs_as_the_makefile_does() -> None:
    installs = re.findall(r"-m pip install (.*)", (ROOT / "Makefile").read_text())
    ran = " ".join(words for kind, words in instructions() if kind == "RUN")
    for line in installs:
        wanted = [word for word in line.split() if word not in ("--quiet", "--disable-pip-version-check")]
        assert f"pip install {' '.join(wanted)}" in ran


def test_without_a_gpu_its_runtime_is_left_out() -> None:
    ran = " ".join(words for kind, words in instructions() if kind == "RUN")
    (pattern,) = re.findall(r"grep -vE '(.*?)'", ran)
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    left = [line for line in locked if not re.search(pattern, line)]
    assert {line for line in locked if "sys_platform" in line} == set(locked) - set(left)
    assert any(line.startswith("torch==") for line in left)
