"""A mapping's life, as an operator drives it over HTTP, between real brokers."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.devices import publish, session_exists
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx

    from tests.brokers import KafkaCluster, MqttBroker

MAPPINGS = "/api/v1/mappings"
PROBLEM = "application/problem+json"
SEED = Path(__file__).parents[1] / "unit" / "data" / "seed-config.yaml"


class Scene:
    """A service without mappings in its file, and topics and ids nobody else uses."""

    def __init__(
        self,
        folder: Path,
        mosquitto: MqttBroker,
        kafka: KafkaCluster,
        kafka_topic: Callable[..., Awaitable[str]],
        unique: str,
    ) -> None:
        self.folder = folder
        self.mosquitto = mosquitto
        self.kafka = kafka
        self.kafka_topic = kafka_topic
        self.unique = unique

    @property
    def client_id(self) -> str:
        return f"life-{self.unique}"

    @asynccontextmanager
    async def service(self, folder: str = "service", **options: Any) -> AsyncIterator[Service]:
        """Run a service that is ready."""
        options = {"client_id": self.client_id, **options}
        made = Service(self.folder / folder, mqtt_broker=self.mosquitto, kafka_broker=self.kafka, **options)
        async with made as service:
            await service.wait_ready()
            yield service

    def mapping(self, name: str, topic: str, **more: Any) -> dict[str, Any]:
        """A mapping of everything below its own MQTT prefix."""
        return {"name": name, "mqtt": {"topic": f"{self.unique}/{name}/#"}, "kafka": {"topic": topic}, **more}

    async def publish(self, path: str, *payloads: bytes) -> None:
        """Publish below this test's prefix; the broker has them when it returns."""
        messages = [(f"{self.unique}/{path}", payload) for payload in payloads]
        await publish(self.mosquitto.host, self.mosquitto.port, messages)

    async def values(self, topic: str, count: int) -> list[bytes | None]:
        """Wait for so many records, and return the values of all there are."""
        return [record.value for record in await self.kafka.wait_for_records(topic, count)]

    async def has_session(self, name: str) -> bool:
        return await session_exists(self.mosquitto.host, self.mosquitto.port, f"{self.client_id}-{name}")


@pytest.fixture
def scene(
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> Scene:
    """Return a scene between the shared brokers."""
    return Scene(tmp_path, mosquitto, kafka, kafka_topic, unique)


async def create(service: Service, document: dict[str, Any]) -> httpx.Response:
    """Create a mapping and wait until it is what it should be."""
    response = await service.api.post(MAPPINGS, json=document)
    assert response.status_code == 201, response.text
    await service.wait_state(document["name"], "paused" if document.get("paused") else "running")
    return response


async def act(service: Service, name: str, action: str, state: str) -> None:
    """Pause, resume or restart, and wait for the state."""
    response = await service.api.post(f"{MAPPINGS}/{name}/{action}")
    assert response.status_code == 202, response.text
    await service.wait_state(name, state)


async def events(service: Service, name: str) -> list[tuple[str, str]]:
    """Return what was done to the mapping and by whom, oldest first."""
    page = (await service.api.get("/api/v1/events", params={"limit": 500})).json()["items"]
    return [(event["actor"], event["action"]) for event in reversed(page) if event["mapping"] == name]


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 20.0) -> None:
    """Poll until the condition holds."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


def problem(response: httpx.Response, status: int, slug: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    assert response.json()["type"] == f"/problems/{slug}"


async def test_a_mapping_lives_from_its_creation_over_a_restart_to_its_deletion(scene: Scene) -> None:
    topic, witness = await scene.kafka_topic("life"), await scene.kafka_topic("witness")
    async with scene.service() as service:
        created = await create(service, scene.mapping("life", topic))
        assert created.headers["location"].endswith(f"{MAPPINGS}/life")
        # It forwards the same messages, so what it has forwarded the other one could have, too.
        await create(service, {**scene.mapping("life", witness), "name": "witness"})
        await scene.publish("life/a", b"1")
        assert await scene.values(topic, 1) == [b"1"]

        await act(service, "life", "pause", "paused")
        await scene.publish("life/a", b"2", b"3")
        assert await scene.values(witness, 3) == [b"1", b"2", b"3"]
        assert await scene.values(topic, 1) == [b"1"]

        await act(service, "life", "resume", "running")
        assert await scene.values(topic, 3) == [b"1", b"2", b"3"]
        status = await service.wait_status("life", lambda found: found["counters"]["delivered"] == 3, "3 delivered")
        assert status["counters"]["received"] == 3
        assert status["mqtt"]["session_present"] is True
        await act(service, "witness", "pause", "paused")
        tags = {name: (await service.api.get(f"{MAPPINGS}/{name}")).headers["etag"] for name in ("life", "witness")}

        assert await service.sigterm() == 0
        await scene.publish("life/a", b"4")
        service.start()
        await service.wait_ready()
        assert await scene.values(topic, 4) == [b"1", b"2", b"3", b"4"]
        status = await service.wait_status("life", lambda found: found["counters"]["delivered"] == 1, "1 delivered")
        assert (status["state"], status["counters"]["received"]) == ("running", 1)
        found = {name: (await service.api.get(f"{MAPPINGS}/{name}")).headers["etag"] for name in tags}
        assert found == tags
        assert (await service.status("witness"))["state"] == "paused"
        assert (await service.status("witness"))["counters"]["received"] == 0

        other = await scene.kafka_topic("other")
        patched = await service.api.patch(f"{MAPPINGS}/life", json={"kafka": {"topic": other}})
        assert patched.status_code == 200
        generation = int(patched.headers["etag"].strip('"'))
        await service.wait_status(
            "life", lambda found: (found["state"], found["generation"]) == ("running", generation), "the change runs"
        )
        await scene.publish("life/a", b"5")
        assert await scene.values(other, 1) == [b"5"]

        assert (await service.api.delete(f"{MAPPINGS}/life")).status_code == 204
        problem(await service.api.get(f"{MAPPINGS}/life"), 404, "mapping-not-found")
        assert await events(service, "life") == [
            ("api", "create"),
            ("api", "pause"),
            ("api", "resume"),
            ("api", "patch"),
            ("api", "delete"),
        ]
        await act(service, "witness", "resume", "running")
        assert await scene.values(witness, 5) == [b"1", b"2", b"3", b"4", b"5"]
        await until(lambda: session_ended(service, "life"), "the session is ended")
    assert not await scene.has_session("life")
    assert await scene.has_session("witness")
    assert await scene.values(topic, 4) == [b"1", b"2", b"3", b"4"]


async def session_ended(service: Service, name: str) -> bool:
    """Whether the log says that the mapping's session was ended: looking at the broker would disturb the ending."""
    return any("session_ended" in line and name in line for line in service.log().splitlines())


async def test_an_export_bootstraps_a_second_service_with_the_same_mappings(scene: Scene) -> None:
    topic = await scene.kafka_topic()
    documents = [
        {**scene.mapping("odd", topic, wrap_as_json=True), "name": "odd: 'name' #1/ü"},
        scene.mapping("paused", topic, paused=True, on_poison="dead_letter", dead_letter_topic="letters"),
        {
            "name": "templates",
            "mqtt": {"topic": [f"{scene.unique}/t/+/x", f"{scene.unique}/t/y/#"], "qos": 2, "receive_maximum": 10},
            "kafka": {"topic": topic, "key": "{topic[1]}", "headers": {"from": "{mapping}"}},
            "buffer_bytes": 100_000,
        },
    ]
    async with scene.service() as first:
        for document in documents:
            response = await first.api.post(MAPPINGS, json=document)
            assert response.status_code == 201, response.text
        exported = (await first.api.get("/api/v1/config/export")).text
        listed = (await first.api.get(MAPPINGS)).json()["items"]
    entries = yaml.safe_load(exported)["forwarding"]
    async with scene.service("second", forwarding=entries, client_id=f"second-{scene.unique}") as second:
        bootstrapped = (await second.api.get(MAPPINGS)).json()["items"]
        assert [item["mapping"] for item in bootstrapped] == [item["mapping"] for item in listed]
        assert {item["origin"] for item in bootstrapped} == {"file"}
        await second.wait_state("templates")
        assert (await second.status("paused"))["state"] == "paused"
        assert (await second.api.get("/api/v1/config/export")).text == exported


async def test_of_many_changes_at_once_one_wins_and_the_others_are_told(scene: Scene) -> None:
    topic = await scene.kafka_topic()
    async with scene.service() as service:
        tag = (await create(service, scene.mapping("raced", topic))).headers["etag"]
        rivals = [{"mqtt": {"qos": number % 3}, "buffer_bytes": 10_000 + number} for number in range(1, 9)]
        answers = await asyncio.gather(
            *(service.api.patch(f"{MAPPINGS}/raced", json=rival, headers={"if-match": tag}) for rival in rivals)
        )
        winners = [(rival, answer) for rival, answer in zip(rivals, answers, strict=True) if answer.status_code == 200]
        assert len(winners) == 1
        for answer in answers:
            if answer.status_code == 409:
                problem(answer, 409, "lost-race")
            elif answer.status_code != 200:
                problem(answer, 412, "stale-if-match")
        stored = (await service.api.get(f"{MAPPINGS}/raced")).json()
        (rival, answer) = winners[0]
        assert (stored["mqtt"]["qos"], stored["buffer_bytes"]) == (rival["mqtt"]["qos"], rival["buffer_bytes"])  # type: ignore[index]
        assert answer.json() == stored
        problem(await service.api.delete(f"{MAPPINGS}/raced", headers={"if-match": tag}), 412, "stale-if-match")
        fresh = {"if-match": answer.headers["etag"]}
        assert (await service.api.delete(f"{MAPPINGS}/raced", headers=fresh)).status_code == 204


@pytest.mark.parametrize("loss", ["removed", "replaced"])
async def test_a_store_that_is_lost_while_running_stops_no_mapping_and_is_told(scene: Scene, loss: str) -> None:
    topic = await scene.kafka_topic()
    async with scene.service() as service:
        await create(service, scene.mapping("going-on", topic))
        database = service.folder / "mkf.db"
        kept = database.rename(database.with_suffix(".kept"))
        if loss == "replaced":
            database.write_bytes(b"")

        async def unready() -> bool:
            return (await service.api.get("/readyz")).status_code == 503

        await until(unready, "/readyz says 503")
        (reason,) = (await service.api.get("/readyz")).json()["reasons"]
        assert loss in reason
        assert str(database) in reason
        changes = [
            await service.api.post(MAPPINGS, json=scene.mapping("new", topic)),
            await service.api.patch(f"{MAPPINGS}/going-on", json={"paused": True}),
            await service.api.post(f"{MAPPINGS}/going-on/pause"),
            await service.api.delete(f"{MAPPINGS}/going-on"),
        ]
        for change in changes:
            problem(change, 503, "store-unavailable")
            assert "retry-after" in change.headers
        assert (await service.api.get("/livez")).status_code == 200
        await scene.publish("going-on/a", b"still")
        assert await scene.values(topic, 1) == [b"still"]
        assert (await service.api.get("/healthz/forwarding")).status_code == 200

        kept.rename(database)

        async def ready() -> bool:
            return (await service.api.get("/readyz")).status_code == 200

        await until(ready, "/readyz says 200 again")
        await act(service, "going-on", "pause", "paused")
        assert await events(service, "going-on") == [("api", "create"), ("api", "pause")]


async def test_the_seeds_configuration_starts_unchanged_and_forwards_in_its_record_format(
    scene: Scene, tmp_path: Path
) -> None:
    topic = await scene.kafka_topic("seed")
    text = SEED.read_text()
    # Nothing else: where the brokers are, and names that other tests don't use.
    for old, new in {
        "host: localhost": f"host: {scene.mosquitto.host}",
        "port: 1883": f"port: {scene.mosquitto.port}",
        "bootstrap_server: localhost": f"bootstrap_server: {scene.kafka.host}",
        "port: 9092": f"port: {scene.kafka.port}",
        "'forwarding-service-1'": scene.client_id,
        "'demo/#'": f"{scene.unique}/#",
        "demo_data": topic,
    }.items():
        assert old in text
        text = text.replace(old, new)
    wrapped = await scene.kafka_topic("wrapped")
    text += f"""
  - name: wrapped
    mqtt:
      topic: '{scene.unique}/#'
    kafka:
      topic: {wrapped}
    wrap_as_json: true
"""
    path = tmp_path / "seed.yaml"
    path.write_text(text)
    async with scene.service(env={"CONFIG_FILE": str(path)}) as service:
        for name in ("demo", "wrapped"):
            await service.wait_state(name)
        await scene.publish("kitchen/ü", b"21.5")
        (record,) = await scene.kafka.wait_for_records(topic, 1)
        (envelope,) = await scene.kafka.wait_for_records(wrapped, 1)
    key = f"{scene.unique}/kitchen/ü".encode()
    assert (record.key, record.value, record.headers) == (key, b"21.5", ())
    assert (envelope.key, envelope.value) == (key, b'{"topic":"%b","payload":"MjEuNQ=="}' % key)
    assert await scene.has_session("demo")


async def test_a_crash_of_a_library_leaves_what_python_was_doing_in_the_log(scene: Scene) -> None:
    async with scene.service() as service:
        service.signal(signal.SIGSEGV)  # as the kernel does for a wrong pointer
        assert await asyncio.to_thread(service.wait, 10) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in service.log()
    assert "server/cli.py" in service.log()
