"""The containers are as closed as docker/README.md says: in the compose file, and as `docker compose` reads it."""

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
FILE = DOCKER / "compose.yaml"
GIVEN = {"ENGRAM_AUTH": "auditor:secret", "POSTGRES_PASSWORD": "0123"}
EXACT = re.compile(r"(@sha256:[0-9a-f]{64}|:(\d+\.\d+\.\d+-slim-[a-z]+|\d+\.\d+-alpine\d+\.\d+))$")
"""How a name of an image ends that is the same tomorrow: with a digest, or with all numbers of its versions."""
SERVICES = ("database", "server", "deployments", "worker-cpu", "worker-gpu")

Config = dict[str, Any]


def faults(config: Config) -> Iterator[str]:
    """What is not as the README says, a line each."""
    services = config["services"]
    if lacking := set(SERVICES) - set(services):
        yield f"there is no {min(lacking)}"
    for name, service in services.items():
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
            yield f"{name} has capabilities of root"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name} may gain privileges"
        if service.get("privileged") or service.get("network_mode") or service.get("pid"):
            yield f"{name} shares what is the host's"
        if service.get("read_only") is not True:
            yield f"the image of {name} can be written to"
        if not service.get("mem_limit"):
            yield f"{name} may take all memory"
        if "build" not in service and not EXACT.search(service["image"]):
            yield f"{name} is another image tomorrow: {service['image']}"
        if name != "server" and "database" in service["networks"] and name != "database":
            yield f"{name} reaches the database"
        if name != "server" and service.get("ports"):
            yield f"{name} is published"
        for port in service.get("ports", []):
            if (port if isinstance(port, str) else port.get("host_ip", "")).split(":")[0] != "127.0.0.1":
                yield f"{name} is published beyond loopback"
    if list(services["database"]["networks"]) != ["database"]:
        yield "the database is in the network of others"
    if services["database"].get("user") != "postgres":
        yield "the database runs as root"
    if not config["networks"]["database"].get("internal"):
        yield "the network of the database leads out"


def written() -> Config:
    """The file itself."""
    found: Config = yaml.safe_load(FILE.read_text())
    return found


def composed() -> Config:
    """What docker compose reads, with variables filled in, by whichever of its two generations is here."""
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]) is None:
            continue
        version = subprocess.run([*program, "version"], capture_output=True, text=True, check=False)
        if version.returncode == 0:
            break
    else:
        pytest.skip("docker compose is not installed: apt-get install docker-compose, as .ci/run does")
    text = FILE.read_text()
    if re.search(r"version v?1\.", version.stdout):
        text = re.sub(r"^name: \w+$", "", text, flags=re.MULTILINE)  # the first generation does not know it
    named = ["--project-directory", str(DOCKER), "--file", "-", "--profile", "gpu", "config"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ENGRAM_", "POSTGRES_"))}
    found = subprocess.run([*program, *named], input=text, capture_output=True, text=True, env=env | GIVEN, check=False)
    assert found.returncode == 0, found.stderr
    read: Config = yaml.safe_load(found.stdout)
    return read


@pytest.fixture(scope="module", params=[written, composed], ids=["written", "composed"])
def config(request: pytest.FixtureRequest) -> Config:
    found: Config = request.param()
    return found


def test_the_containers_are_closed(config: Config) -> None:
    assert list(faults(config)) == []


def test_the_image_is_made_of_an_exact_one() -> None:
    bases = re.findall(r"^FROM (\S+)", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert bases and all(EXACT.search(base) for base in bases)
    for name in ("python:3.12-slim", "postgres:17-alpine", "postgres:latest", "postgres", "postgres:17.2"):
        assert not EXACT.search(name)


def without(key: str, name: str) -> Callable[[Config], object]:
    return lambda config: config["services"][name].pop(key)


OPENED: Mapping[str, Callable[[Config], object]] = {
    **{
        f"{key} of {name}": without(key, name)
        for name in SERVICES
        for key in ("cap_drop", "security_opt", "read_only", "mem_limit")
    },
    "a capability": lambda config: config["services"]["server"].update(cap_add=["SYS_ADMIN"]),
    "the host's processes": lambda config: config["services"]["worker-cpu"].update(pid="host"),
    "a worker in the database's network": lambda config: config["services"]["worker-cpu"].update(
        networks=["database", "work"]
    ),
    "the database among workers": lambda config: config["services"]["database"].update(networks=["database", "work"]),
    "a network that leads out": lambda config: config["networks"]["database"].clear(),
    "root in the database": lambda config: config["services"]["database"].pop("user"),
    "a published database": lambda config: config["services"]["database"].update(ports=["127.0.0.1:5432:5432"]),
    "a server for all": lambda config: config["services"]["server"].update(ports=["4200:4200"]),
    "a moving tag": lambda config: config["services"]["database"].update(image="postgres:17-alpine"),
    "no worker": lambda config: config["services"].pop("worker-cpu"),
}


@pytest.mark.parametrize("what", OPENED)
def test_what_is_opened_is_found(config: Config, what: str) -> None:
    opened = copy.deepcopy(config)
    OPENED[what](opened)
    assert len(list(faults(opened))) >= 1


def test_programs_write_to_volumes_only(config: Config) -> None:
    """Images are read-only, so what a program writes to has to be a volume."""

    def places(service: Config) -> set[str]:
        found = [
            each["target"] if isinstance(each, dict) else next(part for part in each.split(":") if part[0] == "/")
            for each in service["volumes"]
        ]
        return {*found, *service.get("tmpfs", [])}

    services = config["services"]
    assert places(services["database"]) == {"/var/lib/postgresql/data", "/tmp", "/var/run/postgresql"}
    assert places(services["server"]) == {"/srv/prefect", "/tmp", "/home/engram"}
    for name in ("deployments", "worker-cpu", "worker-gpu"):
        assert places(services[name]) == {"/srv/engram", "/srv/prefect", "/tmp", "/home/engram"}
    assert services["worker-gpu"]["image"] == "engram:gpu" and services["worker-cpu"]["image"] == "engram:cpu"
