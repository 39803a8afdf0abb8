"""GET / and what the page is made of: static files of serving.page and the browser client, as they are in the package."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources

import msgspec
from fastapi import APIRouter, Request, Response

from schemas.features import FEATURES
from serving.api.problems import ProblemError
from serving.api.state import State

SCHEMAS: tuple[type, ...] = ()
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https:; connect-src 'self'; "
          "base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
"""The page runs its own files only; pictures of items may lie anywhere."""
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
          "svg": "image/svg+xml", "json": "application/json"}
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
           "Vary": "Accept-Encoding", "Cross-Origin-Opener-Policy": "same-origin"}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent: plain and gzipped, with its content type and the tag of its content."""

    plain: bytes
    packed: bytes
    kind: str
    tag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Asset:
        """The asset of a file of that name."""
        return cls(content, gzip.compress(content, 9, mtime=0), _KINDS[name.rpartition(".")[2]],
                   f'"{hashlib.sha256(content).hexdigest()[:16]}"')

    def answer(self, request: Request) -> Response:
        """200, or 304 when the browser has it already."""
        headers = {**_ALWAYS, "ETag": self.tag}
        if self.kind.startswith("text/html"):
            headers["Content-Security-Policy"] = POLICY
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        packs = "gzip" in request.headers.get("accept-encoding", "")
        if packs:
            headers["Content-Encoding"] = "gzip"
        return Response(self.packed if packs else self.plain, headers=headers, media_type=self.kind)


def assets() -> dict[str, Asset]:
    """Every file of the page by name, and ``features.json``: what each feature is."""
    files = {f.name: f.read_bytes() for f in resources.files("serving.page").iterdir() if f.name.rpartition(".")[2] in _KINDS}
    files["features.json"] = msgspec.json.encode({
        f.name: {"entity": f.entity, "source": f.source, "window_s": f.window, "ttl_s": f.ttl, "description": f.description}
        for f in FEATURES})
    return {name: Asset.of(name, content) for name, content in sorted(files.items())}


def router(state: State) -> APIRouter:
    """The routes of the page; anybody may read them, they hold nothing of users."""
    routes = APIRouter(include_in_schema=False)
    found = assets()
    client = Asset.of("client.js", resources.files("serving.clients").joinpath("client.js").read_bytes())

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return found["index.html"].answer(request)

    @routes.api_route("/client.js", methods=["GET", "HEAD"])
    async def script(request: Request) -> Response:
        return client.answer(request)

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def part(name: str, request: Request) -> Response:
        if name not in found:
            raise ProblemError(404, "the page has no such file")
        return found[name].answer(request)

    return routes
