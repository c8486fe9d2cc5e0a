"""Train the demo model with other numbers of MTP modules, schedules and losses, and put quality and speed side by side.

    python -m tools.demo.ablations          # after scripts/quickstart.sh, from whose first stage all runs start
    python -m tools.demo.ablations --ci     # a few training steps each: shows only that the path works

One thing changes at a time: modules with and without --mtp_kl_weight on the schedule of the quick start, then schedules
with all modules. Each run goes through stages 2 to 4 of the quick start (runs that agree so far share stage 2) on data
laid out by its schedule, by which it also decodes. The same command continues where it was stopped. The output folder
gets ablations.md, ablations.json and ablations.png, and a folder for each run with its answers.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.demo.plan import EMBEDDED, LOG_ENTRIES, ROOT, STAGE_SCRIPTS, UNDECISIVE, VARIANTS, Form, Stage, Step
from tools.demo.quickstart import Progress, open_folder, run_to_the_end, seen_from_root
from vita_audio.interleave import MODES

PLAN_FILE = "plan.json"
CENTRE_SCHEDULE = "boost"  # that of the quick start
MODULES = {"quick": (1, 2, 5, 10), "ci": (1, 2)}  # by form of the quick start
SCHEDULES = {"quick": ("boost", "balance", "turbo"), "ci": ("boost",)}


@dataclass(frozen=True)
class Ablation:
    """A model to train."""

    num_modules: int
    schedule: str
    kl_weight: float

    @property
    def family(self) -> str:
        """Name of all that is trained alike before modules are added."""
        return self.schedule + ("_kl" if self.kl_weight else "")

    @property
    def name(self) -> str:
        return f"{self.num_modules}_{self.family}"


@dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
        base: Folder of a quick start, of which stage 1, corpus and codes are used.
        form: That of the quick start whose later stages are repeated.
        stages: 2 to 4.
    """

    base: Path
    output: Path
    form: Form
    stages: tuple[Stage, ...]
    modules: tuple[int, ...]
    schedules: tuple[str, ...]
    kl_weight: float
    audio_tokenizer_type: str
    tokenizer_path: str | None
    decoder_path: str | None
    extra_args: str


def ablations(setting: Setting) -> list[Ablation]:
    """List all runs; the first one is what the others are compared with: all modules, without the divergence."""
    modules = sorted(set(setting.modules), reverse=True)
    found = [Ablation(number, CENTRE_SCHEDULE, weight) for weight in (0.0, setting.kl_weight) for number in modules]
    schedules = [name for name in dict.fromkeys(setting.schedules) if name != CENTRE_SCHEDULE]
    return found + [Ablation(modules[0], name, 0.0) for name in schedules]


def plan_steps(setting: Setting, runs: Sequence[Ablation]) -> list[Step]:
    """List what is to be done, each step once, run by run."""
    steps = {step.name: step for run in runs for step in _run_steps(setting, run)}
    command = ["python", "-m", "tools.demo.ablation_report", "--folder", str(setting.output)]
    return [*steps.values(), Step("report", "write the report", setting.output / "ablations.json", command)]


def _run_steps(setting: Setting, run: Ablation) -> Iterator[Step]:
    first, second, third = setting.stages
    shared, folder = setting.output / f"1_{run.family}_{first.name}", setting.output / run.name
    single = Ablation(1, run.schedule, run.kl_weight)
    yield _stage_step(setting, single, first, setting.form.steps[1], setting.base / "stage1", shared)
    yield _stage_step(setting, run, second, setting.form.steps[2], shared, folder / second.name)
    yield _stage_step(setting, run, third, setting.form.steps[3], folder / second.name, folder / third.name)
    yield _evaluation_step(setting, run, folder / third.name, folder / "evaluation")


def _stage_step(setting: Setting, run: Ablation, stage: Stage, num_steps: int, start: Path, output: Path) -> Step:
    form = setting.form
    flags = {
        "output_dir": output,
        "max_steps": num_steps,
        "mtp_kl_weight": run.kl_weight,
        "per_device_train_batch_size": form.batch_size,
        "gradient_accumulation_steps": 1,
        "attn_implementation": form.attention,
        "logging_steps": max(num_steps // LOG_ENTRIES, 1),
        "save_steps": 0.5,
        "save_total_limit": 1,
    }
    script = (STAGE_SCRIPTS / stage.script).relative_to(ROOT)
    command = ["bash", str(script), str(form.seq_length), "run", *shlex.split(stage.flags)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command += ["--text_audio_interval_ratio", *map(str, MODES[run.schedule])]
    environment = {
        "MODEL_NAME_OR_PATH": str(start),
        "CONFIG_NAME": str(config_path(setting, run.num_modules)),
        "DATA": str(setting.base / "corpus" / stage.data),
        "OUTPUT_ROOT": str(setting.output),
        "AUDIO_CODE_DIR": str(setting.base / "codes"),
        "AUDIO_TOKENIZER_PATH": setting.tokenizer_path or EMBEDDED,
        "EXTRA_ARGS": setting.extra_args,
    }
    name = str(output.relative_to(setting.output)).replace("/", "_")
    return Step(name, f"train {name}", output / "train_results.json", command, environment)


def _evaluation_step(setting: Setting, run: Ablation, model: Path, output: Path) -> Step:
    is_first = run == ablations(setting)[0]
    options: dict[str, Sequence[Any]] = {
        "suite": ["demo"],
        "model": [model],
        "corpus": [setting.base / "corpus"],
        "output": [output],
        "modes": [run.schedule, *(["vanilla"] if is_first else [])],
        "limit": [setting.form.num_heldout["qa"]],
        "audio-tokenizer-type": [setting.audio_tokenizer_type],
    }
    paths = {"audio-tokenizer-path": setting.tokenizer_path, "audio-decoder-path": setting.decoder_path}
    options |= {name: [path] for name, path in paths.items() if path}
    command = ["python", "-m", "evaluation.run"]
    command += [part for name, values in options.items() for part in (f"--{name}", *map(str, values))]
    return Step(f"{run.name}_evaluation", f"evaluate {run.name}", output / "results.json", command)


def config_path(setting: Setting, num_modules: int) -> Path:
    return setting.output / "configs" / f"mtp{num_modules}.json"


def write_configs(setting: Setting, runs: Sequence[Ablation]) -> None:
    """Write model configs that differ from that of the first stage in their modules."""
    values = json.loads((setting.base / "stage1" / "config.json").read_text(encoding="utf-8"))
    values.pop("layer_types", None)  # of as many layers as there were
    num_layers = values["num_hidden_layers"] - values["num_nextn_predict_layers"]
    for number in {1, *(run.num_modules for run in runs)}:
        path = config_path(setting, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = values | {"num_hidden_layers": num_layers + number, "num_nextn_predict_layers": number}
        path.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")


def write_plan(setting: Setting, runs: Sequence[Ablation]) -> None:
    """Write what the report needs to know of the runs."""
    last = setting.stages[-1].name
    folders = [{"evaluation": f"{run.name}/evaluation", "training": f"{run.name}/{last}"} for run in runs]
    rows = [asdict(run) | {"name": run.name} | paths for run, paths in zip(runs, folders, strict=True)]
    (setting.output / PLAN_FILE).write_text(json.dumps({"runs": rows}, indent=2) + "\n", encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of a quick start (default: the variant's)")
    parser.add_argument("--output", type=Path, help="default: outputs/ablations, with --ci outputs/ablations_ci")
    parser.add_argument("--variant", choices=VARIANTS, default="glm4voice", help="of the quick start")
    parser.add_argument("--kl-weight", type=float, default=1.0, help="of the runs with --mtp_kl_weight (default: 1)")
    parser.add_argument("--modules", type=int, nargs="+", help="how many (default: 1 2 5 10)")
    schedules = [name for name in MODES if name != "vanilla"]
    parser.add_argument("--schedules", nargs="+", choices=schedules, help="default: boost balance turbo")
    parser.add_argument("--audio-tokenizer-path", help="as in the quick start (default: the embedded one)")
    parser.add_argument("--audio-decoder-path", help="as in the quick start (default: the embedded one)")
    parser.add_argument("--extra-args", default="", help="more flags of all training stages, split at spaces")
    parser.add_argument("--fresh", action="store_true", help="delete what is there and start over")
    parser.add_argument(
        "--ci", dest="form", action="store_const", const="ci", default="quick", help="a few steps, to see that it works"
    )
    options = parser.parse_args(arguments)
    if options.kl_weight <= 0 or min(options.modules or [1]) < 1:
        parser.error("--kl-weight must be above 0 and --modules at least 1")
    return options


def make_setting(options: argparse.Namespace) -> Setting:
    variant = VARIANTS[options.variant]
    default = Path("outputs/ablations" + ("_ci" if options.form == "ci" else ""))
    return Setting(
        base=seen_from_root(options.base) if options.base else Path(variant.forms["quick"].folder),
        output=seen_from_root(options.output) if options.output else default,
        form=variant.forms[options.form],
        stages=variant.stages[1:],
        modules=tuple(options.modules or MODULES[options.form]),
        schedules=tuple(options.schedules or SCHEDULES[options.form]),
        kl_weight=options.kl_weight,
        audio_tokenizer_type=variant.audio_tokenizer_type,
        tokenizer_path=_path_or_name(options.audio_tokenizer_path),
        decoder_path=_path_or_name(options.audio_decoder_path),
        extra_args=options.extra_args,
    )


def _path_or_name(value: str | None) -> str | None:
    """Return a path as seen from the repository's root; what is no path here may be a name that programs know."""
    return str(seen_from_root(value)) if value and Path(value).exists() else value


def recorded(setting: Setting) -> dict[str, Any]:
    """Return what decides the figures; the model that all start from is known by its weights."""
    weights = (setting.base / "stage1" / "model.safetensors").read_bytes()
    values = asdict(setting) | {"weights": hashlib.blake2b(weights, digest_size=8).hexdigest()}
    for name in ("folder", *UNDECISIVE):
        values["form"].pop(name)
    return json.loads(json.dumps(values, default=str))


def prepare(setting: Setting, fresh: bool) -> list[Step]:
    """Open the output folder, write what the steps need, and return them.

    Raises: FileNotFoundError if there is no quick start; ValueError as `open_folder`.
    """
    if not (setting.base / "stage1" / "model.safetensors").exists():
        raise FileNotFoundError(f"no model in {setting.base / 'stage1'}; run scripts/quickstart.sh, or give --base")
    open_folder(setting.output, recorded(setting), fresh)
    runs = ablations(setting)
    write_configs(setting, runs)
    write_plan(setting, runs)
    return plan_steps(setting, runs)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    setting = make_setting(options)
    os.chdir(ROOT)
    try:
        steps = prepare(setting, options.fresh)
    except (ValueError, FileNotFoundError) as error:
        print(f"run_ablations: {error}", file=sys.stderr)
        return 2
    outlook = {step.name: setting.form.minutes.get(step.name.split("_")[-1], 0) for step in steps}
    if code := run_to_the_end("run_ablations", steps, Progress(setting.output / "done"), outlook):
        return code
    print((setting.output / "ablations.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
