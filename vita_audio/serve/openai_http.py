"""HTTP endpoints that OpenAI's clients know: models, speech, transcriptions and chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Send

from vita_audio.serve.audio import read_audio, to_pcm16, wav_header
from vita_audio.serve.chat import ChatRequest, complete, items_of, stream_events
from vita_audio.serve.conversation import Conversation
from vita_audio.serve.events import Name, Strict
from vita_audio.serve.records import Record
from vita_audio.serve.reply import describe, error_json, printable
from vita_audio.serve.scheduler import BusyError, GenerationError, Piece
from vita_audio.serve.service import Service
from vita_audio.serve.speech import IncompleteError, speak
from vita_audio.serve.transcription import transcribe
from vita_audio.serve.words import has_words

T = TypeVar("T")


class SpeechRequest(Strict):
    model: Name
    input: str
    voice: Literal["default"] = "default"
    response_format: Literal["wav", "pcm"] = "wav"
    stream_format: Literal["audio"] = "audio"


class SoundResponse(StreamingResponse):
    """Streams sound. If it breaks off, the connection is closed before the response ends, and clients see an error."""

    def __init__(self, service: Service, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._service = service

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except IncompleteError:
            self._service.note_error("max_new_tokens")
        except (BusyError, GenerationError) as error:
            self._service.note_error(error_json(error)["code"])


def add_endpoints(app: FastAPI, service: Service) -> None:
    """Add all endpoints, and the form of their errors."""
    add_errors(app, service)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await model(name) for name in service.models]}

    @app.get("/v1/models/{name}")
    async def model(name: Name) -> dict[str, Any]:
        check_model(service, name)
        return {"id": name, "object": "model", "created": 0, "owned_by": "vita_audio"}

    @app.post("/v1/audio/speech")
    async def speech(request: Request, body: SpeechRequest) -> Response:
        check_model(service, body.model)
        service.check_text(body.input)
        if not has_words(body.input):
            raise ValueError("input: text to speak must have a letter or digit")
        pieces = await while_connected(request, started(speak(service, body.input, body.model)))
        header = wav_header() if body.response_format == "wav" else b""
        return SoundResponse(service, sound(pieces, header), media_type=f"audio/{body.response_format}")

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        request: Request,
        file: UploadFile,
        model: Annotated[Name, Form()],
        response_format: Annotated[Literal["json", "text"], Form()] = "json",
    ) -> Response:
        form = await request.form()
        if unknown := form.keys() - {"file", "model", "response_format"}:
            raise ValueError(f"{printable(min(unknown))}: not supported")
        check_model(service, model)
        wave = await asyncio.to_thread(read_audio, await file.read(), service.limits.max_audio_seconds)
        text = await while_connected(request, transcribe(service, wave, Record("transcriptions"), model=model))
        return PlainTextResponse(text) if response_format == "text" else JSONResponse({"text": text})

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        check_model(service, body.model)
        conversation, record = Conversation(await asyncio.to_thread(items_of, body, service)), Record("chat")
        pieces = service.pieces(service.submit(conversation, record, **body.options), record)
        if body.stream:
            pieces = await while_connected(request, started(pieces))
            events = stream_events(body, service, record, pieces)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await while_connected(request, complete(body, record, pieces)))


def check_model(service: Service, model: str) -> None:
    """Check the model that a request names. Raises: HTTPException for an unknown one."""
    if model not in service.models:
        raise HTTPException(404, f"{service.model_rule}, got {model!r}")


async def started(pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Wait for the first piece, so that errors before it are those of the request, and return all pieces."""
    early = []
    async for piece in pieces:
        early.append(piece)
        if isinstance(piece, Piece):
            break

    async def rest() -> AsyncIterator[Any]:
        async with aclosing(pieces):
            for piece in early:
                yield piece
            async for piece in pieces:
                yield piece

    return rest()


async def sound(pieces: AsyncIterator[Any], header: bytes) -> AsyncIterator[bytes]:
    """Yield a header, then the sound of an answer as 16-bit PCM."""
    yield header
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Piece):
                yield to_pcm16(piece.chunk.wave)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await some work, and cancel it when the client leaves; the body of the request must have been read."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client has left")
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


def add_errors(app: FastAPI, service: Service) -> None:
    """Answer every error in the form that OpenAI's clients expect."""

    def respond(status: int, error: dict[str, Any]) -> JSONResponse:
        service.note_error(error["code"] or status)
        return JSONResponse({"error": error}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = first["loc"][1:]  # after the body
        if not place or first["type"] == "json_invalid":
            return respond(400, error_json(ValueError("the body must be a JSON object of type application/json")))
        param, message = describe(first, place)
        return respond(400, error_json(ValueError(message), param=param))

    @app.exception_handler(ValueError)
    async def wrong(request: Request, error: ValueError) -> JSONResponse:
        return respond(400, error_json(error))

    @app.exception_handler(GenerationError)
    async def failed(request: Request, error: GenerationError) -> JSONResponse:
        return respond(500, error_json(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return respond(429, error_json(error))

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return respond(error.status_code, error_json(ValueError(message), code=None))
