"""As much of Kubernetes' API as `helm install --dry-run=server` asks: what kinds there are, and which objects."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = {
    "v1": ["Secret", "Service", "ConfigMap", "Pod"],
    "apps/v1": ["StatefulSet"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
}


def _plural(kind: str) -> str:
    return re.sub("y$", "ie", kind.lower()) + "s"


def _answer(path: str, objects: dict[str, Any]) -> dict[str, Any] | None:
    groups = [version.split("/")[0] for version in KINDS if "/" in version]
    fixed: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/v1", "version": "v1"}],
                    "preferredVersion": {"groupVersion": f"{group}/v1", "version": "v1"},
                }
                for group in groups
            ],
        },
        # Releases that helm has noted: none.
        "/api/v1/namespaces/default/secrets": {"kind": "SecretList", "apiVersion": "v1", "items": []},
    }
    for version, kinds in KINDS.items():
        fixed[f"/apis/{version}" if "/" in version else f"/api/{version}"] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": [
                {"name": _plural(kind), "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
                for kind in kinds
            ],
        }
    return fixed.get(path) or objects.get(path)


@contextmanager
def fake_cluster(folder: Path, *objects: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Serve the objects in the namespace "default"; gives the environment in which helm asks here."""
    there = {f"/api/v1/namespaces/default/{_plural(each['kind'])}/{each['metadata']['name']}": each for each in objects}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = _answer(self.path.partition("?")[0], there)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        kubeconfig = folder / "kubeconfig"
        url = f"http://127.0.0.1:{server.server_port}"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": url}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "", "namespace": "default"}}],
                    "current-context": "fake",
                }
            )
        )
        yield {"KUBECONFIG": str(kubeconfig), "HOME": str(folder), "PATH": "/usr/bin:/bin"}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
