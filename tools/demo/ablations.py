"""Compare the quality and speed of demo models trained with other numbers of MTP modules, interleave plans and losses.

    python -m tools.demo.ablations          # after scripts/quickstart.sh: all runs start from its first stage
    python -m tools.demo.ablations --ci     # a few training steps each, only to test that every step runs

One setting changes at a time: first the number of modules, with and without --mtp_kl_weight, with the plan of the quick
start, then the plan, with all modules. Each run repeats stages 2 to 4 of the quick start with its own plan for training
and decoding; runs that differ only in the number of modules share stage 2. The same command resumes an interrupted run.
With --options, the options of training in `OPTIONS` follow, each with all modules:

    python -m tools.demo.ablations --modules 10 --schedules boost --kl-weight 0 --options all

Writes ablations.md, ablations.json, ablations.png and a folder for each run with its answers.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tools.demo.plan import TEXT_MODEL, VARIANTS, WITHOUT_EFFECT, Run, Stage, listed_step, stage_step
from tools.demo.steps import ROOT, Progress, Step, open_folder, read_path, run_steps, seen_from_root
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json
from vita_audio.interleave import MODES

CENTRE_SCHEDULE = "boost"  # the quick start's
MODULES = {"quick": (1, 2, 5, 10), "ci": (1, 2)}  # by form of the quick start
SCHEDULES = {"quick": ("boost", "balance", "turbo"), "ci": ("boost",)}
ALL_OPTIONS = "all"


@dataclass(frozen=True)
class Option:
    """Flags of the training program, and the first stage that they are for."""

    flags: Mapping[str, object]
    first_stage: int = 2


OPTIONS = {
    "depth_decay": Option({"mtp_depth_weights": "vocalnet"}),
    "coordinator": Option({"mtp_coordinator_weight": 1.0}),
    "curriculum": Option({"curriculum_length": 32, "curriculum_ratio": 0.5}),
    "alignment": Option({"alignment_weight": 0.1}, first_stage=1),
}


@dataclass(frozen=True)
class Ablation:
    """A model to train; `schedule` names the interleave plan of its data and answers, `option` one of `OPTIONS`."""

    num_modules: int
    schedule: str
    kl_weight: float
    option: str = ""

    @property
    def family(self) -> str:
        """Name shared by the models whose training is the same until modules are added."""
        return self.schedule + ("_kl" if self.kl_weight else "") + (f"_{self.option}" if self.option else "")

    @property
    def name(self) -> str:
        return f"{self.num_modules}_{self.family}"


@dataclass(frozen=True)
class Setting:
    """The settings that all runs share.

    Attributes:
        base: Quick start whose stage 1, corpus and codes are used; its form gives the size of the later stages.
        modules: Numbers of MTP modules to train with.
        extra_args: More flags of all training stages, separated by spaces.
    """

    base: Run
    output: Path
    modules: tuple[int, ...]
    schedules: tuple[str, ...]
    kl_weight: float
    extra_args: str
    options: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages 2 to 4."""
        return self.base.variant.stages[1:]

    @property
    def first_stage(self) -> Path:
        return self.base.folder / self.base.variant.stages[0].name


def ablations(setting: Setting) -> list[Ablation]:
    """List all runs, the reference first, which has all modules and no KL divergence."""
    modules = sorted(set(setting.modules), reverse=True)
    weights = dict.fromkeys((0.0, setting.kl_weight))
    found = [Ablation(number, CENTRE_SCHEDULE, weight) for weight in weights for number in modules]
    schedules = [name for name in dict.fromkeys(setting.schedules) if name != CENTRE_SCHEDULE]
    found += [Ablation(modules[0], name, 0.0) for name in schedules]
    return found + [Ablation(modules[0], CENTRE_SCHEDULE, 0.0, option) for option in setting.options]


def plan_steps(setting: Setting, runs: Sequence[Ablation]) -> list[Step]:
    """List the steps of all runs, each step once."""
    steps = {step.name: step for run in runs for step in _run_steps(setting, run)}
    report = listed_step("ablation_report", setting.base, output=setting.output)
    return [*steps.values(), replace(report, name="report")]


def _run_steps(setting: Setting, run: Ablation) -> Iterator[Step]:
    first, second, third = setting.stages
    shared, folder = setting.output / f"1_{run.family}_{first.name}", setting.output / run.name
    start = setting.first_stage
    if run.option and OPTIONS[run.option].first_stage == 1:
        zeroth = setting.base.variant.stages[0]
        start = setting.output / f"0_{run.family}_{zeroth.name}"
        yield _training_step(setting, replace(run, num_modules=0), zeroth, Path(TEXT_MODEL), start)
    yield _training_step(setting, replace(run, num_modules=1), first, start, shared)
    yield _training_step(setting, run, second, shared, folder / second.name)
    yield _training_step(setting, run, third, folder / second.name, folder / third.name)
    yield _evaluation_step(setting, run, folder / third.name, folder / "evaluation")


def _training_step(setting: Setting, run: Ablation, stage: Stage, start: Path, output: Path) -> Step:
    step = stage_step(
        setting.base,
        stage,
        start=start,
        output=output,
        config=config_path(setting, run.num_modules),
        flags={
            "mtp_kl_weight": run.kl_weight,
            "text_audio_interval_ratio": MODES[run.schedule],
            "save_steps": 0.5,
            "save_total_limit": 1,
            **(OPTIONS[run.option].flags if run.option else {}),
        },
        environment={"OUTPUT_ROOT": str(setting.output), "EXTRA_ARGS": setting.extra_args},
    )
    name = str(output.relative_to(setting.output)).replace("/", "_")
    return replace(step, name=name, title=f"train {name}")


def _evaluation_step(setting: Setting, run: Ablation, model: Path, output: Path) -> Step:
    modes = [run.schedule, *(["vanilla"] if run == ablations(setting)[0] else [])]
    values = {"ablation": run.name, "model": model, "output": output, "modes": modes}
    return replace(listed_step("ablation_evaluation", setting.base, **values), name=f"{run.name}_evaluation")


def config_path(setting: Setting, num_modules: int) -> Path:
    return setting.output / "configs" / f"mtp{num_modules}.json"


def write_configs(setting: Setting, runs: Sequence[Ablation]) -> None:
    """Write one copy of the first stage's model config for each number of modules."""
    values = json.loads((setting.first_stage / "config.json").read_text(encoding="utf-8"))
    values.pop("layer_types", None)  # one entry per layer of the first stage
    num_layers = values["num_hidden_layers"] - values["num_nextn_predict_layers"]
    for number in {0, 1, *(run.num_modules for run in runs)}:
        changed = values | {"num_hidden_layers": num_layers + number, "num_nextn_predict_layers": number}
        write_json(config_path(setting, number), changed)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("ablations", __doc__)
    parser.add_argument("--base", type=Path, help="folder of a quick start (default: the variant's)")
    parser.add_argument("--output", type=Path, help="folder (default: outputs/ablations, with --ci _ci appended)")
    english = [name for name, variant in VARIANTS.items() if variant.language is None]
    parser.add_argument("--variant", choices=english, default="glm4voice", help="variant of the quick start")
    parser.add_argument(
        "--kl-weight", type=in_range(float, minimum=0), default=1.0, help="--mtp_kl_weight of the runs that use it"
    )
    parser.add_argument(
        "--options", nargs="+", choices=[*OPTIONS, ALL_OPTIONS], default=[], help="options of training to try"
    )
    parser.add_argument(
        "--modules", type=in_range(int, minimum=1), nargs="+", help="numbers of MTP modules (default: 1 2 5 10)"
    )
    schedules = [name for name in MODES if name != "vanilla"]
    parser.add_argument(
        "--schedules", nargs="+", choices=schedules, help="interleave plans (default: boost balance turbo)"
    )
    parser.add_argument("--audio-tokenizer-path", help="as in the quick start (default: the embedded one)")
    parser.add_argument("--audio-decoder-path", help="as in the quick start (default: the embedded one)")
    parser.add_argument("--extra-args", default="", help="more flags of all training stages, separated by spaces")
    parser.add_argument("--fresh", action="store_true", help="delete the output folder and start over")
    parser.add_argument(
        "--ci", dest="form", action="store_const", const="ci", default="quick", help="a few steps, to test that it runs"
    )
    return parser.parse_args(arguments)


def make_setting(options: argparse.Namespace) -> Setting:
    """Return the setting that the options describe, with paths relative to the repository."""
    variant = VARIANTS[options.variant]
    default = Path("outputs/ablations" + ("_ci" if options.form == "ci" else ""))
    folder = seen_from_root(options.base) if options.base else Path(variant.forms["quick"].folder)
    paths = map(read_path, (options.audio_tokenizer_path, options.audio_decoder_path))
    return Setting(
        base=Run(variant, variant.forms[options.form], folder, *paths),
        output=seen_from_root(options.output) if options.output else default,
        modules=tuple(options.modules or MODULES[options.form]),
        schedules=tuple(options.schedules or SCHEDULES[options.form]),
        kl_weight=options.kl_weight,
        extra_args=options.extra_args,
        options=tuple(OPTIONS if ALL_OPTIONS in options.options else dict.fromkeys(options.options)),
    )


def recorded(setting: Setting) -> dict[str, Any]:
    """Return everything that affects the metrics; the common start is identified by a hash of its weights."""
    base, weights = setting.base, (setting.first_stage / "model.safetensors").read_bytes()
    values = asdict(setting) | {
        "base": base.folder,
        "form": {name: value for name, value in asdict(base.form).items() if name not in ("folder", *WITHOUT_EFFECT)},
        "stages": list(map(asdict, setting.stages)),
        "audio_tokenizer_type": base.variant.audio_tokenizer_type,
        "tokenizer_path": base.tokenizer_path,
        "decoder_path": base.decoder_path,
        "weights": hashlib.blake2b(weights, digest_size=8).hexdigest(),
    }
    return json.loads(json.dumps(values, default=str))


def prepare(setting: Setting, fresh: bool) -> list[Step]:
    """Open the output folder, write the input files of the steps and return the steps.

    Raises: FileNotFoundError if there is no quick start; ValueError as in `open_folder`.
    """
    if not (setting.first_stage / "model.safetensors").exists():
        raise FileNotFoundError(f"no model in {setting.first_stage}; run scripts/quickstart.sh, or give --base")
    open_folder(setting.output, recorded(setting), fresh)
    runs = ablations(setting)
    write_configs(setting, runs)
    folders = {"evaluation": "evaluation", "training": setting.stages[-1].name}
    rows = [asdict(run) | {"name": run.name} | {key: f"{run.name}/{folders[key]}" for key in folders} for run in runs]
    write_json(setting.output / "plan.json", {"runs": rows})  # for the report
    return plan_steps(setting, runs)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    setting = make_setting(options)
    os.chdir(ROOT)
    with one_line_errors("ablations"):
        steps = prepare(setting, options.fresh)
    usual_minutes = {step.name: setting.base.form.minutes.get(step.name.split("_")[-1], 0) for step in steps}
    if code := run_steps("ablations", steps, Progress(setting.output / "done"), usual_minutes):
        return code
    print((setting.output / "ablations.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
