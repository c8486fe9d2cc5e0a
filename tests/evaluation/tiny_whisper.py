"""A Whisper model of transformers with random weights and a tokenizer of letters, in a folder."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzĠ"
MARKS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>"]
MARKS += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
TIMES = [f"<|{20 * step / 1000:.2f}|>" for step in range(1501)]


def save_tiny_whisper(folder: Path) -> Path:
    tokenizer = WhisperTokenizer(vocab={letter: index for index, letter in enumerate(LETTERS)}, merges=[])
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.add_tokens(TIMES)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in (*MARKS, TIMES[0])}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_target_positions=48,
            init_std=0.5,
            decoder_start_token_id=ids["<|startoftranscript|>"],
            **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), ids["<|endoftext|>"]),
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        is_multilingual=True,
        lang_to_id={mark: ids[mark] for mark in ("<|en|>", "<|zh|>")},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        max_length=24,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder
