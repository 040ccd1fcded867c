"""The rules of the layout, held over the sources themselves: which module may import which, and what is loaded when."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("shared", "shared.model", "shared.errors", "shared.notices", "shared.rules"),
    (
        "shared.vault",
        "shared.pacing",
        "shared.settings",
        "shared.shapes",
        "shared.onestring",
        "shared.numbers",
        "shared.history",
        "shared.jobs",
        "shared.references",
        "shared.resources",
        "shared.audit",
        "shared.signing",
        "shared.mapping",
        "shared.metadata",
        "shared.name_encoding",
        "shared.overlaps",
        "shared.explanation",
        "shared.patterns",
        "shared.fields",
        "shared.transforms",
        "shared.merge",
        "shared.plan",
        "shared.sqlite",
        "shared.templates",
        "shared.azure_storage",
        "shared.build_info",
        "shared.event_loop",
        "shared.host_settings",
        "shared.queue_loop",
        "shared.timer_loop",
    ),
    ("shared.vaults", "shared.histories", "shared.queues", "shared.engine"),
    (
        "shared.config",
        "shared.api",
        "shared.bodies",
        "shared.http",
        "shared.intake",
        "shared.openapi",
        "shared.relay",
        "shared.health",
        "shared.metrics",
        "shared.logs",
    ),
    ("shared.app",),
    ("function_app", "shared.host", "shared.cli"),
)
"""From the ground up; a module stands where its own name or its package's does, and imports nothing from above."""

SDKS = {
    "aiohttp": ("shared.vaults", "shared.relay"),
    "azure.core": (
        "shared.vaults",
        "shared.histories",
        "shared.queues",
        "shared.azure_storage",
        "shared.config.remote",
    ),
    "azure.data": ("shared.histories", "shared.azure_storage"),
    "azure.functions": ("function_app", "shared.host"),
    "azure.identity": ("shared.vaults", "shared.azure_storage", "shared.config.remote"),
    "azure.keyvault": ("shared.vaults.azure_key_vault",),
    "azure.monitor": ("shared.logs",),
    "azure.storage": ("shared.queues", "shared.azure_storage", "shared.config.remote"),
    "croniter": ("shared.timer_loop",),
    "cryptography": ("shared.vaults",),
    "httpx": ("shared.vaults",),
    "hvac": ("shared.vaults.hashicorp",),
    "jmespath": ("shared.vaults.http_api", "shared.transforms", "shared.config.models"),
    "prometheus_client": ("shared.metrics",),
    "pyrage": ("shared.transforms",),
    "rich": ("shared.cli",),
    "starlette": ("shared.host",),
    "structlog": ("shared.logs",),
    "tenacity": ("shared.pacing",),
    "typer": ("shared.cli",),
    "typing_extensions": ("shared.shapes",),
    "uvicorn": ("shared.host",),
    "uvloop": ("shared.event_loop",),
    "yaml": ("shared.config",),
}
"""Who may use a package at all."""
NOT_AT_START = frozenset(SDKS) - {"azure.functions", "yaml"} | {"pydantic"}
"""What importing function_app.py must not load."""


class Import(NamedTuple):
    name: str
    at_module_level: bool
    line: int


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]


@cache
def modules() -> dict[str, Module]:
    paths = [ROOT / "function_app.py", *sorted((ROOT / "shared").rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    known = set(names.values())
    found = {}
    for path, name in names.items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        found[name] = Module(name, path, tree, tuple(_imports(tree, known, module_level=True)))
    return found


def _imports(node: ast.AST, known: set[str], *, module_level: bool) -> Iterator[Import]:
    """What is imported at run time: not what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, module_level, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute here"
            for alias in child.names:
                module = f"{child.module}.{alias.name}"
                yield Import(module if module in known else str(child.module), module_level, child.lineno)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, known, module_level=module_level and not inside)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int:
    homes = [
        (len(home), height) for height, homes in enumerate(LAYERS) for home in homes
        if name == home or (home != "shared" and within(name, home))
    ]  # fmt: skip
    assert homes, f"{name} has no place in LAYERS: say where it belongs"
    return max(homes)[1]


def ours(module: Module) -> list[Import]:
    return [each for each in module.imports if each.name in modules()]


def kinds() -> list[str]:
    return sorted(
        path.stem
        for path in (ROOT / "shared" / "vaults").iterdir()
        if path.stem != "__init__" and "__" not in path.name
    )


def place(module: Module, found: Import) -> str:
    return f"{module.path.relative_to(ROOT)}:{found.line} imports {found.name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports included: they hide a circle, and do not undo it."""
    graph = {name: {found.name for found in ours(module)} - {name} for name, module in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_nothing_imports_from_a_layer_above() -> None:
    wrong = [
        place(module, each)
        for module in modules().values()
        for each in ours(module)
        if layer(each.name) > layer(module.name)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["shared.vaults", "shared.histories", "shared.queues", "shared.engine"])
def test_vaults_stores_queues_and_the_engine_do_not_know_each_other(package: str) -> None:
    others = [other for other in LAYERS[2] if other != package]
    wrong = [
        place(module, each)
        for module in modules().values()
        if within(module.name, package)
        for each in ours(module)
        if any(within(each.name, other) for other in others)
    ]
    assert wrong == []


def test_a_kind_of_vault_imports_no_other_kind() -> None:
    wrong = [
        place(module, each)
        for kind in kinds()
        for module in modules().values()
        if within(module.name, f"shared.vaults.{kind}")
        for each in ours(module)
        if within(each.name, "shared.vaults") and not within(each.name, f"shared.vaults.{kind}")
    ]
    assert wrong == []


def test_a_store_imports_no_other_store_and_a_queue_no_other_queue() -> None:
    names = {
        "shared.histories": ({"sqlite"}, {"table_storage", "tables"}),
        "shared.queues": ({"sqlite"}, {"storage_queue"}),
    }
    for package, (one, other) in names.items():
        for mine, theirs in ((one, other), (other, one)):
            for name in mine:
                imported = {each.name for each in ours(modules()[f"{package}.{name}"])}
                assert imported.isdisjoint(f"{package}.{foreign}" for foreign in theirs)


def test_the_engine_and_the_app_name_no_kind_of_vault() -> None:
    assert {"azure_key_vault", "file", "hashicorp"} <= set(kinds())
    homes = ("shared.engine", "shared.plan", "shared.mapping", "shared.app")
    wrong = [
        f"{module.name}:{node.lineno} says {node.value!r}"
        for module in modules().values()
        if any(within(module.name, home) for home in homes)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in kinds()
    ]
    assert wrong == []


def test_each_package_is_used_only_where_it_belongs() -> None:
    wrong = [
        place(module, each)
        for module in modules().values()
        for each in module.imports
        for package, homes in SDKS.items()
        if within(each.name, package) and not any(within(module.name, home) for home in homes)
    ]
    assert wrong == []


def test_every_requirement_has_its_place_in_the_table() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    required = {line.split(">")[0].strip().lower() for line in lines if line and not line.startswith("#")}
    imported = {"azure-data-tables": "azure.data", "azure-keyvault-secrets": "azure.keyvault", "pyyaml": "yaml",
                "azure-storage-blob": "azure.storage", "azure-storage-queue": "azure.storage"}  # fmt: skip
    for name in required - {"pydantic"}:
        package = imported.get(name, name.replace("azure-", "azure.").replace("-", "_"))
        assert package in SDKS, f"{name} is required, and nothing says who may use it"


def loaded_by(name: str) -> dict[str, str]:
    """Everything that importing a module loads, and the import that does it."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        module = modules().get(waiting.pop())
        if module is None:
            continue
        for each in module.imports:
            parts = each.name.split(".")
            # A package's __init__ runs before what is in it.
            for prefix in (".".join(parts[: length + 1]) for length in range(len(parts))):
                if each.at_module_level and prefix not in found:
                    found[prefix] = place(module, each)
                    waiting.append(prefix)
    return found


def sdks_loaded_by(name: str, forbidden: frozenset[str]) -> list[str]:
    loaded = loaded_by(name)
    return sorted(why for each, why in loaded.items() if any(within(each, package) for package in forbidden))


def test_function_app_loads_no_sdk_when_it_is_imported() -> None:
    assert sdks_loaded_by("function_app", NOT_AT_START) == []
    assert "shared.api" in loaded_by("function_app")


def test_reading_a_configuration_loads_no_sdk_of_a_vault() -> None:
    for kind in kinds():
        assert sdks_loaded_by(f"shared.vaults.{kind}", NOT_AT_START - {"pydantic"}) == []
    assert sdks_loaded_by("shared.config.build", NOT_AT_START - {"pydantic"}) == []


def test_the_engine_loads_no_package_but_the_standard_library() -> None:
    standard = sys.stdlib_module_names
    foreign = [
        why for name, why in loaded_by("shared.engine").items() if name.split(".")[0] not in {*standard, "shared"}
    ]
    assert foreign == []


def test_no_module_hides_one_of_the_standard_library() -> None:
    # The worker puts the app's folder first on sys.path: a logging.py there would be everybody's logging.
    top = [path.stem for path in ROOT.glob("*.py")] + [path.parent.name for path in ROOT.glob("*/__init__.py")]
    assert set(top).isdisjoint(sys.stdlib_module_names)
    assert list((ROOT / "shared").rglob("logging.py")) == []
