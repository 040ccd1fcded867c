"""requirements.txt is what production imports, no more and no less; constraints.txt is all that it comes to."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = [ROOT / "function_app.py", *sorted((ROOT / "shared").rglob("*.py"))]
DEVELOPMENT = [path for name in ("sandbox", "tests", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]
PART_OF = {"multidict": "aiohttp", "pydantic-core": "pydantic", "yarl": "aiohttp"}
"""Packages whose classes are in the other's own API; which version of them is right, only that one knows."""
TOOLS = {"mypy", "pytest-xdist", "ruff", "types-croniter", "types-jmespath", "types-pyyaml"}
"""Development tools that nothing imports."""
PYTHONS = ("3.11", "3.12", "3.13")


def requirements() -> dict[str, Requirement]:
    """Those that this Python is for."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return named(line for line in lines if line.strip() and not line.startswith("#"))


def extra(name: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return named(project["optional-dependencies"][name])


def named(lines: Iterable[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each for each in found if each.marker is None or each.marker.evaluate()}


def constraints() -> dict[str, Version]:
    """Those that this Python is for."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = named(line for line in lines if not line.startswith("#"))
    return {name: Version(str(pin.specifier).removeprefix("==")) for name, pin in pins.items()}


# --- who imports what -----------------------------------------------------------------------------------------------


@cache
def owners() -> dict[str, str]:
    """Modules, and the installed distribution that each belongs to: namespaces such as azure are many's."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        name = canonicalize_name(each.metadata["Name"])
        for file in each.files or ():
            if file.suffix in (".py", ".so", ".pyi") and ".dist-info" not in str(file):
                parts = [*file.parts[:-1], file.name.split(".")[0]]
                if parts[-1] == "__init__":
                    parts.pop()
                found[".".join(parts)] = name
    return found


def owner(module: str) -> str | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if found := owners().get(".".join(parts[:length])):
            return found
    return None


def imported(path: Path) -> Iterator[str]:
    """Modules of others that a file imports when it runs, not those that only type checkers see."""
    ours = {"shared", "sandbox", "tests", "benchmarks", "function_app"}
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] not in {*ours, *sys.stdlib_module_names})
        waiting += ast.iter_child_nodes(node)


def users(paths: list[Path]) -> dict[str, str]:
    """Distributions, each with a file that imports it."""
    found: dict[str, str] = {}
    for path in paths:
        for module in imported(path):
            found[owner(module) or module] = f"{path.relative_to(ROOT)} imports {module}"
    return {PART_OF.get(name, name): why for name, why in found.items()}


def test_production_imports_nothing_that_requirements_txt_lacks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    # What is used where it is installed, and done without where it is not.
    optional = {name for each in project["optional-dependencies"] if each != "dev" for name in extra(each)}
    # A namespace tells nothing of a package that is not installed.
    optional |= {"azure.monitor.opentelemetry.configure_azure_monitor"}
    missing = {name: why for name, why in users(PRODUCTION).items() if name not in requirements()}
    assert {name: why for name, why in missing.items() if name not in optional} == {}


def test_requirements_txt_has_nothing_that_production_does_not_import() -> None:
    assert set(requirements()) - set(users(PRODUCTION)) == set()


def test_development_imports_nothing_that_neither_list_has() -> None:
    # The Functions worker's own code: there are releases of it for newer Pythons only.
    known = {*requirements(), *extra("dev"), *extra("docs"), "azure_functions_runtime"}
    assert {name: why for name, why in users(DEVELOPMENT).items() if name.split(".")[0] not in known} == {}


def test_the_development_extra_has_nothing_that_nobody_uses() -> None:
    used = set(users(PRODUCTION + DEVELOPMENT)) | {name.split(".")[0].replace("_", "-") for name in users(DEVELOPMENT)}
    assert set(extra("dev")) - used - TOOLS == set()


def test_every_requirement_has_a_lower_bound_and_what_may_break_has_an_upper_one() -> None:
    # Those that number their releases by the year, or break next to nothing, have no version that says what to expect.
    unbounded = {"cryptography", "structlog"}
    for name, requirement in requirements().items():
        operators = {each.operator for each in requirement.specifier}
        assert operators == ({">="} if name in unbounded else {">=", "<"}), name


# --- constraints.txt ------------------------------------------------------------------------------------------------


def test_every_pin_is_one_that_the_ranges_allow() -> None:
    pins = constraints()
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pins[name]), name


def test_the_pins_are_all_that_the_requirements_need() -> None:
    pins = constraints()
    reached: set[str] = set()
    waiting = [(each, frozenset(each.extras)) for each in requirements().values()]
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in reached:
            continue
        reached.add(name)
        assert name in pins, f"{name} is needed, and constraints.txt does not say which: `make constraints`"
        distribution = metadata.distribution(name)
        if Version(distribution.version) != pins[name]:
            # Another version than the pinned one may need other things.
            continue
        for line in distribution.requires or ():
            needed = Requirement(line)
            if _is_needed(needed, extras):
                waiting.append((needed, frozenset(needed.extras)))
    if all(Version(metadata.version(name)) == pin for name, pin in pins.items() if name in reached):
        assert set(pins) - reached == set(), "nothing needs these any more: `make constraints`"


def _is_needed(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    machine = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
    }
    environments = [
        machine | {"python_version": python, "python_full_version": f"{python}.9", "extra": each}
        for python in PYTHONS
        for each in (*extras, "")
    ]
    return any(requirement.marker.evaluate(environment) for environment in environments)


def test_there_is_a_line_for_every_python_and_each_pin_runs_on_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    for file in ("requirements.txt", "constraints.txt"):
        lines = (ROOT / file).read_text("utf-8").splitlines()
        found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
        for python in PYTHONS:
            fit = [
                each.name for each in found if each.marker is None or each.marker.evaluate({"python_version": python})
            ]
            assert sorted(set(fit)) == sorted(fit), f"{file}: twice on Python {python}"
            assert {each.name for each in found} == set(fit), f"{file}: missing on Python {python}"
            for each in found:
                installed = metadata.distribution(each.name)
                needs = installed.metadata["Requires-Python"]
                if each.name in fit and str(each.specifier) == f"=={installed.version}" and needs:
                    applies = each.marker is None or each.marker.evaluate({"python_version": python})
                    assert not applies or SpecifierSet(needs).contains(f"{python}.9"), each.name
