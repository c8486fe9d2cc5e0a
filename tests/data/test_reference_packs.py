"""Packs and batches from the rows of the reference: every stream of its packing, every batch of its collation."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.collator import PackCollator
from vita_audio.data.packing import Document, PackedAudio, _join, pack_documents
from vita_audio.speech_features import QUERIES, SenseVoiceFrontEnd

ASSETS = Path(__file__).parents[1] / "assets"
STREAMS = json.loads((ASSETS / "data/packing.json").read_text(encoding="utf-8"))["cases"]
BATCHES = json.loads((ASSETS / "data/collate.json").read_text(encoding="utf-8"))["cases"]


def usable_documents(case):
    """First token -> document, of the samples that are whole and short enough."""
    documents = {}
    for sample in case["stream"]:
        base, length = sample["base"], sample["length"]
        if length <= case["max_length"] and not sample.get("error") and not sample.get("none"):
            ids = np.arange(base, base + length, dtype=np.int32)
            labels = np.where(np.arange(length) < length // 2, IGNORE_INDEX, ids)
            audios = [PackedAudio(f"{base}.wav", start, frames + 4) for start, frames in sample.get("audio", [])]
            documents[base] = Document(ids, labels, audios=tuple(audios))
    return documents


def heard(ids, spans):
    """Token ids under the placeholders of each audio; those of the reference's rows tell whose they are."""
    return sorted([int(ids[place]) for place in span] for span in spans)


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_no_stream_loses_a_document_and_audio_keeps_its_places(case):
    """The reference leaves documents in its open packs, and forgets to move the first audio of a pack."""
    documents = usable_documents(case)
    packs = [_join(members, True) for members in pack_documents(documents.values(), case["max_length"])]
    ours, places = {}, []
    for pack in packs:
        starts = [*np.flatnonzero(pack["position_ids"] == 0), len(pack["input_ids"])]
        assert starts[-1] <= case["max_length"]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            ours[int(pack["input_ids"][start])] = pack["input_ids"][start:stop], pack["labels"][start:stop]
        spans = zip(pack["audio_starts"], pack["audio_rows"], strict=True)
        places += heard(pack["input_ids"], (range(start, start + rows) for start, rows in spans))
    assert ours.keys() == documents.keys()

    theirs = []
    for row in case["rows"]:
        for start, token in enumerate(row["input_ids"]):
            if token in documents and case["name"] != "shift_token":  # tokens of a row that is one token shorter
                ids, labels = ours[token]
                assert row["input_ids"][start : start + len(ids)] == ids.tolist()
                assert row["labels"][start : start + len(ids)] == labels.tolist()
        theirs += heard(row["input_ids"], (rows[1][0] for rows in row.get("audio_indices", [])))
    if case["name"] == "audio_positions_text_first":
        assert [102, 103, 104, 200, 201] in theirs and [202, 203, 204, 205, 206] in places
    else:
        assert all(tokens in places for tokens in theirs)


@pytest.fixture(scope="module")
def front_end():
    return SenseVoiceFrontEnd.from_pretrained(ASSETS / "sensevoice" / "front_end")


def as_pack(row, folder):
    """A row of the reference with a file of silence for each audio, as long as its features."""
    pack = {name: row[name] for name in ("input_ids", "labels", "position_ids")}
    pack |= {"audio_paths": [], "audio_starts": [], "audio_rows": []}
    for audio, indices in zip(row.get("audios", []), row.get("audio_indices", []), strict=True):
        num_rows = audio["shape"][0]
        path = folder / f"{num_rows}.wav"
        soundfile.write(path, np.zeros(400 + 160 * 6 * (num_rows - 1)), SenseVoiceFrontEnd.sample_rate)
        pack["audio_paths"].append(str(path))
        pack["audio_starts"].append(indices["data"][1][0][0])
        pack["audio_rows"].append(num_rows + len(QUERIES))
    return pack


WHOLE = [case for case in BATCHES if all("input_ids" in row for row in case["batch"])]  # here no pack is ever empty


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["name"])
def test_batches_equal_those_of_the_reference(case, tmp_path, front_end):
    """Also where it fails: other numbers of documents or tokens in a row, and audio in some of the rows only."""
    batch = PackCollator(0, front_end)([as_pack(row, tmp_path) for row in case["batch"]])
    expected = [(number, audio) for number, row in enumerate(case["batch"]) for audio in row.get("audio_indices", [])]
    assert len(batch["audios"]) == len(batch["audio_indices"]) == len(expected)
    for audio, indices, (number, places) in zip(batch["audios"], batch["audio_indices"], expected, strict=True):
        assert indices.tolist() == [[[number] * (len(audio) + len(QUERIES))], places["data"][1]]
    for name in ("input_ids", "labels", "position_ids"):
        for row, made in zip(case["batch"], batch[name].tolist(), strict=True):
            assert made[: len(row[name])] == row[name]
        if name in case.get("output", {}):
            assert batch[name].tolist() == case["output"][name]
    if len(case.get("output", {}).get("audio_indices", [])):
        assert [i.tolist() for i in batch["audio_indices"]] == [i["data"] for i in case["output"]["audio_indices"]]
