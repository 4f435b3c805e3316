"""Web pages from elsewhere must not use the service through the browser of somebody who can reach it.

Where no token is needed, on loopback before the first one is made or with MKF_AUTH=none, who can reach it may do
everything, and a browser can be told by any page to send requests. It always says from which origin they come
(cross-site request forgery), and by which name it believes to call us (DNS rebinding: the page's own name, which now
leads to our address). Where tokens are needed such a page has none to send, and this is a second lock.
"""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from server.api.paths import READING
from server.api.problems import ProblemError
from server.core.address import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OwnOrigin:
    """ASGI middleware: refuses what a page from another origin sends, except for reading, which browsers rule.

    With `loopback_only` also whatever is sent to another name than loopback's.
    """

    def __init__(self, app: "ASGIApp", *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, or answer it with 403."""
        if scope["type"] == "http" and (refusal := self._refusal(scope["method"], Headers(scope=scope))):
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> ProblemError | None:
        # What is not a browser may send neither.
        host, origin = headers.get("host"), headers.get("origin")
        if self._loopback_only and host is not None and not is_loopback(_parts(f"//{host}")[1]):
            return ProblemError("foreign-host")
        if method not in READING and origin is not None and _parts(origin)[0] != (host or "").lower():
            return ProblemError("cross-site")
        return None


def _parts(url: str) -> tuple[str, str]:
    """Return host:port and host of a URL, in lower case; "" where it has none."""
    try:
        parts = urlsplit(url)
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        return "", ""
