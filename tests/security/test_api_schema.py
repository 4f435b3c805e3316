"""Every operation of the API as its OpenAPI document describes it, against the service as it runs between brokers.

schemathesis draws the requests, valid ones and others, and checks each answer: no 500, nothing that the document does
not say, nothing accepted that it forbids. A failure prints the request as a curl command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from server.api.application import create_api
from server.api.paths import API
from tests.brokers.process import wait_until
from tests.faults.mock_kafka import MockKafka
from tests.security.extent import EXTENT
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.api.gate import Gate
    from server.api.ports import Runtime
    from server.store.store import Store
    from tests.brokers import MqttBroker

_ADMIN_TOKEN = "a-token-for-the-security-tests-0123456789"
# What every request carries.
HEADERS = {"Authorization": f"Bearer {_ADMIN_TOKEN}"}
EXISTING = "plant"
_MAPPING = {"name": EXISTING, "mqtt": {"topic": "fuzz/#"}, "kafka": {"topic": "fuzz"}}


def _document() -> dict[str, Any]:
    """The OpenAPI document, which needs nothing that runs."""
    unused: Any = None
    app = create_api(
        store=cast("Store", unused),
        runtime=cast("Runtime", unused),
        gate=cast("Gate", unused),
        ready_strict=False,
        loopback_only=True,
        metrics=unused,
    )
    # Every request carries a good token, not to be taken for one that schemathesis has drawn. Who may come in is asked
    # for each route in tests/unit/test_api_access.py.
    document = app.openapi()
    del document["components"]["securitySchemes"]
    for operation in (each for path in document["paths"].values() for each in path.values()):
        operation.pop("security", None)
    return document


_CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            # What the document allows may be refused: it can't say what a topic filter or a cursor is.
            "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "403", "404", "409", "412", "422"]},
            # An ETag that is stale is found before a body that is wrong.
            "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "409", "412", "415", "422"]},
        },
        "operations": [
            # GET reads the mapping that is called "validate", and Allow says so, of a path that is also another's.
            {
                "include-path": f"{API}/mappings/validate",
                "checks": {"allow_header_conformance": {"enabled": False}},
            }
        ],
    }
)
schema = schemathesis.openapi.from_dict(_document(), config=_CONFIG)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mosquitto: MqttBroker) -> Iterator[Service]:
    """Return a service that runs, for all operations."""
    with MockKafka() as kafka:
        running = Service(
            tmp_path_factory.mktemp("api"),
            mqtt_broker=mosquitto,
            kafka_broker=kafka,
            client_id="security-api",
            env={"MKF_ADMIN_TOKEN": _ADMIN_TOKEN},
        )
        running.start()
        try:
            wait_until(lambda: _is_ready(running), timeout=60, what="ready")
            yield running
        finally:
            running.terminate(25)
    log = running.log_path.read_text()
    assert "Traceback" not in log, log


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.fixture(autouse=True)
def _one_mapping(service: Service) -> Iterator[None]:
    """Begin with one mapping, and leave none of those that a test has made."""
    mappings = f"{service.url}/api/v1/mappings"
    with httpx.Client(headers=HEADERS) as client:
        client.post(mappings, json=_MAPPING)
        yield
        while found := client.get(mappings, params={"limit": 500}).json()["items"]:
            for item in found:
                client.delete(f"{mappings}/{httpx.URL(path='/' + item['mapping']['name']).raw_path.decode()[1:]}")


@schema.parametrize()
@settings(
    max_examples=EXTENT.api_cases,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
@pytest.mark.timeout(1_200)
def test_what_an_operation_answers_is_what_the_document_says(case: schemathesis.Case[Any], service: Service) -> None:
    case.call_and_validate(base_url=service.url, headers=HEADERS)
    assert service.running
