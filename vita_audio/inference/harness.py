"""A model for evaluation harnesses: answers batches of their requests with text.

    model = HarnessModel.from_pretrained("DIR")
    model.generate_until([("What is said?", {"until": ["\\n"], "max_gen_toks": 64}, {"audio": ["question.wav"]})])
    model.respond("Convert the speech to text.", ["question.wav"]).text

Requests have the form of EleutherAI's lm-evaluation-harness (`generate_until`). No harness is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.constants import AUDIO_TAG
from vita_audio.inference.pipeline import GREEDY, MAX_NEW_TOKENS, Plan, Response, SpeechLM, resolve_device
from vita_audio.inference.tasks import Audio, Sample, one_turn

PLACEHOLDER = "<audio>"  # for an audio in the text of a request
_LENGTHS = ("max_gen_toks", "max_new_tokens")
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A conversation to answer.

    Attributes:
        until: The answer ends before the first of these strings.
        generation: Arguments of `generate`.
    """

    conversation: Sample
    until: tuple[str, ...]
    generation: Mapping[str, Any]


class HarnessModel:
    """Answers requests of evaluation harnesses; greedily, unless a request asks to sample.

    Args:
        plan: Interleave plan to decode with; None: the checkpoint's.
        system: System message of all requests, or the name of one in `SYSTEMS`.
        acceptance: How far the modules' tokens must agree with the backbone; None: the checkpoint's.
        mtp_head: Tokens that the modules score; None: as in `SpeechLM`.
        first_chunk: Whether the modules' first tokens wait for their verification.
    """

    def __init__(
        self,
        speech_lm: SpeechLM,
        plan: Plan | None = None,
        *,
        system: str | None = None,
        batch_size: int = 8,
        acceptance: float | None = None,
        mtp_head: str | None = None,
        first_chunk: str = "verified",
    ):
        self.speech_lm = speech_lm
        self.plan = plan
        self.system = system
        self.batch_size = batch_size
        self.decoding = {"acceptance": acceptance, "mtp_head": mtp_head, "first_chunk": first_chunk}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        audio_tokenizer_type: str = "glm4voice",
        audio_tokenizer_path: str | None = None,
        audio_decoder_path: str | None = None,
        audio_model: str | None = None,
        device: str = "auto",
        dtype: torch.dtype | str | None = None,
        **options,
    ) -> HarnessModel:
        """Load a checkpoint; arguments as in `get_audio_tokenizer`, `SpeechLM.from_pretrained` and the class."""
        audio_tokenizer = get_audio_tokenizer(
            audio_tokenizer_type, audio_tokenizer_path, audio_decoder_path, device=resolve_device(device)
        )
        speech_lm = SpeechLM.from_pretrained(name_or_path, audio_tokenizer, device, dtype, audio_model=audio_model)
        return cls(speech_lm, **options)

    def respond(
        self, text: str, audios: Sequence[Audio | Mapping[str, Any]] = (), *, system: str | None = None, **generation
    ) -> Response:
        """Return the complete answer, with its speech; `generation` as in `generate_until`."""
        request = make_request(text, generation, audios, system=system or self.system)
        return self.speech_lm.respond(request.conversation, self.plan, **self.decoding, **request.generation)

    def generate_until(
        self, requests: Sequence[Any], *, system: str | None = None, skip_errors: bool = False
    ) -> list[str]:
        """Return the text of the answer to each request.

        Args:
            requests: Tuples, or objects with such a tuple as `args`, of: text, where `<audio>` stands for an audio
                (without it, audios follow the text); generation arguments, such as `until` (a string or several),
                `max_gen_toks`, `do_sample` and `temperature`; and optionally `{"audio": [...]}` with files, pairs
                (wave, rate), or dictionaries with `array` and `sampling_rate`.
            system: System message in place of the model's own.
            skip_errors: Answer a request that fails with "", which no harness counts as correct, and log the error.
        Raises: ValueError for unknown arguments, or audios that do not match the text; without `skip_errors` also the
            errors of `SpeechLM.respond_batch`.
        """
        parsed = [make_request(*getattr(one, "args", one), system=system or self.system) for one in requests]
        groups: dict[str, list[int]] = {}  # requests with the same generation arguments share batches
        for place, request in enumerate(parsed):
            groups.setdefault(repr(sorted(request.generation.items())), []).append(place)
        answers = [""] * len(parsed)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                texts = self._answered([parsed[place] for place in batch], skip_errors)
                for place, text in zip(batch, texts, strict=True):
                    answers[place] = text
        return answers

    def _answered(self, requests: Sequence[Request], skip_errors: bool) -> list[str]:
        """Return the texts of the answers; with `skip_errors`, a batch that fails is answered one by one."""
        conversations = [request.conversation for request in requests]
        try:
            responses = self.speech_lm.respond_batch(
                conversations, self.plan, decode_audio=False, **self.decoding, **requests[0].generation
            )
        except Exception as error:
            if not skip_errors:
                raise
            reason = f"{type(error).__name__}: {error}"  # text only: the traceback holds the tensors of the batch
        else:
            pairs = zip(responses, requests, strict=True)
            return [cut_before(response.text.strip(), request.until) for response, request in pairs]
        if len(requests) > 1:
            return [text for request in requests for text in self._answered([request], skip_errors)]
        logger.warning("a request counts as not answered: %s", reason)
        return [""]


def make_request(
    text: str,
    generation: Mapping[str, Any] | None = None,
    audios: Sequence[Any] | Mapping[str, Any] = (),
    *,
    system: str | None = None,
) -> Request:
    """Make a request from the arguments of a harness, see `HarnessModel.generate_until`."""
    options = dict(generation or {})
    until = options.pop("until", None) or ()
    audios = list(audios["audio"] if isinstance(audios, Mapping) else audios)
    content = text.replace(PLACEHOLDER, AUDIO_TAG)
    if AUDIO_TAG not in content:
        content = "\n".join(filter(None, [content, *[AUDIO_TAG] * len(audios)]))
    if content.count(AUDIO_TAG) != len(audios):
        raise ValueError(
            f"a request must have an audio for each {PLACEHOLDER}, got {len(audios)} for {content.count(AUDIO_TAG)}"
        )
    conversation = one_turn(content, [_audio(one) for one in audios], system=system)
    return Request(conversation, (until,) if isinstance(until, str) else tuple(until), _generation(options))


def _audio(audio: Any) -> Audio:
    if not isinstance(audio, Mapping):
        return audio
    if "array" not in audio:
        return audio["path"]
    return np.asarray(audio["array"], dtype=np.float32), audio["sampling_rate"]


def _generation(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate`; decoding is greedy unless `do_sample` or a temperature other than 0 is given.

    Raises: ValueError for unknown ones.
    """
    if unknown := sorted(set(options) - {*_LENGTHS, *_SAMPLING}):
        raise ValueError(
            f"arguments of generation must be until, {', '.join((*_LENGTHS, *_SAMPLING))}, got {', '.join(unknown)}"
        )
    length = next((options[name] for name in _LENGTHS if options.get(name) is not None), MAX_NEW_TOKENS)
    do_sample = options.get("do_sample")
    if do_sample is None:
        do_sample = bool(options.get("temperature"))
    chosen = {name: options[name] for name in _SAMPLING if name in options}
    return {"max_new_tokens": int(length)} | (chosen | {"do_sample": True} if do_sample else GREEDY)


def cut_before(text: str, until: Sequence[str]) -> str:
    """Return the text up to the first occurrence of any of some strings."""
    ends = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(ends, default=None)]
