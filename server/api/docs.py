"""The page that shows the OpenAPI document, with all it needs from here: it works where there is no internet."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

from server.api.problems import ProblemError

# Of this package only the files are used; it is kept up to date with Swagger UI.
_FOLDER = Path(str(files("fastapi_offline").joinpath("static")))
_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"})
# The page has a script and styles within it, and Swagger UI has pictures as data: URLs.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)


def documentation(title: str) -> APIRouter:
    """Make the routes of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def page() -> Response:
        # Relative, so that it also works behind a proxy that puts a prefix before all paths.
        html = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
        html.headers["content-security-policy"] = _POLICY
        return html

    @router.get("/docs/{name}")
    async def file(name: str) -> Response:
        if name not in _FILES:
            raise ProblemError("not-found")
        return FileResponse(_FOLDER / name)

    return router
