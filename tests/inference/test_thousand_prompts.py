"""A thousand answers of a trained model at acceptance 1 are the backbone's own, token for token.

`tests/models/test_verification.py` does the same with models of random weights.
"""

import random

import pytest

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.workers import ROOT

NUM_PROMPTS, BATCH_SIZE, NUM_STREAMS = 1000, 16, 50
WORDS = "zero one two three four five six seven eight nine the capital of what is color day plus".split()
OPTIONS = {"max_new_tokens": 60, "do_sample": False}


@pytest.mark.slow
def test_a_thousand_verified_answers_are_those_of_the_backbone():
    folder = ROOT / "vita_audio" / "assets" / "demo_model"
    model = SpeechLM.from_pretrained(folder, get_audio_tokenizer("glm4voice"), dtype="float32")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(NUM_PROMPTS)]
    prompts = [make_conversation("tts", text=text) for text in texts]
    expected, found = [], []
    for first in range(0, NUM_PROMPTS, BATCH_SIZE):
        batch, options = prompts[first : first + BATCH_SIZE], {"decode_audio": False, **OPTIONS}
        expected += [answer.ids for answer in model.respond_batch(batch, "vanilla", **options)]
        found += [answer.ids for answer in model.respond_batch(batch, "boost", acceptance=1, **options)]
    different = [text for text, *ids in zip(texts, expected, found, strict=True) if ids[0] != ids[1]]
    assert different == []
    for prompt, ids in zip(prompts[:NUM_STREAMS], expected, strict=False):
        chunks = model.stream(prompt, "boost", acceptance=1, **OPTIONS)
        assert [token_id for chunk in chunks for token_id in chunk.ids] == ids
