"""Fixtures for everybody: brokers shared by the run, brokers of a test's own, and names nobody else uses.

`mosquitto` and `kafka` start with the first test that asks for them and serve the whole run. Never stop them: a test
that breaks a broker asks `own_mosquitto` or `own_kafka` for one. MKF_TEST_MQTT and MKF_TEST_KAFKA (host:port) name
brokers that run already and take the place of the shared ones.
"""

from __future__ import annotations

import io
import os
import random
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coverage
import psutil
import pytest
import xdist

from tests.brokers import Kafka, KafkaCluster, Mosquitto, MqttBroker, Postgres
from tests.brokers.process import accepts
from tests.turns import turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator


CORE_REPORT = pytest.StashKey[str]()
MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps files in memory
MEMORY_BYTES = 8 * 2**30


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the second threshold, for pytest-cov knows only one, and what repeats and narrows the fault programme."""
    parser.addoption("--core-fail-under", type=float, default=0.0, help="coverage in percent that server/core needs")
    seed = random.randrange(1_000_000)  # noqa: S311 - not a secret
    parser.addoption("--fault-seed", type=int, default=seed, help="seed of tests/faults/test_faults.py")
    parser.addoption("--fault-filter", default="", help="only faults with this in their group or name")
    parser.addoption("--security-seed", type=int, default=seed, help="seed of tests/security/test_mqtt_packets.py")


def pytest_configure() -> None:
    """Keep the tests' folders in memory where there is enough.

    SQLite waits for the disk at each commit, and the store gives it 2 s. The disk of a busy machine, with the tests'
    Kafkas writing to it, needs longer now and then, and any test that writes to a store would fail with a 503.
    """
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    memory = os.statvfs(MEMORY)
    if memory.f_bavail * memory.f_frsize >= MEMORY_BYTES <= psutil.virtual_memory().available and (
        not memory.f_flag & os.ST_NOEXEC
    ):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seeds, so that what a run has drawn can be repeated."""
    return " ".join(f"{option} {config.getoption(option)}" for option in ("--fault-seed", "--security-seed"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside pytest-timeout's: the wait for its turn is not the test's
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give each test its turn."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Check the coverage of server/core once pytest-cov (inside this wrapper) has combined what it measured.

    Here and not after pytest, so that pytest's summary stays the last thing printed.
    """
    result = yield
    needed = session.config.getoption("--core-fail-under")
    if needed and not session.config.option.collectonly and not xdist.is_xdist_worker(session):
        measured = coverage.Coverage()
        measured.load()
        report = io.StringIO()
        if measured.report(include=["server/core/*"], file=report) < needed:
            session.config.stash[CORE_REPORT] = f"{report.getvalue()}\nFAIL server/core needs {needed:g} % coverage"
            session.testsfailed += 1
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what server/core lacks."""
    if CORE_REPORT in config.stash:
        terminalreporter.section("coverage of server/core")
        terminalreporter.write_line(config.stash[CORE_REPORT], red=True)


def _external(variable: str) -> tuple[str, int] | None:
    address = os.environ.get(variable)
    if not address:
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        pytest.exit(f"{variable} must be host:port, not {address!r}", returncode=2)
    if not accepts(host, int(port)):
        pytest.exit(f"{variable}={address}: nothing listens there", returncode=2)
    return host, int(port)


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MqttBroker]:
    """Return the MQTT broker all tests share."""
    if external := _external("MKF_TEST_MQTT"):
        yield MqttBroker(*external)
        return
    with Mosquitto(tmp_path_factory.mktemp("mosquitto"), persistence=False) as broker:
        yield broker.address


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Return the Kafka all tests share."""
    if external := _external("MKF_TEST_KAFKA"):
        yield KafkaCluster("{}:{}".format(*external))
        return
    with Kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return the Postgres all tests share; each has a schema of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Start a Postgres of the test's own, to break."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty store: a test that asks for it runs on every database there can be."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.fresh_url()


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start Mosquittos of the test's own: `own_mosquitto(max_queued=10)`; options as in `Mosquitto`."""
    with ExitStack() as stack:
        made = 0

        def make(**options: Any) -> Mosquitto:
            nonlocal made
            made += 1
            return stack.enter_context(Mosquitto(tmp_path / f"mosquitto-{made}", **options))

        yield make


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Callable[..., Kafka]]:
    """Start Kafkas of the test's own: `own_kafka(config=...)`, options as in `Kafka`."""
    with ExitStack() as stack:
        made = 0

        def make(**options: Any) -> Kafka:
            nonlocal made
            made += 1
            return stack.enter_context(Kafka(tmp_path / f"kafka-{made}", **options))

        yield make


@pytest.fixture
def unique() -> str:
    """Return a suffix for topics and client ids that no other test or run uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
async def kafka_topic(kafka: KafkaCluster, unique: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Create topics in the shared Kafka that live as long as the test.

    `topic = await kafka_topic("orders", partitions=3)`; options as in `KafkaCluster.create_topic`.
    """
    created: list[str] = []

    async def create(name: str = "test", **options: Any) -> str:
        topic = await kafka.create_topic(f"{name}-{len(created)}-{unique}", **options)
        created.append(topic)
        return topic

    yield create
    for topic in created:
        await kafka.delete_topic(topic)
