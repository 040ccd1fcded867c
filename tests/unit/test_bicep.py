"""infra/ as far as that goes without Bicep's compiler: two parsers, symbols, modules, and tables of what it must say.

What only `az bicep build` can tell (the properties and types of resources) is not told here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import azure.functions as func
import pycep
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from function_app import register
from shared.api import ROUTES
from shared.app import LazyApp
from shared.cli import app as commands
from shared.config import outline
from shared.config.models import ID
from shared.engine.runs import COUNTS
from shared.model import RunStatus
from shared.resources import resources
from tests.bicep import Bicep, at, plain, properties, text, walk
from tests.cli_world import loggers_as_before

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
FILES = [INFRA / "main.bicep", *sorted((INFRA / "modules").glob("*.bicep"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PARAMETER_FILES = sorted(INFRA.glob("*.parameters.json"))
MAIN = Bicep(INFRA / "main.bicep")
APP = Bicep(INFRA / "modules" / "app.bicep")

VERSIONS = {
    "Microsoft.Authorization/roleAssignments": "2022-04-01",
    "Microsoft.EventGrid/systemTopics": "2025-02-15",
    "Microsoft.EventGrid/systemTopics/eventSubscriptions": "2025-02-15",
    "Microsoft.Insights/actionGroups": "2023-01-01",
    "Microsoft.Insights/components": "2020-02-02",
    "Microsoft.Insights/scheduledQueryRules": "2023-12-01",
    "Microsoft.Insights/workbooks": "2023-06-01",
    "Microsoft.KeyVault/vaults": "2024-11-01",
    "Microsoft.KeyVault/vaults/secrets": "2024-11-01",
    "Microsoft.ManagedIdentity/userAssignedIdentities": "2024-11-30",
    "Microsoft.Network/privateDnsZones": "2024-06-01",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": "2024-06-01",
    "Microsoft.Network/privateEndpoints": "2024-05-01",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": "2024-05-01",
    "Microsoft.Network/virtualNetworks": "2024-05-01",
    "Microsoft.OperationalInsights/workspaces": "2023-09-01",
    "Microsoft.Storage/storageAccounts": "2024-01-01",
    "Microsoft.Storage/storageAccounts/blobServices": "2024-01-01",
    "Microsoft.Storage/storageAccounts/blobServices/containers": "2024-01-01",
    "Microsoft.Storage/storageAccounts/queueServices": "2024-01-01",
    "Microsoft.Storage/storageAccounts/queueServices/queues": "2024-01-01",
    "Microsoft.Storage/storageAccounts/tableServices": "2024-01-01",
    "Microsoft.Storage/storageAccounts/tableServices/tables": "2024-01-01",
    "Microsoft.Web/serverfarms": "2024-11-01",
    "Microsoft.Web/sites": "2024-11-01",
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": "2024-11-01",
    "Microsoft.Web/sites/config": "2024-11-01",
}
"""Every type of resource, and the one version of it: none is a preview."""

ROLES = {
    # https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
    "blobDataOwner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "monitoringMetricsPublisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "queueDataContributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "queueDataMessageSender": "c6a89b2d-59bc-44d0-9896-0f6e12d7b80a",
    "secretsOfficer": "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
    "secretsUser": "4633458b-17de-408a-b874-0445c86b69e6",
    "tableDataContributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
}

SETTINGS = {
    # By whom each is read.
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "the host, and Azure Monitor's exporter",
    "APPLICATIONINSIGHTS_CONNECTION_STRING": "the host, and shared/logs.py",
    "AZURE_CLIENT_ID": "azure-identity",
    "AzureWebJobsStorage__blobServiceUri": "shared/azure_storage.py",
    "AzureWebJobsStorage__clientId": "shared/azure_storage.py",
    "AzureWebJobsStorage__credential": "shared/azure_storage.py",
    "AzureWebJobsStorage__queueServiceUri": "shared/azure_storage.py",
    "AzureWebJobsStorage__tableServiceUri": "shared/azure_storage.py",
    "VAULTFERRY_AUDIT_SECRET": "shared/app.py",
    "VAULTFERRY_CONFIG": "shared/config/__init__.py",
    "VAULTFERRY_DIGEST_KEY": "shared/app.py",
    "VAULTFERRY_LOG_LEVEL": "shared/logs.py",
    "VAULTFERRY_STORE": "shared/app.py",
}
NOT_SET = {
    "AzureWebJobsStorage": "a connection string holds the account's key",
    "AzureWebJobsStorage__accountName": "the three addresses say the same, and in every cloud",
    "VAULTFERRY_API_KEY": "serve's and the relay's: on Azure, the host asks for its own keys",
    "VAULTFERRY_BUILD_DATE": "told by _build.json, which infra/build_info.py puts into the package",
    "VAULTFERRY_COMMIT": "told by _build.json, which infra/build_info.py puts into the package",
}
REFUSED_BY_FLEX = {
    # https://learn.microsoft.com/azure/azure-functions/functions-app-settings#flex-consumption-plan-deprecations
    *("FUNCTIONS_WORKER_RUNTIME", "FUNCTIONS_EXTENSION_VERSION", "SCM_DO_BUILD_DURING_DEPLOYMENT"),
    *("WEBSITE_RUN_FROM_PACKAGE", "ENABLE_ORYX_BUILD", "WEBSITE_CONTENTSHARE", "WEBSITE_VNET_ROUTE_ALL"),
}
PROPERTIES_REFUSED_BY_FLEX = {
    # Each ends the deployment: "The following site configuration property (…) for Flex Consumption sites is invalid."
    # The same page lists them.
    *("alwaysOn", "containerSize", "ftpsState", "functionAppScaleLimit", "isReserved", "isXenon", "javaVersion"),
    *("linuxFxVersion", "netFrameworkVersion", "powerShellVersion", "preWarmedInstanceCount"),
    *("use32BitWorkerProcess", "vnetBackupRestoreEnabled", "vnetContentShareEnabled", "vnetImagePullEnabled"),
    *("vnetRouteAllEnabled", "windowsFxVersion"),
}


def ids(path: Path) -> str:
    return path.name


@pytest.fixture(params=FILES, ids=ids)
def file(request: pytest.FixtureRequest) -> Bicep:
    return Bicep(request.param)


# --- every file -----------------------------------------------------------------------------------------------------


def test_both_parsers_read_it(file: Bicep) -> None:
    assert file.broken == []
    found = pycep.BicepParser().parse(text=file.source)
    assert set(found.get("parameters", {})) == set(file.parameters)
    assert set(found.get("variables", {})) == set(file.variables)
    assert set(found.get("resources", {})) == set(file.resources)
    assert set(found.get("modules", {})) == set(file.modules)
    assert set(found.get("outputs", {})) == set(file.outputs)


def test_what_is_used_is_declared_once_and_what_is_declared_is_used(file: Bicep) -> None:
    assert len(file.declared) == len(set(file.declared))
    assert file.used() - set(file.declared) == set()
    # Resources are there for their own sake.
    assert set(file.parameters) | set(file.variables) <= file.used()
    assert {name for name, resource in file.resources.items() if resource.existing} <= file.used()


def test_the_versions_are_those_of_the_table(file: Bicep) -> None:
    assert {resource.type: resource.version for resource in file.resources.values()}.items() <= VERSIONS.items()


def test_the_roles_are_those_of_the_table(file: Bicep) -> None:
    found = {name: text(node)[1:-1] for name, node in file.variables.items() if node.type == "string"}
    uuids = {name: value for name, value in found.items() if re.fullmatch(r"[0-9a-f-]{36}", value)}
    assert uuids.items() <= ROLES.items()
    assert len(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-", file.source)) == len(uuids)


def test_modules_are_given_what_they_take_and_asked_for_what_they_give(file: Bicep) -> None:
    for name, module in file.modules.items():
        other = Bicep(file.path.parent / module.path)
        required = {each for each, parameter in other.parameters.items() if parameter.required}
        assert required <= set(module.given) <= set(other.parameters), name
        asked = re.findall(rf"\b{name}(?:\[\w+\])?!?\.outputs\.(\w+)", file.source)
        assert set(asked) == set(other.outputs), name


def test_what_is_named_alike_has_the_same_type_on_both_sides(file: Bicep) -> None:
    for name, module in file.modules.items():
        other = Bicep(file.path.parent / module.path)
        for parameter, node in module.given.items():
            if node.type == "identifier" and text(node) in file.parameters:
                mine = file.parameters[text(node)]
                theirs = other.parameters[parameter]
                assert (mine.type, mine.secure) == (theirs.type, theirs.secure), f"{name}.{parameter}"


def test_nothing_comes_out_that_is_secret_and_nothing_is_made_up_anew(file: Bicep) -> None:
    secrets = {name for name, parameter in file.parameters.items() if parameter.secure}
    for node in file.outputs.values():
        assert not secrets & {text(each) for each in walk(node)}
    # Either would be another value with each deployment.
    assert "newGuid(" not in file.source
    assert "utcNow(" not in file.source


def test_tables_hold_nothing_that_is_not_there() -> None:
    files = [Bicep(path) for path in FILES]
    assert {resource.type for file in files for resource in file.resources.values()} == set(VERSIONS)
    assert {name for file in files for name in file.variables if name in ROLES} == set(ROLES)
    assert not any("preview" in version for version in VERSIONS.values())
    called = {file.path.parent / module.path for file in files for module in file.modules.values()}
    assert {path.resolve() for path in called} == {path.resolve() for path in FILES[1:]}
    assert all(parameter.described for parameter in MAIN.parameters.values())
    abbreviations = json.loads((INFRA / "abbreviations.json").read_text("utf-8"))
    assert set(abbreviations) == set(re.findall(r"\babbreviations\.(\w+)(?!')\b", MAIN.source))


# --- one list of names ----------------------------------------------------------------------------------------------


def told(vaults: list[str]) -> dict[str, Any]:
    """The parameters that `vaultferry resources` prints for these vaults."""
    from shared.jobs import write_queue

    hashed = {vault: write_queue(vault) for vault in vaults if write_queue(vault) != f"vaultferry-to-{vault}"}
    return {"environmentName": "test", "writtenVaults": vaults, "queueNames": hashed}


@given(st.lists(st.from_regex(ID, fullmatch=True), unique=True, max_size=5))
def test_queues_are_those_that_the_code_uses(vaults: list[str]) -> None:
    queues = MAIN.value(MAIN.modules["storage"].given["queues"], told(vaults))
    assert sorted(queues) == sorted(resources(vaults).queues)
    # https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata
    assert all(re.fullmatch(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name) for name in queues)


def registered(config: Path) -> list[func.Function]:
    """What function_app.py registers for a configuration, whose environment is made up."""
    env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", config.read_text("utf-8")), "x" * 32)
    return list(register(LazyApp(env, origin=str(config))).get_functions())


@pytest.mark.parametrize("config", EXAMPLES, ids=ids)
def test_every_queue_that_a_function_waits_for_is_in_the_list_and_no_other(config: Path) -> None:
    env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", config.read_text("utf-8")), "x" * 32)
    found = outline(str(config), env)
    triggers = [each.get_trigger().get_dict_repr() for each in registered(config)]
    queues = {trigger["queueName"] for trigger in triggers if trigger["type"] == "queueTrigger"}
    assert queues == set(resources(found.written_vaults).queues)


def test_tables_and_containers_are_those_that_the_code_uses() -> None:
    needed = resources([])
    given_to = MAIN.modules["storage"].given
    assert tuple(MAIN.value(given_to["tables"], {})) == needed.tables
    # https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#table-names
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]{2,62}", name) for name in needed.tables)
    deployment = MAIN.value(MAIN.modules["app"].given["deploymentContainer"], {})
    assert MAIN.value(given_to["containers"], {}) == [*needed.containers, deployment]


def test_event_grid_delivers_where_the_app_listens() -> None:
    from shared.jobs import EVENTS_QUEUE

    assert MAIN.value(MAIN.modules["subscriptions"].given["queueName"], told(["prod"])) == EVENTS_QUEUE
    subscription = Bicep(INFRA / "modules" / "subscription.bicep")
    from shared.intake import SECRET_CREATED

    assert SECRET_CREATED in subscription.source


# --- settings -------------------------------------------------------------------------------------------------------


def settings(**given: Any) -> dict[str, str]:
    values: dict[str, Any] = {name: f"<{name}>" for name in APP.parameters}
    values |= {"plainSettings": {}, "keyVaultSettings": {}} | given
    found = APP.value(properties(APP.resources["settings"].body)["properties"], values)
    assert isinstance(found, dict)
    return found


def test_the_settings_are_those_of_the_table() -> None:
    assert set(settings()) == set(SETTINGS)
    assert set(settings(configUrl="", auditName="")) == set(SETTINGS) - {"VAULTFERRY_CONFIG", "VAULTFERRY_AUDIT_SECRET"}
    assert not (SETTINGS.keys() | NOT_SET.keys()) & REFUSED_BY_FLEX
    assert not any(name in APP.source for name in REFUSED_BY_FLEX)


def test_the_tables_have_every_setting_that_the_code_reads() -> None:
    read: set[str] = set()
    for path in [ROOT / "function_app.py", *(ROOT / "shared").rglob("*.py")]:
        source = path.read_text("utf-8")
        # As a whole text: a made-up name that only begins so is none.
        read |= set(re.findall(r'"((?:VAULTFERRY|APPLICATIONINSIGHTS)_[A-Z_]+)"', source))
        if path.name == "azure_storage.py":
            read |= {f"AzureWebJobsStorage__{name}" for name in re.findall(r"\{SETTING\}__(\w+)", source)}
            read |= {f"AzureWebJobsStorage__{name}ServiceUri" for name in ("blob", "queue", "table")}
            read.discard("AzureWebJobsStorage__ServiceUri")
    known = SETTINGS.keys() | NOT_SET.keys()
    assert read - known == set()
    ours = {name for name in SETTINGS if name not in ("AZURE_CLIENT_ID", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING")}
    assert ours <= read


def test_secrets_are_references_without_a_version() -> None:
    found = settings(
        keyVaultName="kv", digestKeyName="d", auditName="a", keyVaultSettings={"VAULT_TOKEN": "vault-token"}
    )
    assert found["VAULTFERRY_DIGEST_KEY"] == "@Microsoft.KeyVault(VaultName=kv;SecretName=d)"
    assert found["VAULTFERRY_AUDIT_SECRET"] == "@Microsoft.KeyVault(VaultName=kv;SecretName=a)"
    assert found["VAULT_TOKEN"] == "@Microsoft.KeyVault(VaultName=kv;SecretName=vault-token)"


def test_what_a_person_adds_can_not_replace_what_must_be() -> None:
    found = settings(plainSettings={"VAULTFERRY_STORE": "sqlite:///x.db", "VAULT_ADDR": "https://v"})
    assert (found["VAULTFERRY_STORE"], found["VAULT_ADDR"]) == ("tables", "https://v")


def test_a_deployment_without_the_credentials_keeps_them() -> None:
    vault = Bicep(INFRA / "modules" / "keyvault.bicep")
    for parameter in ("digestKey", "auditSecret"):
        assert MAIN.parameters[parameter].secure
        assert MAIN.value(MAIN.defaults[parameter], {}) == ""
        assert f"= if (!empty({parameter})) {{" in vault.source
    values = dict.fromkeys(MAIN.parameters, "x") | {
        "signAudit": True,
        "keyVault": {"outputs": vault_outputs(vault)},
    }
    given_to = MAIN.modules["app"].given
    # Whether a value was given plays no part in what the settings refer to.
    assert MAIN.value(given_to["digestKeyName"], values) == "vaultferry-digest-key"
    assert MAIN.value(given_to["auditName"], values) == "vaultferry-audit-secret"


def vault_outputs(vault: Bicep) -> dict[str, str]:
    return {name: vault.value(vault.outputs[name], {}) for name in ("digestKeyName", "auditName")}


# --- safety ---------------------------------------------------------------------------------------------------------

SAFE = {
    "Microsoft.Storage/storageAccounts": {
        "properties.minimumTlsVersion": "'TLS1_2'",
        "properties.supportsHttpsTrafficOnly": "true",
        "properties.allowSharedKeyAccess": "false",
        "properties.allowBlobPublicAccess": "false",
        "properties.allowCrossTenantReplication": "false",
    },
    "Microsoft.Storage/storageAccounts/blobServices/containers": {"properties.publicAccess": "'None'"},
    "Microsoft.KeyVault/vaults": {
        "properties.enableRbacAuthorization": "true",
        "properties.enableSoftDelete": "true",
        "properties.enablePurgeProtection": "true",
    },
    "Microsoft.Insights/components": {"properties.DisableLocalAuth": "true"},
    "Microsoft.OperationalInsights/workspaces": {"properties.features.disableLocalAuth": "true"},
    "Microsoft.Web/sites": {
        "properties.httpsOnly": "true",
        "properties.siteConfig.minTlsVersion": "'1.2'",
        "properties.siteConfig.scmMinTlsVersion": "'1.2'",
        "identity.type": "'UserAssigned'",
    },
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": {"properties.allow": "false"},
    "Microsoft.Authorization/roleAssignments": {"properties.principalType": "'ServicePrincipal'"},
}


def test_nothing_is_open_that_need_not_be(file: Bicep) -> None:
    for name, resource in file.resources.items():
        if resource.existing:
            continue
        for path, expected in SAFE.get(resource.type, {}).items():
            assert text(at(resource.body, *path.split("."))) == expected, f"{name}: {path}"
    assert "listKeys" not in file.source
    assert "AccountKey" not in file.source


WIRING = {
    # What deploys as something else, or deploys and then does not work. By file: where it stands, and what stands there.
    "app": {
        # https://learn.microsoft.com/azure/azure-functions/functions-infrastructure-as-code?pivots=flex-consumption-plan
        ("plan", "sku.name"): "'FC1'",
        ("plan", "sku.tier"): "'FlexConsumption'",
        ("plan", "properties.reserved"): "true",
        ("site", "kind"): "'functionapp,linux'",
        ("site", "properties.functionAppConfig.runtime.name"): "'python'",
        ("site", "properties.functionAppConfig.deployment.storage.type"): "'blobContainer'",
        ("site", "properties.functionAppConfig.deployment.storage.value"): "'${blobEndpoint}${deploymentContainer}'",
        ("site", "properties.functionAppConfig.deployment.storage.authentication.type"): "'UserAssignedIdentity'",
        (
            "site",
            "properties.functionAppConfig.deployment.storage.authentication.userAssignedIdentityResourceId",
        ): "identityId",
        # Without it, references are resolved with the identity of the system, which there is not:
        # https://learn.microsoft.com/azure/app-service/app-service-key-vault-references
        ("site", "properties.keyVaultReferenceIdentity"): "identityId",
        ("site", "properties.virtualNetworkSubnetId"): "empty(subnetId) ? null : subnetId",
    },
    "endpoints": {
        ("endpoints", "properties.subnet.id"): "subnetId",
        ("links", "parent"): "zones[i]",
        ("links", "properties.virtualNetwork.id"): "networkId",
        ("names", "parent"): "endpoints[i]",
    },
    "keyvault": {
        ("vault", "properties.publicNetworkAccess"): "privateNetwork ? 'Disabled' : 'Enabled'",
        ("vault", "properties.networkAcls.defaultAction"): "privateNetwork ? 'Deny' : 'Allow'",
    },
    "subscription": {
        ("subscription", "properties.deliveryWithResourceIdentity.identity.type"): "'SystemAssigned'",
        ("subscription", "properties.deliveryWithResourceIdentity.destination.endpointType"): "'StorageQueue'",
        (
            "subscription",
            "properties.deliveryWithResourceIdentity.destination.properties.queueMessageTimeToLiveInSeconds",
        ): "-1",
    },
    "topic": {
        ("topic", "identity.type"): "'SystemAssigned'",
        ("topic", "properties.topicType"): "'Microsoft.KeyVault.vaults'",
        ("topic", "properties.source"): "vault.id",
    },
}


@pytest.mark.parametrize("name", WIRING)
def test_what_the_platform_asks_for_is_there(name: str) -> None:
    module = Bicep(INFRA / "modules" / f"{name}.bicep")
    for (resource, path), expected in WIRING[name].items():
        assert text(at(module.resources[resource].body, *path.split("."))) == expected, f"{resource}: {path}"


def test_a_role_is_for_one_resource_and_never_for_the_whole_group(file: Bicep) -> None:
    for name, resource in file.resources.items():
        if resource.type == "Microsoft.Authorization/roleAssignments":
            assert text(properties(resource.body)["scope"]) in file.resources, name


def test_the_app_is_one_identity_and_says_so_everywhere() -> None:
    given_to = MAIN.modules["app"].given
    assert text(given_to["identityId"]) == "identity.id"
    assert text(given_to["identityClientId"]) == "identity.properties.clientId"
    found = settings(identityClientId="client")
    assert found["AZURE_CLIENT_ID"] == found["AzureWebJobsStorage__clientId"] == "client"
    assert found["AzureWebJobsStorage__credential"] == "managedidentity"
    # https://learn.microsoft.com/azure/azure-functions/functions-app-settings#applicationinsights_authentication_string
    assert found["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"] == "ClientId=client;Authorization=AAD"
    for module in ("monitoring", "storage", "keyVault", "sourceRoles", "targetRoles"):
        assert text(MAIN.modules[module].given["principalId"]) == "identity.properties.principalId"


def test_nothing_is_made_before_what_it_can_not_do_without() -> None:
    # Of these, no value is passed on that would tell the order.
    assert re.findall(r"\w+", text(properties(MAIN.modules["app"].body)["dependsOn"])) == ["endpoints"]
    assert "senderRoles" in re.findall(r"\w+", text(properties(MAIN.modules["subscriptions"].body)["dependsOn"]))
    endpoints = Bicep(INFRA / "modules" / "endpoints.bicep")
    assert re.findall(r"\w+", text(properties(endpoints.resources["names"].body)["dependsOn"])) == ["links"]


def test_an_alert_is_raised_by_a_single_row() -> None:
    source = (INFRA / "modules" / "alerts.bicep").read_text("utf-8")
    for line in (
        "timeAggregation: 'Count'",
        "operator: 'GreaterThan'",
        "threshold: 0",
        "overrideQueryTimeRange: 'P2D'",
    ):
        assert f" {line}\n" in source, line


def test_with_a_private_network_the_storage_account_opens_for_event_grid_only() -> None:
    storage = Bicep(INFRA / "modules" / "storage.bicep")
    account = storage.resources["account"].body
    access, acls = at(account, "properties", "publicNetworkAccess"), at(account, "properties", "networkAcls")
    assert access is not None
    assert acls is not None
    for private, events, open_, action in (
        (True, False, "Disabled", "Deny"),
        (True, True, "Enabled", "Deny"),
        (False, False, "Enabled", "Allow"),
    ):
        values = {"privateNetwork": private, "takesEvents": events}
        assert storage.value(access, values) == open_
        assert storage.value(acls, values) == {"bypass": "AzureServices", "defaultAction": action}


def test_a_role_that_is_given_anew_has_a_name_of_its_own(file: Bicep) -> None:
    # Azure refuses to change whom an assignment is for, and a topic or identity that was made anew is somebody else.
    for name, resource in file.resources.items():
        if resource.type == "Microsoft.Authorization/roleAssignments":
            assert "principalId" in text(properties(resource.body)["name"]), name


def test_a_topic_may_write_into_the_queue_of_events_alone() -> None:
    # Whoever may change a topic may have it write wherever it is allowed to, such as among the jobs.
    sender = Bicep(INFRA / "modules" / "queue-sender.bicep")
    (assignment,) = (each for each in sender.resources.values() if not each.existing)
    scope = sender.resources[text(properties(assignment.body)["scope"])]
    assert scope.type == "Microsoft.Storage/storageAccounts/queueServices/queues"
    assert text(properties(scope.body)["name"]) == "queueName"
    given_to = MAIN.modules["senderRoles"].given["queueName"]
    assert text(given_to) == text(MAIN.modules["subscriptions"].given["queueName"])


def test_only_target_vaults_may_be_written() -> None:
    role = Bicep(INFRA / "modules" / "vault-role.bicep")
    for module, source, write in (("sourceRoles", "sourceKeyVaults", False), ("targetRoles", "targetKeyVaults", True)):
        assert text(MAIN.modules[module].given["write"]) == str(write).lower()
        assert f"module {module} 'modules/vault-role.bicep' = [for (id, i) in {source}:" in MAIN.source
        wanted = ROLES["secretsOfficer" if write else "secretsUser"]
        assert role.value(role.variables["role"], {"write": write}) == wanted


# --- the private network --------------------------------------------------------------------------------------------


def test_private_endpoints_are_made_one_after_the_other() -> None:
    # Two at once on one storage account: StorageAccountOperationInProgress
    # (https://github.com/Azure/bicep-registry-modules/issues/6001).
    endpoints = Bicep(INFRA / "modules" / "endpoints.bicep")
    assert "@batchSize(1)\nresource endpoints 'Microsoft.Network/privateEndpoints@" in endpoints.source


def test_each_private_endpoint_has_its_service_and_the_zone_of_that() -> None:
    # https://learn.microsoft.com/azure/private-link/private-endpoint-overview#private-link-resource
    endpoints = Bicep(INFRA / "modules" / "endpoints.bicep")
    places = endpoints.value(
        endpoints.variables["places"],
        {
            "environment": {"suffixes": {"storage": "s", "keyvaultDns": ".vault.v"}},
            "storageId": "storage",
            "keyVaultId": "vault",
        },
    )
    assert [(place["service"], place["resourceId"]) for place in places] == [
        ("blob", "storage"),
        ("queue", "storage"),
        ("table", "storage"),
        ("vault", "vault"),
    ]
    assert "groupIds: [\n            place.service\n          ]" in endpoints.source
    assert "privateDnsZoneId: zones[i].id\n" in endpoints.source


def test_the_apps_subnet_is_handed_to_flex_consumption() -> None:
    # https://learn.microsoft.com/azure/azure-functions/flex-consumption-how-to#enable-virtual-network-integration
    source = (INFRA / "modules" / "network.bicep").read_text("utf-8")
    app = source[source.index("name: 'app'") : source.index("name: 'endpoints'")]
    assert "serviceName: 'Microsoft.App/environments'\n" in app


@pytest.mark.parametrize(
    ("storage", "key_vault", "zones"),
    [
        (
            "core.windows.net",
            ".vault.azure.net",
            [
                *("privatelink.blob.core.windows.net", "privatelink.queue.core.windows.net"),
                *("privatelink.table.core.windows.net", "privatelink.vaultcore.azure.net"),
            ],
        ),
        (
            "core.usgovcloudapi.net",
            ".vault.usgovcloudapi.net",
            [
                *("privatelink.blob.core.usgovcloudapi.net", "privatelink.queue.core.usgovcloudapi.net"),
                *("privatelink.table.core.usgovcloudapi.net", "privatelink.vaultcore.usgovcloudapi.net"),
            ],
        ),
    ],
)
def test_the_private_zones_are_those_of_the_cloud(storage: str, key_vault: str, zones: list[str]) -> None:
    # https://learn.microsoft.com/azure/private-link/private-endpoint-dns
    endpoints = Bicep(INFRA / "modules" / "endpoints.bicep")
    cloud = {"suffixes": {"storage": storage, "keyvaultDns": key_vault}}
    values = {"environment": cloud, "storageId": "s", "keyVaultId": "k"}
    assert [place["zone"] for place in endpoints.value(endpoints.variables["places"], values)] == zones


# --- Flex Consumption -----------------------------------------------------------------------------------------------


def test_the_site_has_no_property_that_flex_consumption_refuses() -> None:
    refused = {name.lower() for name in PROPERTIES_REFUSED_BY_FLEX}
    body = APP.resources["site"].body
    said = {text(node.children[0]).lower() for node in walk(body) if node.type == "object_property"}
    assert "minTlsVersion".lower() in said
    assert said & refused == set()


def test_always_ready_instances_are_of_functions_that_there_are(tmp_path: Path) -> None:
    ready = at(APP.resources["site"].body, "properties", "functionAppConfig", "scaleAndConcurrency", "alwaysReady")
    assert ready is not None
    found = APP.value(ready, {"alwaysReadyVaults": ["shop-prod"]})
    assert found == [{"name": "function:write_shop_prod", "instanceCount": 1}]
    config = tmp_path / "vaultferry.yaml"
    config.write_text(
        "vaults:\n  hub: {kind: file, path: a, key: x}\n  shop-prod: {kind: file, path: b, key: x}\n"
        "syncs:\n  s: {source: {vault: hub}, targets: [{vault: shop-prod}]}\n"
    )
    functions = {each.get_function_name() for each in registered(config)}
    assert {each["name"].partition(":")[2] for each in found} <= functions


def test_the_lowest_instance_count_is_what_flex_consumption_allows() -> None:
    declaration = MAIN.source[: MAIN.source.index("param maximumInstanceCount")]
    assert "@minValue(40)\n@maxValue(1000)\n" in declaration[-300:]
    assert MAIN.value(MAIN.defaults["maximumInstanceCount"], {}) == 40


# --- alerts and the workbook ----------------------------------------------------------------------------------------


def queries() -> list[str]:
    alerts = Bicep(INFRA / "modules" / "alerts.bicep")
    values = {"watchedSyncs": ["hub-to-prod"], "noSuccessHours": 26, "relaySilentHours": 2}
    rules = [rule for name in ("always", "watch", "relay") for rule in alerts.value(alerts.variables[name], values)]
    assert [rule["name"] for rule in rules] == ["poison", "conflicts", "no-success", "relay-silent"]
    workbook = json.loads((INFRA / "workbook.json").read_text("utf-8"))
    return [rule["query"] for rule in rules] + [
        item["content"]["query"] for item in workbook["items"] if "query" in item["content"]
    ]


def test_queries_speak_of_functions_lines_and_counts_that_there_are() -> None:
    functions = {f"http_{route.name}" for route in ROUTES}
    ends = {f"run {status}" for status in RunStatus if not status.active}
    for query in queries():
        assert set(re.findall(r'line\.message\) == "([^"]+)"', query)) <= ends
        for name in re.findall(r'Name == "(\w+)"', query):
            assert name in functions
        known = {*COUNTS, "message", "sync", "run", "level"}
        assert set(re.findall(r"line\.(\w+)", query)) <= known
        assert query.count("(") == query.count(")")


def test_what_is_written_down_late_is_still_looked_at() -> None:
    # Lines take minutes to arrive. A look each hour at the last hour alone would miss those of its last minutes.
    alerts = Bicep(INFRA / "modules" / "alerts.bicep")
    rule = at(alerts.resources["rules"].body, "properties")
    assert rule is not None
    assert (plain(properties(rule)["evaluationFrequency"]), plain(properties(rule)["windowSize"])) == ("PT1H", "PT2H")
    values = {"watchedSyncs": ["hub-to-prod"], "noSuccessHours": 26, "relaySilentHours": 2}
    always, absent = (
        [each["query"] for name in names for each in alerts.value(alerts.variables[name], values)]
        for names in (["always"], ["watch", "relay"])
    )
    assert all("TimeGenerated > ago(2h)" in query for query in always)
    # A row that stands for what did not happen lies within the window wherever that begins and ends, to the minute.
    assert all(query.endswith("| extend TimeGenerated = ago(1h)") for query in absent)


def test_without_watched_syncs_and_a_relay_nobody_waits_for_them() -> None:
    alerts = Bicep(INFRA / "modules" / "alerts.bicep")
    assert alerts.value(alerts.variables["watch"], {"watchedSyncs": [], "noSuccessHours": 26}) == []
    assert alerts.value(alerts.variables["relay"], {"relaySilentHours": 0}) == []


# --- parameter files and azd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=ids)
def test_parameter_files_give_what_there_is_and_all_that_is_required(path: Path) -> None:
    given_values = {name: held["value"] for name, held in json.loads(path.read_text("utf-8"))["parameters"].items()}
    required = {name for name, parameter in MAIN.parameters.items() if parameter.required}
    assert required <= set(given_values) <= set(MAIN.parameters)
    types = {"string": str, "int": int, "bool": bool, "array": list, "object": dict}
    for name, value in given_values.items():
        if isinstance(value, str) and value.startswith("${"):
            assert path.name == "main.parameters.json", "only azd fills in its environment"
        else:
            assert type(value) is types[MAIN.parameters[name].type], name
            # A secret in a file is one that somebody commits.
            assert not MAIN.parameters[name].secure


def test_there_are_files_for_azd_for_development_and_for_production() -> None:
    assert [path.name for path in PARAMETER_FILES] == [
        "dev.parameters.json",
        "main.parameters.json",
        "prod.parameters.json",
    ]


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=ids)
def test_parameter_files_fit_the_first_example(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Away from a local.settings.json that somebody has in this checkout.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAULT_TOKEN", "t")
    arguments = ["resources", "-c", str(ROOT / "examples" / "vault-to-key-vault.yaml"), "--parameters", str(path)]
    with loggers_as_before():
        ended = CliRunner().invoke(commands, arguments, prog_name="vaultferry")
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stdout


def test_azd_finds_the_template_and_the_app() -> None:
    azure = yaml.safe_load((ROOT / "azure.yaml").read_text("utf-8"))
    assert (ROOT / azure["infra"]["path"] / f"{azure['infra']['module']}.bicep") == FILES[0]
    ((name, service),) = azure["services"].items()
    hooks = service.pop("hooks")
    assert service == {"project": ".", "language": "py", "host": "function"}
    for each in hooks["prepackage"].values():
        program, script = each["run"].split()
        assert program.startswith("python")
        assert (ROOT / script).is_file()
    tags = at(APP.resources["site"].body, "tags")
    assert tags is not None
    assert APP.value(tags, {"tags": {}}) == {"azd-service-name": name}
    assert MAIN.value(MAIN.variables["allTags"], {"environmentName": "x"}) == {"azd-env-name": "x"}


def test_outputs_say_where_the_app_is_and_who_it_is() -> None:
    assert {"appName", "hostName", "auditUrl", "identityClientId", "identityPrincipalId"} <= set(MAIN.outputs)
    values = {"app": {"outputs": {"hostName": "func.example"}}}
    assert MAIN.value(MAIN.outputs["auditUrl"], values) == "https://func.example/audit"
    assert any(route.template == "audit" and route.method == "POST" for route in ROUTES)


def test_module_names_fit_deployments() -> None:
    # 64 characters; what stands behind `${` is 13 characters or a short number.
    for name, module in MAIN.modules.items():
        shown = properties(module.body)["name"]
        assert len(re.sub(r"\$\{\w+\}", "x" * 13, text(shown)[1:-1])) <= 64, name
    assert plain(properties(MAIN.modules["app"].body)["name"]) == "app"


# --- the page -------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "deploying.md").read_text("utf-8")


def test_the_page_tells_of_every_parameter_and_its_default() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*?) \|", PAGE, re.MULTILINE)
    shown = {name: defaults for names, defaults in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(shown) == set(MAIN.parameters)
    for name, defaults in shown.items():
        default = MAIN.value(MAIN.defaults[name], {}) if name in MAIN.defaults and name != "location" else ""
        if default != "":
            as_bicep = default if isinstance(default, str) else json.dumps(default)
            assert as_bicep in re.findall(r"[^`,\s]+", defaults), name


def test_the_page_speaks_of_outputs_and_files_that_there_are() -> None:
    for name in re.findall(r"output `(\w+)`", PAGE):
        assert name in MAIN.outputs
    for path in re.findall(r"infra/[\w./-]+\.(?:bicep|json)", PAGE):
        assert (ROOT / path).is_file(), path
