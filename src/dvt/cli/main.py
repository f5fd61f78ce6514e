"""The command line: `dvt COMMAND ...`, and `train.py`, `eval.py`, `export.py` of a checkout.

Each command parses, calls one function of the package, and returns; `dvt.cli.support.run_command` says what becomes of
errors. MindSpore is imported only by the functions that the commands call, so help, refusals and `dvt info` come at
once.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import dvt
from dvt.cli import early_exits, support
from dvt.config.files import ConfigParser, build_config, config_from_dict, flattened, key_hints
from dvt.config.sections import DeviceTarget, ModelSection, RunConfig
from dvt.deploy.manifest import FORMATS
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES, check_batch_sizes
from dvt.errors import ConfigError
from dvt.models.variants import ModelConfig, list_models, model_config
from dvt.signals import interrupt_on_signals

REPORT_FOLDER = "runs/report"

TRAIN_KEYS = tuple(each.name for each in fields(RunConfig))
EVAL_KEYS = ("data", "eval", "device_target", "seed", "output")


@dataclass
class EvalOptions:
    """What to evaluate.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        mode: 0 prints the results stored in the checkpoint; 1 evaluates with the thresholds stored in it; 2 finds
            thresholds on the training set, then evaluates.
    """

    checkpoint: str
    mode: Literal[0, 1, 2] = 2


@dataclass
class ExportOptions:
    """What to export.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        output: Folder for the bundle; null for the folder "export" beside the checkpoint.
        format: One or more of MINDIR, ONNX and ONNX_INT8, with commas in between.
        precision: Type of weights and arithmetic; images and probabilities stay float32.
        whole: Also write one file per format with all exits.
        batch_size: Fixed number of images per call of the MindIR files; null leaves it open.
        batch_sizes: Numbers of images that MindSpore Lite is prepared for.
        device_target: Device on which the MindIR files are checked; auto takes the best one that is there.
        calibration_path: Where the data set of the training run lies now, for the calibration images of ONNX_INT8;
            null where it lay then.
        calibration_images: Images with which the thresholds of ONNX_INT8 are measured, at most all there are.
    """

    checkpoint: str
    output: str | None = None
    format: str = "MINDIR"
    precision: Literal["float32", "float16"] = "float32"
    whole: bool = False
    batch_size: int | None = None
    batch_sizes: list[int] = field(default_factory=lambda: list(DEFAULT_BATCH_SIZES))
    device_target: DeviceTarget = "auto"
    calibration_path: str | None = None
    calibration_images: int = 500

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1, or null to leave it open")
        if self.calibration_images < 1:
            raise ConfigError(f"calibration_images is {self.calibration_images}; it must be at least 1")
        self.batch_sizes = check_batch_sizes(self.batch_sizes)

    @property
    def formats(self) -> list[str]:
        """The formats asked for, checked."""
        names = [name.strip().upper() for name in self.format.split(",") if name.strip()]
        for name in names or [self.format]:
            if name not in FORMATS:
                raise ConfigError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
        return names


def parse_train(argv: Sequence[str], prog: str = "dvt train") -> RunConfig:
    """The configuration that the arguments of `dvt train` ask for."""
    parser = support.run_config_parser(prog, "Train a DVT and save its checkpoints.", TRAIN_KEYS)
    config = build_config(support.parse(parser, support.resumed(support.normalise(argv)), TRAIN_KEYS))
    support.print_if_asked(argv, config)
    return config


def parse_eval(
    argv: Sequence[str], prog: str = "dvt eval", saved: dict[str, Any] | None = None
) -> tuple[EvalOptions, RunConfig]:
    """What the arguments of `dvt eval` ask for.

    Args:
        argv: The arguments.
        prog: Name of the program for messages.
        saved: Configuration of the run that made the checkpoint. The YAML files and options go over it. Its device is
            not kept, because evaluation may run elsewhere; results go beside the checkpoint unless `output` is given.
    """
    argv = support.normalise(argv)
    values = _parse_eval(argv, prog, saved)
    config = build_config(values)
    if not support.peek(argv, "output")["output"]:  # the `output` of a YAML file is that of the training run
        config.output = str(Path(values["checkpoint"]).parent)
    support.print_if_asked(argv, config)
    return _options(EvalOptions, values), config


def parse_export(argv: Sequence[str], prog: str = "dvt export") -> ExportOptions:
    """What the arguments of `dvt export` ask for."""
    description = "Write a trained model as files that run without this package, and check them by loading them again."
    parser = ConfigParser(prog=prog, usage=f"{prog} --checkpoint FILE [--KEY VALUE ...]", description=description)
    support.add_common_options(parser)
    parser.add_dataclass(ExportOptions)
    return _options(ExportOptions, parser.parse_args(support.normalise(argv, switches=["whole"])).as_dict())


def parse_info(argv: Sequence[str], prog: str = "dvt info") -> ModelConfig | None:
    """The model that the arguments of `dvt info` describe; None to list all."""
    description = "List the models, or describe one: its parameters and its cost, exit by exit."
    parser = support.run_config_parser(prog, description, ["model"])
    support.set_help(parser, "print_config", support.HIDDEN)
    parser.usage = f"{prog} [MODEL] [--config YAML] [--model.KEY VALUE ...]"
    parser.add_argument("variant", nargs="?", metavar="MODEL", help=f"One of {', '.join(list_models())}.")
    argv = support.normalise(argv)
    values = support.parse(parser, argv, ["model"])
    if values["variant"] is None and not any(argument.startswith(("--model.", "--config")) for argument in argv):
        return None
    section = ModelSection(**values["model"])
    overrides = {key: value for key, value in vars(section).items() if key != "name"}
    return model_config(values["variant"] or section.name, **overrides)


def train(argv: list[str], prog: str) -> None:
    """`dvt train`."""
    config = parse_train(argv, prog)
    _set_up_logging(argv)
    from dvt.training.run import train as run

    run(config)


def evaluate(argv: list[str], prog: str) -> None:
    """`dvt eval`."""
    path = _parse_eval(support.normalise(argv), prog)["checkpoint"]  # refuses before MindSpore is loaded
    from dvt.checkpoint.native import read_checkpoint

    saved = read_checkpoint(path).metadata.get("config")
    if saved is not None:
        config_from_dict(saved, f"the configuration stored in {path}")
    options, config = parse_eval(argv, prog, saved)
    _set_up_logging(argv)
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(options.checkpoint, options.mode, config, config.output)


def report(argv: list[str], prog: str) -> int | None:
    """`dvt report`: evaluates a checkpoint, by default the one shipped with the repository, and writes its report.

    The same as `dvt eval`, but that results go to the folder runs/report unless --output is given.
    """
    words = support.normalise(argv)
    if words and words[0].endswith(".ckpt") and not words[0].startswith("--"):
        words = [f"--checkpoint={words[0]}", *words[1:]]
    if not support.peek(words, "checkpoint")["checkpoint"] and not {"--help", "-h"} & set(words):
        words = [f"--checkpoint={early_exits.shipped_checkpoint()}", *words]
    if not support.peek(words, "output")["output"]:
        words.append(f"--output={REPORT_FOLDER}")
    return evaluate(words, prog)


def export(argv: list[str], prog: str) -> None:
    """`dvt export`."""
    options = parse_export(argv, prog)
    formats = options.formats
    _set_up_logging(argv)
    from dvt.deploy.bundle import export_checkpoint

    values = dict(vars(options))
    del values["format"]
    values["output"] = options.output or str(Path(options.checkpoint).parent / "export")
    export_checkpoint(formats=formats, **values)


def infer(argv: list[str], prog: str) -> int | None:
    """`dvt infer`, which has options of its own."""
    from dvt.cli.infer import main as run

    return run(argv, prog)


def convert(argv: list[str], prog: str) -> int | None:
    """`dvt convert`, which has options of its own."""
    from dvt.cli.convert import main as run

    return run(argv, prog)


def info(argv: list[str], prog: str) -> None:
    """`dvt info`."""
    model = parse_info(argv, prog)
    from dvt.models.cost import describe_all, describe_model

    print(describe_all() if model is None else describe_model(model))


COMMANDS: dict[str, tuple[Callable[[list[str], str], int | None], str]] = {
    "train": (train, "train a model"),
    "eval": (evaluate, "evaluate a checkpoint, with early exits"),
    "report": (report, "evaluate and write the report; without arguments that of the small model here"),
    "thresholds": (early_exits.thresholds, "choose thresholds for a budget from stored predictions"),
    "predict": (early_exits.predict, "classify images, one at a time"),
    "export": (export, "write a trained model as a bundle of MindIR or ONNX files"),
    "infer": (infer, "classify images with an exported bundle"),
    "convert": (convert, "read a released PyTorch checkpoint, or write one"),
    "info": (info, "list the models, their parameters and costs"),
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: Command and its arguments; None takes those of the process.
        prog: Name of an entry script that stands for one command, for messages; None for `dvt COMMAND`.
    """
    interrupt_on_signals()  # entry points have done so; `main` may be called by others too
    return support.run_command(lambda words: _dispatch(words, prog), sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str], prog: str | None) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"dvt-mindspore {dvt.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise support.unknown_command(name, COMMANDS)
    return COMMANDS[name][0](rest, prog or f"dvt {name}") or 0


def _overview() -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dvt COMMAND [options]",
            "",
            "Dynamic Vision Transformer for MindSpore: vision transformers that stop early on easy images.",
            "",
            "commands:",
            *lines,
            "",
            "`dvt COMMAND --help` lists the options of a command; `dvt --version` prints the version.",
        ]
    )


def _parse_eval(argv: list[str], prog: str, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    description = (
        "Evaluate a checkpoint: accuracy of every exit, accuracy and cost with early exits, measured images/s. "
        "Data and evaluation keys start from those of the training run, if the checkpoint holds them."
    )
    parser = support.run_config_parser(prog, description, EVAL_KEYS, EvalOptions)
    defaults = flattened(saved or {})
    defaults.pop("device_target", None)
    checkpoint = support.peek(argv, "checkpoint")["checkpoint"]
    if checkpoint:
        defaults["output"] = str(Path(checkpoint[-1]).parent)
    parser.set_defaults(defaults)
    support.set_help(parser, "output", "Folder for the results; by default that of the checkpoint.")
    return support.parse(parser, argv, EVAL_KEYS, "; the model and its training are fixed by the checkpoint")


def _options(cls: type, values: dict[str, Any]) -> Any:
    return cls(**{key: values[key] for key in key_hints(cls)})


def _set_up_logging(argv: Sequence[str]) -> None:
    support.set_up_logging(*support.peek(support.normalise(argv), "log_level")["log_level"][-1:])
