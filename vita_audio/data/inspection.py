"""Describe an encoded training sample: tokens, labels, chunks of text and audio, and the length of its audio."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.audio import AudioError, audio_info
from vita_audio.data.chat import EncodedConversation, SampleError
from vita_audio.data.codes import MissingCodesError
from vita_audio.data.mixture import resolve
from vita_audio.data.packing import encode_row
from vita_audio.text import TextTokenizer


def find_chunks(encoded: EncodedConversation, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Split a document where the kind of token changes, or whether it is learnt."""
    kinds = ["audio" if tokenizer.is_audio(token_id) else "text" for token_id in encoded.input_ids]
    for span in encoded.audio_spans:
        kinds[span.start + 1 : span.start + 1 + span.num_rows] = ["rows"] * span.num_rows
    learnt = [label != IGNORE_INDEX for label in encoded.labels]
    chunks, start = [], 0
    for (kind, is_learnt), group in groupby(zip(kinds, learnt, strict=True)):
        stop = start + len(list(group))
        ids = encoded.input_ids[start:stop]
        chunk = {"kind": kind, "learnt": is_learnt, "start": start, "stop": stop}
        if kind == "text":
            chunk["text"] = tokenizer.base.decode(ids)
        elif kind == "audio":
            chunk["codes"] = tokenizer.split(ids)[1]
        chunks.append(chunk)
        start = stop
    return chunks


def describe_audio(encoded: EncodedConversation, folder: Path) -> list[dict[str, Any]]:
    """Return format, length and position of each audio file of a document; relative paths start from `folder`."""
    audios = []
    for span in encoded.audio_spans:
        info = audio_info(resolve(span.audio, folder))
        audio = {"file": span.audio, "role": span.role, "start": span.start, "stop": span.stop}
        audio |= {"num_codes": span.num_ids - span.num_rows, "num_rows": span.num_rows}
        audio |= {"seconds": round(info.seconds, 3), "sample_rate": info.sample_rate, "channels": info.channels}
        audios.append(audio)
    return audios


def inspect_row(row: dict[str, Any], file: str, *, tokenizer: TextTokenizer, **settings: Any) -> dict[str, Any]:
    """Encode a row of a mixture as for training and describe the result, or the "error" of an unusable sample.

    Args:
        settings: More arguments of `encode_row`.
    """
    place = {"file": file, "line": row["line"]}
    try:
        encoded = encode_row(row, file, tokenizer, **settings)
    except (SampleError, AudioError, MissingCodesError, OSError) as error:
        return {**place, "error": str(error)}
    return {
        **place,
        "num_tokens": len(encoded.input_ids),
        "num_targets": sum(label != IGNORE_INDEX for label in encoded.labels),
        "audios": describe_audio(encoded, Path(file).parent),
        "chunks": find_chunks(encoded, tokenizer),
        "text": tokenizer.decode(encoded.input_ids),
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "loss_weights": encoded.loss_weights,
    }
