"""What every test shares."""

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import USUAL

pytest_plugins = ["tests.servers.fixtures"]

# On a machine that is busy with something else, an example that takes long says nothing about what is tested.
_any_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The gate says the same of the same code, whenever it is asked. What nobody has thought of is searched for by `make fuzz`.
settings.register_profile("gate", _any_machine, max_examples=USUAL, derandomize=True)
settings.register_profile("fuzz", _any_machine, max_examples=10 * USUAL, print_blob=True)
settings.load_profile("gate")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the product does."""
    return "asyncio"
