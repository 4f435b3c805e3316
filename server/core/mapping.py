"""What a user asks for: the mapping object of the YAML file and of the API, and all its validation."""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from server.core.template import TemplateError, compile_template
from server.core.topics import client_id_error, filter_error, kafka_topic_error, uncovered

DEFAULT_BUFFER_BYTES = 32 * 1024 * 1024
# 65,535 is the protocol's default, so the codec leaves it out, and Mosquitto then keeps only 20 in flight.
DEFAULT_RECEIVE_MAXIMUM = 65_534
# Finding the filters that others cover compares each with each.
MAX_FILTERS = 256


def _not_a_boolean(value: Any) -> Any:
    # To Python true is 1, and to pydantic so is it one of these.
    if isinstance(value, bool):
        raise ValueError("should be 0, 1 or 2")  # noqa: TRY004 - pydantic needs ValueError
    return value


QoS = Annotated[Literal[0, 1, 2], BeforeValidator(_not_a_boolean)]


class OnPoison(StrEnum):
    """What to do with a message Kafka refuses for its own sake."""

    STOP = "stop"
    DROP = "drop"
    DEAD_LETTER = "dead_letter"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MqttSource(_Spec):
    """Where a mapping's messages come from."""

    topic: str | list[str] = Field(description="one MQTT topic filter, or several")
    qos: QoS = 1
    client_id: str | None = Field(None, description="instead of `{mqtt.client_id}-{name}`")
    receive_maximum: int = Field(DEFAULT_RECEIVE_MAXIMUM, ge=1, le=DEFAULT_RECEIVE_MAXIMUM)

    @field_validator("topic")
    @classmethod
    def _valid_filters(cls, topic: str | list[str]) -> str | list[str]:
        if not topic:
            raise ValueError("at least one topic filter is needed")
        if isinstance(topic, list) and len(topic) > MAX_FILTERS:
            raise ValueError(f"at most {MAX_FILTERS} topic filters are possible, these are {len(topic)}")
        for topic_filter in [topic] if isinstance(topic, str) else topic:
            if error := filter_error(topic_filter):
                raise ValueError(f"{topic_filter!r}: {error}")
        return topic

    @field_validator("client_id")
    @classmethod
    def _valid_client_id(cls, client_id: str | None) -> str | None:
        if client_id is not None and (error := client_id_error(client_id)):
            raise ValueError(error)
        return client_id

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters to subscribe: without those another filter covers."""
        return uncovered([self.topic] if isinstance(self.topic, str) else self.topic)


class KafkaTarget(_Spec):
    """Where a mapping's records go to."""

    topic: str
    key: str | None = "{topic}"
    headers: dict[str, str] = Field(default_factory=dict)

    @field_validator("topic")
    @classmethod
    def _valid_topic(cls, topic: str) -> str:
        if error := kafka_topic_error(topic):
            raise ValueError(error)
        return topic

    @field_validator("key")
    @classmethod
    def _valid_key(cls, key: str | None) -> str | None:
        return None if key is None else _checked_template(key)

    @field_validator("headers")
    @classmethod
    def _valid_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not name:
                raise ValueError("a header name must not be empty")
            _check_encodable(name)
            _checked_template(value)
        return headers


def _check_encodable(text: str) -> None:
    # JSON's "\\ud800" is half a character; it would only fail later, at every message.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None


def _checked_template(source: str) -> str:
    _check_encodable(source)
    try:
        compile_template(source, "")
    except TemplateError as error:
        raise ValueError(str(error)) from None
    return source


def effective_client_id(base: str, name: str, own: str | None) -> str:
    """The MQTT client id of the mapping `name`, "" for none; `own` is its `mqtt.client_id`, `base` the connection's."""
    if own is not None:
        return own
    return f"{base}-{name}" if base else ""


class Mapping(_Spec):
    """One mapping: MQTT topic filters to a Kafka topic."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    paused: bool = False
    mqtt: MqttSource
    kafka: KafkaTarget
    wrap_as_json: bool = False
    on_poison: OnPoison = OnPoison.STOP
    dead_letter_topic: str | None = Field(None, validate_default=True)
    buffer_bytes: int = Field(DEFAULT_BUFFER_BYTES, ge=1024, description="memory for what is in flight, bytes")

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
            raise ValueError("a name must not contain control characters")
        if name in {".", ".."}:
            raise ValueError("a name must not be '.' or '..': web clients take them out of URLs")
        return name

    # Not a rule of the whole model, which would be checked only once every field is right.
    @field_validator("dead_letter_topic")
    @classmethod
    def _valid_dead_letter_topic(cls, topic: str | None, info: ValidationInfo) -> str | None:
        target: KafkaTarget | None = info.data.get("kafka")
        if topic is None:
            if info.data.get("on_poison") is OnPoison.DEAD_LETTER:
                raise ValueError("on_poison: dead_letter needs a dead_letter_topic")
        elif error := kafka_topic_error(topic):
            raise ValueError(error)
        elif target is not None and topic == target.topic:
            raise ValueError(f"must differ from kafka.topic, both are {topic!r}")
        return topic

    def client_id(self, base: str) -> str:
        """The MQTT client id of this mapping's session; "" means the session is not durable.

        `base` is the connection's `mqtt.client_id`. An empty id of the mapping's own is also not durable.
        """
        return effective_client_id(base, self.name, self.mqtt.client_id)

    def document(self) -> dict[str, Any]:
        """The mapping as plain data, as the API shows it and the store keeps it."""
        return self.model_dump(mode="json")
