"""What is published: how many messages, how large, to which topics, how fast, by how many publishers."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Workload:
    """The messages of one measurement, numbered from 0.

    Message n goes to topic n modulo `topics` and is sent by publisher n modulo `publishers`; `topics` is a multiple of
    `publishers`, so a topic has one publisher and what is in order there is well defined.

    `rate` is messages a second of all publishers together, None: as fast as the broker takes them. After `seconds`, if
    given, publishers stop even if they have not sent all `messages`.

    Raises:
        ValueError: a number is not positive, the topics can't be shared out, or there is no such QoS.
    """

    messages: int
    size: str = "200"
    topics: int = 100
    qos: int = 1
    publishers: int = 1
    rate: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if min(self.messages, self.topics, self.publishers) < 1 or (self.rate is not None and self.rate <= 0):
            raise ValueError("there must be a message, a topic, a publisher and, if any, a rate above 0")
        if self.topics % self.publishers:
            raise ValueError(f"{self.topics} topics can't be shared out to {self.publishers} publishers")
        if self.qos not in {0, 1, 2}:
            raise ValueError(f"there is no QoS {self.qos}")
        Sizes(self.size)

    def __str__(self) -> str:
        pace = "at full speed" if self.rate is None else f"at {self.rate:,.0f} a second"
        amount = f"{self.messages:,} messages" if self.seconds is None else f"{self.seconds:g} s of messages"
        return f"{amount} of {self.size} B, QoS {self.qos}, {self.topics:,} topics, {self.publishers} publishers {pace}"

    def of_publisher(self, publisher: int) -> int:
        """How many messages this publisher sends."""
        return len(range(publisher, self.messages, self.publishers))


def topic_name(prefix: str, topic: int) -> str:
    """The MQTT topic with this index: three levels, as devices have them."""
    return f"{prefix}/{topic:06d}/value"
