"""A thousand answers at acceptance 1 are the backbone's own, token for token: in batches, alone and streamed."""

import random
from pathlib import Path

import pytest
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.text import CONTINUOUS_INPUT
from vita_audio.workers import ROOT

pytestmark = pytest.mark.slow
NUM_PROMPTS, BATCH_SIZE, NUM_STREAMS = 1000, 16, 50
WORDS = "zero one two three four five six seven eight nine the capital of what is color day plus".split()
OPTIONS = {"max_new_tokens": 60, "do_sample": False}


@pytest.fixture(params=["trained", "random", "plus"])
def model(request, tmp_path: Path) -> SpeechLM:
    if request.param == "trained":
        folder = ROOT / "vita_audio" / "assets" / "demo_model"
        return SpeechLM.from_pretrained(folder, get_audio_tokenizer("glm4voice"), dtype="float32")
    folders = make_toy_folders(tmp_path, **({"audio_input": CONTINUOUS_INPUT} if request.param == "plus" else {}))
    return load_toy(folders)


def test_a_thousand_verified_answers_are_those_of_the_backbone(model):
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(NUM_PROMPTS)]
    prompts = [make_conversation("tts", text=text) for text in texts]
    for first in range(0, NUM_PROMPTS, BATCH_SIZE):
        batch = prompts[first : first + BATCH_SIZE]
        answers = {
            mode: model.respond_batch(batch, mode, acceptance=acceptance, decode_audio=False, **OPTIONS)
            for mode, acceptance in (("vanilla", 0), ("boost", 1))
        }
        for expected, found, text in zip(answers["vanilla"], answers["boost"], texts[first:], strict=False):
            assert found.ids == expected.ids, text
        if first == 0:
            kept = answers["vanilla"]
    for number, prompt in enumerate(prompts[:NUM_STREAMS]):
        streamed = [
            token_id for chunk in model.stream(prompt, "boost", acceptance=1, **OPTIONS) for token_id in chunk.ids
        ]
        alone = model.respond(prompt, "vanilla", decode_audio=False, **OPTIONS).ids
        assert streamed == alone
        assert number >= len(kept) or alone == kept[number].ids
