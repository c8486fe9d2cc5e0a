"""Events of a client of `/v1/realtime`, with OpenAI's names and fields; fields that are not here are refused."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from vita_audio.interleave import InterleavePlan
from vita_audio.serve.audio import OUTPUT_RATE, from_pcm16

MAX_MILLISECONDS = 24 * 60 * 60 * 1000
MIN_TEMPERATURE = 1e-3  # of sampling; scores divided by much less are infinite

Name = Annotated[str, Field(max_length=200)]  # of something, as clients call it; errors repeat it


class EventError(ValueError):
    """An event of the client cannot be carried out."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class Strict(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class InputFormat(Strict):
    """16-bit PCM; 16 kHz is an extension, which saves resampling."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24_000, 16_000] = 24_000


class OutputFormat(Strict):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24_000] = OUTPUT_RATE


class ServerVad(Strict):
    """Turn detection; None in its place means that the client commits its turns."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(0.5, gt=0.15, lt=1)
    prefix_padding_ms: int = Field(200, ge=0, le=2000)
    silence_duration_ms: int = Field(400, ge=0, le=5000)
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Strict):
    """The model itself transcribes the user's speech."""

    model: Name | None = None


class AudioInput(Strict):
    format: InputFormat = InputFormat()
    turn_detection: ServerVad | None = ServerVad()
    transcription: Transcription | None = None
    noise_reduction: None = None


class AudioOutput(Strict):
    format: OutputFormat = OutputFormat()
    voice: Literal["default"] = "default"


class Audio(Strict):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class VoicePrompt(Strict):
    """A recording of the voice that answers should have.

    Attributes:
        audio: Base64 of 16-bit PCM.
        rate: Hz.
    """

    audio: str
    rate: Literal[16_000, 24_000]


class Generation(Strict):
    """An extension: how answers are decoded; None is the model's default.

    Attributes:
        plan: Name or ratio of an interleave plan.
        acceptance: As in `generate`.
        temperature: 0 is greedy.
        voice_prompt: Only the speech decoder gets it; the language model never does.
    """

    plan: Name | None = None
    acceptance: float | None = Field(None, ge=0, le=1)
    temperature: float | None = Field(None, ge=0, le=2)
    voice_prompt: VoicePrompt | None = None

    @field_validator("plan")
    @classmethod
    def _check_plan(cls, plan: str | None) -> str | None:
        if plan is not None:
            InterleavePlan.parse(plan)
        return plan

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `Service.submit`."""
        options = {"plan": self.plan, "acceptance": self.acceptance, **sampling(self.temperature)}
        return {name: value for name, value in options.items() if value is not None}


def sampling(temperature: float | None) -> dict[str, Any]:
    """Return the arguments of `generate` for a temperature; None is the model's default, about 0 is greedy."""
    if temperature is None:
        return {}
    if temperature < MIN_TEMPERATURE:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}


class SessionConfig(Strict):
    type: Literal["realtime"] = "realtime"
    model: Name | None = None
    instructions: str = ""
    output_modalities: list[Literal["text", "audio"]] = Field(["audio"], min_length=1, max_length=1)
    max_output_tokens: int | Literal["inf"] = "inf"
    audio: Audio = Audio()
    generation: Generation = Generation()

    @property
    def is_spoken(self) -> bool:
        return self.output_modalities == ["audio"]

    @field_validator("max_output_tokens", mode="before")
    @classmethod
    def _check_length(cls, length: Any) -> int | str:
        if length != "inf" and (type(length) is not int or length < 1):
            raise ValueError("must be an integer of at least 1, or inf")
        return length

    def updated(self, changes: SessionConfig) -> SessionConfig:
        """Return the configuration with the fields that a client has set in `changes`."""
        return SessionConfig.model_validate(_merge(self.model_dump(), changes.model_dump(exclude_unset=True)))


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both_dicts = {key for key in old.keys() & new.keys() if isinstance(old[key], dict) and isinstance(new[key], dict)}
    return {**old, **new, **{key: _merge(old[key], new[key]) for key in both_dicts}}


class Content(Strict):
    type: Literal["input_text", "input_audio"]
    text: str | None = None
    audio: str | None = None


class NewItem(Strict):
    type: Literal["message"]
    role: Literal["user", "system"]
    content: list[Content] = Field(min_length=1, max_length=1)
    id: str | None = Field(None, max_length=64)


class ResponseOptions(Strict):
    output_modalities: list[Literal["text", "audio"]] | None = Field(None, min_length=1, max_length=1)


class ClientEvent(Strict):
    type: str
    event_id: Name | None = None


class SessionUpdate(ClientEvent):
    session: SessionConfig


class Append(ClientEvent):
    audio: str


class Truncate(ClientEvent):
    item_id: Name
    content_index: Literal[0]
    audio_end_ms: int = Field(ge=0, le=MAX_MILLISECONDS)


class ItemCreate(ClientEvent):
    item: NewItem
    previous_item_id: None = None


class ResponseCreate(ClientEvent):
    response: ResponseOptions = ResponseOptions()


class ResponseCancel(ClientEvent):
    response_id: Name | None = None


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": ClientEvent,
    "input_audio_buffer.clear": ClientEvent,
    "conversation.item.create": ItemCreate,
    "conversation.item.truncate": Truncate,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the fields of an event, of which `type` is a text. Raises: EventError."""
    try:
        fields = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or deep nesting
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise EventError("an event must be a JSON object with a type, as a text frame", "invalid_event")
    return fields


def parse_event(kind: str, fields: dict[str, Any]) -> ClientEvent:
    """Return the event of a type. Raises: EventError for an unknown one; ValidationError."""
    if kind not in CLIENT_EVENTS:
        known = ", ".join(CLIENT_EVENTS)
        raise EventError(f"event {kind[:100]!r} is not supported; known are {known}", "unknown_event", "type")
    return CLIENT_EVENTS[kind].model_validate(fields)


def decode_pcm16(text: str, param: str) -> Tensor:
    """Decode base64 of 16-bit PCM. Raises: EventError."""
    try:
        return from_pcm16(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise EventError(f"{param} must be base64 of 16-bit PCM: {error}", param=param) from error
