"""What the real Functions host takes for names, schedules, routes and queues, for every example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from croniter import croniter

from function_app import register
from shared.app import LazyApp
from shared.config import outline

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def triggers(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Triggers by the name of their function."""
    config: Path = request.param
    env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", config.read_text("utf-8")), "x" * 32)
    registered = register(LazyApp(env, origin=str(config))).get_functions()
    found = [(each.get_function_name(), each.get_trigger().get_dict_repr()) for each in registered]
    # With a broken configuration, only /health would be there, and all would be well.
    assert len(found) > len(outline(str(config), env).written_vaults)
    # Names that differ only by case are one to the host.
    assert len({name.lower() for name, _ in found}) == len(found)
    return dict(found)


def test_names_are_such_as_the_host_takes(triggers: dict[str, dict[str, Any]]) -> None:
    # https://github.com/Azure/azure-functions-host/blob/dev/src/WebJobs.Script/Utility.cs
    assert [name for name in triggers if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]{0,127}", name)] == []


def test_schedules_have_six_fields_and_a_next_time(triggers: dict[str, dict[str, Any]]) -> None:
    for trigger in triggers.values():
        if trigger["type"] == "timerTrigger":
            schedule = trigger["schedule"]
            assert len(schedule.split()) == 6
            assert croniter(schedule, second_at_beginning=True).get_next() > 0
            assert trigger["runOnStartup"] is False


def test_routes_are_relative_distinct_and_not_the_hosts_own(triggers: dict[str, dict[str, Any]]) -> None:
    routes = [(t["route"], *sorted(map(str, t["methods"]))) for t in triggers.values() if t["type"] == "httpTrigger"]
    assert len(set(routes)) == len(routes)
    for route, *_ in routes:
        assert re.fullmatch(r"[a-z_.]+(?:/(?:[a-z_.]+|\{[a-z_]+\}))*", route), route
        # https://learn.microsoft.com/azure/azure-functions/functions-bindings-http-webhook-trigger#customize-the-http-endpoint
        assert route.split("/")[0] not in ("admin", "runtime")


def test_queues_have_names_that_storage_takes(triggers: dict[str, dict[str, Any]]) -> None:
    queues = [trigger["queueName"] for trigger in triggers.values() if trigger["type"] == "queueTrigger"]
    assert len(set(queues)) == len(queues)
    for queue in queues:
        # https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata
        assert re.fullmatch(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", queue), queue
