"""Mapping names in URLs: percent-encoded, and free to contain "/", "?", "%" and anything else printable."""

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, unquote

from fastapi import Depends, Path, Request

from server.api.problems import ProblemError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

API = "/api/v1"
READING = frozenset({"GET", "HEAD", "OPTIONS"})  # the methods that change nothing (RFC 9110, 9.2.1)
_SAFE = "/%:@!$&'()*+,;=~"


class EncodedPaths:
    """ASGI middleware: routes see the path as it was sent, so that `a%2Fb` stays one segment."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Replace the decoded path, which has already lost the difference between "/" and "%2F"."""
        if scope["type"] == "http":
            raw = scope.get("raw_path")
            encoded = quote(scope["path"]) if raw is None else quote(raw, safe=_SAFE)
            # A copy: the server's access log encodes the path of its own scope once more.
            scope = {**scope, "path": encoded}
        await self._app(scope, receive, send)


def _decoded(
    name: Annotated[str, Path(description='percent-encoded; "/" is %2F', examples=["plant"])],
) -> str:
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise ProblemError("mapping-not-found", f"{name} is not percent-encoded UTF-8") from None


MappingName = Annotated[str, Depends(_decoded)]


def mapping_url(request: Request, name: str) -> str:
    """The path of a mapping, as a client must send it."""
    # "." and ".." are the only segments a client would resolve itself, and quote() leaves dots alone.
    segment = name.replace(".", "%2E") if name in {".", ".."} else quote(name, safe="")
    return f"{request.scope.get('root_path', '')}{API}/mappings/{segment}"
