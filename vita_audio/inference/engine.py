"""A language model on an inference engine: vLLM generates the token ids, everything else happens here.

    model = EngineLM.connect("http://localhost:8100", "DIR", get_audio_tokenizer("glm4voice"))
    for chunk in model.stream(make_conversation("tts", text="four seven one")):
        ...  # chunk.text, chunk.wave

`third_party/vllm_plugin` teaches vLLM the models.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from transformers import GenerationConfig

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.base import check_identity
from vita_audio.files.checkpoint import GENERATION_FILE, find_checkpoint
from vita_audio.inference.pipeline import Plan, SpeechLM
from vita_audio.inference.prompts import ChatState, Prompt
from vita_audio.inference.response import Response
from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.models import Qwen2MTPConfig, Qwen2MTPForCausalLM
from vita_audio.models.decode_step import DecodeStep
from vita_audio.models.loading import read_config
from vita_audio.text import TextTokenizer

TIMEOUT_SECONDS = 120  # the longest wait for the next token
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # what transformers does where nothing is said
HANDLED = ("max_new_tokens", "do_sample", "repetition_penalty", "eos_token_id", "stopping_criteria", *SAMPLING)
LOCAL = ("pad_token_id", "tokenizer")  # without effect on what the engine generates
VERIFIED = {"acceptance": 1, "first_chunk": "verified"}  # options of modules that the engine's way of decoding equals


class Engine:
    """The HTTP interface of a vLLM server.

    Attributes:
        model: Name of its model for requests.
        max_length: Most tokens of a prompt and its answer.
    """

    def __init__(self, url: str):
        """Connect. Raises: ConnectionError if nothing answers there, ValueError if it is no vLLM server."""
        self._url = url.rstrip("/")
        with self._open("/v1/models") as response:
            try:
                (served, *_) = json.load(response)["data"]
                self.model, self.max_length = served["id"], int(served["max_model_len"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._url} must be a vLLM server, got an answer without max_model_len") from error

    def generate(self, prompt: Sequence[int], **options: Any) -> Generator[int, None, None]:
        """Send a prompt and return its answer, token by token; closing the iterator ends the answer on the engine.

        Args:
            options: Fields of vLLM's `/v1/completions`.
        Raises: ValueError for a request that the engine refuses, ConnectionError; both at once.
        """
        fields = {"model": self.model, "prompt": list(prompt), "stream": True, "return_token_ids": True, **options}
        return self._read(self._open("/v1/completions", fields))

    def _read(self, response: HTTPResponse) -> Generator[int, None, None]:
        lost = f"the engine at {self._url} ended the connection within an answer"
        try:
            with response:
                for line in response:
                    if not line.startswith(b"data:"):
                        continue
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise ConnectionError(f"the engine at {self._url} failed: {event['error']['message']}")
                    for choice in event["choices"]:
                        yield from choice["token_ids"]
        except (HTTPException, TimeoutError) as error:
            raise ConnectionError(lost) from error
        raise ConnectionError(lost)

    def _open(self, path: str, fields: Mapping[str, Any] | None = None) -> HTTPResponse:
        data = None if fields is None else json.dumps(fields).encode()
        request = Request(self._url + path, data, {"content-type": "application/json"})
        try:
            return urlopen(request, timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            kind = ValueError if error.code < 500 else ConnectionError
            raise kind(f"the engine at {self._url} refused {path}: {_message(error)}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(
                f"no engine at {self._url} ({reason}); bash scripts/serve_vllm.sh starts one"
            ) from error


def _message(error: HTTPError) -> str:
    """Return what the body of an error says, or its status."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


class EngineLM(SpeechLM):
    """`SpeechLM` whose tokens come from an engine, which batches the answers of all its clients.

    `model` has the configuration and no weights. Answers are those of the backbone: the engine verifies drafts if it
    makes any, so they equal those of the plan "vanilla", and of any plan with acceptance 1.
    """

    def __init__(self, engine: Engine, model: Qwen2MTPForCausalLM, *parts: Any):
        """Put the parts together; `parts` and errors as in `SpeechLM`."""
        super().__init__(model, *parts)
        self.engine = engine

    @classmethod
    def connect(
        cls,
        url: str,
        name_or_path: str | Path,
        audio_tokenizer: AudioTokenizer,
        *,
        offline: bool = False,
        any_audio_tokenizer: bool = False,
    ) -> EngineLM:
        """Connect to an engine that serves a checkpoint; other arguments as in `SpeechLM.from_pretrained`.

        Args:
            name_or_path: The same checkpoint; its configuration and text tokenizer are read.
        Raises: What `Engine` and `SpeechLM.from_pretrained` raise; ValueError for a model with continuous input.
        """
        engine = Engine(url)
        folder = find_checkpoint(name_or_path, offline=offline)
        config = read_config(folder, [Qwen2MTPConfig])
        if config.audio_tokenizer and not any_audio_tokenizer:
            check_identity(config.audio_tokenizer, audio_tokenizer.identity, folder)
        config.max_position_embeddings = min(config.max_position_embeddings, engine.max_length)
        with torch.device("meta"):
            model = Qwen2MTPForCausalLM(config)
        if (folder / GENERATION_FILE).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return cls(engine, model, TextTokenizer.from_pretrained(folder), audio_tokenizer)

    def respond_batch(
        self, conversations: Iterable[Mapping[str, Any]], plan: Plan | None = None, **options: Any
    ) -> list[Response]:
        """Return the answer to each conversation, as `SpeechLM.respond_batch` does; the engine forms the batches."""
        conversations = list(conversations)
        with ThreadPoolExecutor(max_workers=max(1, len(conversations))) as pool:
            return list(pool.map(lambda conversation: self.respond(conversation, plan, **options), conversations))

    def _steps(
        self, prompts: Sequence[Prompt], plan: Plan | None, state: ChatState | None, generation: Mapping[str, Any]
    ) -> Generator[DecodeStep, None, None]:
        """Send the prompt, so that the engine reads it while other answers take their steps."""
        (prompt,) = prompts
        if plan is not None and InterleavePlan.parse(plan).has_modules:
            raise ValueError(f"the plan is the engine's, got {plan!r}; leave it out, or give vanilla")
        for name, value in VERIFIED.items():
            if generation.get(name) not in (None, value):
                raise ValueError(f"{name} must be {value} with an engine, got {generation[name]}; leave it out")
        generation = {name: value for name, value in generation.items() if name not in VERIFIED}
        options = self._generation_options(len(prompt), None, generation)
        criteria = options.get("stopping_criteria") or []
        ids = self.engine.generate(prompt.ids, **engine_options(options, self.model.generation_config))
        if state is not None:
            state.keys = prompt.keys  # the engine has a cache of its own
        return self._decode_steps(prompt, ids, criteria)

    def _decode_steps(
        self, prompt: Prompt, answer: Generator[int, None, None], criteria: Iterable[Any]
    ) -> Generator[DecodeStep, None, None]:
        read, is_new = [*prompt.ids], torch.ones(1, dtype=torch.bool)
        try:
            for token_id in answer:
                yield DecodeStep(torch.tensor([token_id]), is_new, (BACKBONE,), (BACKBONE,))
                read.append(token_id)
                if criteria and any(bool(criterion(torch.tensor([read]), None)) for criterion in criteria):
                    return
        finally:
            answer.close()


def engine_options(options: Mapping[str, Any], defaults: GenerationConfig) -> dict[str, Any]:
    """Return arguments of `generate`, completed by the checkpoint's, as fields of vLLM's `/v1/completions`.

    Raises: ValueError for arguments that have no such field.
    """
    if unknown := sorted(name for name, value in options.items() if name not in HANDLED + LOCAL and value is not None):
        raise ValueError(f"an engine can do {', '.join(HANDLED)}, got {', '.join(unknown)}; leave them out")

    def chosen(name: str, otherwise: Any) -> Any:
        for value in (options.get(name), getattr(defaults, name)):
            if value is not None:
                return value
        return otherwise

    ends = options["eos_token_id"]
    fields = {
        "max_tokens": options["max_new_tokens"],
        "stop_token_ids": [ends] if isinstance(ends, int) else list(ends),
        "repetition_penalty": chosen("repetition_penalty", 1.0),
    }
    if not chosen("do_sample", False):
        return fields | {"temperature": 0.0}
    return fields | {name: chosen(name, otherwise) for name, otherwise in SAMPLING.items()}
