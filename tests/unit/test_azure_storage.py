"""The storage account's settings: the Functions host's own names, clear errors, nothing left open."""

from __future__ import annotations

import traceback

import pytest

from shared import azure_storage
from shared.errors import ConfigError

KEY = "c2VjcmV0LWFjY291bnQta2V5"
SERVICES = {
    "table": azure_storage.table_service,
    "queue": azure_storage.queue_service,
    "blob": azure_storage.blob_service,
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_a_connection_string_names_account_and_endpoint(service: str) -> None:
    text = f"DefaultEndpointsProtocol=https;AccountName=ferry;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"
    async with SERVICES[service]({"AzureWebJobsStorage": text}) as client:
        assert client.url.startswith(f"https://ferry.{service}.core.chinacloudapi.cn")


@pytest.mark.parametrize("text", ["UseDevelopmentStorage=true", "usedevelopmentstorage=TRUE;"])
async def test_development_storage_is_azurite_on_this_machine(service: str, text: str) -> None:
    async with SERVICES[service]({"AzureWebJobsStorage": text}) as client:
        assert client.url.startswith("http://127.0.0.1:1000")


@pytest.mark.parametrize("more", [{}, {"AzureWebJobsStorage__credential": "managedidentity"}])
async def test_an_account_name_is_enough_for_an_identity(service: str, more: dict[str, str]) -> None:
    env = {"AzureWebJobsStorage__accountName": "ferry", "AzureWebJobsStorage__clientId": "an-id", **more}
    async with SERVICES[service](env) as client:
        assert client.url.startswith(f"https://ferry.{service}.core.windows.net")


async def test_a_service_address_wins_over_the_account_name(service: str) -> None:
    env = {
        "AzureWebJobsStorage__accountName": "ferry",
        f"AzureWebJobsStorage__{service}ServiceUri": f"https://ferry.{service}.core.usgovcloudapi.net",
    }
    async with SERVICES[service](env) as client:
        assert client.url.startswith(f"https://ferry.{service}.core.usgovcloudapi.net")


async def test_closing_a_client_closes_its_credential(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity.aio import ManagedIdentityCredential

    closed: list[bool] = []

    async def close(self: ManagedIdentityCredential) -> None:
        closed.append(True)

    monkeypatch.setattr(ManagedIdentityCredential, "close", close)
    env = {"AzureWebJobsStorage__accountName": "ferry", "AzureWebJobsStorage__credential": "managedidentity"}
    async with SERVICES[service](env):
        assert not closed
    assert closed


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "AzureWebJobsStorage is not set"),
        ({"AzureWebJobsStorage": ""}, "AzureWebJobsStorage is not set"),
        ({"AzureWebJobsStorage__credential": "managedidentity"}, "AzureWebJobsStorage__accountName"),
        ({"AzureWebJobsStorage__accountName": "a", "AzureWebJobsStorage__credential": "magic"}, "__credential must be"),
        ({"AzureWebJobsStorage": f"AccountKey={KEY}"}, "is not a connection string"),
        ({"AzureWebJobsStorage": KEY}, "is not a connection string"),
    ],
)
async def test_wrong_settings_are_named_without_their_values(service: str, env: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        SERVICES[service](env)
    assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_no_token_is_sent_in_the_clear(service: str) -> None:
    with pytest.raises(ConfigError, match=f"AzureWebJobsStorage__{service}ServiceUri must start with https://"):
        SERVICES[service]({f"AzureWebJobsStorage__{service}ServiceUri": "http://ferry.example"})


@pytest.mark.parametrize(
    ("env", "configured"),
    [
        ({}, False),
        ({"AzureWebJobsStorage": ""}, False),
        ({"AzureWebJobsStorageOther": "x"}, False),
        ({"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, True),
        ({"AzureWebJobsStorage__accountName": "ferry"}, True),
    ],
)
def test_an_account_is_configured_when_any_of_its_settings_is(env: dict[str, str], configured: bool) -> None:
    assert azure_storage.is_configured(env) is configured
