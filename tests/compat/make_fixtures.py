"""Makes `fixtures/` with version 0.1.0 of the package, and with no other: what later versions must still read.

    cd CHECKOUT_OF_0.1.0 && PYTHONPATH=src .venv/bin/python PATH_OF/make_fixtures.py [PART ...]

Parts: runs, evaluations, bundles, t2t, configs, names; all by default, about four minutes on two cores. Each works in a
scratch folder, with relative paths, so that no path of this machine is in the files. It reaches into 0.1.0 in one
place, `train_part`: to stop a run after a given step and to note the losses of every step.

What 0.1.0 wrote is packed into two archives, because the same weights are in several files: `runs.tar.xz` (run,
sgd_run) and `models.tar.xz` (evaluated_plain, evaluated_margin, bundle, bundle_averaged, t2t.ckpt). What it computed
lies beside them as JSON and npz.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import compat_recipes as recipes  # noqa: E402

import dvt  # noqa: E402

ROOT = Path(dvt.__file__).resolve().parents[2]
FIXTURES = HERE / "fixtures"
SCRATCH = Path(tempfile.gettempdir()) / "compat_scratch"
WRITTEN = SCRATCH / "written"  # what goes into the archives
ARCHIVES = {
    "runs": ("run", "sgd_run"),
    "models": ("evaluated_plain", "evaluated_margin", "bundle", "bundle_averaged", "t2t.ckpt"),
}

RUN = {
    "model": {
        "name": "dvt_deit_small",
        "image_size": recipes.IMAGE_SIZE,
        "grid_sizes": [2, 4],
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
        "mlp_hidden": 8,
        "drop_path_rate": 0.2,
        "dropout_rate": 0.1,
        "init_std": 0.1,
    },
    "data": {
        "dataset": "image_folder",
        "path": "images",
        "calibration_images": 24,
        "hold_out_calibration": True,
        "workers": 1,
        "worker_type": "thread",
    },
    # No erasing: 0.1.0 erased before it mixed, later versions do so afterwards, as published.
    "augment": {"policy": "rand-m9-mstd0.5-inc1", "mixup": 0.2, "cutmix": 1.0},
    "train": {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "min_learning_rate": 1e-4,
        "warmup_epochs": 0.5,
        "schedule_unit": "step",
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "distillation": 0.5,
        "exit_weights": [1.0, 0.5],
        "ema_decay": 0.9,
        "keep_best": 1,
    },
    "eval": {"batch_size": 12, "throughput_images": 24},
    "device_target": "CPU",
    "seed": 3,
}
SGD_RUN = {
    **RUN,
    "model": {**RUN["model"], "feature_reuse": False, "share_blocks": True},
    "augment": {},
    "train": {
        "epochs": 3,
        "batch_size": 4,
        "accumulation_steps": 2,
        "optimizer": "sgd",
        "learning_rate": 2e-2,
        "base_batch_size": 8,
        "warmup_epochs": 0,
        "amp_level": "O1",
        "loss_scale": 1024.0,
        "loss_scale_window": 10,
        "coarse_first_epochs": 1,
        "eval_every_epochs": 0,
    },
}

WIDE_CONFIG = """\
# Many keys, as somebody might write them by hand for 0.1.0.
model:
  name: dvt_t2t_vit_12
  num_classes: 5
  image_size: 64
  in_channels: 3
  grid_sizes: [4, 6, 8]
  embed_dim: 32
  depth: 2
  num_heads: 4
  mlp_hidden: 48
  feature_reuse: false
  relation_reuse: true
  drop_path_rate: 5e-2
  dropout_rate: 0.1
  soft_splits: [[7, 4, 2], [5, 3, 3], [3, 2, 1]]
  resize_sides: [9, 12]
  init_std: 0.05
  share_blocks: true
  average_exits: true

data:
  dataset: image_folder
  path: some/folder
  train_images: 100
  val_images: 50
  calibration_images: 10
  hold_out_calibration: true
  resize_size: 72
  mean: [0.5, 0.4, 0.3]
  std: [0.2, 0.2, 0.2]
  workers: 2
  worker_type: process
  on_bad_image: skip
  max_bad_images: 3

augment:
  policy: autoaugment
  interpolation: random
  erasing: 0.1
  mixup: 0.8
  cutmix: 1

train:
  epochs: 12
  batch_size: 16
  accumulation_steps: 2
  optimizer: sgd
  momentum: 0.8
  learning_rate: 1e-2
  base_batch_size: 256
  backbone_lr_scale: 0.1
  min_learning_rate: 1e-4
  warmup_epochs: 1.5
  warmup_learning_rate: 1e-5
  cooldown_epochs: 1
  schedule_unit: step
  weight_decay: 1e-4
  clip_norm: 5
  label_smoothing: 0
  exit_weights: [1, 2, 3]
  distillation: 0.5
  distillation_temperature: 2
  coarse_first_epochs: 2
  ema_decay: 0.99
  amp_level: O2
  loss_scale: 1024
  loss_scale_window: 100
  max_failed_batches: 5
  recompute: true
  init_checkpoint: pretrained.ckpt
  checkpoint_every_epochs: 2
  eval_every_epochs: 3
  eval_resize_size: 80
  keep_best: 2
  dataset_sink_mode: true

eval:
  batch_size: 32
  budget_gmacs: 0.5
  max_accuracy_drop: 1
  threshold_search: published
  exit_rule: margin
  temperature_scaling: true
  throughput_images: 100
  keep_probabilities: true
  store: false

device_target: Ascend
seed: 11
output: runs/wide
resume: false
deterministic: true
jit_level: O1
profile: false
"""


def main(parts: list[str]) -> None:
    if dvt.__version__ != "0.1.0":
        raise SystemExit(f"this is {dvt.__version__}; fixtures are made by 0.1.0 alone")
    if parts[:1] == ["--train-part"]:
        return train_part(Path(parts[1]), parts[2], int(parts[3]))
    FIXTURES.mkdir(exist_ok=True)
    WRITTEN.mkdir(parents=True, exist_ok=True)
    if not (SCRATCH / "images").exists():
        recipes.write_images(SCRATCH / "images")
    os.chdir(SCRATCH)
    made = {
        "runs": runs,
        "evaluations": evaluations,
        "bundles": bundles,
        "t2t": t2t,
        "configs": configs,
        "names": names,
    }
    for part in parts or made:
        made[part]()
    for name, members in ARCHIVES.items():
        pack(FIXTURES / f"{name}.tar.xz", members)
    total = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
    print(f"{total / 1e3:.0f} KB in {FIXTURES}")


# ---------------------------------------------------------------------------------------------------------- runs


def train_part(config_file: Path, output: str, stop_after: int) -> None:
    """Trains and notes each batch's losses in losses.json; a signal comes before batch `stop_after` is counted."""
    from dvt.config_io import load_config

    from dvt.training import run as run_module

    losses: list[list[float]] = []

    class Feed(run_module.Feed):
        def epoch(self):
            for each in super().epoch():
                losses.append(each.asnumpy().astype(float).tolist())
                if len(losses) == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield each

    run_module.Feed = Feed
    config = load_config(config_file, {"output": output})
    try:
        run_module.train(config)
    except KeyboardInterrupt:
        print("stopped after", len(losses))
    Path(output, "losses.json").write_text(json.dumps(losses) + "\n")


def runs() -> None:
    """Both runs: one to its end, one stopped in the middle, and that one resumed."""
    import yaml

    from dvt.checkpoint import read_checkpoint

    for name, config, batches in (
        ("run", RUN, recipes.STOPPED_AFTER),
        ("sgd_run", SGD_RUN, recipes.SGD_STOPPED_AFTER * 2),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        for folder, stop in ((f"{name}_whole", 0), (f"{name}_again", 0), (name, batches)):
            shutil.rmtree(folder, ignore_errors=True)
            call([sys.executable, __file__, "--train-part", f"{name}.yaml", folder, str(stop)])
        shutil.rmtree(f"{name}_resumed", ignore_errors=True)
        shutil.copytree(name, f"{name}_resumed")
        call([sys.executable, ROOT / "train.py", "--config", f"{name}.yaml", "--output", f"{name}_resumed", "--resume"])
        whole, again, resumed = (read_checkpoint(f"{name}{end}/state.ckpt") for end in ("_whole", "_again", "_resumed"))
        for title, other in (("again", again), ("resumed", resumed)):
            worst = max(np.abs(value - other.weights[key]).max() for key, value in whole.weights.items())
            print(f"{name}: state at the end, unbroken against {title}: {worst:.3g}")
        target = WRITTEN / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        kept = ["state.ckpt", "config.yaml", "metrics.csv", "train.log", "environment.json"]
        kept += ["last.ckpt"] if name == "run" else []
        for file in kept:
            if Path(name, file).exists():
                shutil.copyfile(Path(name, file), target / file)
        trim_environment(target / "environment.json")
        last = read_checkpoint(f"{name}_whole/last.ckpt")
        expected = {
            "step_losses": json.loads(Path(f"{name}_whole/losses.json").read_text()),
            "metrics_unbroken": rows(Path(f"{name}_whole/metrics.csv")),
            "metrics_resumed": rows(Path(f"{name}_resumed/metrics.csv")),
            "state": recipes.summed_up(whole.weights),
            "last": recipes.summed_up(last.weights),
            "last_metadata": {key: value for key, value in last.metadata.items() if key != "config"},
        }
        write_json(FIXTURES / f"{name}_expected.json", expected)


def trim_environment(file: Path) -> None:
    """Leaves the list of installed packages out, but for three; it is long and says nothing here."""
    content = json.loads(file.read_text())
    for start in content["starts"]:
        start["packages"] = {
            key: start["packages"][key] for key in ("mindspore", "numpy", "pillow") if key in start["packages"]
        }
        start["folder"], start["command"] = "/somewhere", "train.py"
    file.write_text(json.dumps(content, indent=2) + "\n")


def rows(file: Path) -> list[dict[str, float]]:
    """Of metrics.csv, but for measured times."""
    with file.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    return [{k: float(v) for k, v in line.items() if v and k not in ("seconds", "images_per_second")} for line in lines]


# --------------------------------------------------------------------------------------------------- evaluations


def evaluations() -> None:
    """Two stored evaluations of the trained weights, enlarged: plain confidence, and margins at temperatures, with a
    budget halfway between the costs of the first and the last exit."""
    from dvt.checkpoint import read_checkpoint, save_checkpoint

    trained = read_checkpoint("run_whole/last.ckpt")
    first, *_, last = dvt.cost.cumulative_gmacs(trained.model)
    budget = ["--budget_gmacs", f"{(first + last) / 2:.9f}"]
    options = {
        "plain": [],
        "margin": [
            "--eval.exit_rule",
            "margin",
            "--eval.temperature_scaling",
            "true",
            "--eval.keep_probabilities",
            "true",
        ],
    }
    for name, extra in options.items():
        folder, target = Path(f"eval_{name}"), WRITTEN / f"evaluated_{name}"
        for each in (folder, target):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        checkpoint = folder / "model.ckpt"
        save_checkpoint(checkpoint, recipes.enlarged(trained.weights), trained.metadata)
        call(
            [
                sys.executable,
                ROOT / "eval.py",
                "--checkpoint",
                checkpoint,
                "--mode",
                "2",
                "--eval.store",
                *budget,
                *extra,
                "--output",
                folder / "report",
            ]
        )
        printed = call([sys.executable, ROOT / "eval.py", "--checkpoint", checkpoint, "--mode", "0"])
        (FIXTURES / f"evaluated_{name}_mode_0.txt").write_text(printed)
        for file in (checkpoint, folder / "report/predictions.npz", folder / "report/results.json"):
            shutil.copyfile(file, target / file.name)
        classify(target)
        chosen = call(
            [sys.executable, "-c", DVT, "thresholds", target / "predictions.npz", "--json", "--max_accuracy_drop", "5"]
        )
        write_json(FIXTURES / f"evaluated_{name}_thresholds.json", json.loads(chosen))


DVT = "import sys; from dvt.entry import dvt; sys.exit(dvt(sys.argv[1:]))"


def classify(target: Path) -> None:
    """What `AdaptiveClassifier` says with the stored thresholds and rule, and with others that spread the inputs."""
    from dvt.exit_rules import ExitRule

    from dvt.checkpoint import load_model

    model, loaded = load_model(target / "model.ckpt")
    stored = loaded.metadata["early_exit"]
    rule = ExitRule.from_dict(stored["exit_rule"])
    images = recipes.inputs()
    classifier = dvt.AdaptiveClassifier(model, stored["thresholds"], batch_sizes=[24], rule=rule)
    probabilities = classifier.all_exits(images)
    spread = recipes.spread_thresholds(probabilities, 0.5)
    found = {"probabilities": probabilities, "spread_thresholds": spread}
    plain = dvt.AdaptiveClassifier(model, spread, batch_sizes=[24])
    for name, result in (("stored", classifier.predict(images)), ("spread", plain.predict(images))):
        found |= {
            f"{name}_labels": result.labels,
            f"{name}_confidence": result.confidence,
            f"{name}_exit_index": result.exit_index,
        }
    np.savez_compressed(FIXTURES / f"{target.name}.npz", **found)


# ------------------------------------------------------------------------------------------------------- bundles


def bundles() -> None:
    """One bundle of all formats of the plain checkpoint, one of a model that averages its exits."""
    import mindspore as ms

    from dvt.deploy import Cascade, export_bundle

    for each in ("bundle", "bundle_averaged"):
        shutil.rmtree(WRITTEN / each, ignore_errors=True)
    checkpoint = WRITTEN / "evaluated_plain/model.ckpt"
    call(
        [
            sys.executable,
            ROOT / "export.py",
            "--checkpoint",
            checkpoint,
            "--format",
            "MINDIR,ONNX,ONNX_INT8",
            "--output",
            "bundle",
            "--batch_sizes",
            "[1,4,8]",
            "--calibration_path",
            "images",
        ]
    )
    shutil.copytree("bundle", WRITTEN / "bundle")
    ms.set_seed(3)
    small = {key: value for key, value in RUN["model"].items() if key != "name"} | {
        "num_classes": 3,
        "grid_sizes": [2, 4, 8],
    }
    model = dvt.build_model("dvt_deit_small", **small, feature_reuse=False, average_exits=True)
    for parameter in model.trainable_params():
        parameter.set_data(parameter * (8 if "head" in parameter.name else 4))
    shutil.rmtree("averaged", ignore_errors=True)
    export_bundle(model.set_train(False), "averaged", ["MINDIR"], {"half": [0.5, 0.5, 0.0]}, list(recipes.CLASSES))
    shutil.copytree("averaged", WRITTEN / "bundle_averaged")
    for folder, backend, graph_format in (
        ("bundle", "onnxruntime", "ONNX"),
        ("bundle", "onnxruntime", "ONNX_INT8"),
        ("bundle", "mindspore", "MINDIR"),
        ("bundle_averaged", "mindspore", "MINDIR"),
    ):
        images = recipes.inputs()
        with Cascade(WRITTEN / folder, backend, graph_format) as cascade:
            probabilities = cascade.all_exits(images)
            found = {"probabilities": probabilities}
            for share in (0.3, 0.6):
                vector = recipes.spread_thresholds(probabilities, share)
                result = cascade.predict(images, vector)
                found |= {
                    f"thresholds_{share}": vector,
                    f"labels_{share}": result.labels,
                    f"confidence_{share}": result.confidence,
                    f"exit_index_{share}": result.exit_index,
                }
            found["default_labels"] = cascade.predict(images).labels
            if folder == "bundle" and graph_format == "ONNX":
                from PIL import Image

                with Image.open(f"images/val/{recipes.CLASSES[2]}/003.png") as picture:
                    found["preprocessed"] = cascade.preprocessing(picture)
        np.savez_compressed(FIXTURES / f"{folder}_{graph_format.lower()}.npz", **found)
        print(folder, graph_format, [np.bincount(found[f"exit_index_{share}"]).tolist() for share in (0.3, 0.6)])


# ----------------------------------------------------------------------------------------------------------- T2T


def t2t() -> None:
    """A T2T checkpoint whose weights compress well, and what it computes."""
    from dvt.variants import model_config

    from dvt.checkpoint import load_model, save_checkpoint
    from dvt.convert import parameter_shapes

    config = model_config(
        "dvt_t2t_vit_12",
        num_classes=4,
        image_size=32,
        in_channels=1,
        grid_sizes=[2, 4],
        soft_splits=[[6, 4, 1], [3, 2, 1]],
        embed_dim=8,
        depth=2,
        num_heads=2,
        mlp_hidden=8,
    )
    weights = recipes.coarse_weights(parameter_shapes(config))
    save_checkpoint(WRITTEN / "t2t.ckpt", weights, {"model": config, "class_names": list("abcd")})
    model, _ = load_model(WRITTEN / "t2t.ckpt")
    images = recipes.inputs(8, 1, 32)
    np.savez_compressed(
        FIXTURES / "t2t.npz", probabilities=dvt.AdaptiveClassifier(model, batch_sizes=[8]).all_exits(images)
    )


# ------------------------------------------------------------------------------------------------------- configs


def configs() -> None:
    """What YAML files resolve to."""
    from dvt.config_io import config_to_dict, load_config

    target = FIXTURES / "configs"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / "wide.yaml").write_text(WIDE_CONFIG)
    shutil.copyfile(WRITTEN / "run/config.yaml", target / "saved_by_run.yaml")
    resolved = {file.name: config_to_dict(load_config(file)) for file in sorted(target.glob("*.yaml"))}
    model = load_config(target / "wide.yaml").model.resolve(5, 3).to_dict()
    write_json(target / "resolved.json", {"files": resolved, "wide_model": model})
    recipes_ = {file.name: config_to_dict(load_config(file)) for file in sorted((ROOT / "config").glob("*.yaml"))}
    write_json(FIXTURES / "resolved_recipes.json", {"values": recipes_})


# --------------------------------------------------------------------------------------------------------- names


def names() -> None:
    """Every dotted name of the package that pages and examples use and that 0.1.0 has."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "README_CN.md", ROOT / "docs/tutorial.ipynb"]
    pages += [*(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.md")]
    found: set[str] = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        found.update(re.findall(r"(?<![\w./-])dvt(?:\.[A-Za-z_]\w*)+", text))
        for module, imported in re.findall(r"from (dvt(?:\.\w+)*) import (\([^)]*\)|[^\n(]+)", text):
            words = re.findall(r"\w+(?: as \w+)?", imported.split("#")[0])
            found.update(f"{module}.{word.split()[0]}" for word in words)
    there = sorted(name for name in found if recipes.resolves(name))
    print("left out:", sorted(found.difference(there)))
    write_json(FIXTURES / "public_names.json", there)


def call(command: list) -> str:
    """Runs a command and returns its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr[-3000:]}")
    return done.stdout


def write_json(file: Path, content: object) -> None:
    """One entry of the outermost level per line."""
    if isinstance(content, dict):
        lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in content.items()]
        text = "{\n" + ",\n".join(lines) + "\n}"
    else:
        text = "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in content) + "\n]"
    file.write_text(text + "\n", encoding="utf-8")


def pack(archive: Path, members: tuple[str, ...]) -> None:
    """An archive that depends on the content of the files alone; files that are alike stand next to each other."""
    files = [
        file
        for each in members
        for file in ([WRITTEN / each] if (WRITTEN / each).is_file() else (WRITTEN / each).rglob("*"))
    ]
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for file in sorted(each for each in files if each.is_file()):
            entry = tarfile.TarInfo(str(file.relative_to(WRITTEN)))
            content = file.read_bytes()
            entry.size, entry.mode = len(content), 0o644
            packed.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(sys.argv[1:])
