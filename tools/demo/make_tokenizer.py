"""Train the text tokenizer of the tiny models on the demo's texts: byte-level BPE as in Qwen2, with a small vocabulary.

    python -m tools.demo.make_tokenizer --out vita_audio/assets/tiny_text_lm

The folder loads with `transformers.AutoTokenizer`. Any text can be encoded; words of the domain are one token each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.demo.domain import DOMAINS, LANGUAGES
from vita_audio.command_line import OneLineParser
from vita_audio.constants import END_OF_TEXT, IM_END, IM_START
from vita_audio.errors import one_line_errors
from vita_audio.text import ASR_PROMPT, TTS_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Words, single digits, punctuation, line breaks, spaces: the pre-tokeniser of Qwen2 (Hugging Face, tokenizer.json).
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
INSTRUCTIONS = (ASR_PROMPT, TTS_PROMPT, "user", "assistant", "system")
WHOLE_WORD_WEIGHT = 200  # copies of the instructions, which every sample contains


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE; the ChatML tokens are the last three of `vocab_size` ids.

    Raises: ValueError if `vocab_size` is too small for the 256 bytes and the ChatML tokens, or too large for the texts.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END_OF_TEXT, IM_START, IM_END]
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size must be at least {256 + len(special)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special), initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the texts give only {tokenizer.get_vocab_size()} entries; lower vocab_size {vocab_size}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=IM_END, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_tokenizer", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=["en"], help="languages of the texts")
    parser.add_argument("--vocab-size", type=int, default=945, help="entries, including 256 bytes and 3 special tokens")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    texts = [text for language in options.languages for text in DOMAINS[language].training_texts("long")]
    with one_line_errors("make_tokenizer"):
        tokenizer = train_tokenizer([*texts, *INSTRUCTIONS * WHOLE_WORD_WEIGHT], options.vocab_size)
        tokenizer.save_pretrained(options.out)
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    print(f"{options.out}: {len(tokenizer)} entries, {num_tokens / num_words:.2f} tokens per word")


if __name__ == "__main__":
    main()
