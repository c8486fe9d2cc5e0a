"""Text tokenizer with audio codes in its vocabulary, ChatML turns, and the prompts of the tasks.

The vocabulary, as in the released VITA-Audio models: text, structural special tokens, one plain token per audio code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.constants import (
    AUDIO_CODE_FORMAT,
    AUDIO_TAG,
    BEGIN_OF_AUDIO,
    CONTEXT_OF_AUDIO,
    EMBEDDING_MULTIPLE,
    END_OF_AUDIO,
    END_OF_TEXT,
    IM_END,
    IM_START,
    structural_tokens,
)
from vita_audio.files.checkpoint import check_whole, find_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")

# How the audio of a role enters the model: as codes, as rows of a speech encoder, or as rows followed by codes.
DISCRETE, CONTINUOUS, BOTH = "discrete", "continuous", "both"
DISCRETE_INPUT = dict.fromkeys(ROLES, DISCRETE)
CONTINUOUS_INPUT = {"system": CONTINUOUS, "user": CONTINUOUS, "assistant": DISCRETE}  # of the released Plus models

ASR_PROMPT = "Convert the speech to text."
TTS_PROMPT = "Convert the text to speech.\n"
INTERLEAVED_SYSTEM = "Respond in a text-audio interleaved manner."
LUKE_SYSTEM = f"Your Name: Luke\nYour Gender: male\n\n{INTERLEAVED_SYSTEM}"
OMNI_SYSTEM = f"Your Name: Omni\nYour Gender: female\n{INTERLEAVED_SYSTEM}"
VOICE_PROMPT_SYSTEM = f"Your Voice: {AUDIO_TAG}\n"


class TextTokenizer:
    """A Hugging Face tokenizer that also knows audio codes and ChatML turns.

    Attributes:
        base: The Hugging Face tokenizer, with all tokens and the chat template added.
        num_audio_codes: Size of the audio codebook; 0 for a text-only vocabulary.
        audio_input: How the audio of each role enters the model; stored in `tokenizer_config.json`.
        first_audio_id: Token id of audio code 0; code c is `first_audio_id + c`.
        begin_of_audio_id: Marker before audio.
        end_of_audio_id: Marker after audio.
        context_of_audio_id: Placeholder for one row of continuous speech input; None without continuous input.
    """

    def __init__(
        self,
        base: PreTrainedTokenizerBase,
        num_audio_codes: int,
        *,
        continuous_input: bool = False,
        audio_input: Mapping[str, str] | None = None,
    ):
        """Add the missing tokens to `base`, which is modified.

        Args:
            continuous_input: Default of `audio_input` if `base` has none: True as in the released Plus models, False
                codes only.
            audio_input: How audio of some roles enters the model (discrete, continuous or both), overriding `base`.
        Raises: ValueError if `base` lacks ChatML tokens or has another number of audio codes, or for an impossible
            `audio_input`.
        """
        vocabulary = base.get_vocab()
        missing = [token for token in (IM_START, IM_END, END_OF_TEXT) if token not in vocabulary]
        if missing:
            raise ValueError(f"text tokenizer {base.name_or_path!r} lacks {missing}; use a Qwen2 or Qwen2.5 tokenizer")
        present = count_audio_codes(vocabulary)
        if present not in (0, num_audio_codes):
            raise ValueError(
                f"text tokenizer {base.name_or_path!r} already has {present} audio codes, the audio tokenizer has "
                f"{num_audio_codes}; use the audio tokenizer it was made with, or a text tokenizer without audio codes"
            )
        has_audio = num_audio_codes > 0
        continuous_input = continuous_input or CONTEXT_OF_AUDIO in vocabulary
        configured = base.init_kwargs.get("audio_input") or (CONTINUOUS_INPUT if continuous_input else DISCRETE_INPUT)
        self.audio_input = check_audio_input({**configured, **(audio_input or {})})
        needs_context = any(how != DISCRETE for how in self.audio_input.values())
        base.add_tokens(list(structural_tokens(audio=has_audio, continuous_input=needs_context)), special_tokens=True)
        base.add_tokens([AUDIO_CODE_FORMAT.format(code) for code in range(num_audio_codes)])
        vocabulary = base.get_vocab()
        base.init_kwargs["audio_input"] = self.audio_input
        base.chat_template = chat_template()
        self.base = base
        self.num_audio_codes = num_audio_codes
        self.first_audio_id = vocabulary[AUDIO_CODE_FORMAT.format(0)] if has_audio else len(base)
        self.begin_of_audio_id = vocabulary.get(BEGIN_OF_AUDIO)
        self.end_of_audio_id = vocabulary.get(END_OF_AUDIO)
        self.context_of_audio_id = vocabulary.get(CONTEXT_OF_AUDIO)
        self.im_start_id, self.im_end_id = vocabulary[IM_START], vocabulary[IM_END]
        self.pad_id = vocabulary[END_OF_TEXT]
        newline_ids = self.encode("\n")
        self._headers = {role: [self.im_start_id, *self.encode(role), *newline_ids] for role in ROLES}
        self._footer = [self.im_end_id, *newline_ids]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, num_audio_codes: int | None = None, **options: bool | Mapping[str, str] | None
    ) -> TextTokenizer:
        """Load a text tokenizer and add missing tokens; other arguments as in the class.

        Args:
            folder: Folder or hub name of a plain Qwen2 tokenizer or one saved by `save_pretrained`.
            num_audio_codes: Codebook size of the audio tokenizer, 0 for text only, None for the number in the folder.
        Raises: FileNotFoundError, ValueError naming a file that is missing or damaged.
        """
        from transformers import AutoTokenizer  # here, so that the prompts and roles above import fast

        folder = find_checkpoint(folder)
        for path in tokenizer_files(folder):
            check_whole(path)
        base = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if num_audio_codes is None:
            num_audio_codes = count_audio_codes(base.get_vocab())
        return cls(base, num_audio_codes, **options)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def padded_size(self) -> int:
        """Rows of the embedding table: the vocabulary size rounded up to a multiple of 8."""
        return padded(len(self))

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and the rules, for cache keys."""
        rules = json.loads(self.base.backend_tokenizer.to_str())
        for changed_by_use in ("truncation", "padding"):
            rules.pop(changed_by_use, None)
        rules["audio_input"] = self.audio_input
        return hashlib.blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=16).hexdigest()

    @cached_property
    def added_tokens(self) -> dict[int, str]:
        """Ids and names of all tokens besides those of plain text: structural tokens, tags and audio codes."""
        return {token_id: name for name, token_id in self.base.get_added_vocab().items()}

    @property
    def continuous_roles(self) -> list[str]:
        """Roles whose audio passes through the speech encoder."""
        return roles_with(self.audio_input, CONTINUOUS)

    @property
    def discrete_roles(self) -> list[str]:
        """Roles whose audio needs codes."""
        return roles_with(self.audio_input, DISCRETE)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens and audio codes written in it are recognised."""
        return self.base.encode(text, add_special_tokens=False) if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens and audio codes."""
        return self.base.decode(self.split(ids)[0], skip_special_tokens=True)

    @property
    def code_ids(self) -> range:
        """Token ids of the audio codes."""
        return range(self.first_audio_id, self.first_audio_id + self.num_audio_codes)

    def is_audio(self, token_id: int) -> bool:
        return self.first_audio_id <= token_id < self.first_audio_id + self.num_audio_codes

    def audio_ids(self, codes: Sequence[int]) -> list[int]:
        """Return the token ids of audio codes.

        Raises: ValueError for a code outside the codebook.
        """
        if codes and not 0 <= min(codes) <= max(codes) < self.num_audio_codes:
            raise ValueError(
                f"audio codes must be in 0..{self.num_audio_codes - 1}, got {min(codes)}..{max(codes)}; "
                "text tokenizer and audio tokenizer do not belong together"
            )
        return [self.first_audio_id + code for code in codes]

    def split(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Separate generated ids into text ids, including special tokens, and audio codes, which count from 0."""
        ids = list(map(int, ids))
        codes = [token_id - self.first_audio_id for token_id in ids if self.is_audio(token_id)]
        return [token_id for token_id in ids if not self.is_audio(token_id)], codes

    def header(self, role: str) -> list[int]:
        """Return the ids that open a turn of a role in `ROLES`: `<|im_start|>role` and a newline."""
        return list(self._headers[role])

    def footer(self) -> list[int]:
        """Return the ids that close a turn: `<|im_end|>` and a newline."""
        return list(self._footer)

    def save_pretrained(self, folder: str | Path) -> None:
        self.base.save_pretrained(folder)


def padded(num_tokens: int) -> int:
    """Return the rows of an embedding table for a number of tokens."""
    return -(-num_tokens // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE


@lru_cache
def chat_template() -> str:
    """Return the jinja template of a conversation, for `apply_chat_template` of transformers."""
    return (Path(__file__).parent / "assets" / "chat_template.jinja").read_text(encoding="utf-8")


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files of a text tokenizer: `tokenizer.json`, or vocabulary and merges, and its configuration.

    Raises: FileNotFoundError if there is no text tokenizer.
    """
    names = ["tokenizer.json"] if (folder / "tokenizer.json").exists() else ["vocab.json", "merges.txt"]
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(f"no text tokenizer in {folder}: neither tokenizer.json nor vocab.json and merges.txt")
    if (folder / "tokenizer_config.json").exists():
        names.append("tokenizer_config.json")
    return [folder / name for name in names]


def roles_with(audio_input: Mapping[str, str], way: str) -> list[str]:
    """List the roles whose audio enters the model as `way`, DISCRETE or CONTINUOUS; BOTH counts as either."""
    return [role for role, how in audio_input.items() if how in (way, BOTH)]


def parse_audio_input(pairs: Iterable[str]) -> dict[str, str]:
    """Parse command-line values of `audio_input`, such as `user=continuous`.

    Raises: ValueError for any other form.
    """
    pairs = list(pairs)
    if wrong := [pair for pair in pairs if pair.count("=") != 1]:
        raise ValueError(f"audio input must be pairs such as user=continuous, got {wrong[0]!r}")
    return dict(pair.split("=") for pair in pairs)


def check_audio_input(audio_input: Mapping[str, str]) -> dict[str, str]:
    """Check how the audio of each role enters the model, and return it in the order of `ROLES`.

    Raises: ValueError for missing or unknown roles or values, or if the assistant's audio would not be codes.
    """
    if set(audio_input) != set(ROLES) or not set(audio_input.values()) <= {DISCRETE, CONTINUOUS, BOTH}:
        raise ValueError(
            f"audio_input must say {DISCRETE}, {CONTINUOUS} or {BOTH} for {', '.join(ROLES)}, got {dict(audio_input)}"
        )
    if audio_input["assistant"] != DISCRETE:
        raise ValueError(
            f"audio of the assistant must be {DISCRETE}, since models generate codes, got {dict(audio_input)}"
        )
    return {role: audio_input[role] for role in ROLES}


def count_audio_codes(vocabulary: dict[str, int]) -> int:
    """Return the number of consecutive audio codes, from code 0, in a vocabulary."""
    return next(code for code in count() if AUDIO_CODE_FORMAT.format(code) not in vocabulary)
