"""The same modules on every kind of text model: what a family must not lose, at toy size."""

import pytest
import torch
from toy_models import FAMILIES, LENGTHS, make_agreeing_model, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from vita_audio.models import SPEECH_CONFIGS, SPEECH_MODELS, TEXT_CONFIGS
from vita_audio.models.decode_state import DecodeState
from vita_audio.models.loading import load_weights, read_config
from vita_audio.models.mtp_generation import mtp_steps
from vita_audio.models.surgery import init_missing_mtp

OTHERS = ["qwen3", "llama"]  # all other model tests run Qwen2
GREEDY = {"do_sample": False, "max_new_tokens": 24, "mtp_inference_mode": "boost"}


@pytest.fixture(scope="module", params=OTHERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    """Its modules know some of the backbone's tokens."""
    return make_agreeing_model(4, disagreement=0.02, **FAMILIES[family])


def text_model(family):
    """Make a text model of transformers, without modules."""
    config = make_model(0, **FAMILIES[family]).config
    (text_class,) = (kind for kind in TEXT_CONFIGS if isinstance(config, kind))
    values = {key: value for key, value in config.to_dict().items() if key in text_class.__dataclass_fields__}
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(text_class(**values)).eval()


def test_there_is_a_speech_model_for_every_text_model():
    assert all(any(issubclass(ours, theirs) for ours in SPEECH_CONFIGS) for theirs in TEXT_CONFIGS)
    assert [AutoConfig.for_model(kind.model_type).__class__ for kind in SPEECH_CONFIGS] == list(SPEECH_CONFIGS)
    assert [model_class.config_class for model_class in SPEECH_MODELS] == list(SPEECH_CONFIGS)


def test_the_backbone_is_that_of_the_text_model(family, ids, tmp_path):
    text = text_model(family)
    text.save_pretrained(tmp_path)
    config = make_model(3, **FAMILIES[family]).config
    model, missing = load_weights(tmp_path, config)
    assert init_missing_mtp(model, missing) == missing and any(name.startswith("mtp_projs") for name in missing)
    model.eval()
    torch.testing.assert_close(model(ids).logits, text(ids).logits)
    last, first = model.model.layers[1].state_dict(), model.model.layers[2].state_dict()
    assert all(torch.equal(last[name], first[name]) for name in last)


def test_weights_survive_saving(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path, SPEECH_CONFIGS)
    loaded, missing = load_weights(tmp_path, config)
    assert not missing and type(loaded) is type(model)
    torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_cached_equals_uncached(model, ids):
    options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
    cached, uncached = (model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(cached.logits, uncached.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("acceptance", [0, 1])
def test_a_batch_and_a_stream_equal_single_rows(model, prompts, acceptance):
    options = GREEDY | {"acceptance": acceptance}
    batch = model.generate(**prompts, **options)[:, 12:].tolist()
    for row in (0, 1, 4):
        prompt = prompts["input_ids"][row : row + 1, 12 - LENGTHS[row] :]
        assert model.generate(prompt, **options)[0, LENGTHS[row] :].tolist() == batch[row]
        steps = model.generate(prompt, custom_generate=mtp_steps, **options)
        assert [int(step.tokens) for step in steps] == batch[row]


def test_acceptance_one_writes_what_the_backbone_writes(model, ids):
    vanilla = model.generate(ids, **GREEDY | {"mtp_inference_mode": "vanilla"})
    output = model.generate(ids, acceptance=1, return_dict_in_generate=True, **GREEDY)
    assert output.sequences.tolist() == vanilla.tolist()
    assert sum(sum(counts.num_accepted) for counts in output.counts) > 0


def test_a_conversation_continues_from_its_state(model, ids):
    state = DecodeState()
    first = model.generate(ids[:1], decode_state=state, **GREEDY)
    prompt = torch.cat([first, ids[1:]], dim=1)
    assert model.generate(prompt, decode_state=state, **GREEDY).tolist() == model.generate(prompt, **GREEDY).tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_apart(family, attention, ids):
    model = make_model(2, attention=attention, **FAMILIES[family]).train()
    row = ids.reshape(1, -1)
    positions = torch.arange(12).repeat(2)[None]
    packed = model(row, labels=row, position_ids=positions)
    alone = [model(ids[n : n + 1], labels=ids[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(packed.loss, (alone[0].loss + alone[1].loss) / 2)
