"""A language model on an inference engine: vLLM generates the token ids, everything else happens here.

    model = EngineLM.connect("http://localhost:8100", "DIR", get_audio_tokenizer("glm4voice"))
    for chunk in model.stream(make_conversation("tts", text="four seven one")):
        ...  # chunk.text, chunk.wave

`third_party/vllm_plugin` teaches vLLM the models. A prompt goes to the engine as token ids, or as embeddings if it has
audio as continuous input, which is encoded here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.base import check_identity
from vita_audio.files.checkpoint import GENERATION_FILE, check_weights, find_checkpoint
from vita_audio.files.tensors import fill_module, read_tensors
from vita_audio.inference.pipeline import Plan, SpeechLM
from vita_audio.inference.prompts import ChatState, Prompt, generate_inputs
from vita_audio.inference.response import Response
from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.models import (
    Qwen2MTPConfig,
    Qwen2MTPForCausalLM,
    Qwen2MTPSenseVoiceConfig,
    Qwen2MTPSenseVoiceForCausalLM,
)
from vita_audio.models.decode_step import DecodeStep
from vita_audio.models.loading import read_config
from vita_audio.speech_features import SenseVoiceFrontEnd
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

    def generate(self, prompt: Sequence[int] | Tensor, **options: Any) -> Generator[int, None, None]:
        """Send a prompt and return its answer, token by token; closing the iterator ends the answer on the engine.

        Args:
            prompt: Token ids, or embeddings, (tokens, hidden).
            options: Fields of vLLM's `/v1/completions`.
        Raises: ValueError for a request that the engine refuses, ConnectionError; both at once.
        """
        fields = {"model": self.model, "stream": True, "return_token_ids": True, **options}
        if isinstance(prompt, Tensor):
            torch.save(prompt, file := BytesIO())
            fields["prompt_embeds"] = base64.b64encode(file.getvalue()).decode()
        else:
            fields["prompt"] = list(prompt)
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

    `model` has the configuration, and weights only to encode continuous input. Answers are those of the backbone: if
    the engine makes drafts, it verifies them. So they equal those of the plan "vanilla", and of any with acceptance 1.
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
        audio_model: str | Path | None = None,
        offline: bool = False,
        any_audio_tokenizer: bool = False,
    ) -> EngineLM:
        """Connect to an engine that serves a checkpoint; other arguments as in `SpeechLM.from_pretrained`.

        Args:
            name_or_path: The same checkpoint; its configuration and text tokenizer are read, and for continuous input
                its embeddings and speech encoder.
        Raises: What `Engine` and `SpeechLM.from_pretrained` raise.
        """
        engine = Engine(url)
        folder = find_checkpoint(name_or_path, offline=offline)
        config = read_config(folder, [Qwen2MTPConfig, Qwen2MTPSenseVoiceConfig])
        if config.audio_tokenizer and not any_audio_tokenizer:
            check_identity(config.audio_tokenizer, audio_tokenizer.identity, folder)
        config.max_position_embeddings = min(config.max_position_embeddings, engine.max_length)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if (folder / GENERATION_FILE).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        tokenizer, front_end = TextTokenizer.from_pretrained(folder), None
        if tokenizer.continuous_roles:
            front_end = SenseVoiceFrontEnd.find(folder, audio_model, offline=offline)
            load_audio_input(model, folder)
        return cls(engine, model, tokenizer, audio_tokenizer, front_end)

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
        fields = engine_options(options, self.model.generation_config)
        if prompt.features:
            if (penalty := generation.get("repetition_penalty")) not in (None, 1):
                raise ValueError(
                    "repetition_penalty must be 1 for a prompt with continuous audio, whose tokens the engine does not "
                    f"know, got {penalty}; leave it out"
                )
            fields["repetition_penalty"] = 1.0
        ids = self.engine.generate(self._embed(prompt) if prompt.features else prompt.ids, **fields)
        if state is not None:
            state.keys = prompt.keys  # the engine has a cache of its own
        return self._decode_steps(prompt, ids, criteria)

    @torch.no_grad()
    def _embed(self, prompt: Prompt) -> Tensor:
        """Return the embeddings of a prompt with continuous audio, (tokens, hidden)."""
        inputs, backbone = generate_inputs([prompt], torch.device("cpu")), self.model.model
        embeddings = backbone.embed_tokens(inputs["input_ids"])
        return backbone.insert_audio(embeddings, inputs["audios"], inputs["audio_indices"])[0]

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


def load_audio_input(model: Qwen2MTPSenseVoiceForCausalLM, folder: Path) -> None:
    """Give a model on the meta device the weights that make embeddings of a prompt: of its tokens, and of its audio.

    Raises: FileNotFoundError, ValueError naming the weights that are missing, damaged, or of another shape.
    """
    parts = {f"model.{part}.": part for part in ("embed_tokens", "audio_model", "audio_projection")}
    tensors: dict[str, Tensor] = {}
    for path in check_weights(folder):  # one file at a time in memory
        tensors |= {name: value for name, value in read_tensors(path).items() if name.startswith(tuple(parts))}
    for prefix, part in parts.items():
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        fill_module(getattr(model.model, part), weights, folder, part)


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
