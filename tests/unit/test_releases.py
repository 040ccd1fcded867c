"""What a release and a contribution go through: the workflow, its helpers, and the version in its one place."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import VERSION
from tests import dockerfile
from tests.unit.test_dependencies import PYTHONS, extra

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}


def workflow() -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    return document


def steps() -> Iterator[dict[str, Any]]:
    for job in workflow()["jobs"].values():
        yield from job["steps"]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


# --- the workflow ---------------------------------------------------------------------------------------------------


def test_each_target_that_the_workflow_makes_exists() -> None:
    made = {target for step in steps() for words in made_by(step.get("run", "")) for target in words}
    assert {"check", "test", "servers", "test-real", "docs", "newcomer"} <= made <= targets()


def made_by(script: str) -> Iterator[list[str]]:
    for line in script.splitlines():
        if line.strip().startswith("make "):
            yield [word for word in shlex.split(line)[1:] if "=" not in word]


def test_each_file_that_the_workflow_names_exists() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    named = set(re.findall(r"\b(?:infra|examples|tests)/[\w./-]+\.(?:bicep|service|yaml|py)\b", text))
    assert {"infra/main.bicep", "infra/systemd/vaultferry-relay.service"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    images = {each["image"] for each in workflow()["jobs"]["image"]["strategy"]["matrix"]["include"]}
    assert images == {path.parent.name for path in (ROOT / "infra").glob("*/Dockerfile")}


def test_each_script_is_one_that_bash_can_read() -> None:
    for step in steps():
        script = re.sub(r"\$\{\{[^}]*\}\}", "x", step.get("run", ""))
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, ""), script


def test_every_python_that_is_supported_is_tested() -> None:
    assert tuple(workflow()["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"


def test_the_real_compiler_is_asked() -> None:
    assert any(step.get("run", "").startswith("az bicep build --file infra/main.bicep") for step in steps())


def test_the_images_are_built_with_all_that_their_files_ask_for() -> None:
    (build,) = (step["run"] for step in steps() if step.get("name") == "Build")
    given = set(re.findall(r"--build-arg (\w+)=", build))
    for name in ("relay", "serve"):
        image = dockerfile.read(ROOT / "infra" / name / "Dockerfile")
        asked = {*image.arguments, *(each.rest.partition("=")[0] for each in image.stages[-1].all("ARG"))}
        assert asked - given == {"BASE"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_no_more_and_ends(path: Path) -> None:
    document = yaml.safe_load(path.read_text("utf-8"))
    assert document["permissions"] == {"contents": "read"}
    for name, job in document["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 60, name
        assert "permissions" not in job, name
        assert not job["runs-on"].endswith("latest"), name
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
            # What others write, such as a branch's name, would be run as a script.
            assert not re.search(r"\$\{\{\s*(github|inputs)\.", step.get("run", "")), name


def test_the_servers_are_kept_until_other_versions_are_wanted() -> None:
    (cache,) = (step["with"] for step in steps() if step.get("uses", "").startswith("actions/cache@"))
    assert all((ROOT / name).is_file() for name in re.findall(r"'(tests/[^']+)'", cache["key"]))
    assert "tests/servers/places.py" in cache["key"]


# --- what keeps it current ------------------------------------------------------------------------------------------


def test_each_place_that_dependabot_looks_at_has_what_it_looks_for() -> None:
    wanted = {"pip": "*requirements*.txt", "docker": "*Dockerfile", "docker-compose": "compose.yaml",
              "github-actions": ".github/workflows/*.yml"}  # fmt: skip
    for each in yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]:
        for folder in each.get("directories") or [each["directory"]]:
            assert list((ROOT / folder.lstrip("/")).glob(wanted[each["package-ecosystem"]])), (each, folder)


def test_hooks_run_the_tools_of_this_checkout() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    for hook in local["hooks"]:
        program, *arguments = shlex.split(hook["entry"])
        tool = arguments[1] if program == ".venv/bin/python" else Path(program).name
        assert program.startswith(".venv/bin/")
        assert tool in extra("dev")
        assert all((ROOT / each).exists() for each in arguments if each.startswith("tests/"))


# --- the version, and what is said about it -------------------------------------------------------------------------


def test_the_version_stands_in_one_place() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    allowed = {"shared/__init__.py", "CHANGELOG.md"}
    # Kubernetes names images by version; a test of theirs compares it with this one.
    allowed |= {name for name in listed if name.startswith(("infra/kubernetes/", "tests/"))}
    assigned = re.compile(rf"""(version|VERSION)["']?\s*[:=]\s*["']?{re.escape(VERSION)}\b""")
    found = [
        name
        for name in listed
        if name.endswith((".py", ".toml", ".json", ".yaml", ".yml", ".bicep", "Dockerfile")) and name not in allowed
        and (ROOT / name).is_file() and assigned.search((ROOT / name).read_text("utf-8"))
    ]  # fmt: skip
    assert found == []
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dynamic"][0] == "version"


def test_the_changelog_is_one_that_tools_can_read() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in titles[1:])
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= CHANGES
