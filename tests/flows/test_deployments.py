"""Deployments: what their forms say, what the server refuses, and that code and prefect.yaml agree."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectHTTPStatusError

from flows.deployments import COLLISION, DEPLOYMENTS, deploy, still_taken
from flows.stages import collect
from tests.support.served import Served, until

ROOT = Path(__file__).resolve().parents[2]


def schema(deployment: DeploymentResponse) -> dict[str, Any]:
    """What the form of a deployment asks for."""
    assert deployment.parameter_openapi_schema is not None
    return deployment.parameter_openapi_schema


def definition(deployment: DeploymentResponse, name: str) -> dict[str, Any]:
    return dict(schema(deployment)["definitions"][name]["properties"])


def facts(deployment: DeploymentResponse) -> dict[str, Any]:
    """What a deployment is, apart from when it was made and by which file."""
    limit = deployment.global_concurrency_limit
    return {
        "entrypoint": deployment.entrypoint,
        "pool": deployment.work_pool_name,
        "crons": [getattr(each.schedule, "cron", None) for each in deployment.schedules],
        "active": [each.active for each in deployment.schedules],
        "limit": limit and limit.limit,
        "collision": deployment.concurrency_options and deployment.concurrency_options.collision_strategy,
        "enforced": deployment.enforce_parameter_schema,
        "schema": deployment.parameter_openapi_schema,
        "described": deployment.description,
        "pull": [list(step) for step in deployment.pull_steps or []],
    }


def asked_for(client: SyncPrefectClient) -> set[UUID]:
    """The runs that somebody asked for, rather than a schedule."""
    return {run.id for run in client.read_flow_runs(limit=200) if not run.auto_scheduled}


def test_prefect_yaml_names_the_same_deployments() -> None:
    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    lines = []
    for each in deployed:
        cron, limit = None, None
        if "schedules" in each:
            ((_, cron),) = each["schedules"][0].items()
        if "concurrency_limit" in each:
            limit = each["concurrency_limit"]["limit"]
            assert each["concurrency_limit"]["collision_strategy"] == COLLISION.value
        lines.append((each["entrypoint"], each["name"], each["work_pool"]["name"], cron, limit))
    assert lines == [tuple(line) for line in DEPLOYMENTS]


def test_what_an_earlier_flow_was_given_is_left_behind() -> None:
    assert still_taken(collect, {"params": {"store": "old"}, "run": {"store": "s"}}) == {"run": {"store": "s"}}


@pytest.mark.slow
@pytest.mark.server
def test_every_deployment_is_there_with_its_pool_and_schedule(served: Served) -> None:
    with served.client() as client:
        found = {each.name: each for each in client.read_deployments()}
    assert set(found) == {line.name for line in DEPLOYMENTS}
    for line in DEPLOYMENTS:
        deployed = facts(found[line.name])
        assert deployed["entrypoint"] == line.entrypoint
        assert deployed["pool"] == line.pool
        assert deployed["crons"] == ([line.cron] if line.cron else [])
        assert deployed["limit"] == line.at_once
        assert deployed["collision"] == (COLLISION if line.at_once else None)
        assert deployed["enforced"]
        assert found[line.name].description


@pytest.mark.slow
@pytest.mark.server
def test_the_form_explains_itself(served: Served) -> None:
    with served.client() as client:
        audit = client.read_deployment_by_name("audit/audit")
    params = definition(audit, "AuditParams")
    assert params["model"]["description"].startswith("Folder of a diffusers pipeline")
    assert params["settings"]["anyOf"] == [{"$ref": "#/definitions/Settings"}, {"type": "null"}]
    assert params["profile"]["enum"] == ["quick", "full"]
    assert {option.get("type") for option in params["device"]["anyOf"]} == {"string", "null"}
    settings = definition(audit, "Settings")
    assert (settings["seeds"]["minimum"], settings["seeds"]["maximum"]) == (1, 100)
    assert settings["memorized"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert settings["starts"]["type"] == "array"
    assert settings["starts"]["items"]["enum"] == ["prompt", "noise", "other"]
    assert settings["contrast"]["enum"] == ["prompts", "empty"]


@pytest.mark.slow
@pytest.mark.server
def test_every_field_of_every_form_is_described(served: Served) -> None:
    with served.client() as client:
        found = client.read_deployments()
    for deployment in found:
        forms = schema(deployment)["definitions"]
        fields = {(name, key): field for name, form in forms.items() for key, field in form["properties"].items()}
        assert [key for key, field in fields.items() if not field.keys() & {"description", "$ref"}] == []
        assert not [form["title"] for form in forms.values() if form["title"].endswith("Params")]
        others = schema(deployment)["properties"].items()
        assert [key for key, field in others if key not in ("params", "run") and not field.get("description")] == []


@pytest.mark.slow
@pytest.mark.server
def test_the_form_is_filled_in_with_the_store(served: Served) -> None:
    with served.client() as client:
        given = {name: client.read_deployment_by_name(name).parameters for name in ("audit/audit", "nightly/nightly")}
    store = (served.folder / ".engram" / "store").as_uri()
    assert all(params == {"params": {"store": store}} for params in given.values())


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("audit/audit", {"settings": {"seeds": 0}}, "minimum of 1"),
        ("audit/audit", {"settings": {"seeds": "many"}}, "not of type 'integer'"),
        ("audit/audit", {"settings": {"contrast": "nothing"}}, "not one of"),
        ("audit/audit", {"settings": {"starts": ["prompt", "nowhere"]}}, "not one of"),
        ("audit/audit", {"settings": {"dori": {"learning_rate": 0}}}, "less than or equal to the minimum of 0"),
        ("audit/audit", {"settings": {"nonsense": 1}}, "Additional properties"),
        ("audit/audit", {"model": None}, "not of type 'string'"),
        ("nightly/nightly", {"alpha": 1}, "maximum of 1"),
        ("nightly/nightly", {"models": "reference"}, "not of type 'array'"),
    ],
)
def test_the_server_refuses_nonsense_before_anything_starts(
    served: Served, name: str, params: dict[str, Any], words: str
) -> None:
    with served.client() as client:
        deployment = client.read_deployment_by_name(name)
        before = asked_for(client)
        with pytest.raises(PrefectHTTPStatusError) as refused:
            client.create_flow_run_from_deployment(deployment.id, parameters={"params": params})
        assert refused.value.response.status_code == 409
        assert words in refused.value.response.text
        assert asked_for(client) == before


@pytest.mark.slow
@pytest.mark.server
def test_a_worker_takes_a_run_and_its_artifacts_are_there(served: Served) -> None:
    """The night of a store in which no model is registered: everything but the audits."""
    with served.client() as client:
        deployment = client.read_deployment_by_name("nightly/nightly")
        run = client.create_flow_run_from_deployment(deployment.id)

        def ended() -> State[Any] | None:
            state = client.read_flow_run(run.id).state
            return state if state is not None and state.is_final() else None

        state = until(ended, 180)
        assert state.is_completed(), state.message
        found = client.request("POST", "/artifacts/filter", json={}).json()
    assert [each["key"] for each in found if each["flow_run_id"] == str(run.id)] == ["nightly"]


@pytest.mark.slow
@pytest.mark.server
def test_what_a_person_set_stays_when_it_is_deployed_again(served: Served) -> None:
    with served.client() as client:
        nightly = client.read_deployment_by_name("nightly/nightly")
        (schedule,) = nightly.schedules
        paused = DeploymentScheduleUpdate(schedule=schedule.schedule, active=False)
        params = {"params": {"store": "elsewhere", "margin": 0.2}}
        client.update_deployment(nightly.id, DeploymentUpdate(schedules=[paused], parameters=params))
        deploy("file:///store", served.folder)
        again = client.read_deployment_by_name("nightly/nightly")
        assert again.id == nightly.id
        assert [each.active for each in again.schedules] == [False]
        assert again.parameters == {"params": {"store": "file:///store", "margin": 0.2}}
        for given, kept in ((30, 30), (None, 30), (7, 7)):
            deploy("file:///store", served.folder, given)
            params = client.read_deployment_by_name("nightly/nightly").parameters["params"]
            assert params == {"store": "file:///store", "margin": 0.2, "keep_images": kept}
            assert "keep_images" not in client.read_deployment_by_name("audit/audit").parameters["params"]
        original = [DeploymentScheduleUpdate(schedule=schedule.schedule, active=True)]
        client.update_deployment(nightly.id, DeploymentUpdate(schedules=original, parameters=nightly.parameters))
        deploy((served.folder / ".engram" / "store").as_uri(), served.folder)


@pytest.mark.slow
@pytest.mark.server
def test_prefect_deploy_makes_of_the_yaml_what_the_code_makes(served: Served) -> None:
    with served.client() as client:
        before = {each.name: facts(each) for each in client.read_deployments()}
        env = os.environ | {"PREFECT_API_URL": f"{served.url}/api", "PREFECT_HOME": str(served.home)}
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
        after = {each.name: facts(each) for each in client.read_deployments()}
        deploy((served.folder / ".engram" / "store").as_uri(), served.folder)
    assert after == before
