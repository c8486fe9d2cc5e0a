"""Measure the quality and speed of verified decoding: the same evaluation with several values of acceptance.

    python -m tools.demo.acceptance --model outputs/quickstart/stage4 --corpus outputs/quickstart/corpus \\
        --output outputs/acceptance

Evaluates the model in its mode with each acceptance, and in vanilla, where the backbone alone speaks. The same command
resumes an interrupted run. Writes acceptance.json, acceptance.md and acceptance.png, and a folder with the answers of
each evaluation.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import run
from evaluation.metrics.score import Score
from evaluation.metrics.significance import compare
from evaluation.reporting.page import Table, percent, render
from evaluation.reporting.plots import draw_runs
from evaluation.results import ANSWERS, DONE, environment
from evaluation.run_folder import Processes, RowFile
from evaluation.tasks import TOKENS_PER_PASS, Value
from tools.demo.outcomes import Outcomes
from vita_audio.command_line import (
    OneLineParser,
    add_codec_options,
    add_dtype_option,
    in_range,
    plan_name,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json, write_text
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.interleave import InterleavePlan

if TYPE_CHECKING:
    from vita_audio.inference.pipeline import SpeechLM

TEMPLATE = Path(__file__).with_name("acceptance_template.md")
VANILLA = "vanilla"
SUITE = ("demo-asr", "demo-tts", "demo-qa")
ACCEPTANCES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
CODEC_FLAGS = ("audio_tokenizer_type", "audio_tokenizer_path", "audio_decoder_path", "dtype")


@dataclass(frozen=True)
class Setting:
    """One evaluation.

    Attributes:
        acceptance: None for the backbone alone.
        digests: Digest of the token ids of each answer, by benchmark and id; None for one that failed.
    """

    mode: str
    acceptance: float | None
    answers: Outcomes
    digests: Mapping[tuple[str, str], str | None]

    @property
    def label(self) -> str:
        return VANILLA if self.acceptance is None else f"{self.acceptance:g}"

    def tokens_per_pass(self) -> Score:
        return joined([outcome.speed[TOKENS_PER_PASS] for outcome in self.answers.outcomes])

    def acceptance_by_depth(self) -> dict[str, Score]:
        """Return the accepted share of verified predictions by depth, over all benchmarks."""
        by_depth = [outcome.acceptance for outcome in self.answers.outcomes]
        depths = sorted(set(chain.from_iterable(by_depth)), key=int)
        return {depth: joined([one[depth] for one in by_depth if depth in one]) for depth in depths}

    def same_as(self, other: Setting) -> Score:
        """Return the share of answers that are those of another setting, token for token."""
        answered = {name: digest for name, digest in other.digests.items() if digest is not None}
        return Score.of_mean([digest == answered.get(name, "") for name, digest in self.digests.items()])


def joined(scores: Sequence[Score]) -> Score:
    """Return the score over the samples of several scores."""
    numerators, denominators = ([getattr(score, name) for score in scores] for name in ("numerators", "denominators"))
    return Score(list(chain.from_iterable(numerators)), list(chain.from_iterable(denominators)))


def evaluate(options: argparse.Namespace, mode: str, acceptance: float | None) -> Setting:
    """Run or continue the evaluation of one setting.

    Raises: ValueError if a benchmark has not been evaluated; the errors of `evaluation.run`.
    """
    output = options.output / (VANILLA if acceptance is None else f"acceptance_{acceptance:g}")
    flags = {"model": options.model, "corpus": options.corpus, "output": output, "modes": mode}
    flags |= {name.replace("_", "-"): getattr(options, name) for name in CODEC_FLAGS}
    flags |= {"acceptance": acceptance, "batch-size": options.batch_size}
    given = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    lists = {"suite": SUITE, "limit": options.limit, "judge": [f"en={options.judge}"] if options.judge else []}
    given += [part for name, values in lists.items() if values for part in (f"--{name}", *values)]
    evaluation = run.parse_arguments([*given, "--skip-recordings"])
    checkpoint = find_checkpoint(options.model)
    processes = Processes()

    def load_model() -> SpeechLM:
        (model,) = run.load_models(evaluation, processes.device(evaluation.device)).values()
        return model

    with processes.claim(output):
        judge = partial(run.load_judge, evaluation)
        outcomes = run.evaluate(evaluation, checkpoint, processes, load_model=load_model, get_judge=judge)
        run.write_results(output, checkpoint, outcomes)
    if undone := [one for one in outcomes if one.status != DONE]:
        raise ValueError(f"{output}: {undone[0].benchmark.name} is {undone[0].status} ({undone[0].note})")
    digests = {
        (name, item): row.get("ids_digest")
        for name in SUITE
        for item, row in RowFile(output / mode / name, ANSWERS).read().items()
    }
    return Setting(mode, acceptance, Outcomes(outcomes), digests)


def as_json(settings: Sequence[Setting], vanilla: Setting) -> list[dict[str, Any]]:
    """Return the settings of acceptance.json, with intervals and paired tests against vanilla."""
    others = vanilla.answers.scores()
    return [
        {
            "mode": setting.mode,
            "acceptance": setting.acceptance,
            "num_answers": len(setting.digests),
            "same_as_vanilla": asdict(Value.of("same", setting.same_as(vanilla))),
            "figures": {title: asdict(value) for title, value in setting.answers.values().items()},
            "tokens_per_pass": asdict(Value.of(TOKENS_PER_PASS, setting.tokens_per_pass())),
            "tokens_per_pass_by_benchmark": {
                one.benchmark.name: asdict(Value.of(TOKENS_PER_PASS, one.speed[TOKENS_PER_PASS]))
                for one in setting.answers.outcomes
            },
            "acceptance_by_depth": {
                depth: asdict(Value.of(depth, score)) for depth, score in setting.acceptance_by_depth().items()
            },
            "less_vanilla": {
                title: asdict(compare(score, others[title])) for title, score in setting.answers.scores().items()
            },
        }
        for setting in settings
    ]


def tables(settings: Sequence[Setting], vanilla: Setting) -> list[Table]:
    """Return quality and speed, speed by benchmark, and acceptance by depth."""
    titles, depths = list(vanilla.answers.values()), max((one.acceptance_by_depth() for one in settings), key=len)
    quality, speed, accepted = [], [], []
    for setting in settings:
        values, benchmarks = setting.answers.values(), [one.speed[TOKENS_PER_PASS] for one in setting.answers.outcomes]
        per_pass = [str(Value.of(TOKENS_PER_PASS, score)) for score in (setting.tokens_per_pass(), *benchmarks)]
        same = str(Value.of("same", setting.same_as(vanilla)))
        quality.append([setting.label, per_pass[0], *(str(values[title]) for title in titles), same])
        speed.append([setting.label, *per_pass[1:]])
        shares = setting.acceptance_by_depth()
        if shares:
            cells = (percent(shares[depth].value if depth in shares else None) for depth in depths)
            accepted.append([setting.label, *cells])
    names = [one.benchmark.name for one in vanilla.answers.outcomes]
    header = ("acceptance", "tokens per backbone pass", *titles, "same tokens as vanilla")
    return [
        Table("Quality and speed", header, quality),
        Table("Tokens per backbone pass", ("acceptance", *names), speed),
        Table("Predictions that the backbone accepted", ("acceptance", *(f"depth {d}" for d in depths)), accepted),
    ]


def point(setting: Setting) -> dict[str, Any]:
    """Return a setting in the format of `draw_runs`."""
    return {
        "label": setting.label,
        "series": setting.mode,
        "tokens_per_pass": setting.tokens_per_pass().value,
        "errors": setting.answers.errors(),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("tools.demo.acceptance", __doc__)
    add, positive, share = parser.add_argument, in_range(int, minimum=1), in_range(float, minimum=0, maximum=1)
    add("--model", required=True, help="folder of a model, or hub name")
    add("--corpus", required=True, type=Path, help="folder of tools.demo.make_corpus")
    add("--output", required=True, type=Path, help="folder for answers and results")
    add("--mode", type=plan_name, help="mode whose tokens are verified (default: the model's)")
    add("--acceptances", nargs="+", type=share, default=ACCEPTANCES, help="values to try (default: 0 .1 .3 .5 .7 .9 1)")
    add("--limit", nargs="+", default=[], metavar="[BENCHMARK=]N", help="samples, as in evaluation.run (default: all)")
    add("--batch-size", type=positive, default=20, help="answers generated together")
    add("--judge", help="judge of English (default: evaluation.run's)")
    add_codec_options(parser)
    add_dtype_option(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    quieten_transformers()
    mode = options.mode or run.trained_mode(find_checkpoint(options.model))
    if not InterleavePlan.parse(mode).has_modules:
        raise ValueError(f"--mode must have MTP steps, such as boost, got {mode}")
    vanilla = evaluate(options, VANILLA, None)
    settings = [evaluate(options, mode, value) for value in options.acceptances] + [vanilla]
    surroundings = environment()
    draw_runs([point(setting) for setting in settings], options.output / "acceptance.png", labels="acceptance")
    report = {"model": options.model, "settings": as_json(settings, vanilla), "environment": surroundings}
    values = {"mode": mode, "num_answers": len(vanilla.digests), "tables": tables(settings, vanilla)}
    markdown = render(TEMPLATE, **values, surroundings=surroundings)
    write_json(options.output / "acceptance.json", report)
    write_text(options.output / "acceptance.md", markdown)
    print(markdown)


if __name__ == "__main__":
    with one_line_errors("tools.demo.acceptance"):
        main()
