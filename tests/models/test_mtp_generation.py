"""Decoding with modules: reference ids, options of `generate`, batches."""

import threading

import pytest
import torch
from toy_models import ASSETS, load_case, load_model, make_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from vita_audio.interleave import MODES

CASES = ["generate_mtp10", "generate_mtp4", "generate_mtp1_overflow"]
PLAN = [1, 3, 2, 2]  # more module steps than there are modules
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": PLAN}


@pytest.fixture(scope="module")
def model():
    return make_model(2)


def sources_of(output, num_tokens):
    """Who predicted each token; transformers' own output means the backbone."""
    return [f"mtp{depth - 1}" if depth else "main" for depth in getattr(output, "steps", (0,) * num_tokens)]


@pytest.mark.parametrize("attention, use_cache", [("sdpa", True), ("sdpa", False), ("eager", True)])
@pytest.mark.parametrize("name", CASES)
def test_tokens_match_the_reference(name, attention, use_cache):
    golden = load_case(name)
    model = load_model(golden.folder, attention).eval()
    for run in golden.expected["runs"]:
        prompt = golden.inputs[f"prompt{run['prompt']}"]
        output = model.generate(
            prompt,
            mtp_inference_mode=run["mode"],
            max_new_tokens=run["max_new_tokens"],
            repetition_penalty=run["repetition_penalty"],
            eos_token_id=run["eos_token_id"],
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert output.sequences[0, prompt.shape[1] :].tolist() == run["output_ids"], run["mode"]
        assert sources_of(output, len(run["steps"])) == [step["source"] for step in run["steps"]]
        logits = golden.tensors.get(f"run{run['run']}.step_logits")
        if logits is not None:
            torch.testing.assert_close(torch.cat(output.logits), logits, **golden.case["tolerance"]["logits"])


def test_cache_grows_as_in_the_reference():
    golden = load_case("generate_mtp4")
    model = load_model(golden.folder).eval()
    run = golden.expected["runs"][0]
    for num_steps in (1, 3, 7, 20):
        output = model.generate(
            golden.inputs["prompt0"],
            mtp_inference_mode=run["mode"],
            max_new_tokens=num_steps,
            do_sample=False,
            return_dict_in_generate=True,
        )
        lengths = {"main": 0} | {f"mtp{k}": 0 for k in range(4)}
        lengths |= {step["source"]: step["kv_len_after"] for step in run["steps"][:num_steps]}
        cached = [output.past_key_values.get_seq_length(layer) for layer in (0, -4, -3, -2, -1)]
        assert cached == list(lengths.values())


@pytest.mark.parametrize("mode", ["turbo", (1, 10), [1, 10], "1,10"])
def test_mode_as_name_tuple_or_list_in_call_or_config(model, ids, mode):
    expected = model.generate(ids, **GREEDY | {"mtp_inference_mode": MODES["turbo"]}).tolist()
    assert model.generate(ids, **GREEDY | {"mtp_inference_mode": mode}).tolist() == expected
    config = GenerationConfig(do_sample=False, max_new_tokens=10, mtp_inference_mode=mode)
    assert model.generate(ids, generation_config=config).tolist() == expected
    assert model.generate(ids, config).tolist() == expected


def test_argument_overrides_call_config_overrides_model_config(ids):
    model = make_model(2)
    config = GenerationConfig(mtp_inference_mode="turbo")
    arguments = {"do_sample": False, "max_new_tokens": 10, "return_dict_in_generate": True}

    def steps(**more):
        return getattr(model.generate(ids, **arguments, **more), "steps", "backbone only")

    assert steps() == "backbone only"
    model.generation_config.mtp_inference_mode = "turbo"
    assert steps(mtp_inference_mode="vanilla") == "backbone only"
    assert set(steps()) == {0, 1, 2}
    model.generation_config.mtp_inference_mode = "vanilla"
    assert steps() == "backbone only"
    config.update(**arguments)
    turbo = model.generate(ids, generation_config=config).steps
    assert turbo == (0, 1, 2) * 3 + (0,)
    assert steps(mtp_inference_mode=[3, 1]) == (0, 0, 0, 1, 0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize("mode", ["fast", [1], [1, 2, 3], (0, 4), [1, -1], [1, 2.5], []])
def test_wrong_mode_is_a_value_error(model, ids, mode):
    with pytest.raises(ValueError, match="vanilla"):
        model.generate(ids, **GREEDY | {"mtp_inference_mode": mode})


@pytest.mark.parametrize(
    "more", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"num_beams": 2, "num_beam_groups": 2}]
)
def test_other_search_modes_are_refused(model, ids, more):
    with pytest.raises(ValueError, match="work with greedy search and sampling, got .* mtp_inference_mode='vanilla'"):
        model.generate(ids[:1], **GREEDY, **more)


def test_all_search_modes_work_without_modules_whatever_the_checkpoint_says(ids):
    """As the messages of refusal say, also for a model whose generation config has a plan with modules."""
    model = make_model(2)
    options = {"do_sample": False, "max_new_tokens": 6, "num_beams": 3}
    expected = model.generate(ids, **options)
    model.generation_config.mtp_inference_mode = "boost"
    with pytest.raises(ValueError, match="got beam_search"):
        model.generate(ids, **options)
    assert model.generate(ids, **options, mtp_inference_mode="vanilla").tolist() == expected.tolist()
    more = {"output_hidden_states": True, "return_dict_in_generate": True, "mtp_inference_mode": "vanilla"}
    assert len(model.generate(ids, do_sample=False, max_new_tokens=6, **more).hidden_states) == 6


def test_assistant_and_captured_states_are_refused(model, ids):
    with pytest.raises(ValueError, match="exclude an assistant_model; give mtp_inference_mode='vanilla'"):
        model.generate(ids[:1], **GREEDY, assistant_model=model)
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match=f"{name} is not available"):
            model.generate(ids, **GREEDY, **{name: True}, return_dict_in_generate=True)


def test_vanilla_equals_the_backbone_alone(model, ids):
    alone = model.generate(ids, do_sample=False, max_new_tokens=10)
    assert model.generate(ids, **GREEDY | {"mtp_inference_mode": "vanilla"}).tolist() == alone.tolist()
    without_modules = make_model(0)
    assert (
        without_modules.generate(ids, **GREEDY).tolist()
        == without_modules.generate(ids, do_sample=False, max_new_tokens=10).tolist()
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("plan", [[1, 2], [1, 1, 3, 2], [4, 1], [1, 0, 1, 0, 2, 2]])
def test_cached_logits_equal_uncached_ones(ids, attention, plan):
    """Plans in which modules catch up late, in turn and after backbone runs."""
    model = make_model(2, attention=attention)
    arguments = GREEDY | {"mtp_inference_mode": plan, "return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(ids, **arguments)
    uncached = model.generate(ids, **arguments, use_cache=False)
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(cached.logits, uncached.logits)
    assert uncached.past_key_values is None


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(12, 1), (5, 9)])
def test_left_padded_batch_equals_single_runs(ids, use_cache, attention, lengths):
    model = make_model(2, attention=attention)
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        padded[row, 12 - length :] = ids[row, :length]
        mask[row, 12 - length :] = 1
    more = {"return_dict_in_generate": True, "output_logits": True, "use_cache": use_cache}
    batch = model.generate(padded, attention_mask=mask, **GREEDY, **more)
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, :length], **GREEDY, **more)
        assert batch.sequences[row, 12:].tolist() == alone.sequences[0, length:].tolist()
        torch.testing.assert_close(
            torch.stack(batch.logits)[:, row], torch.stack(alone.logits)[:, 0], atol=1e-4, rtol=1e-4
        )


def test_rows_finish_on_their_own(model, ids):
    alone = [model.generate(ids[row : row + 1], **GREEDY)[0, 12:].tolist() for row in range(2)]
    stop = next(token for token in alone[0][1:6] if token not in alone[1])
    end = alone[0].index(stop)
    batch = model.generate(ids, **GREEDY, eos_token_id=stop, pad_token_id=0)[:, 12:].tolist()
    assert batch[0] == alone[0][: end + 1] + [0] * (9 - end)
    assert batch[1] == alone[1]
    single = model.generate(ids[:1], **GREEDY, eos_token_id=stop, pad_token_id=0)
    assert single.shape[1] == 12 + end + 1


def test_one_token_prompts(model, ids):
    assert model.generate(ids[:, :1], **GREEDY).shape == (2, 11)


def test_a_prompt_without_tokens_is_an_error(model, ids):
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(ids[:, :0], **GREEDY)


def test_weights_that_are_kept_on_disk_decode_alike(model, ids, tmp_path):
    """As `device_map="auto"` does where memory is short; the head, behind all layers, is among the first to go."""
    model.save_pretrained(tmp_path)
    places = {name: "cpu" for name, _ in model.named_children()} | {"lm_head": "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert loaded.lm_head.weight.is_meta
    assert loaded.generate(ids, **GREEDY).tolist() == model.generate(ids, **GREEDY).tolist()


def test_sampling_repeats_with_its_seed_and_follows_processors(model, ids):
    arguments = GREEDY | {"do_sample": True, "temperature": 1.5, "top_k": 20, "num_return_sequences": 2}
    torch.manual_seed(3)
    first = model.generate(ids, **arguments)
    torch.manual_seed(3)
    assert model.generate(ids, **arguments, use_cache=False).tolist() == first.tolist()
    assert first.shape == (4, 22)
    assert model.generate(ids, **arguments).tolist() != first.tolist()
    narrow = model.generate(ids, **arguments | {"top_k": 1})
    assert narrow[::2].tolist() == model.generate(ids, **GREEDY).tolist()


def test_processors_act_on_module_steps(model, ids):
    plain = model.generate(ids, **GREEDY)
    banned = plain[0, 13].item()  # the first token of module 0
    output = model.generate(
        ids, **GREEDY, suppress_tokens=[banned], return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert banned not in output.sequences[:, 12:]
    assert output.scores[1][0, banned] == -torch.inf and output.logits[1][0, banned].isfinite()
    assert len(output.scores) == len(output.logits) == len(output.steps) == 10
    seen = []

    def spy(input_ids, scores):
        seen.append(input_ids.shape[1])
        return scores

    model.generate(ids, **GREEDY, logits_processor=LogitsProcessorList([spy]))
    assert seen == list(range(12, 22))
    repeated = model.generate(ids, **GREEDY, no_repeat_ngram_size=1)[:, 12:]
    assert all(len(set(row)) == 10 for row in repeated.tolist())


def test_scores_come_only_when_asked_for(model, ids):
    output = model.generate(ids, **GREEDY, return_dict_in_generate=True)
    assert output.scores is None and output.logits is None
    assert output.sequences.tolist() == model.generate(ids, **GREEDY).tolist()


def test_length_limits_and_stopping_criteria(model, ids):
    expected = model.generate(ids, **GREEDY)
    by_length = {"do_sample": False, "mtp_inference_mode": PLAN, "max_length": 17}
    assert model.generate(ids, **by_length).tolist() == expected[:, :17].tolist()
    assert model.generate(ids, do_sample=False, mtp_inference_mode=PLAN).shape == (2, 32)  # transformers' default

    def after_three(input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 15)

    stopped = model.generate(ids, **GREEDY, stopping_criteria=StoppingCriteriaList([after_three]))
    assert stopped.tolist() == expected[:, :15].tolist()
    ends = {"eos_token_id": expected[0, 13].item(), "pad_token_id": 0}
    assert model.generate(ids[:1], **GREEDY, **ends).shape[1] == 14
    assert model.generate(ids[:1], **GREEDY, **ends, min_new_tokens=6).shape[1] >= 18


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS.parent / "tiny_tokenizer")


def test_streamer_receives_prompt_then_single_tokens(model, ids):
    class Collector(BaseStreamer):
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.ended = True

    collector = Collector()
    output = model.generate(ids[:1], **GREEDY, streamer=collector)
    assert collector.ended
    assert collector.values == [ids[:1].tolist()] + [[token] for token in output[0, 12:].tolist()]


def test_text_streamer_in_a_thread_and_stop_strings(tokenizer, ids):
    model = make_model(2, vocab_size=len(tokenizer))
    expected = model.generate(ids[:1], **GREEDY)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    thread = threading.Thread(target=model.generate, args=(ids[:1],), kwargs=GREEDY | {"streamer": streamer})
    thread.start()
    assert "".join(streamer) == tokenizer.decode(expected[0, 12:])
    thread.join()
    texts = [tokenizer.decode(token) for token in expected[0]]
    end = next(i for i in range(13, 22) if texts[i].isascii() and texts[i] not in "".join(texts[:i]))
    stopped = model.generate(ids[:1], **GREEDY, stop_strings=[texts[end]], tokenizer=tokenizer)
    assert stopped.tolist() == expected[:, : end + 1].tolist()


def test_stop_strings_of_a_generation_config_and_without_a_tokenizer(tokenizer, ids):
    """transformers takes the tokenizer away from custom functions; vanilla is its own decoding."""
    model = make_model(2, vocab_size=len(tokenizer))
    texts = [tokenizer.decode(token) for token in model.generate(ids[:1], **GREEDY)[0]]
    end = next(i for i in range(13, 22) if texts[i].isascii() and texts[i] not in "".join(texts[:i]))
    config = GenerationConfig(stop_strings=[texts[end]], do_sample=False, max_new_tokens=10)
    stopped = model.generate(ids[:1], generation_config=config, mtp_inference_mode=PLAN, tokenizer=tokenizer)
    assert stopped.shape[1] == end + 1
    model.generation_config.stop_strings = [texts[end]]
    assert model.generate(ids[:1], **GREEDY, tokenizer=tokenizer).tolist() == stopped.tolist()
    with pytest.raises(ValueError, match="stop_strings need a tokenizer to be found, got"):
        model.generate(ids[:1], **GREEDY)


def test_the_plan_of_a_checkpoint_survives_saving(ids, tmp_path):
    """Also where transformers has made the generation config of the model config."""
    model = make_model(2)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.generation_config.mtp_inference_mode = [1, 2]
    expected = model.generate(ids, do_sample=False, max_new_tokens=6, return_dict_in_generate=True).steps
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.mtp_inference_mode == [1, 2]
    assert loaded.generate(ids, do_sample=False, max_new_tokens=6, return_dict_in_generate=True).steps == expected


def test_prompt_as_embeddings(model, ids):
    expected = model.generate(ids, **GREEDY)
    embeds = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embeds, **GREEDY).tolist() == expected[:, 12:].tolist()
    assert model.generate(input_ids=ids, inputs_embeds=embeds, **GREEDY).tolist() == expected.tolist()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    padded = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert padded[0].tolist() == model.generate(ids[:1, 4:], **GREEDY)[0, 8:].tolist()
    with pytest.raises(ValueError, match="equally long, got 3 and 12"):
        model.generate(input_ids=ids[:, :3], inputs_embeds=embeds, **GREEDY)


def test_modules_read_ids_where_the_backbone_reads_embeddings(model, ids):
    """As with continuous speech input, whose place in the ids is held by a placeholder token."""
    embeds = model.get_input_embeddings()(ids) * 0.5
    more = {"return_dict_in_generate": True, "output_logits": True}
    with_ids = model.generate(input_ids=ids, inputs_embeds=embeds, **GREEDY, **more)
    without = model.generate(inputs_embeds=embeds, **GREEDY, **more)
    torch.testing.assert_close(with_ids.logits[0], without.logits[0])
    hidden = model.model(inputs_embeds=embeds).last_hidden_state
    tokens = with_ids.sequences[:, 1:13]
    positions = torch.arange(1, 13)[None]
    states = model.mtp_step(1, model.get_input_embeddings()(tokens), hidden, positions)
    torch.testing.assert_close(with_ids.logits[1], model.lm_head(states[:, -1]))
    assert not torch.allclose(with_ids.logits[1], without.logits[1])


def test_half_precision_and_training_mode(ids):
    model = make_model(2).to(torch.bfloat16)
    tokens = model.generate(ids, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert tokens.logits[0].dtype == torch.float32
    assert model.train().generate(ids, **GREEDY).tolist() == tokens.sequences.tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_model(2).generate(ids, **GREEDY).shape == (2, 22)
