"""What a message would become, without sending anything."""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.api.access import READ
from server.api.bodies import read_json
from server.api.problems import documented
from server.api.services import Provided
from server.api.validation import parse
from server.core.mapping import Mapping, OnPoison, QoS
from server.core.record import compile_record, size_of
from server.core.template import NotMappableError
from server.core.topics import matches, mqtt_string_error

router = APIRouter(tags=["mappings"])


class PreviewMessage(BaseModel):
    """An MQTT message. Without a payload it is empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    payload: str | None = Field(None, description="as text; or use payload_base64")
    payload_base64: str | None = None
    qos: QoS = 0
    retain: bool = False
    properties: dict[str, Any] = Field(default_factory=dict, description="MQTT 5 properties; no template uses them yet")

    @field_validator("topic")
    @classmethod
    def _publishable(cls, topic: str) -> str:
        if not topic:
            raise ValueError("a message's topic must not be empty")
        if "#" in topic or "+" in topic:
            raise ValueError("a message's topic can't have wildcards")
        if error := mqtt_string_error(topic, "a message's topic"):
            raise ValueError(error)
        return topic

    @field_validator("payload_base64")
    @classmethod
    def _decodable(cls, payload: str | None) -> str | None:
        if payload is not None:
            try:
                b64decode(payload, validate=True)
            except Base64Error as error:
                raise ValueError(f"not base64: {error}") from None
        return payload

    @model_validator(mode="after")
    def _one_payload(self) -> Self:
        if self.payload is not None and self.payload_base64 is not None:
            raise ValueError("give payload or payload_base64, not both")
        return self

    @property
    def content(self) -> bytes:
        """The payload's bytes."""
        return b64decode(self.payload_base64) if self.payload_base64 is not None else (self.payload or "").encode()


class PreviewRequest(BaseModel):
    """A mapping, which need not exist, and a message for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mapping: Mapping
    message: PreviewMessage


class PreviewRecord(BaseModel):
    """A Kafka record."""

    topic: str
    key: str | None
    headers: dict[str, str]
    value: str | None = Field(description="null if the value is not UTF-8")
    value_base64: str
    size: int = Field(description="bytes that Kafka counts against its limit, at most")


class Poison(BaseModel):
    """Why the message can't become a record."""

    reason: str
    detail: str


class Preview(BaseModel):
    """The record, or why there is none."""

    matched: bool = Field(description="whether one of the mapping's topic filters matches the message's topic")
    why: str | None = Field(None, description="why it did not match")
    record: PreviewRecord | None = None
    partition: Annotated[
        int | None, Field(description="always null: it depends on how many partitions the topic has")
    ] = None
    poison: Poison | None = None
    on_poison: OnPoison | None = Field(None, description="what the mapping does with poison")


@router.post(
    "/preview",
    responses=documented("malformed-json", "body-too-large", "body-too-slow", "unsupported-media-type", "invalid"),
    dependencies=[READ],
)
async def preview(request: Request, services: Provided) -> Preview:
    """Tell which Kafka record a message would become, or why it would not; nothing is sent or stored."""
    asked = parse(PreviewRequest, await read_json(request))
    mapping, message = asked.mapping, asked.message
    # Not mqtt.filters: leaving out the covered ones takes quadratic time and changes no answer.
    filters = [mapping.mqtt.topic] if isinstance(mapping.mqtt.topic, str) else mapping.mqtt.topic
    if not any(matches(topic_filter, message.topic) for topic_filter in filters):
        wanted = ", ".join(repr(topic_filter) for topic_filter in filters)
        return Preview(matched=False, why=f"the topic {message.topic!r} matches none of {wanted}")
    try:
        record = _record(mapping, message)
    except NotMappableError as error:
        return _poison(mapping, "not_mappable", str(error))
    limit = services.runtime.record_limit()
    if limit is not None and record.size > limit:
        detail = f"the record has {record.size} bytes, message.max.bytes allows {limit}"
        return _poison(mapping, "message_too_large", detail)
    return Preview(matched=True, record=record)


def _poison(mapping: Mapping, reason: str, detail: str) -> Preview:
    return Preview(matched=True, poison=Poison(reason=reason, detail=detail), on_poison=mapping.on_poison)


def _record(mapping: Mapping, message: PreviewMessage) -> PreviewRecord:
    route = compile_record(mapping).route(message.topic)
    value = route.value(message.content)
    return PreviewRecord(
        topic=mapping.kafka.topic,
        key=None if route.key is None else route.key.decode(),
        headers={name: content.decode() for name, content in route.headers},
        value=_text(value),
        value_base64=b64encode(value).decode(),
        size=size_of(route.key, len(value), route.headers),
    )


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
