"""Request bodies: their size, type and JSON, before anything is validated."""

import asyncio
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from server.api.problems import ProblemError

LIMIT_BYTES = 1024 * 1024
LIMIT_SECONDS = 10.0
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


async def read_json(request: Request, *accepted: str) -> Any:
    """The body of a request, as plain data.

    Raises:
        ProblemError: another content type than `accepted` (application/json by default), too large, too slow, or not
            JSON.
    """
    accepted = accepted or (JSON,)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in accepted:
        given = f"not {content_type}" if content_type else "and this request has no Content-Type"
        header = "accept-patch" if request.method == "PATCH" else "accept"
        raise ProblemError(
            "unsupported-media-type",
            f"the body must be {' or '.join(accepted)}, {given}",
            headers={header: ", ".join(accepted)},
        )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            body = await _read(request)
    except TimeoutError:
        # What comes of it later must not be taken for the next request.
        raise ProblemError("body-too-slow", headers={"connection": "close"}) from None
    try:
        # Unlike json.loads, this refuses lone surrogates (no name in SQL or MQTT can hold one) and deep nesting.
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError("malformed-json", f"the body is not JSON: {error}") from None


async def _read(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > LIMIT_BYTES:
        raise ProblemError("body-too-large")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LIMIT_BYTES:
            raise ProblemError("body-too-large")
    return bytes(body)


def merge_patched(target: Any, patch: Any) -> Any:
    """`target` after a JSON merge patch (RFC 7396); `target` itself is left as it is."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patched(merged.get(key), value)
    return merged
