"""Answer conversations in text and speech: one at a time, in batches, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PretrainedConfig

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.base import check_identity
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.inference.prompts import ChatState, Prompt, PromptEncoder, generate_inputs
from vita_audio.inference.response import Chunk, Response, Timings
from vita_audio.inference.sampling import check_generation
from vita_audio.inference.streaming import TextStream
from vita_audio.interleave import MODES, NUM_MARKERS, InterleavePlan
from vita_audio.models import SPEECH_CONFIGS, MTPForCausalLM, Qwen2MTPSenseVoiceConfig
from vita_audio.models.adapters import load_language_model, load_on_base
from vita_audio.models.decode_step import DecodeStep, count_rows
from vita_audio.models.loading import read_config
from vita_audio.models.mtp_generation import mtp_steps
from vita_audio.models.quantization import quantize_weights
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.stopwatch import Stopwatch
from vita_audio.text import TextTokenizer

GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_k": None, "top_p": None}
MAX_NEW_TOKENS = 2048  # longest answer, unless the caller or the checkpoint sets another limit

Plan = InterleavePlan | str | Sequence[int]


class SpeechLM:
    """Language model, text tokenizer and audio tokenizer together; holds no state of any answer.

    A conversation is a sample without its answer (see `vita_audio.inference.tasks`). `plan` is a name, a ratio or an
    `InterleavePlan`, by default the checkpoint's. With `mtp_head="audio"`, the modules score only audio codes, the
    markers around them and the ends of answers, which is faster and enough for answers whose text is all made by the
    backbone; "full" is all tokens. By default they score audio only where audio goes before and everything is verified
    with `acceptance` 1, so that the answer cannot depend on it. Other keyword arguments go to `generate`.
    """

    def __init__(
        self,
        model: MTPForCausalLM,
        tokenizer: TextTokenizer,
        audio_tokenizer: AudioTokenizer,
        front_end: SenseVoiceFrontEnd | None = None,
    ):
        """Put the parts together; `front_end` is for models with continuous input.

        Raises: ValueError if their vocabularies do not fit, or if only some of them have continuous input.
        """
        if tokenizer.num_audio_codes != audio_tokenizer.vocab_size:
            raise ValueError(
                f"text tokenizer {tokenizer.base.name_or_path} has {tokenizer.num_audio_codes} audio codes, the audio "
                f"tokenizer {audio_tokenizer.name} {audio_tokenizer.vocab_size}; use the one the model was trained with"
            )
        if model.config.vocab_size < len(tokenizer):
            raise ValueError(
                f"the model knows {model.config.vocab_size} tokens, its text tokenizer has {len(tokenizer)}; use the "
                "tokenizer the model was trained with"
            )
        has_encoder = isinstance(model.config, Qwen2MTPSenseVoiceConfig)
        if tokenizer.continuous_roles and not (has_encoder and front_end):
            raise ValueError(
                f"the text tokenizer has audio of {', '.join(tokenizer.continuous_roles)} as continuous input, which "
                f"needs a model with a speech encoder and a front end, got {model.config.model_type} and {front_end}"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.audio_tokenizer = audio_tokenizer
        num_positions = model.config.max_position_embeddings
        self.prompt_encoder = PromptEncoder(tokenizer, audio_tokenizer, front_end, num_positions)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        audio_tokenizer: AudioTokenizer,
        device: str = "auto",
        dtype: torch.dtype | str | None = None,
        *,
        audio_model: str | Path | None = None,
        offline: bool = False,
        any_audio_tokenizer: bool = False,
        quantize: str | None = None,
        adapter: str | Path | None = None,
        **options,
    ) -> SpeechLM:
        """Load a checkpoint with its text tokenizer and generation defaults.

        Args:
            name_or_path: Folder, or name on the hub; the folder of an adapter is merged into its base.
            device: "auto" is the GPU if there is one. Without effect if `device_map` is given.
            dtype: Type of the weights. None: bfloat16 on a GPU, float32 elsewhere.
            audio_model: SenseVoiceSmall, folder or hub name, for a model with continuous input whose folder lacks the
                normalisation of features (`am.mvn`), as the released ones do.
            offline: Do not contact the hub; use earlier downloads.
            any_audio_tokenizer: Also accept an audio tokenizer that the model was not trained with.
            quantize: "int8" or "int4" weights, see `vita_audio.models.quantization.quantize_weights`.
            adapter: Adapter on `name_or_path`, which replaces the base that the adapter names.
            options: Options for the model's `from_pretrained`, such as `attn_implementation` or `device_map`.
        Raises: FileNotFoundError, ValueError naming the file that is missing, damaged, or of another kind of model, the
            weights that do not fit, or the audio tokenizer that is another one.
        """
        folder, base = find_checkpoint(name_or_path, offline=offline), None
        if adapter is not None:
            folder, base = find_checkpoint(adapter, offline=offline), folder
        device = resolve_device(device)
        options = {"device_map": device, "dtype": dtype or default_dtype(device), **options}
        load = partial(load_language_model, base=base, offline=offline, **options)
        found = {"audio_model": audio_model, "offline": offline, "any_audio_tokenizer": any_audio_tokenizer}
        speech_lm = cls._load(folder, audio_tokenizer, load, **found)
        if quantize is not None:
            quantize_weights(speech_lm.model, quantize)
        return speech_lm

    def with_adapter(self, name_or_path: str | Path, *, offline: bool = False, **options) -> SpeechLM:
        """Load an adapter on this model, which stays as it is; both use the same weights in memory.

        It is not merged, so it decodes more slowly than one that `from_pretrained` loads.

        Args:
            name_or_path: Adapter; its base must be this model, loaded on one device and not quantized.
            offline, options: As in `from_pretrained`, of which `audio_model` and `any_audio_tokenizer` are options.
        Raises: As `from_pretrained`; ValueError for an adapter of another base.
        """
        folder = find_checkpoint(name_or_path, offline=offline)
        load = partial(load_on_base, base=self.model, offline=offline)
        return self._load(folder, self.audio_tokenizer, load, offline=offline, **options)

    @classmethod
    def _load(
        cls,
        folder: Path,
        audio_tokenizer: AudioTokenizer,
        load: Callable[[Path, PretrainedConfig], tuple[MTPForCausalLM, list[str]]],
        *,
        audio_model: str | Path | None = None,
        offline: bool = False,
        any_audio_tokenizer: bool = False,
    ) -> SpeechLM:
        """Check a folder and put its parts together, of which `load` loads the language model."""
        config = read_config(folder, SPEECH_CONFIGS)
        if config.audio_tokenizer and not any_audio_tokenizer:
            check_identity(config.audio_tokenizer, audio_tokenizer.identity, folder)
        tokenizer = TextTokenizer.from_pretrained(folder)
        front_end = None
        if tokenizer.continuous_roles:
            front_end = SenseVoiceFrontEnd.find(folder, audio_model, offline=offline)
        model, missing = load(folder, config)
        if missing:
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {', '.join(missing[:5])} are missing "
                f"({len(missing)} in all); get the folder again, or train what is new with tools/finetune_sts.py"
            )
        return cls(model, tokenizer, audio_tokenizer, front_end)

    def respond(
        self,
        conversation: Mapping[str, Any],
        plan: Plan | None = None,
        *,
        voice: Any = None,
        decode_audio: bool = True,
        state: ChatState | None = None,
        **generation,
    ) -> Response:
        """Return the answer to a conversation; other arguments as in `respond_batch`.

        Args:
            state: State of this conversation, which continues from its earlier turns and is updated.
        Raises: What `prompt_ids` and `generate` raise; ValueError for a voice the audio tokenizer cannot decode with.
        """
        return self._respond([conversation], plan, state, voice=voice, decode_audio=decode_audio, **generation)[0]

    def respond_batch(
        self,
        conversations: Iterable[Mapping[str, Any]],
        plan: Plan | None = None,
        *,
        voice: Any = None,
        decode_audio: bool = True,
        **generation,
    ) -> list[Response]:
        """Return the answer to each conversation; without sampling the same as `respond` gives one by one.

        Args:
            voice: Voice of all answers, from the audio tokenizer's `make_voice`; None: as in `AudioTokenizer.decode`.
            decode_audio: Decode the codes to waves.
        """
        conversations = list(conversations)
        if not conversations:
            return []
        return self._respond(conversations, plan, None, voice=voice, decode_audio=decode_audio, **generation)

    def _respond(
        self,
        conversations: Sequence[Mapping[str, Any]],
        plan: Plan | None,
        state: ChatState | None,
        *,
        voice: Any,
        decode_audio: bool,
        **generation,
    ) -> list[Response]:
        self.audio_tokenizer.check_voice(voice)
        start = perf_counter()
        prompts = [self._encode(conversation) for conversation in conversations]
        steps = self._steps(prompts, plan, state, generation)
        encoded = perf_counter()
        fields = ((step.tokens, step.is_new, step.depths, step.drafts) for step in steps)
        tokens, is_new, depths, drafts = zip(*fields, strict=True)
        counts = count_rows(torch.stack(is_new, dim=1), depths, drafts)
        rows = torch.stack(tokens, dim=1).tolist()  # (batch, steps)
        answers = [row[: count.num_tokens] for row, count in zip(rows, counts, strict=True)]
        generated = perf_counter()
        codes = [self.tokenizer.split(ids)[1] for ids in answers]
        waves = [self.audio_tokenizer.decode(row, voice) if decode_audio else None for row in codes]
        seconds = (encoded - start, generated - encoded, perf_counter() - generated)
        return [
            Response(
                text=self.tokenizer.decode(ids),
                codes=row_codes,
                wave=wave,
                sample_rate=self.audio_tokenizer.output_rate,
                ids=ids,
                timings=Timings(*seconds, count),
            )
            for ids, row_codes, wave, count in zip(answers, codes, waves, counts, strict=True)
        ]

    def stream(
        self,
        conversation: Mapping[str, Any],
        plan: Plan | None = None,
        *,
        voice: Any = None,
        decode_audio: bool = True,
        state: ChatState | None = None,
        stopwatch: Stopwatch | None = None,
        **generation,
    ) -> Iterator[Chunk]:
        """Yield the answer to a conversation while it is generated; arguments as in `respond`.

        Text, codes and ids add up to those of `respond`. A chunk ends with new text, with new samples, and where a run
        of audio codes ends. Wrong input raises here; errors during generation are raised by `next`. Generation runs in
        `next` only, so closing or dropping the iterator ends it. With an `acceptance` above 0, tokens are handed on
        once they are verified; `first_chunk="committed"` hands on the first ones of the modules without waiting.

        Args:
            stopwatch: Gets the seconds of the stages "prompt", "language_model", "flow" and "vocoder" while the answer
                is made, so what it holds at the first samples is the time they took.
        """
        self.audio_tokenizer.check_voice(voice)
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measure("prompt"):
            prompt = self._encode(conversation)
        steps = self._steps([prompt], plan, state, generation)
        made = ((int(step.tokens), step.depths[0], step.drafts[0]) for step in steps)
        return self._chunks(stopwatch.measure_each("language_model", made), decode_audio, voice, stopwatch)

    def _steps(
        self, prompts: Sequence[Prompt], plan: Plan | None, state: ChatState | None, generation: Mapping[str, Any]
    ) -> Generator[DecodeStep, None, None]:
        """Check everything and return the decoding loop; nothing runs before its first `next`."""
        options = self._generation_options(max(map(len, prompts)), plan, generation)
        num_read = 0
        if state is not None:
            num_read = state.resume(self.model, prompts[0])
            options["decode_state"] = state.decoding
        inputs = generate_inputs(prompts, self.model.device, num_read=num_read)
        return self.model.generate(**inputs, custom_generate=mtp_steps, **options)

    def prompt_ids(self, conversation: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a conversation and the header of the answer to come.

        Raises: SampleError (a ValueError), AudioError, FileNotFoundError; ValueError if the audio alone is too long.
        """
        return self._encode(conversation).ids

    def _encode(self, conversation: Mapping[str, Any]) -> Prompt:
        return self.prompt_encoder.encode(conversation, self._layout_plan())

    def _layout_plan(self) -> InterleavePlan:
        """Return the layout of earlier spoken answers: the one of the checkpoint's training data."""
        plan = InterleavePlan.parse(getattr(self.model.generation_config, "mtp_inference_mode", None) or "boost")
        return plan if min(plan.ratio[1::2]) > NUM_MARKERS else InterleavePlan(MODES["boost"])

    def _generation_options(self, num_prompt: int, plan: Plan | None, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the arguments of `generate`.

        Raises: ValueError for an unknown plan, values without meaning, or a prompt and answer with more tokens than the
            model has positions.
        """
        defaults, num_positions = self.model.generation_config, self.model.config.max_position_embeddings
        options = dict(generation)
        if (config := options.pop("generation_config", None)) is not None:  # the checkpoint's values fill its gaps
            options = {**config.to_diff_dict(), **options}
            options.pop("transformers_version", None)
        check_generation(options)
        room = num_positions - num_prompt
        if options.get("max_length") is not None:
            num_new = options["max_length"] - num_prompt
        elif options.get("max_new_tokens") is not None:
            num_new = options["max_new_tokens"]
        else:
            num_new = options["max_new_tokens"] = min(defaults.max_new_tokens or MAX_NEW_TOKENS, max(room, 1))
        if num_new > room:
            raise ValueError(
                f"prompt and answer must fit into the model's {num_positions} positions, got a prompt of {num_prompt} "
                f"tokens and {num_new} new ones; give shorter audio or text, or ask for fewer new tokens"
            )
        if options.get("eos_token_id") is None:
            options["eos_token_id"] = defaults.eos_token_id or [self.tokenizer.im_end_id, self.tokenizer.pad_id]
        options |= self._module_tokens(options.pop("mtp_head", None), options)
        options.setdefault("pad_token_id", self.tokenizer.pad_id)
        options.setdefault("tokenizer", self.tokenizer.base)  # for stop_strings
        if plan is not None:
            options["mtp_inference_mode"] = InterleavePlan.parse(plan)
        return options

    def _module_tokens(self, mtp_head: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return which tokens the modules score, as arguments of `generate`.

        Raises: ValueError for an unknown head.
        """
        if mtp_head not in (None, "full", "audio"):
            raise ValueError(f"mtp_head must be full or audio, got {mtp_head!r}")
        acceptance = options.get("acceptance")
        if acceptance is None:
            acceptance = getattr(self.model.generation_config, "acceptance", None)
        is_free = acceptance == 1 and options.get("first_chunk") != "committed"  # drafts cannot change the answer
        is_on_disk = any(parameter.is_meta for parameter in self.model.lm_head.parameters())
        if mtp_head == "full" or (mtp_head is None and (is_on_disk or not is_free)):
            return {}
        end_ids = options["eos_token_id"]
        end_ids = [end_ids] if isinstance(end_ids, int) else end_ids
        ends = [token_id for token_id in end_ids if 0 <= token_id < self.model.config.vocab_size]
        begin, end, codes = self.tokenizer.begin_of_audio_id, self.tokenizer.end_of_audio_id, self.tokenizer.code_ids
        context = None if mtp_head == "audio" else [begin, *codes]
        return {"module_tokens": [begin, end, *ends, *codes], "module_context": context}

    def _chunks(
        self, made: Iterable[tuple[int, int, int]], decode_audio: bool, voice: Any, stopwatch: Stopwatch
    ) -> Iterator[Chunk]:
        """Yield the answer that token ids, with their depths and drafts, make."""
        text, audio = TextStream(self.tokenizer), None
        chunk = Chunk()
        for token_id, depth, draft in made:
            chunk.ids.append(token_id)
            chunk.depths.append(depth)
            chunk.drafts.append(draft)
            delta, wave = "", torch.zeros(0)
            if self.tokenizer.is_audio(token_id):
                chunk.codes.append(token_id - self.tokenizer.first_audio_id)
                if decode_audio:
                    audio = audio or self.audio_tokenizer.stream(voice, stopwatch)
                    wave = audio.push(chunk.codes[-1:])
            else:
                delta = text.push(token_id)
            if delta or len(wave) or (chunk.codes and token_id == self.tokenizer.end_of_audio_id):
                yield replace(chunk, text=delta, wave=wave)
                chunk = Chunk()
        delta, wave = text.flush(), audio.flush() if audio else torch.zeros(0)
        if delta or chunk.ids or len(wave):
            yield replace(chunk, text=delta, wave=wave)


def resolve_device(device: str) -> str:
    """Resolve "auto" to the GPU if there is one.

    Raises: ValueError for a device that does not exist.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device must be auto, cpu or a GPU that is here, got {device!r}: {error}") from error
    return device


def default_dtype(device: str) -> torch.dtype:
    """Return the default type of loaded weights: float32 on a CPU, bfloat16 elsewhere."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
