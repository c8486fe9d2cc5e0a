"""The benchmark on tiny weights: it runs, forces the layout, and counts backbone passes as the plans say."""

import json
from itertools import islice

import pytest
import torch
from toy_speech_lm import TINY_TOKENIZER, load_toy

from tools import benchmark_sts
from vita_audio.inference.tasks import text_conversation
from vita_audio.interleave import BACKBONE, MODES, InterleavePlan


def audio_options(folders):
    return ["--audio-tokenizer-path", str(folders.audio_tokenizer), "--audio-decoder-path", str(folders.audio_decoder)]


def check_report(folder, modes, num_modules):
    report = json.loads((folder / "benchmark.json").read_text())
    assert list(report["modes"]) == modes and report["new_tokens"] == 100 and report["prompt_tokens"] >= 32
    assert report["num_mtp_modules"] == num_modules and report["peak_process_memory_mib"] > 0
    for mode, figures in report["modes"].items():
        steps = list(islice(InterleavePlan.parse(mode).steps(num_modules), 100))
        assert figures["backbone_passes_per_token"] == pytest.approx(steps.count(BACKBONE) / 100)
        assert min(figures[name] for name in ("tokens_per_second", "first_audio_ms", "real_time_factor")) > 0
        assert figures["timeline"][0][0] <= figures["timeline"][-1][0]
    first = report["modes"][modes[0]]
    assert first["speedup"] == first["first_audio_speedup"] == 1
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoint_in_two_modes(toy_folders, tmp_path, capsys):
    arguments = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--modes", "vanilla", "1,10"]
    benchmark_sts.main([*arguments, "--output", str(tmp_path / "out"), "--new-tokens", "100", "--repeats", "1"])
    check_report(tmp_path / "out", ["vanilla", "1,10"], num_modules=4)
    header, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert "tokens/s" in header and [row.split()[0] for row in rows] == ["vanilla", "1,10"]


def test_random_weights_in_all_modes(toy_folders, tmp_path):
    config = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"model_type": "qwen2_mtp", "num_hidden_layers": 12, "num_nextn_predict_layers": 10, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--random-weights", str(tmp_path / "config.json"), "--tokenizer", str(TINY_TOKENIZER)]
    arguments += [*audio_options(toy_folders), "--output", str(tmp_path), "--device", "cpu"]
    benchmark_sts.main([*arguments, "--new-tokens", "100", "--repeats", "1"])
    check_report(tmp_path, list(MODES), num_modules=10)


@pytest.mark.parametrize(("name", "num_new"), [("vanilla", 53), ("balance", 58), ("boost", 53)])
def test_answers_have_the_layout_of_training(toy_folders, name, num_new):
    """`num_new` ends with a whole audio chunk. Vanilla is for decoding only, its answers look like those of Boost."""
    speech_lm, plan = load_toy(toy_folders), InterleavePlan.parse(name)
    tokenizer, conversation = speech_lm.tokenizer, text_conversation("Hello")
    num_prompt = len(speech_lm.prompt_ids(conversation))
    forcing = benchmark_sts.layout_forcing(plan, tokenizer, num_prompt=num_prompt, num_new=num_new)
    response = speech_lm.respond(
        conversation, plan, max_new_tokens=num_new, logits_processor=[forcing], decode_audio=False
    )
    data_plan = InterleavePlan.parse("boost" if name == "vanilla" else name)
    markers = (tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id)
    audio_ids = [i for i in response.ids if tokenizer.is_audio(i)]
    text_ids = [i for i in response.ids if not tokenizer.is_audio(i) and i not in markers]
    assert data_plan.interleave(text_ids, audio_ids, *markers) == response.ids
    assert tokenizer.decode(response.ids) == tokenizer.base.decode(text_ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "warp"], "must be one of vanilla, balance, boost, turbo"),
        (["--random-weights", "x.json"], "--random-weights and --tokenizer belong together"),
        (["--new-tokens", "9"], "--new-tokens: must be at least 100, got 9"),
        (["--repeats", "0"], "must be at least 1"),
        (["--new-tokens", "600"], "512 positions"),
    ],
)
def test_wrong_arguments(toy_folders, tmp_path, capsys, arguments, message):
    model = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        benchmark_sts.main([*model, *arguments])
    *bar, written = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and written.startswith("benchmark_sts: ") and message in written
    assert all(line.startswith("measuring") for line in bar if line) and (not bar or "512" in message)


@pytest.mark.gpu
def test_memory_is_measured_on_a_gpu(toy_folders, tmp_path):
    arguments = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--device", "cuda"]
    benchmark_sts.main([*arguments, "--output", str(tmp_path), "--new-tokens", "100", "--repeats", "1"])
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["device"] == torch.cuda.get_device_name()
    assert all(figures["peak_gpu_memory_mib"] > 0 for figures in report["modes"].values())
