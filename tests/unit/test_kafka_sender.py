"""The sender that waits for less sends what aiokafka's would: small batches together, nothing lost or twice."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    for_code,
)
from aiokafka.protocol.produce import ProduceResponse_v7
from structlog.testing import capture_logs

from server.kafka.sender import LARGE_REQUEST_BYTES, LeanProducer
from tests.answers import hand_over
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.kafka.connection import Asker
    from server.kafka.produce_request import Request

RETRY_SECONDS = 0.1
REQUEST_TIMEOUT_MS = 30_000
NOT_LEADER, TOO_LARGE = NotLeaderForPartitionError.errno, 10
CRASH = RuntimeError("a bug")


class Nodes:
    """The client of a cluster; partition n of any topic is led by `leaders[n]`. Requests wait until answered."""

    def __init__(self, leaders: dict[int, int | None]) -> None:
        self.leaders = leaders
        self.connected = {1, 2, 3}
        self.reachable = set(self.connected)
        self.attempts = 0
        self.broken: dict[int, Exception] = {}  # what becomes of writing to a node
        self.asked = 0
        self.metadata: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.owed: list[tuple[int, dict[int, bytes], Asker]] = []
        # Who begins anew waits for metadata.
        self.learnt = asyncio.Event()
        self.learnt.set()

    @property
    def cluster(self) -> Nodes:
        """Who leads what."""
        return self

    def leader_for_partition(self, at: Any) -> int | None:
        return self.leaders[at.partition]

    @property
    def _conns(self) -> dict[Any, Link]:
        return {(node, ConnectionGroup.DEFAULT): Link(self, node) for node in self.connected}

    async def ready(self, node: int) -> bool:
        """Connect, unless the node can't be reached."""
        self.attempts += 1
        await asyncio.sleep(0)
        if node in self.reachable:
            self.connected.add(node)
        return node in self.connected

    def force_metadata_update(self) -> asyncio.Future[bool]:
        self.asked += 1
        if self.metadata.done():
            self.metadata = asyncio.get_running_loop().create_future()
        return self.metadata

    async def _maybe_wait_metadata(self) -> None:
        await self.learnt.wait()

    def answer(self, error: int | BaseException = 0) -> dict[int, bytes]:
        """Answer for all batches of the oldest request; returns them by partition."""
        batches = self.owed[0][1]
        if isinstance(error, BaseException):
            asker = self.owed.pop(0)[2]
            if not asker.done():
                asker.set_exception(error)
        else:
            self.answer_each(dict.fromkeys(batches, error))
        return batches

    def answer_each(self, errors: dict[int, int]) -> None:
        """Answer the oldest request with an error code for each partition."""
        _, _, asker = self.owed.pop(0)
        if not asker.done():
            asker.set_result(ProduceResponse_v7([("t", [(at, error, 0, -1, 0) for at, error in errors.items()])], 0))

    @property
    def requests(self) -> list[tuple[int, list[int]]]:
        """Node and partitions of each request that is not answered."""
        return [(node, list(batches)) for node, batches, _ in self.owed]


class Link:
    """The connection to one of them."""

    def __init__(self, nodes: Nodes, node: int) -> None:
        self._nodes = nodes
        self._node = node

    def connected(self) -> bool:
        return self._node in self._nodes.connected

    def produce(self, request: Request, asker: Asker) -> None:
        if self._node in self._nodes.broken:
            raise self._nodes.broken[self._node]
        assert (request._required_acks, request._timeout) == (-1, REQUEST_TIMEOUT_MS)
        ((_, batches),) = request._topics
        self._nodes.owed.append((self._node, dict(batches), asker))


class Desk:
    """A producer to hand batches to, and the nodes it sends them to."""

    def __init__(self, producer: LeanProducer, nodes: Nodes) -> None:
        self.producer = producer
        self.nodes = nodes

    def hand_over(self, partition: int, size: int = 1) -> asyncio.Future[Any]:
        batch = self.producer.create_batch()
        batch.append(timestamp=1, key=None, value=bytes(size))
        return hand_over(self.producer, batch, "t", partition)

    def send(self, partition: int, size: int = 1) -> asyncio.Future[Any]:
        future = self.hand_over(partition, size)
        self.producer.flush()
        return future

    async def queued_again(self, partition: int) -> asyncio.Future[Any]:
        """A batch whose partition has moved: it is queued for its next attempt, which waits until `nodes.learnt`."""
        future = self.send(partition)
        await until(lambda: self.nodes.requests)
        self.nodes.learnt.clear()
        self.nodes.answer(NOT_LEADER)
        await asyncio.sleep(2 * RETRY_SECONDS)
        return future


@asynccontextmanager
async def sending(leaders: dict[int, int | None], *, idempotent: bool = True) -> AsyncIterator[Desk]:
    """A started producer; at the end, when it is ended, nothing is left and nothing went unnoticed."""
    unnoticed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unnoticed.append(context))
    producer = LeanProducer(
        bootstrap_servers="k:1",
        acks=-1,
        retry_backoff_ms=round(RETRY_SECONDS * 1000),
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        enable_idempotence=idempotent,
        max_batch_size=2 * LARGE_REQUEST_BYTES,
    )
    producer._closed = True  # there is no connection to close
    nodes = Nodes(leaders)
    producer._sender.client = nodes
    if idempotent:
        producer._txn_manager.set_pid_and_epoch(1, 0)
    await producer._sender.start()
    yield Desk(producer, nodes)
    await producer.end(1)
    producer.fail_all(KafkaError("the test is over"))
    await settled()
    gc.collect()
    assert unnoticed == []


@in_virtual_time
async def test_what_is_handed_over_together_goes_in_one_request_a_node() -> None:
    async with sending({0: 1, 1: 2, 2: 1}) as desk:
        sent = [desk.hand_over(partition) for partition in (0, 1, 2)]
        assert not desk.nodes.requests
        desk.producer.flush()
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(1, [0, 2]), (2, [1])]
        desk.nodes.answer()
        desk.nodes.answer()
        await asyncio.gather(*sent)


@in_virtual_time
async def test_a_node_that_owes_an_answer_gets_the_next_request_after_it() -> None:
    async with sending({0: 1, 1: 1, 2: 2}) as desk:
        desk.send(0)
        await until(lambda: desk.nodes.requests)
        later, elsewhere = desk.send(1), desk.send(2)
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(1, [0]), (2, [2])]
        desk.nodes.answer()
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(2, [2]), (1, [1])]
        desk.nodes.answer()
        desk.nodes.answer()
        await asyncio.gather(later, elsewhere)


@in_virtual_time
async def test_a_node_with_much_to_do_has_one_request_to_go_on_with() -> None:
    async with sending(dict.fromkeys(range(5), 1)) as desk:
        sent = [desk.hand_over(partition, LARGE_REQUEST_BYTES) for partition in range(4)]
        desk.producer.flush()
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(1, [0, 2]), (1, [1, 3])]
        sent.append(desk.send(4, LARGE_REQUEST_BYTES))
        await settled()
        assert len(desk.nodes.requests) == 2
        desk.nodes.answer()
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(1, [1, 3]), (1, [4])]
        desk.nodes.answer()
        await asyncio.gather(*sent[:4])
        sent += [desk.hand_over(partition, LARGE_REQUEST_BYTES) for partition in (0, 1)]
        desk.producer.flush()
        await until(lambda: len(desk.nodes.requests) == 2)
        assert desk.nodes.requests == [(1, [4]), (1, [0, 1])]
        desk.nodes.answer()
        desk.nodes.answer()
        await asyncio.gather(*sent)


@in_virtual_time
async def test_behind_a_small_request_even_much_waits() -> None:
    async with sending(dict.fromkeys(range(4), 1)) as desk:
        sent = [desk.send(0, LARGE_REQUEST_BYTES), desk.send(1)]
        await until(lambda: len(desk.nodes.requests) == 2)
        sent.append(desk.send(2, LARGE_REQUEST_BYTES))
        desk.nodes.answer()
        await sent[0]
        await settled()
        assert desk.nodes.requests == [(1, [1])]
        desk.nodes.answer()
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [2])]
        desk.nodes.answer()
        await asyncio.gather(*sent)


@in_virtual_time
async def test_while_a_node_can_not_be_reached_no_more_requests_are_tried_than_it_may_owe() -> None:
    async with sending(dict.fromkeys(range(6), 1)) as desk:
        sent = [desk.hand_over(partition, LARGE_REQUEST_BYTES) for partition in range(6)]
        desk.producer.flush()
        for _ in range(3):
            await until(lambda: len(desk.nodes.requests) == 2)
            desk.nodes.answer(KafkaConnectionError("away"))
            desk.nodes.answer(KafkaConnectionError("away"))
        while not all(future.done() for future in sent):
            await until(lambda: desk.nodes.requests)
            assert len(desk.nodes.requests) <= 2
            desk.nodes.answer()
            await settled()


@in_virtual_time
async def test_a_node_is_connected_to_when_there_is_something_for_it() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        desk.nodes.connected.clear()
        first = desk.send(0)
        second = desk.send(1)
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [0])]
        assert desk.nodes.attempts == 1
        desk.nodes.answer()
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await asyncio.gather(first, second)


@in_virtual_time
async def test_a_node_that_can_not_be_connected_to_is_tried_again_now_and_then() -> None:
    async with sending({0: 1}) as desk:
        desk.nodes.connected.clear()
        desk.nodes.reachable.clear()
        sent = desk.send(0)
        await asyncio.sleep(10 * RETRY_SECONDS)
        assert 8 <= desk.nodes.attempts <= 11
        desk.nodes.reachable.add(1)
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await sent


@in_virtual_time
async def test_what_could_not_be_written_is_written_to_the_next_connection() -> None:
    async with sending({0: 1}) as desk:
        desk.nodes.broken[1] = KafkaConnectionError("reset")
        sent = desk.send(0)
        await settled()
        desk.nodes.broken.clear()
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await sent


@in_virtual_time
async def test_a_broker_that_speaks_no_known_version_fails_the_batch() -> None:
    async with sending({0: 1}) as desk:
        desk.nodes.broken[1] = IncompatibleBrokerVersion("too old")
        with pytest.raises(IncompatibleBrokerVersion):
            await desk.send(0)


@in_virtual_time
async def test_after_a_crash_while_writing_nothing_more_is_written() -> None:
    async with sending({0: 1, 1: 2, 2: 3}) as desk:
        desk.nodes.connected.discard(3)
        desk.nodes.broken[1] = CRASH
        sent = [desk.hand_over(partition) for partition in (2, 0, 1)]
        desk.producer.flush()
        for future in sent:
            with pytest.raises(KafkaError, match="sender crashed"):
                await future
        await until(lambda: 3 in desk.nodes.connected)
        await settled()
        assert not desk.nodes.requests


@in_virtual_time
async def test_a_partition_has_one_unanswered_batch() -> None:
    async with sending({0: 1}) as desk:
        sent = desk.send(0)
        with pytest.raises(RuntimeError, match="partition 0 of 't' has a batch that is not answered"):
            desk.hand_over(0)
        desk.nodes.answer()
        await sent
        again = desk.send(0)
        desk.nodes.answer()
        await again


@in_virtual_time
async def test_without_idempotence_a_batch_is_tried_for_a_limited_time() -> None:
    async with sending({0: 1}, idempotent=False) as desk:
        began, sent = now(), desk.send(0)
        while not sent.done():
            await until(lambda: sent.done() or desk.nodes.requests)
            if desk.nodes.requests:
                await asyncio.sleep(REQUEST_TIMEOUT_MS / 1000 / 10)
                desk.nodes.answer(RequestTimedOutError())
                await settled()
        assert REQUEST_TIMEOUT_MS / 1000 <= now() - began <= REQUEST_TIMEOUT_MS / 1000 * 1.3
        with pytest.raises(RequestTimedOutError):
            await sent


@in_virtual_time
async def test_a_large_batch_that_waits_for_its_next_attempt_keeps_nothing_else_waiting() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        first = desk.send(0, LARGE_REQUEST_BYTES)
        await until(lambda: desk.nodes.requests)
        refused = desk.nodes.answer(NOT_LEADER)
        await settled()
        second = desk.send(1)
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [1])]
        desk.nodes.answer()
        await second
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.answer() == refused
        await first


@in_virtual_time
async def test_a_batch_is_sent_again_as_it_was_after_an_error_that_passes() -> None:
    async with sending({0: 1}) as desk:
        sent = desk.send(0)
        await until(lambda: desk.nodes.requests)
        first = desk.nodes.answer(NOT_LEADER)
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.asked
        again = desk.nodes.answer(KafkaConnectionError("closed"))
        await until(lambda: desk.nodes.requests)
        assert first == again == desk.nodes.answer()  # with its sequence number: Kafka knows it if it has it already
        await sent


@in_virtual_time
async def test_sequence_numbers_go_on_with_each_batch() -> None:
    def sequence(batch: bytes) -> int:
        return int.from_bytes(batch[53:57], "big")  # https://kafka.apache.org/documentation/#recordbatch

    async with sending({0: 1}) as desk:
        for expected in range(3):
            sent = desk.send(0)
            await until(lambda: desk.nodes.requests)
            assert sequence(desk.nodes.answer()[0]) == expected
            await sent


@in_virtual_time
async def test_an_error_that_stays_is_the_batchs_alone() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        refused = desk.send(0)
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer(TOO_LARGE)
        with pytest.raises(for_code(TOO_LARGE)):
            await refused
        sent = desk.send(1)
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await sent


@in_virtual_time
async def test_a_partition_without_a_leader_holds_up_nobody_and_goes_when_it_has_one() -> None:
    async with sending({0: None, 1: 1, 2: 1}) as desk:
        waiting, sent = desk.send(0), desk.send(1)
        await until(lambda: desk.nodes.requests and desk.nodes.asked)
        desk.nodes.answer()
        await sent
        sent = desk.send(2)
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await sent
        assert not waiting.done()
        await settled()  # nothing is on its way whose answer would send it
        desk.nodes.leaders[0] = 1
        desk.nodes.metadata.set_result(True)
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await waiting


@in_virtual_time
async def test_a_crash_fails_every_batch_and_nothing_more_is_taken() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        sent = desk.send(0)
        await until(lambda: desk.nodes.requests)
        queued = desk.send(1)
        desk.nodes.answer(CRASH)
        for future in (sent, queued):
            with pytest.raises(KafkaError, match=r"sender crashed: RuntimeError\('a bug'\)"):
                await future
        with pytest.raises(KafkaError, match="sender crashed"):
            desk.send(1)


@in_virtual_time
@pytest.mark.parametrize("error", [CRASH, KafkaConnectionError("no metadata")])
async def test_no_metadata_ever_again_fails_every_batch(error: Exception) -> None:
    async with sending({0: None}) as desk:
        sent = desk.send(0)
        await until(lambda: desk.nodes.asked)
        desk.nodes.metadata.set_exception(error)
        with pytest.raises(KafkaError, match="a bug" if error is CRASH else "no metadata"):
            await sent
        with pytest.raises(KafkaError):
            desk.send(0)


@in_virtual_time
async def test_as_long_as_there_is_no_leader_it_asks_for_one_now_and_then() -> None:
    async with sending({0: None}) as desk:
        waiting = desk.send(0)
        end = now() + 10
        while now() < end:
            if not desk.nodes.metadata.done():
                desk.nodes.metadata.set_result(True)
            await asyncio.sleep(0.001)
        assert 10 / RETRY_SECONDS / 2 < desk.nodes.asked <= 10 / RETRY_SECONDS + 1
        asked = desk.nodes.asked
        await until(lambda: desk.nodes.asked > asked)
        desk.nodes.leaders[0] = 1
        desk.nodes.metadata.set_result(True)
        await until(lambda: desk.nodes.requests, within=RETRY_SECONDS)
        desk.nodes.answer()
        await waiting


@in_virtual_time
async def test_a_batch_that_waited_too_long_for_a_leader_fails() -> None:
    async with sending({0: None}) as desk:
        desk.producer._sender._request_timeout_ms = -1
        with pytest.raises(NotLeaderForPartitionError):
            await desk.send(0)


@in_virtual_time
async def test_of_a_request_only_what_failed_is_sent_again() -> None:
    async with sending({0: 1, 1: 1, 2: 1}) as desk:
        again, refused, sent = (desk.hand_over(partition) for partition in (0, 1, 2))
        desk.producer.flush()
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer_each({0: NOT_LEADER, 1: TOO_LARGE, 2: 0})
        await sent
        with pytest.raises(for_code(TOO_LARGE)):
            await refused
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [0])]
        desk.nodes.answer()
        await again


@in_virtual_time
async def test_what_a_node_refuses_for_now_holds_up_no_other_partition_of_it() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        again = await desk.queued_again(0)
        other = desk.send(1)
        assert desk.nodes.requests == [(1, [1])]
        desk.nodes.answer()
        await other
        desk.nodes.learnt.set()
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [0])]
        desk.nodes.answer()
        await again


@in_virtual_time
async def test_a_node_that_does_not_answer_is_tried_by_one_request() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        first = desk.send(0)
        desk.nodes.learnt.clear()
        desk.nodes.answer(KafkaConnectionError("closed"))
        second = desk.send(1)
        await asyncio.sleep(2 * RETRY_SECONDS)
        assert not desk.nodes.requests
        desk.nodes.learnt.set()
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(1, [0, 1])]
        desk.nodes.answer()
        await asyncio.gather(first, second)


@in_virtual_time
async def test_a_partition_that_begins_anew_goes_to_no_other_node_meanwhile() -> None:
    """Its first request would end the exclusion that protects the second."""
    async with sending({0: 1, 1: 2}) as desk:
        again = await desk.queued_again(0)
        desk.nodes.leaders[0] = 2
        other = desk.send(1)
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(2, [1])]
        desk.nodes.answer()
        await other
        desk.nodes.learnt.set()
        await until(lambda: desk.nodes.requests)
        assert desk.nodes.requests == [(2, [0])]
        desk.nodes.answer()
        await again


@in_virtual_time
async def test_a_batch_that_the_answer_does_not_mention_fails() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        forgotten, sent = desk.hand_over(0), desk.hand_over(1)
        desk.producer.flush()
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer_each({1: 0, 9: 0})
        await sent
        with pytest.raises(KafkaError, match="says nothing of partition 0 of 't'"):
            await forgotten


@in_virtual_time
async def test_a_batch_that_was_handed_over_takes_no_more_records() -> None:
    async with sending({0: 1}) as desk:
        batch = desk.producer.create_batch()
        batch.append(timestamp=1, key=None, value=b"x")
        sent = hand_over(desk.producer, batch, "t", 0)
        assert batch.append(timestamp=1, key=None, value=b"too late") is None
        desk.producer.flush()
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await sent


@in_virtual_time
async def test_after_a_crash_nothing_more_is_sent() -> None:
    async with sending({0: 1, 1: 2, 2: 2}) as desk:
        sent = [desk.send(0), desk.send(1)]
        await until(lambda: len(desk.nodes.requests) == 2)
        sent.append(desk.send(2))
        with capture_logs() as logs:
            desk.nodes.answer(CRASH)
            await settled()
            desk.nodes.answer()
            await settled()
        assert not desk.nodes.requests
        assert [(entry["event"], entry["exc_info"]) for entry in logs] == [("kafka_sender_crashed", CRASH)]
        assert all(isinstance(future.exception(), KafkaError) for future in sent)


@in_virtual_time
async def test_a_crash_behind_an_answer_fails_what_waits() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        sent = desk.send(0)
        await until(lambda: desk.nodes.requests)
        queued = desk.send(1)
        del desk.nodes.leaders[1]
        desk.nodes.answer()
        await sent
        with pytest.raises(KafkaError, match="sender crashed: KeyError"):
            await queued


@in_virtual_time
async def test_a_crash_behind_a_lost_connection_fails_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sending({0: 1, 1: 1}) as desk:
        sent = [desk.send(0), desk.send(1)]
        monkeypatch.setattr(desk.nodes, "force_metadata_update", lambda: desk.nodes.leaders[9])
        desk.nodes.answer(KafkaConnectionError("closed"))
        for future in sent:
            with pytest.raises(KafkaError, match="sender crashed: KeyError"):
                await future


@in_virtual_time
async def test_a_connection_lost_just_before_the_end_has_nothing_sent_again() -> None:
    async with sending({0: 1}) as desk:
        sent = desk.send(0)
        desk.nodes.answer(KafkaConnectionError("closed"))
        await desk.producer.end(1)
        await asyncio.sleep(10 * RETRY_SECONDS)
        assert not desk.nodes.asked
        assert not desk.nodes.requests
        assert not desk.producer._sender._waits
        assert not sent.done()


@in_virtual_time
async def test_while_a_connection_is_being_closed_nothing_is_sent_over_it() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        sent, waiting = desk.send(0), desk.send(1)
        asker = desk.nodes.owed[0][2]
        desk.nodes.answer(RequestTimedOutError())
        assert asker.done(), "or the connection would tell it again when it closes"
        assert not desk.nodes.requests
        await until(lambda: desk.nodes.requests)
        desk.nodes.answer()
        await asyncio.gather(sent, waiting)


@in_virtual_time
async def test_the_next_request_leaves_where_the_answer_is_read() -> None:
    """And not a turn of the event loop later, in which a node would have nothing to do."""
    async with sending({0: 1, 1: 1}) as desk:
        sent, waiting = desk.send(0), desk.send(1)
        desk.nodes.answer()
        assert sent.done()
        assert desk.nodes.requests == [(1, [1])]
        desk.nodes.answer()
        await waiting


@in_virtual_time
async def test_a_batch_that_waits_for_its_next_attempt_fails_with_the_others() -> None:
    async with sending({0: 1, 1: 1}) as desk:
        first = await desk.queued_again(0)
        desk.producer.fail_all(KafkaError("abandoned"))
        with pytest.raises(KafkaError, match="abandoned"):
            await first


@in_virtual_time
async def test_its_end_gives_up_what_is_on_its_way_and_sends_nothing_more() -> None:
    async with sending({0: 1, 1: 2, 2: 1, 3: 3}) as desk:
        futures = [desk.send(0), desk.send(1)]
        await until(lambda: len(desk.nodes.requests) == 2)
        futures += [desk.send(2), desk.hand_over(3)]
        began = now()
        await desk.producer.end(1)
        assert now() == began
        assert not desk.producer._sender._waits
        assert all(asker.done() for _, _, asker in desk.nodes.owed)
        desk.nodes.owed.clear()
        desk.producer.flush()
        await settled()
        assert not desk.nodes.requests
        assert not any(future.done() for future in futures)  # `fail_all` is another's


@in_virtual_time
async def test_a_producer_that_never_started_can_be_ended() -> None:
    producer = LeanProducer(bootstrap_servers="k:1", acks=-1, retry_backoff_ms=100)
    producer._closed = True
    await producer.end(1)
