"""Evaluate a model on benchmarks and write one page about it.

    python -m evaluation.run --suite demo --model outputs/quickstart/stage4 \\
        --corpus outputs/quickstart/corpus --output outputs/evaluation
    torchrun --standalone --nproc_per_node 8 -m evaluation.run --suite paper --model DIR --data data/benchmarks ...

Answers are recorded one by one, and the same command continues an evaluation that was stopped. results.json, results.md
and results.html are written to the output folder (with several adapters, to a folder in it for each model), also if the
data of a benchmark is missing or a benchmark fails.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.metrics.ours import scored_tokens
from evaluation.run_folder import Processes, keep_items, keep_settings, read_settings
from evaluation.suites import DEMO_CORPUS, EVERY, SUITES, Benchmark, Item, fingerprints, get_benchmarks, limit_of
from evaluation.tasks import MEASURES, TASKS
from vita_audio.command_line import (
    DECODING,
    OneLineParser,
    adapter_folder,
    add_adapter_option,
    add_codec_options,
    add_decoding_options,
    add_dtype_option,
    chosen_models,
    decoding_options,
    folder_name,
    in_range,
    load_adapters,
    plan_name,
)
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import atomic_path, write_json
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.interleave import MODES, InterleavePlan

if TYPE_CHECKING:
    from evaluation.judges import Judge
    from evaluation.results import Outcome
    from vita_audio.inference.pipeline import SpeechLM

# These may differ when an evaluation is continued.
UNDECISIVE = (
    *("output", "suite", "modes", "batch_size", "device", "time_alone", "skip_recordings", "retry_errors"),
    *("against", "check", "adapter"),  # the model is then the folder of the adapter
)
DEFAULT_JUDGES = {"en": "whisper_tiny_en", "es": "whisper_base", "zh": "paraformer_zh"}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate and how; see the help of the command-line options.

    Attributes:
        judge: Name of the judge by language.
        adapter: Names and folders of adapters on the model.
        decoding: Options of `add_decoding_options`, as arguments of `SpeechLM.respond`.
        limit: Number of items by benchmark, or for EVERY benchmark.
        time_alone: The same for the items that are timed.
    """

    suite: Sequence[str]
    model: str
    output: Path
    corpus: Path | None
    data: Path | None
    modes: Sequence[str] | None
    judge: Mapping[str, str]
    measure: Sequence[str]
    audio_tokenizer_type: str
    audio_tokenizer_path: str | None
    audio_decoder_path: str | None
    audio_model_path: str | None
    adapter: Sequence[tuple[str, str]]
    dtype: str | None
    device: str
    batch_size: int
    max_new_tokens: int | None
    decoding: Mapping[str, Any]
    limit: Mapping[str, int]
    seed: int
    time_alone: Mapping[str, int]
    skip_recordings: bool
    retry_errors: bool
    against: Path | None
    check: bool

    def items(self, benchmark: Benchmark) -> list[Item]:
        """Return the items of a benchmark. Raises: the errors of `Benchmark.items`."""
        folder = self.corpus if benchmark in DEMO_CORPUS else self.data
        return benchmark.items(folder, limit_of(self.limit, benchmark.name))

    def of_model(self, name: str) -> EvaluationOptions:
        """Return the options for one of several models: a folder of its own, and a comparison with the base."""
        base, output = self.output / folder_name(self.model), self.output / name
        return replace(self, output=output, against=self.against or (None if output == base else base))

    def settings(self, checkpoint: Path) -> dict[str, Any]:
        """Return what determines the results, as JSON values; weights are identified by their files."""
        values = {name: value for name, value in asdict(self).items() if name not in UNDECISIVE}
        values |= {"model": checkpoint}
        files = sorted(path for form in WEIGHTS for path in checkpoint.glob(form))
        weights = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        texts = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        return values | texts | {"weights": weights}


at_least_one = in_range(int, minimum=1)


def _count(text: str) -> tuple[str, int]:
    """Read N or BENCHMARK=N."""
    name, _, number = text.rpartition("=")
    return name or EVERY, at_least_one(number)


def _judge(text: str) -> tuple[str, str]:
    language, _, name = text.partition("=")
    if not language or not name:
        raise argparse.ArgumentTypeError(f"must be LANGUAGE=NAME, such as en=whisper_tiny_en, got {text!r}")
    return language, name


def parse_arguments(arguments: Sequence[str] | None = None) -> EvaluationOptions:
    """Return the checked options of the command line."""
    parser = OneLineParser("evaluation.run", __doc__)
    add, counts = parser.add_argument, {"type": _count, "nargs": "+", "default": [], "metavar": "[BENCHMARK=]N"}
    add("--suite", required=True, nargs="+", help=f"{', '.join(SUITES)}, or names of benchmarks")
    add("--model", required=True, help="folder of a model, or hub name")
    add_adapter_option(parser, several=True)
    output = "folder for answers and results; with several adapters, a folder in it for each model"
    add("--output", required=True, type=Path, help=output)
    add("--corpus", type=Path, help="folder of tools.demo.make_corpus, for the demo suite")
    add("--data", type=Path, help="folder of evaluation.prepare, for the public sets")
    add("--modes", nargs="+", type=plan_name, help=f"{', '.join(MODES)} or ratios (default: the model's own)")
    judges = " ".join(f"{language}={name}" for language, name in DEFAULT_JUDGES.items())
    add("--judge", nargs="+", type=_judge, default=[], metavar="LANGUAGE=NAME", help=f"judges (default: {judges})")
    add("--measure", nargs="+", choices=MEASURES, default=[], help="further measures of speech, with a model for each")
    add_codec_options(parser)
    add("--audio-model-path", help="SenseVoiceSmall folder, for a Plus model whose own folder lacks its am.mvn")
    add_dtype_option(parser)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: this process's GPU if there is one)")
    add("--batch-size", type=at_least_one, default=8, help="answers generated together")
    add("--max-new-tokens", type=at_least_one, help="longest answer (default: the benchmark's)")
    add_decoding_options(parser)
    add("--limit", **counts, help="use N samples of each benchmark, or of one, drawn with a fixed seed")
    add("--seed", type=int, default=42, help="seed for sampling")
    add("--time-alone", **counts, help="also time N samples of each benchmark, or of one, one at a time")
    add("--skip-recordings", action="store_true", help="do not judge the recordings of people for comparison")
    add("--retry-errors", action="store_true", help="run samples again that failed earlier")
    against = "--output of another model, for paired tests (default with several adapters: the base)"
    add("--against", type=Path, metavar="DIR", help=against)
    add("--check", action="store_true", help="only check arguments, adapters, data and judges")
    namespace = parser.parse_args(arguments)
    decoding = decoding_options(parser, namespace, namespace.modes or [None])
    values = {name: value for name, value in vars(namespace).items() if name not in DECODING}
    values["decoding"] = decoding
    values["judge"] = DEFAULT_JUDGES | dict(values["judge"])
    values |= {name: dict(values[name]) for name in ("limit", "time_alone")}
    options = EvaluationOptions(**values)
    if options.against:
        read_settings(options.against)
    benchmarks = get_benchmarks(options.suite)
    get_benchmarks(name for name in {*options.limit, *options.time_alone} if name != EVERY)
    is_demo = {benchmark in DEMO_CORPUS for benchmark in benchmarks}
    for needs, flag, folder in ((True, "--corpus", options.corpus), (False, "--data", options.data)):
        if needs in is_demo and folder is None:
            parser.error(f"suite {' '.join(options.suite)} needs {flag}")
    return options


def trained_mode(checkpoint: Path) -> str:
    """Return the name of the plan that a checkpoint was trained with, or its numbers if it has none."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(checkpoint)
    return str(InterleavePlan.parse(getattr(config, "mtp_inference_mode", None) or "vanilla"))


def check(options: EvaluationOptions) -> None:
    """Read the data, find the scoring rules and load the judges.

    Raises: FileNotFoundError if no benchmark has data; the errors of reading the data and of loading the judges.
    """
    present, absent = [], []
    for benchmark in get_benchmarks(options.suite):
        try:
            options.items(benchmark)
            present.append(benchmark)
        except FileNotFoundError as error:
            absent.append(error)
    if not present:
        raise absent[0]
    for language in {benchmark.language for benchmark in present}:
        scored_tokens("", language)  # raises without the packages of a language
    for language in sorted({benchmark.language for benchmark in present if TASKS[benchmark.task].speaks}):
        load_judge(options, language)


def load_models(options: EvaluationOptions, device: str) -> dict[str, SpeechLM]:
    """Load the models of `chosen_models` with their audio tokenizer."""
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.inference.pipeline import SpeechLM

    audio_tokenizer = get_audio_tokenizer(
        options.audio_tokenizer_type, options.audio_tokenizer_path, options.audio_decoder_path, device=device
    )
    more = {"audio_model": options.audio_model_path}
    merged = adapter_folder(options)
    base = SpeechLM.from_pretrained(options.model, audio_tokenizer, device, options.dtype, adapter=merged, **more)
    return load_adapters(base, chosen_models(options), **more)


def load_judge(options: EvaluationOptions, language: str) -> Judge:
    """Load the judge of a language. Raises: ValueError if there is none, and the errors of `get_judge`."""
    from evaluation.judges import get_judge

    if language not in options.judge:
        raise ValueError(f"no judge for {language}; add --judge {language}=NAME")
    return get_judge(options.judge[language], language=language)


def read_items(benchmarks: Sequence[Benchmark], options: EvaluationOptions) -> tuple[dict[str, list[Item]], list]:
    """Return the items of the benchmarks by name, and the outcomes of those whose data is missing or broken."""
    from evaluation.results import BROKEN, MISSING, Outcome
    from evaluation.runner import describe

    found, absent = {}, []
    for benchmark in benchmarks:
        try:
            found[benchmark.name] = options.items(benchmark)
        except FileNotFoundError as error:
            absent.append(Outcome(benchmark, "-", MISSING, str(error)))
        except Exception as error:  # whatever is wrong with one set, the others are run
            absent.append(Outcome(benchmark, "-", BROKEN, describe(error)))
    return found, absent


def evaluate(
    options: EvaluationOptions,
    checkpoint: Path,
    processes: Processes,
    *,
    load_model: Callable[[], SpeechLM],
    get_judge: Callable[[str], Judge],
) -> list[Outcome]:
    """Run all benchmarks and return their outcomes, which are complete in every process.

    Args:
        checkpoint: Folder of the model.
        processes: The caller holds their claim on the output folder.
        load_model: As in `Runner`.
        get_judge: The `load_judge` of `Runner`.
    """
    from evaluation.results import FAILED, ORIGINAL, collect, set_against
    from evaluation.runner import Runner

    benchmarks = get_benchmarks(options.suite)
    found, absent = read_items(benchmarks, options)
    present = [benchmark for benchmark in benchmarks if benchmark.name in found]
    work = [(benchmark, mode) for mode in options.modes or [trained_mode(checkpoint)] for benchmark in present]
    with_recordings = [benchmark for benchmark in present if any(item.recording for item in found[benchmark.name])]
    recorded = [] if options.skip_recordings else [(benchmark, ORIGINAL) for benchmark in with_recordings]
    if processes.rank == 0:
        keep_settings(options.output, options.settings(checkpoint))
        keep_items(options.output, {name: fingerprints(items) for name, items in found.items()})
        for benchmark, mode in work + recorded:
            for path in (options.output / mode / benchmark.name).glob(f"{FAILED}-*.json"):
                path.unlink()
    processes.wait()
    runner = Runner(
        load_model=load_model,
        load_judge=get_judge,
        output=options.output,
        rank=processes.rank,
        size=processes.size,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        decoding=options.decoding,
        seed=options.seed,
        measures=tuple(options.measure),
        retry_errors=options.retry_errors,
    )
    for benchmark, mode in work + recorded:
        runner.run(benchmark, found[benchmark.name], mode)
    processes.wait()
    for benchmark, mode in work if processes.rank == 0 else ():  # the others wait and leave the machine to this one
        count = limit_of(options.time_alone, benchmark.name) or 0
        runner.time_alone(benchmark, found[benchmark.name][:count], mode)
    processes.wait()
    outcomes = [collect(options.output, benchmark, found[benchmark.name], mode) for benchmark, mode in work + recorded]
    if options.against:
        set_against(outcomes, found, options.against)
    return [*outcomes, *absent]


def write_results(output: Path, checkpoint: Path, outcomes: Sequence[Outcome]) -> str:
    """Write results.json, results.md, results.html and the plots; return the Markdown."""
    from evaluation.reporting.page import render_results
    from evaluation.results import RESULTS, as_json, environment

    settings, surroundings = read_settings(output), environment()
    contents = render_results(output, outcomes, settings, surroundings)
    for name, content in contents.items():
        with atomic_path(output / name) as path:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    trained = {"trained_mode": trained_mode(checkpoint)}
    write_json(output / RESULTS, trained | as_json(outcomes, settings, surroundings))
    return contents["results.md"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every benchmark that has data was evaluated, else 1."""
    options = parse_arguments(arguments)
    checkpoints = {
        name: find_checkpoint(adapter or options.model)
        for name, adapter in chosen_models(options).items()
        if adapter or not options.check  # before the model is made
    }

    from transformers.utils import logging as transformers_logging

    from evaluation.results import DONE, MISSING

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.check:
        check(options)
        return 0
    processes, statuses = Processes(), set()
    models = cache(lambda: load_models(options, processes.device(options.device)))
    judge = cache(partial(load_judge, options))
    for name, checkpoint in checkpoints.items():
        one = options if len(checkpoints) == 1 else options.of_model(name)
        with processes.claim(one.output):
            outcomes = evaluate(
                one, checkpoint, processes, load_model=lambda name=name: models()[name], get_judge=judge
            )
            if processes.rank == 0:
                print(write_results(one.output, checkpoint, outcomes))
        statuses |= {outcome.status for outcome in outcomes}
    return int(not statuses <= {DONE, MISSING})


if __name__ == "__main__":
    with one_line_errors("evaluation.run"):
        sys.exit(main())
