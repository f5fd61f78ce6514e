"""The command line: what is parsed, what is refused and how, and that help and refusals need no MindSpore."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from dvt import __version__
from dvt.cli import evaluate, export, info, predict, train
from dvt.cli import main as cli
from dvt.cli.support import Parser, given_keys
from dvt.config import RunConfig
from dvt.config.files import config_from_dict, config_to_dict, key_hints, load_config
from dvt.errors import ConfigError
from dvt_service.settings import ServeOptions

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "config" / "quickstart.yaml")
QUICKSTART_CHECKPOINT = str(ROOT / "checkpoints" / "quickstart.ckpt")


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, env=environment)


def train_config(*argv: str) -> RunConfig:
    return train.parse(argv)[1]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one message of a call that must be refused."""
    assert cli.main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").strip()


def test_train_takes_file_and_options_in_any_order():
    config = train_config("--train.epochs", "5", "--config", QUICKSTART, "--model.grid_sizes=[2,4]")
    expected = load_config(QUICKSTART, {"train.epochs": 5, "model.grid_sizes": [2, 4]})
    assert config == expected


def test_later_files_go_over_earlier_ones(tmp_path: Path):
    over = tmp_path / "over.yaml"
    over.write_text("train: {batch_size: 5}\n")
    config = train_config("--config", QUICKSTART, f"--config={over}")
    assert config == load_config([QUICKSTART, over])
    assert config.train.batch_size == 5


def test_dashes_and_underscores_are_alike_for_every_key():
    parser = Parser("dvt train", train.TrainOptions)
    parser.add_config(shown=vars(RunConfig()))
    for key, hint in key_hints(RunConfig).items():
        text = {"float": "0.25", "int": "290", "str": "a-b_c", "bool": "true"}.get(getattr(hint, "__name__", ""))
        choices = get_args(hint)
        text = text or ("null" if type(None) in choices else "0.25" if float in choices else choices[0])
        _, given = parser.parse([f"--{key}={text}"])
        assert key in given and parser.parse([f"--{key.replace('_', '-')}", text])[1] == given


def test_yes_or_no_keys_need_no_value():
    config = train_config("--data.hold_out_calibration", "--model.feature-reuse", "--seed", "3")
    assert (config.data.hold_out_calibration, config.model.feature_reuse, config.seed) == (True, True, 3)
    assert train_config("--model.feature_reuse", "false").model.feature_reuse is False


def test_aliases_and_device_names():
    config = train_config("--data-path", "/x-y_z", "--device-target", "ascend", "--output=runs/a-b")
    assert (config.data.path, config.device_target, config.output) == ("/x-y_z", "Ascend", "runs/a-b")
    assert train_config("--device_target=cpu").device_target == "CPU"
    cloud = train_config("--data_url", "/inputs/data", "--train_url", "/outputs/run")  # as ModelArts passes them
    assert (cloud.data.path, cloud.output) == ("/inputs/data", "/outputs/run")
    asked = train_config("--profile", "--deterministic", "--jit-level", "O1", "--train.dataset_sink_mode")
    assert (asked.profile, asked.deterministic, asked.jit_level, asked.train.dataset_sink_mode) == (
        True,
        True,
        "O1",
        True,
    )


def test_every_key_overrides():
    plain = config_to_dict(RunConfig())
    for key, hint in key_hints(RunConfig).items():
        text = {"float": "0.25", "int": "290", "str": "text", "bool": "true"}.get(getattr(hint, "__name__", ""))
        if text is not None:
            section, _, leaf = key.rpartition(".")
            changed = config_to_dict(train_config(f"--{key}", text))
            assert str((changed[section] if section else changed)[leaf]).lower() == text
            assert changed != plain


@pytest.mark.parametrize("command", ["train", "eval", "export", "info"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    shown = {"train": vars(RunConfig()), "eval": evaluate.SHOWN, "info": ["model"]}.get(command, [])
    own = {"eval": evaluate.EvalOptions, "export": export.ExportOptions}.get(command)
    for key in [*key_hints(RunConfig), *(key_hints(own) if own else [])]:
        if key.split(".")[0] in shown or (own and key in key_hints(own)):
            option = text.partition(f"\n  --{key} ")[2]
            assert option, key
            assert "default:" in option.partition("\n  --")[0] or "required" in option.partition("\n  --")[0], key
        else:
            assert f"--{key} " not in text
    if command == "train":
        words = " ".join(text.split())
        assert "Peak learning rate." in words
        assert "Hand the features of an exit on to the next." in words


def test_overview_and_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main([]) == 2


def test_print_config_loads_again(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.main(["train", "--config", QUICKSTART, "--seed", "9", "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(QUICKSTART, {"seed": 9})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("train --epochs 3", "unknown option --epochs; did you mean '--train.epochs'?"),
        ("train --train.epoch 3", "unknown option --train.epoch; did you mean '--train.epochs'?"),
        ("train --train-epochs 3", "unknown option --train_epochs; did you mean '--train.epochs'?"),
        ("train --train.epochs abc", "train.epochs is 'abc'; it must be a whole number"),
        ("train --train.epochs 0", "train.epochs is 0; it must be a whole number of at least 1"),
        ("train --train.epochs null", "train.epochs is null; it must be a whole number"),
        ("train --train.epochs", "expected one argument"),
        ("train --config", "expected one argument"),
        ("train --model.grid_sizes 3,x", "model.grid_sizes is [3, 'x']; it must be a list of whole numbers, such as"),
        ("train --data /images", "--data is a section of keys; give one of them: --data.dataset, --data.path"),
        ("train --device-target tpu", "device_target is 'tpu'; it must be one of auto, CPU, GPU, Ascend"),
        ("train images", "does not know what images is for: --config takes configuration files, --data_path the im"),
        ("train --resume runs/a/last.ckpt", "what runs/a/last.ckpt is for: .* --resume takes no file and goes on with"),
        ("eval a.ckpt b.ckpt", "dvt eval does not know what b.ckpt is for"),
        ("train --output $NOWHERE/a", "output is '$NOWHERE/a', but the environment has no variable $NOWHERE"),
        ("train --log_level loud", "invalid choice: 'loud'"),
        ("train --config nowhere.yaml", "there is no configuration file nowhere.yaml"),
        ("eval --chekpoint x", "unknown option --chekpoint; did you mean '--checkpoint'?"),
        ("eval --checkpoint x --mode 3", "mode is 3; it must be one of 0, 1, 2"),
        ("eval --checkpoint x --model.depth 3", "dvt eval takes no --model.depth; the model and its training are"),
        ("export --checkpoint x --batch-size 0", "batch_size is 0; it must be a whole number of at least 1"),
        (
            "export --checkpoint x --batch-sizes [0,1]",
            "batch_sizes is [0, 1]; it must be a list of whole numbers, ",
        ),
        ("export --checkpoint x --precision int4", "precision is 'int4'; it must be one of float32, float16"),
        ("thresholds x.npz --budget_gmacs 0", "eval.budget_gmacs is 0.0; it must be a number above 0"),
        ("thresholds x.npz --budget_gmacs 1 --budget_images_per_second 2", "both set; give one budget"),
        ("thresholds x.npz --exit_rule guess", "eval.exit_rule is 'guess'; it must be one of confidence, entropy, mar"),
        ("predict a.png --thresholds 0.5,.inf,0", "thresholds is [0.5, inf, 0.0]; it must be a list of numbers, each"),
        ("predict a.png --thresholds=-0.5,0,0", "thresholds is [-0.5, 0.0, 0.0]; it must be a list of numbers, each"),
        ("predict a.png --thresholds true,0,0", "thresholds is [True, 0, 0]; it must be a list of numbers, such as"),
        ("predict a.png --top 0", "top is 0; it must be a whole number of at least 1"),
        ("infer bundle images --batch-size x", "batch_size is 'x'; it must be a whole number"),
        ("info dvt_deit_small --model.image_size 55", "a 7x7 grid cannot be cut from image_size 55"),
    ],
)
def test_mistakes_are_one_clear_message(argv: str, message: str, capsys: pytest.CaptureFixture[str]):
    first, _, second = message.partition(".*")
    said = refusal(capsys, *argv.split())
    assert first in said and second.strip() in said


COMMAND_WORDS = {
    **{"train": [], "info": [], "thresholds": ["none.npz"], "predict": ["none.png"], "export": ["none.ckpt"]},
    **{"eval": [QUICKSTART_CHECKPOINT], "infer": ["none", "none"], "records": ["none", "none"]},
}


def options_of(command: str) -> dict[str, Any]:
    """The options of a command, with their types."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse", lambda parser, argv: sys.exit(found.update(parser.keys)))
        cli.main([command])
    return found


@pytest.mark.parametrize("command", COMMAND_WORDS)
def test_no_number_of_any_option_is_taken_that_no_run_can_use(command: str, capsys: pytest.CaptureFixture[str]):
    """Counts are not negative, and nothing is beyond what int32 or float32 hold."""
    options = options_of(command)
    kinds = {key: {int, float, list[int], list[float]} & {hint, *get_args(hint)} for key, hint in options.items()}
    assert any(kinds.values())
    for key, kind in kinds.items():
        wrong = ["true", "many", "1" + 30 * "0"] if kind & {int, list[int]} else ["true", "nan", "inf", "1e39"]
        wrong += [] if key == "data.mean" else ["-1"]  # of normalised images it may be anything
        for value in wrong if kind else ():
            assert key.rpartition(".")[2] in refusal(capsys, command, *COMMAND_WORDS[command], f"--{key}", value), value


def test_the_numbers_of_the_service_have_bounds_too():
    parser = Parser("serve.py", ServeOptions)
    numbers = [key for key, hint in parser.keys.items() if {int, float} & {hint, *get_args(hint)}]
    assert {"port", "threads", "limits.decoders"} <= set(numbers)
    for key in numbers:
        for value in ("-1", "nan", "1e39", "many"):
            with pytest.raises(ConfigError, match=f"^{key} is"):
                parser.parse(["bundle", f"--{key}={value}"])


def test_a_mistake_in_a_file_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {grid_size: [3]}\n")
    assert refusal(capsys, "train", "--config", str(path)) == (
        f"in {path}: unknown key 'model.grid_size'; did you mean 'model.grid_sizes'?"
    )


def test_eval_starts_from_the_saved_run():
    saved = config_to_dict(load_config(QUICKSTART, {"device_target": "Ascend", "data.path": "/there"}))
    options, given = evaluate.parse(["--checkpoint", "runs/a/best.ckpt", "--eval.batch_size", "7"])
    assert (options.checkpoint, options.mode) == ("runs/a/best.ckpt", 2)
    config = evaluate.configuration(given_keys(given), saved)
    expected = {**saved, "device_target": "auto", "eval": {**saved["eval"], "batch_size": 7}}
    assert config == config_from_dict(expected)
    options, given = evaluate.parse(["--checkpoint=x.ckpt", "--mode=1", "--output", "o", "--data-path", "/here"])
    assert (options.mode, given_keys(given)) == (1, {"output": "o", "data.path": "/here"})


def test_a_missing_checkpoint_is_refused_before_any_work(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert str(tmp_path / "no.ckpt") in refusal(capsys, "eval", "--checkpoint", str(tmp_path / "no.ckpt"))


def test_export_options():
    options = export.parse(["--checkpoint", "a.ckpt", "--format", "mindir", "--batch-size", "8"])
    assert (options.format, options.batch_size, options.output) == ("MINDIR", 8, None)
    assert (options.precision, options.replace) == ("float32", False)
    options = export.parse(["--checkpoint=a.ckpt", "--format", "MINDIR,onnx", "--replace", "--precision", "float16"])
    assert (options.format, options.precision, options.replace) == ("MINDIR,ONNX", "float16", True)
    assert export.parse(["--checkpoint", "a.ckpt", "--batch_sizes", "[8,1]"]).batch_sizes == [8, 1]
    with pytest.raises(ConfigError):
        export.parse(["--checkpoint", "a.ckpt", "--format", ","])


def test_info_lists_and_describes(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["info"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("dvt_t2t_vit_12", "dvt_t2t_vit_14", "dvt_deit_small"))
    assert cli.main(["info", "--config", QUICKSTART, "--model.depth", "2"]) == 0
    described = capsys.readouterr().out
    assert "(9x9)" in described
    assert "depth              2" in described


def test_interrupt_and_bugs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(argv: list[str], prog: str) -> None:
        raise KeyboardInterrupt

    def fail(argv: list[str], prog: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(info, "run", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr(info, "run", fail)
    assert cli.main(["info"]) == 1
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err


def test_help_and_refusals_need_no_mindspore():
    code = (
        "import sys\nsys.modules['mindspore'] = None\nfrom dvt.cli.main import main\n"
        "assert main(['train', '--help']) == 0\nassert main(['train', '--epochs', '1']) == 2\n"
        "assert main(['eval', '--checkpoint', 'x', '--mode', '7']) == 2\nassert main(['info']) == 0\n"
        f"sys.exit(main(['eval', '--checkpoint', {str(ROOT / 'checkpoints' / 'quickstart.ckpt')!r}]))"
    )
    done = run([sys.executable, "-c", code], PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("error: this command needs MindSpore: pip install 'dvt-mindspore[train]'\n")


@pytest.mark.parametrize("name", ["train", "eval", "export"])
def test_entry_scripts_run_from_anywhere(name: str, tmp_path: Path):
    script = ROOT / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py ")
    done = run([sys.executable, script, "--no-such-option"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown option --no_such_option" in done.stderr
    assert len(script.read_text().splitlines()) < 80


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.stem)
def test_shell_scripts_have_help(script: Path):
    done = run(["bash", script, "-h"])
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bash scripts/")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("quickstart.sh --nope", "unknown argument: --nope"),
        ("quickstart.sh --data", "--data needs a folder"),
        ("quickstart.sh --data /no/such/folder", "is not a folder"),
        ("setup_env.sh --nope", "unknown argument: --nope"),
        ("run_standalone_train.sh", "DATA_PATH and CONFIG_PATH are needed"),
        ("run_standalone_train.sh /no/such/folder x.yaml", "DATA_PATH /no/such/folder is not a folder"),
        ("run_standalone_train.sh / x.yaml", "CONFIG_PATH x.yaml is not a file"),
        (f"run_standalone_train.sh / {QUICKSTART} one", "DEVICE_ID one is not a whole number"),
        ("run_eval.sh / x.ckpt", "DATA_PATH, CHECKPOINT_PATH and CONFIG_PATH are needed"),
        ("run_eval.sh / x.ckpt y.yaml", "CHECKPOINT_PATH x.ckpt is not a file"),
        (f"run_eval.sh / {QUICKSTART} y.yaml", "CONFIG_PATH y.yaml is not a file"),
    ],
)
def test_shell_scripts_check_their_arguments(arguments: str, message: str):
    script, *rest = arguments.split()
    done = run(["bash", ROOT / "scripts" / script, *rest])
    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_setup_names_the_wheel_on_aarch64(tmp_path: Path):
    """In a copy, since it would otherwise find this environment; what answers for the machine is a script."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uname").write_text("#!/bin/sh\necho aarch64\n")
    (tmp_path / "bin" / "uname").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = run(["bash", tmp_path / "scripts" / "setup_env.sh"], PATH=path, PYTHON=sys.executable)
    assert done.returncode == 1 and "linux_aarch64.whl" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_standalone_training_passes_everything_on():
    script = ROOT / "scripts" / "run_standalone_train.sh"
    done = run(["bash", script, ROOT, QUICKSTART, "0", "--seed", "5", "--print-config"], DEVICE_TARGET="cpu")
    assert done.returncode == 0, done.stderr
    assert f"path: {ROOT}\n" in done.stdout
    assert "device_target: CPU\n" in done.stdout
    assert "seed: 5\n" in done.stdout


def test_budgets_have_short_names():
    _, given = evaluate.parse(["--checkpoint=x.ckpt", "--budget-gmacs", "1.5", "--exit-rule", "margin"])
    assert given_keys(given) == {"eval.budget_gmacs": 1.5, "eval.exit_rule": "margin"}
    parser = Parser("dvt thresholds", evaluate.ThresholdOptions)
    options, _ = parser.parse(["p.npz", "--budget_images_per_second=40", "--json"])
    assert (options.eval.budget_images_per_second, options.json) == (40.0, True)
    options, _ = parser.parse(["there", "--max-accuracy-drop", "0"])
    assert (options.predictions, options.eval.max_accuracy_drop, options.json) == ("there", 0.0, False)


def test_predict_takes_images_before_and_after_options():
    options = predict.parse(["a.png", "b", "--checkpoint", "c.ckpt", "--json", "--top", "2"])
    assert (options.images, options.checkpoint, options.json, options.top) == (["a.png", "b"], "c.ckpt", True, 2)
    assert Path(predict.parse(["a.png"]).checkpoint).is_file()  # the one that is shipped


@pytest.mark.parametrize("text", ["[0.5,0.5,0]", "0.5,0.5,0", "0.5 0.5 0"])
def test_lists_are_written_as_other_tools_write_them(text: str):
    """Also before a file, which a switch or a list does not take for its value."""
    options = predict.parse(["--json", "--thresholds", *text.split(), "a.png"])
    assert (options.images, options.json, options.thresholds) == (["a.png"], True, [0.5, 0.5, 0.0])
    assert train_config("--model.grid_sizes", "3,6", "--model.soft-splits=[7,4,3],[5,2,2]").model.soft_splits == [
        [7, 4, 3],
        [5, 2, 2],
    ]


@pytest.mark.parametrize("argv", ["a.ckpt --mode 1", "--mode 1 a.ckpt", "--mode=1 --checkpoint a.ckpt"])
def test_a_checkpoint_needs_no_option(argv: str):
    options, _ = evaluate.parse(argv.split())
    assert (options.checkpoint, options.mode) == ("a.ckpt", 1)
    argv = argv.replace("--mode 1", "--batch_size 1").replace("--mode=1", "")
    assert export.parse(argv.split()).checkpoint == "a.ckpt"


def test_info_has_parts(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["info", "dvt_deit_small"]) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["parameters"] == ["22,878,952", "23,920,456", "23,642,824"]
    assert lines["GMACs up to here"] == ["1.1453", "3.6563", "8.8438"]
