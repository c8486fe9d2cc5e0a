"""The web application: the page, the realtime socket and the HTTP endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from vita_audio.serve.demo import Demo
from vita_audio.serve.events import EventError
from vita_audio.serve.guard import LOCAL_HOSTS, Guard
from vita_audio.serve.openai_http import add_endpoints
from vita_audio.serve.realtime import RealtimeSession
from vita_audio.serve.reply import printable
from vita_audio.serve.service import Service

STATIC = Path(__file__).parent / "static"
POLICY = {
    "Content-Security-Policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    )
}


class PageFiles(StaticFiles):
    """The files of the page, all under its policy, since one of them is the page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(POLICY)
        return response


def create_app(service: Service, *, hosts: Sequence[str] = LOCAL_HOSTS, token: str | None = None) -> FastAPI:
    """Make the application; `hosts` and `token` as in `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.scheduler.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, token=token, limits=service.limits, note_error=service.note_error)
    app.mount("/static", PageFiles(directory=STATIC))
    add_endpoints(app, service)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=POLICY)

    @app.get("/demo")
    async def about(model: str | None = None) -> Demo:
        return service.demo(model or service.name)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": service.name}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        protocols = websocket.scope.get("subprotocols", [])
        await websocket.accept("realtime" if "realtime" in protocols else None)
        model = websocket.query_params.get("model")
        session = RealtimeSession(service, websocket, model if model in service.models else service.name)
        if error := refusal(service, websocket):
            return await session.refuse(error)
        with service.sessions.taken(websocket.scope):
            await session.run()

    return app


def refusal(service: Service, websocket: WebSocket) -> EventError | None:
    """Return why a connection is not served, or None."""
    if message := service.sessions.refusal(websocket.scope, "sessions"):
        return EventError(message, "too_many_sessions")
    for name, value in websocket.query_params.items():
        if name != "model" or value not in service.models:
            rule = f"the only query parameter is model; {service.model_rule}"
            message = f"{rule}, got {printable(f'{name}={value}')!r}"
            return EventError(message, "invalid_query", "model" if name == "model" else None)
    return None
