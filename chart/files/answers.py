"""What `helm test` runs in a pod: URL answers that it is ready, and its API answers to TOKEN, if there is one."""

import os
import ssl
import sys
import urllib.error
import urllib.request

# The certificate is for the name that clients use, which need not be the Service's.
unverified = ssl._create_unverified_context()  # noqa: S323, SLF001


def status(path: str, token: str | None = None) -> int:
    """The HTTP status of a GET."""
    headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}
    try:
        request = urllib.request.Request(os.environ["URL"] + path, headers=headers)  # noqa: S310 - the chart's own URL
        with urllib.request.urlopen(request, timeout=10, context=unverified) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


token = os.environ.get("TOKEN")
wanted = {"/readyz": 200, "/api/v1/mappings": 200}
found = {path: status(path, token) for path in wanted}
if token:
    wanted["/api/v1/mappings without a token"] = 401
    found["/api/v1/mappings without a token"] = status("/api/v1/mappings")
print(found)  # noqa: T201 - the log of the pod
sys.exit(0 if found == wanted else f"wanted {wanted}")
