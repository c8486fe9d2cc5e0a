"""Evaluate a model on benchmarks and write one page about it.

    python evaluation/run.py --suite demo --model outputs/quickstart/stage4 \\
        --corpus outputs/quickstart/corpus --output outputs/evaluation
    torchrun --standalone --nproc_per_node 8 evaluation/run.py --suite paper --model DIR --data data/benchmarks ...

Answers are written one by one; the same command again goes on where it was stopped. results.json, results.md and
results.html are written to the output folder, also if a benchmark has no data or fails.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a program: its own folder must not stand before the standard library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from evaluation.demo import at_least_one, settings_of, write_json
from evaluation.figures import MEASURES
from evaluation.judges import Judge, get_judge
from evaluation.processes import Processes
from evaluation.reporting.page import draw_chart, write_page
from evaluation.reporting.tables import as_markdown
from evaluation.results import BROKEN, DONE, MISSING, Outcome, as_json, collect, environment, set_against
from evaluation.run_folder import keep_items, keep_settings, read_settings
from evaluation.runner import FAILED, ORIGINAL, Runner, Shard, describe
from evaluation.suites import DEMO, SUITES, Benchmark, Item, fingerprints, get_benchmarks
from evaluation.tasks import TASKS
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.interleave import MODES, InterleavePlan

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# May change when it goes on.
NO_FIGURES = ("output", "suite", "modes", "batch_size", "device", "retry_errors", "against", "check")
DEFAULT_JUDGES = {"en": "whisper_tiny_en", "zh": "paraformer_zh"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, nargs="+", help=f"{', '.join(SUITES)}, or names of benchmarks")
    parser.add_argument("--model", required=True, help="folder of a model, or hub name")
    parser.add_argument("--output", required=True, type=Path, help="folder for answers and results")
    parser.add_argument("--corpus", type=Path, help="folder of tools/demo/make_corpus.py, for the demo suite")
    parser.add_argument("--data", type=Path, help="folder of evaluation/prepare.py, for the public sets")
    parser.add_argument("--modes", nargs="+", help=f"{', '.join(MODES)} or ratios (default: the model's own)")
    judges = " ".join(f"{language}={name}" for language, name in DEFAULT_JUDGES.items())
    parser.add_argument(
        "--judge", nargs="+", default=[], metavar="LANGUAGE=NAME", help=f"who listens (default: {judges})"
    )
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=[], help="of speech, with a model for each")
    parser.add_argument("--audio-tokenizer-type", default="glm4voice")
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--audio-decoder-path", help="folder of the speech decoder (default: the embedded one)")
    parser.add_argument("--audio-model-path", help="SenseVoiceSmall folder, for a Plus model without its own am.mvn")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--device", default="auto", help="default: this process's GPU if there is one")
    parser.add_argument("--batch-size", type=at_least_one, default=8)
    parser.add_argument("--max-new-tokens", type=at_least_one, help="longest answer (default: the benchmark's)")
    parser.add_argument("--limit", type=at_least_one, help="so many samples of each benchmark, drawn with a fixed seed")
    parser.add_argument("--seed", type=int, default=42, help="of sampled answers")
    parser.add_argument("--retry-errors", action="store_true", help="take again what could not be answered, or heard")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="--output of another model, to tell differences from"
    )
    parser.add_argument("--check", action="store_true", help="only see whether arguments, data and judges are there")
    options = parser.parse_args(arguments)
    options.judge = DEFAULT_JUDGES | dict(_language_and_judge(parser, entry) for entry in options.judge)
    for mode in options.modes or ():
        InterleavePlan.parse(mode)
    if options.against:
        read_settings(options.against)
    benchmarks = get_benchmarks(options.suite)
    needed = {"--corpus": any(one in DEMO for one in benchmarks), "--data": any(one not in DEMO for one in benchmarks)}
    for flag, is_needed in needed.items():
        if is_needed and getattr(options, flag.removeprefix("--")) is None:
            parser.error(f"suite {' '.join(options.suite)} needs {flag}")
    return options


def _language_and_judge(parser: argparse.ArgumentParser, entry: str) -> tuple[str, str]:
    language, _, name = entry.partition("=")
    if not language or not name:
        parser.error(f"--judge must be LANGUAGE=NAME, such as en=whisper_tiny_en, got {entry!r}")
    return language, name


def trained_mode(folder: Path) -> str:
    """Return the name of the plan that a checkpoint was trained with, or its numbers if it has none."""
    config = GenerationConfig.from_pretrained(folder)
    plan = InterleavePlan.parse(getattr(config, "mtp_inference_mode", None) or "vanilla")
    return next((name for name, ratio in MODES.items() if ratio == plan.ratio), ",".join(map(str, plan.ratio)))


def load_items(benchmark: Benchmark, options: argparse.Namespace) -> list[Item]:
    """Return the items of a benchmark, or a fixed draw of them; raises what `Benchmark.items` raises."""
    items = benchmark.items(options.corpus if benchmark in DEMO else options.data)
    if options.limit is None or options.limit >= len(items):
        return items
    chosen = sorted(random.Random(0).sample(range(len(items)), options.limit))
    return [items[index] for index in chosen]


def check(options: argparse.Namespace) -> None:
    """Read the data and load the judges.

    Raises: FileNotFoundError if no benchmark has data, and what is wrong with data or judges otherwise.
    """
    present, absent = [], []
    for benchmark in get_benchmarks(options.suite):
        try:
            load_items(benchmark, options)
            present.append(benchmark)
        except FileNotFoundError as error:
            absent.append(error)
    if not present:
        raise absent[0]
    for language in sorted({benchmark.language for benchmark in present if TASKS[benchmark.task].speaks}):
        load_judge(options, language)


def load_model(options: argparse.Namespace, device: str) -> SpeechLM:
    audio_tokenizer = get_audio_tokenizer(
        options.audio_tokenizer_type, options.audio_tokenizer_path, options.audio_decoder_path, device=device
    )
    dtype = DTYPES.get(options.dtype)
    return SpeechLM.from_pretrained(options.model, audio_tokenizer, device, dtype, audio_model=options.audio_model_path)


def load_judge(options: argparse.Namespace, language: str) -> Judge:
    """Raises: ValueError if there is none for a language."""
    if language not in options.judge:
        raise ValueError(f"no judge for {language}; add --judge {language}=NAME")
    return get_judge(options.judge[language], language=language)


def settings_of_run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    values = {name: value for name, value in vars(options).items() if name not in NO_FIGURES}
    return settings_of(argparse.Namespace(**values | {"model": folder}))


def evaluate(options: argparse.Namespace, processes: Processes) -> list[Outcome]:
    """Run all benchmarks; return their outcomes, which are whole in every process once all have finished."""
    folder = find_checkpoint(options.model)
    modes = options.modes or [trained_mode(folder)]
    found: dict[str, list[Item]] = {}
    absent: list[Outcome] = []
    benchmarks = get_benchmarks(options.suite)
    for benchmark in benchmarks:
        try:
            found[benchmark.name] = load_items(benchmark, options)
        except FileNotFoundError as error:
            absent.append(Outcome(benchmark, "-", MISSING, str(error)))
        except Exception as error:  # of any kind that is wrong with one set, so that the others are run
            absent.append(Outcome(benchmark, "-", BROKEN, describe(error)))
    present = [benchmark for benchmark in benchmarks if benchmark.name in found]
    work = [(benchmark, mode) for mode in modes for benchmark in present]
    work += [(benchmark, ORIGINAL) for benchmark in present if any(item.recording for item in found[benchmark.name])]
    processes.claim(options.output)
    if processes.rank == 0:
        keep_settings(options.output, settings_of_run(options, folder))
        keep_items(options.output, {name: fingerprints(items) for name, items in found.items()})
        for benchmark, mode in work:
            for path in (options.output / mode / benchmark.name).glob(f"{FAILED}-*.json"):
                path.unlink()
    processes.wait()
    runner = Runner(
        partial(load_model, options, processes.device(options.device)),
        partial(load_judge, options),
        options.output,
        Shard(processes.rank, processes.size),
        options.batch_size,
        options.max_new_tokens,
        options.seed,
        tuple(options.measure),
        options.retry_errors,
    )
    for benchmark, mode in work:
        runner.run(benchmark, found[benchmark.name], mode)
    processes.wait()
    outcomes = [collect(options.output, benchmark, found[benchmark.name], mode) for benchmark, mode in work]
    if options.against:
        set_against(outcomes, found, options.against)
    return [*outcomes, *absent]


def write_results(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> str:
    """Write results.json, results.md, chart.png and results.html; return the Markdown."""
    settings = {"model": options.model} | read_settings(options.output)
    surroundings = environment(ROOT)
    write_json(options.output / "results.json", as_json(outcomes, settings, surroundings))
    chart = draw_chart(outcomes)
    if chart:
        (options.output / "chart.png").write_bytes(chart)
    markdown = as_markdown(outcomes, settings, surroundings, "chart.png" if chart else None)
    (options.output / "results.md").write_text(markdown, encoding="utf-8")
    write_page(options.output / "results.html", outcomes, settings, surroundings)
    return markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every benchmark that has data was evaluated, else 1."""
    options = parse_arguments(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.check:
        check(options)
        return 0
    processes = Processes()
    outcomes = evaluate(options, processes)
    if processes.rank == 0:
        print(write_results(options, outcomes))
    return int(any(outcome.status not in (DONE, MISSING) for outcome in outcomes))


if __name__ == "__main__":
    with one_line_errors("evaluation/run.py"):
        sys.exit(main())
