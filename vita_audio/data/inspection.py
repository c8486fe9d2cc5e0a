"""What a training sample turns into: tokens, labels, chunks of text and audio, and the lengths of its audio."""

from __future__ import annotations

import json
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import soundfile

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.audio import AudioError
from vita_audio.data.chat import EncodedConversation, SampleError, encode_conversation
from vita_audio.data.codes import AudioCodeStore, MissingCodesError
from vita_audio.data.mixture import resolve
from vita_audio.data.packing import stored_audio_ids
from vita_audio.interleave import InterleavePlan
from vita_audio.text import TextTokenizer


def find_chunks(encoded: EncodedConversation, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Split a document where text changes to audio, or learnt tokens to others."""
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
    """Return format, length and place of each audio file of a document; relative paths start from `folder`."""
    audios = []
    for span in encoded.audio_spans:
        info = soundfile.info(str(resolve(span.audio, folder)))
        audios.append(
            {
                "file": span.audio,
                "role": span.role,
                "seconds": round(info.duration, 3),
                "sample_rate": info.samplerate,
                "channels": info.channels,
                "num_codes": span.num_ids - span.num_rows,
                "num_rows": span.num_rows,
                "start": span.start,
                "stop": span.stop,
            }
        )
    return audios


def inspect_row(
    row: dict[str, Any],
    file: str,
    *,
    tokenizer: TextTokenizer,
    store: AudioCodeStore,
    plan: InterleavePlan,
    user_audio_loss_weight: float,
) -> dict[str, Any]:
    """Encode a row of a mixture as for training, and describe the result; an unusable sample gets an "error" instead.

    Args:
        file: File that the row comes from.
    """
    folder = Path(file).parent
    place = {"file": file, "line": row["line"]}
    try:
        encoded = encode_conversation(
            json.loads(row["sample"]),
            tokenizer,
            partial(stored_audio_ids, tokenizer=tokenizer, store=store, folder=folder),
            plan,
            user_audio_loss_weight=user_audio_loss_weight,
        )
    except (SampleError, AudioError, MissingCodesError, OSError) as error:
        return {**place, "error": str(error)}
    return {
        **place,
        "num_tokens": len(encoded.input_ids),
        "num_targets": sum(label != IGNORE_INDEX for label in encoded.labels),
        "audios": describe_audio(encoded, folder),
        "chunks": find_chunks(encoded, tokenizer),
        "text": tokenizer.decode(encoded.input_ids),
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "loss_weights": encoded.loss_weights,
    }
