"""What the real Functions host takes for names, schedules, routes, queues and bindings: for every configuration in the
tree, and for whatever ids a configuration may have.

The rules are those of the host itself, written down anew: ours may be narrower, never wider.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app import CONNECTION, register
from sandbox import demo
from shared.app import LazyApp
from shared.config import outline
from shared.config.models import ID
from shared.config.schedule import normalise_schedule
from tests.examples import examples

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [*sorted((ROOT / "examples").glob("*.yaml")), *sorted((ROOT / "infra").rglob("vaultferry.yaml"))]
DEMO = {
    "demo": demo.CONFIG.format(hub="http://hub", prod="https://prod", twin="http://twin", sync=demo.SYNC),
    "demo-people": demo.PEOPLE.format(
        hub="http://hub", prod="https://prod", people="https://p", email="a@b", organization="o", collection="c"
    ),
}

FUNCTION_NAME = re.compile(r"(?!host$)[a-z][a-z0-9_-]{0,127}", re.IGNORECASE)
"""https://github.com/Azure/azure-functions-host/blob/dev/src/WebJobs.Script/Utility.cs, and the next one too."""
BINDING_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9]{0,127}|\$return")
QUEUE_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata"""
RESERVED = {"admin", "runtime"}
"""First segments that are the host's own, where there is no prefix before routes:
https://learn.microsoft.com/azure/azure-functions/functions-bindings-http-webhook-trigger#customize-the-http-endpoint"""
FIELDS = ((0, 59, ""), (0, 59, ""), (0, 23, ""), (1, 31, ""), (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
          (0, 6, "sun mon tue wed thu fri sat"))  # fmt: skip
"""Of NCRONTAB, with seconds: least, most, names. https://github.com/atifaziz/NCrontab/wiki/Crontab-Expression"""


def registered(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Bindings by the name of their function, as the worker tells the host of them."""
    env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", path.read_text("utf-8")), "x" * 32)
    functions = register(LazyApp(env, origin=str(path))).get_functions()
    found = {each.get_function_name(): json.loads(each.get_function_json())["bindings"] for each in functions}
    # With a broken configuration, only /health would be there, and all would be well.
    assert len(found) > len(outline(str(path), env).written_vaults) + 1
    # Names that differ only by case are one to the host.
    assert len({name.lower() for name in found}) == len(functions)
    return found


@pytest.fixture(params=[*CONFIGS, *DEMO], ids=lambda config: config if isinstance(config, str) else config.stem)
def functions(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    if isinstance(request.param, Path):
        return registered(request.param)
    path = tmp_path / "vaultferry.yaml"
    path.write_text(DEMO[request.param])
    return registered(path)


def triggers(functions: dict[str, list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [each for bindings in functions.values() for each in bindings if each["type"] == kind]


def is_ncrontab(schedule: str) -> bool:
    """Six fields of `*`, numbers and names, ranges, lists and steps, each within its bounds."""
    texts = schedule.split(" ")
    return len(texts) == len(FIELDS) and all(_is_field(text, *field) for text, field in zip(texts, FIELDS, strict=True))


def _is_field(text: str, low: int, high: int, names: str) -> bool:
    number = rf"(?:\d{{1,2}}{''.join(f'|{name}' for name in names.split())})"
    part = re.compile(rf"(?:\*|({number})(?:-({number}))?)(?:/(\d{{1,2}}))?", re.IGNORECASE)
    for each in text.split(","):
        found = part.fullmatch(each)
        if found is None or found[3] == "0":
            return False
        ends = [
            names.split().index(end.lower()) + low if end.isalpha() else int(end) for end in found.groups()[:2] if end
        ]
        if ends != sorted(ends) or not all(low <= end <= high for end in ends):
            return False
    return True


# --- every configuration in the tree ------------------------------------------------------------------------------


def test_names_are_such_as_the_host_takes(functions: dict[str, list[dict[str, Any]]]) -> None:
    assert [name for name in functions if not FUNCTION_NAME.fullmatch(name)] == []


def test_schedules_have_six_fields_and_a_next_time(functions: dict[str, list[dict[str, Any]]]) -> None:
    for trigger in triggers(functions, "timerTrigger"):
        assert is_ncrontab(trigger["schedule"]), trigger["schedule"]
        assert croniter(trigger["schedule"], second_at_beginning=True, day_or=False).get_next() > 0
        # It would fire whenever an instance is added.
        assert trigger["runOnStartup"] is False


def test_routes_are_relative_distinct_and_not_the_hosts_own(functions: dict[str, list[dict[str, Any]]]) -> None:
    found = triggers(functions, "httpTrigger")
    # Whatever their parameters are called, two of one form and method are one to the host.
    forms = [(re.sub(r"\{\w+\}", "{}", each["route"]), method) for each in found for method in each["methods"]]
    assert len(set(forms)) == len(forms) == len(found)
    for trigger in found:
        route = trigger["route"]
        assert re.fullmatch(r"[a-z_.]+(?:/(?:[a-z_.]+|\{[a-z_]+\}))*", route), route
        assert route.split("/")[0] not in RESERVED
        names = re.findall(r"\{(\w+)\}", route)
        assert len(set(names)) == len(names)
        assert trigger["authLevel"] in ("FUNCTION", "ANONYMOUS")
    assert json.loads((ROOT / "host.json").read_text("utf-8"))["extensions"]["http"]["routePrefix"] == ""


def test_queues_have_names_that_storage_takes(functions: dict[str, list[dict[str, Any]]]) -> None:
    queues = [each["queueName"] for each in triggers(functions, "queueTrigger")]
    assert len(set(queues)) == len(queues)
    assert [queue for queue in queues if not QUEUE_NAME.fullmatch(queue)] == []
    # The host makes a poison queue by this name, and its name must be one as well.
    assert {f"{queue}-poison" for queue in queues if not queue.endswith("-poison")} <= set(queues)


def test_each_function_has_one_trigger_and_an_answer_where_one_is_waited_for(
    functions: dict[str, list[dict[str, Any]]],
) -> None:
    for name, bindings in functions.items():
        kinds = sorted((each["type"], each["direction"].lower()) for each in bindings)
        assert kinds in (
            [("http", "out"), ("httpTrigger", "in")],
            [("timerTrigger", "in")],
            [("queueTrigger", "in")],
        ), name
        assert all(BINDING_NAME.fullmatch(each["name"]) for each in bindings), name
        assert [each["name"] for each in bindings if each["type"] == "http"] in ([], ["$return"])
        # A setting's name, or the beginning of several: never a connection string.
        assert {each["connection"] for each in bindings if "connection" in each} <= {CONNECTION}


# --- whatever a configuration may hold ----------------------------------------------------------------------------

ids = st.from_regex(ID, fullmatch=True)
# Ids that other names are made of, too.
awkward = st.sampled_from(
    ["poison", "write", "plan", "events", "host", "poison-plan", "http", "timer", "a-b", "a--b", "a-"]
)


def fields() -> Iterator[st.SearchStrategy[str]]:
    for low, high, names in FIELDS:
        number = st.integers(low - 1, high + 1).map(str)
        one = number | st.sampled_from(names.split() or ["*"])
        span = st.builds("{}-{}".format, one, one) | st.just("*")
        part = one | span | st.builds("{}/{}".format, one | span, st.integers(0, high + 1).map(str)) | st.just("?")
        yield st.lists(part, min_size=1, max_size=2).map(",".join)


@given(st.lists(ids | awkward, unique=True, min_size=2, max_size=6), st.lists(ids | awkward, unique=True, max_size=3))
@settings(max_examples=examples(40))
def test_any_ids_give_names_that_the_host_takes(vaults: list[str], syncs: list[str]) -> None:
    source, *written = vaults
    document = {
        "vaults": {
            vault: {"kind": "file", "path": f"{number}.vault", "key": "x"} for number, vault in enumerate(vaults)
        },
        "syncs": {
            sync: {
                "schedule": "0 * * * *",
                "source": {"vault": source},
                "targets": [{"vault": vault, "prefix": f"{sync}/"} for vault in written],
            }
            for sync in syncs or ["s"]
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vaultferry.yaml"
        path.write_text(yaml.safe_dump(document))
        functions = registered(path)
    test_names_are_such_as_the_host_takes(functions)
    test_queues_have_names_that_storage_takes(functions)
    assert len(triggers(functions, "timerTrigger")) == len(syncs or ["s"])
    assert len(triggers(functions, "queueTrigger")) == 2 * (len(written) + 2)


@given(st.tuples(*fields()).map(" ".join) | st.text(max_size=20))
@settings(max_examples=examples(300))
def test_a_schedule_that_is_taken_is_one_to_the_host(text: str) -> None:
    try:
        schedule = normalise_schedule(text)
    except ValueError:
        return
    assert is_ncrontab(schedule)
    assert croniter.is_valid(schedule, second_at_beginning=True)


def test_the_rule_for_schedules_tells_right_from_wrong() -> None:
    for schedule in (
        "0 */5 * * * *",
        "0 0 9-17 * * mon-fri",
        "0 0 0 1,15 jan 0",
        "59 59 23 31 12 6",
        "0 0-30/10 * * * *",
    ):
        assert is_ncrontab(schedule)
    for schedule in ("*/5 * * * *", "60 * * * * *", "0 0 0 0 * *", "0 0 0 * 13 *", "0 0 0 * * 7", "0 */0 * * * *",
                     "0 0 17-9 * * *", "0 0 0 L * *", "0 0 0 ? * *", "0 0 0 * * mon#1", "@daily"):  # fmt: skip
        assert not is_ncrontab(schedule)
