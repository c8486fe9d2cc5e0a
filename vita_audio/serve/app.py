"""The web application: the page, the realtime socket and the HTTP endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from vita_audio.serve.demo import Demo
from vita_audio.serve.guard import LOCAL_HOSTS, Guard
from vita_audio.serve.openai_http import add_endpoints
from vita_audio.serve.realtime import EventError, RealtimeSession
from vita_audio.serve.reply import printable
from vita_audio.serve.service import Service

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"


def create_app(service: Service, *, hosts: Sequence[str] = LOCAL_HOSTS, token: str | None = None) -> FastAPI:
    """Make the application; `hosts` and `token` as in `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.scheduler.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, token=token, limits=service.limits, note_error=service.note_error)
    app.mount("/static", StaticFiles(directory=STATIC))
    add_endpoints(app, service)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

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
        if error := refusal(service, websocket.query_params):
            return await session.refuse(error)
        service.num_sessions += 1
        try:
            await session.run()
        finally:
            service.num_sessions -= 1

    return app


def refusal(service: Service, query: Mapping[str, str]) -> EventError | None:
    """Return why a connection with these parameters is not served, or None."""
    if service.num_sessions >= service.limits.max_sessions:
        return EventError("the server has too many sessions; try again later", "too_many_sessions")
    for name, value in query.items():
        if name != "model" or value not in service.models:
            rule = f"the only query parameter is model; {service.model_rule}"
            message = f"{rule}, got {printable(f'{name}={value}')!r}"
            return EventError(message, "invalid_query", "model" if name == "model" else None)
    return None
