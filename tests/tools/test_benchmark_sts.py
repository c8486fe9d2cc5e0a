"""The benchmark on tiny weights: builds side by side, the forced layout, and backbone passes as the plans say."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from toy_speech_lm import TINY_TOKENIZER, load_toy

from tools import benchmark_sts
from tools.common import decoding_speed
from vita_audio.inference.tasks import text_conversation
from vita_audio.interleave import BACKBONE, MODES, InterleavePlan
from vita_audio.models.quantization import Int8Linear
from vita_audio.workers import ROOT, THIS


def audio_options(folders):
    return ["--audio-tokenizer-path", str(folders.audio_tokenizer), "--audio-decoder-path", str(folders.audio_decoder)]


def measured(arguments: list[str], output: Path) -> dict:
    """Run the benchmark as a program does and return benchmark.json."""
    benchmark_sts.main([*arguments, "--output", str(output), "--new-tokens", "100", "--repeats", "1"])
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((output / "benchmark.json").read_text())


def check_modes(report: dict, modes: list[str], num_modules: int) -> None:
    assert list(report["modes"]) == modes
    for mode, metrics in report["modes"].items():
        steps = list(islice(InterleavePlan.parse(mode).steps(num_modules), 100))
        assert metrics["backbone_passes_per_token"] == pytest.approx(steps.count(BACKBONE) / 100)
        assert metrics["tokens_per_pass"] == pytest.approx(100 / steps.count(BACKBONE))
        assert min(metrics[name] for name in ("tokens_per_second", "first_audio_ms", "real_time_factor")) > 0
        assert metrics["timeline"][0][0] <= metrics["timeline"][-1][0]
    first = report["modes"][modes[0]]
    assert first["speedup"] == first["first_audio_speedup"] == 1


def test_builds_are_compared_in_the_same_run(toy_folders, tmp_path, capsys):
    """This checkout next to itself."""
    arguments = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--modes", "vanilla", "1,10"]
    arguments += ["--compare-with", str(ROOT), "--batch-sizes", "1", "2"]
    report = measured(arguments, tmp_path / "out")
    check_modes(report, ["vanilla", "1,10"], num_modules=4)
    assert report["new_tokens"] == 100 and report["prompt_tokens"] >= 32 and report["num_mtp_modules"] == 4
    assert (report["dtype"], report["clock"]) == ("float32", "CPU time of one thread")
    assert report["peak_process_memory_mib"] > 0
    ((name, other),) = report["compared"].items()
    check_modes(other, ["vanilla", "1,10"], num_modules=4)
    assert name == ROOT.name
    for mode, metrics in report["modes"].items():
        ratios, theirs = other["ratios"][mode], other["modes"][mode]
        assert ratios["tokens_per_second"] == metrics["tokens_per_second"] / theirs["tokens_per_second"]
        assert ratios["batches"]["2"] == metrics["batches"]["2"] / theirs["batches"]["2"]
    lines = capsys.readouterr().out.splitlines()
    assert f"{THIS} over {ROOT.name}:" in lines and "tokens/s of all rows:" in lines
    assert [line.split()[0] for line in lines[2:4]] == ["vanilla", "1,10"] and "tokens/pass" in lines[1]


@pytest.fixture
def random_weights(tmp_path) -> list[str]:
    """Options for a small model with random weights."""
    config = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"model_type": "qwen2_mtp", "num_hidden_layers": 12, "num_nextn_predict_layers": 10, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ["--random-weights", str(tmp_path / "config.json"), "--tokenizer", str(TINY_TOKENIZER), "--device", "cpu"]


def run_here(worker: Path, settings: dict, checkout: Path) -> dict:
    """Measure in this process, with the settings that a worker gets."""
    return decoding_speed.measure_all(decoding_speed.Settings(**json.loads(json.dumps(settings))))


def test_random_weights_in_all_modes(toy_folders, random_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_sts, "run_worker", run_here)
    report = measured([*random_weights, *audio_options(toy_folders), "--mtp-head", "audio"], tmp_path / "out")
    check_modes(report, list(MODES), num_modules=10)
    assert report["decoding"] == {"mtp_head": "audio"}


@pytest.mark.parametrize("is_random", [False, True])
def test_models_are_as_the_options_say(toy_folders, random_weights, tmp_path, monkeypatch, is_random):
    models = []
    monkeypatch.setattr(decoding_speed, "measure", lambda speech_lm, *arguments: models.append(speech_lm.model))
    chosen = random_weights if is_random else ["--model", str(toy_folders.model)]
    chosen += ["--quantize", "int8", "--attn-implementation", "eager", "--modes", "boost"]
    options = benchmark_sts.parse_arguments([*chosen, *audio_options(toy_folders), "--output", str(tmp_path)])
    for _, settings in benchmark_sts.builds(options).values():
        report = run_here(benchmark_sts.WORKER, settings, ROOT)
    assert report["quantize"] == "int8" and isinstance(models[0].lm_head, Int8Linear)
    assert models[0].config._attn_implementation == "eager"


def test_new_options_are_those_of_this_checkout_only(tmp_path):
    arguments = ["--output", str(tmp_path), "--compare-with", str(ROOT), "--compare-dtype", "bfloat16"]
    decoding = ["--acceptance", "0.5", "--mtp-head", "audio", "--first-chunk", "committed"]
    options = benchmark_sts.parse_arguments([*arguments, *decoding, "--quantize", "int8", "--compare-quantize", "int4"])
    builds = benchmark_sts.builds(options)
    assert list(builds) == [THIS, ROOT.name, "bfloat16", "int4"]
    this, earlier, other, quantized = (settings for _, settings in builds.values())
    assert quantized == this | {"quantize": "int4"}
    assert this["decoding"] == other["decoding"] and earlier["decoding"] == {}
    assert (this["dtype"], other["dtype"]) == (None, "bfloat16")
    assert (this["quantize"], earlier["quantize"], other["quantize"]) == ("int8", None, "int8")
    assert this["decoding"] == {"acceptance": 0.5, "mtp_head": "audio", "first_chunk": "committed"}


def test_verification_needs_more_backbone_passes(toy_folders, monkeypatch):
    """Measured in this process, with the audio in the layout of training data."""
    speech_lm = load_toy(toy_folders)
    monkeypatch.setattr(decoding_speed, "load", lambda settings: speech_lm)
    found = {}
    for acceptance in (0.0, 1.0):
        settings = decoding_speed.Settings(["boost"], decoding={"acceptance": acceptance}, new_tokens=100, repeats=1)
        (found[acceptance],) = decoding_speed.measure_all(settings)["measurements"]["boost"]
    assert found[0.0]["backbone_passes_per_token"] < found[1.0]["backbone_passes_per_token"] <= 1
    parts = found[0.0]["first_audio_parts_ms"]
    assert set(parts) == {"prompt", "language_model", "flow", "vocoder"}
    assert sum(parts.values()) <= found[0.0]["first_audio_ms"]


@pytest.mark.parametrize(("name", "num_new"), [("vanilla", 53), ("balance", 58), ("boost", 53)])
def test_answers_have_the_layout_of_training(toy_folders, name, num_new):
    """`num_new` ends with a whole audio chunk. Vanilla is for decoding only, its answers look like those of Boost."""
    speech_lm, plan = load_toy(toy_folders), InterleavePlan.parse(name)
    tokenizer, conversation = speech_lm.tokenizer, text_conversation("Hello")
    num_prompt = len(speech_lm.prompt_ids(conversation))
    forcing = decoding_speed.layout_forcing(plan, tokenizer, num_prompt=num_prompt, num_new=num_new)
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
        (
            ["--random-weights", "x.json", "--tokenizer", "x", "--device-map", "auto"],
            "--random-weights are on one device; give --device in place of --device-map",
        ),
        (["--attn-implementation", "flash_attention_2"], "flash_attention_2 needs a GPU and the package flash-attn"),
        (["--new-tokens", "9"], "--new-tokens: must be at least 100, got 9"),
        (["--repeats", "0"], "must be at least 1"),
        (["--compare-with", "nowhere"], "--compare-with: must be a checkout with a folder vita_audio, got nowhere"),
        (["--acceptance", "1.5"], "--acceptance: must be at least 0 and at most 1, got 1.5"),
        (["--modes", "vanilla", "--acceptance", "1"], "--acceptance needs a mode with MTP steps, such as boost"),
        (["--new-tokens", "600"], "512 positions"),
    ],
)
def test_wrong_arguments(toy_folders, tmp_path, capfd, arguments, message):
    model = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        benchmark_sts.main([*model, *arguments])
    *bar, written = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2 and written.startswith("benchmark_sts: ") and message in written
    assert all(line.startswith("measuring") for line in bar if line) and (not bar or "512" in message)


@pytest.mark.gpu
def test_memory_is_measured_on_a_gpu(toy_folders, tmp_path):
    arguments = ["--model", str(toy_folders.model), *audio_options(toy_folders), "--device", "cuda"]
    report = measured(arguments, tmp_path)
    assert report["device"] == torch.cuda.get_device_name() and report["clock"] == "elapsed"
    assert all(metrics["peak_gpu_memory_mib"] > 0 for metrics in report["modes"].values())
