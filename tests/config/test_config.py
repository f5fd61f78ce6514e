"""Run configurations: every shipped YAML loads, nothing is lost on disk, and mistakes are named."""

import inspect
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.checkpoint.transfer import initial_weights
from dvt.config import AugmentSection, DataSection, EvalSection, ModelSection, RunConfig, TrainSection, files
from dvt.config.files import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    key_hints,
    load_config,
    save_config,
    typed_value,
)
from dvt.errors import CheckpointError, ConfigError
from dvt.models.variants import ModelConfig
from dvt.training.schedule import learning_rates

CONFIG_FOLDER = Path(__file__).parents[2] / "config"
SHIPPED = sorted(CONFIG_FOLDER.glob("*.yaml"))
# Published, for 8 devices: images per device, learning rate, weight decay. DeiT was never published: as T2T-14.
IMAGENET = {
    "t2t_vit_12": (128, 2e-3, 0.03),
    "t2t_vit_14": (64, 5e-4, 0.05),
    "deit_small": (64, 5e-4, 0.05),
    "deit_tiny": (64, 5e-4, 0.05),
}
PUBLISHED_RATES = np.load(Path(__file__).parents[1] / "reference" / "optimizer.npz")

# A value other than the default for every kind of key.
CHANGED = RunConfig(
    model=ModelSection(
        name="dvt_t2t_vit_14",
        image_size=56,
        grid_sizes=[3, 7],
        feature_reuse=False,
        drop_path_rate=0.0,
        soft_splits=[[7, 4, 3], [5, 2, 2]],
        resize_sides=[6],
    ),
    data=DataSection(
        dataset="fashion_mnist_scale", path="1e3", mean=[0.5, 0.25, 1e-7], std=[1.0, 2.0, 3.0], item_sizes=[14, 28]
    ),
    augment=AugmentSection(policy="autoaugment", interpolation="random", erasing=0.25, mixup=0.8),
    train=TrainSection(epochs=7, warmup_epochs=1.5, learning_rate=1e-12, schedule_unit="step", exit_weights=[0.1, 2.0]),
    eval=EvalSection(batch_size=1, throughput_images=10),
    device_target="CPU",
    seed=123456789012,
    output="null: with 'quotes' # and ünïcode",
)


def write(folder: Path, text: str, name: str = "given.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def recipe(name: str) -> RunConfig:
    return load_config(CONFIG_FOLDER / f"{name}.yaml")


def resolved(config: RunConfig) -> ModelConfig:
    gray = config.data.dataset.startswith("fashion_mnist")
    return config.model.resolve(config.model.num_classes or 10, in_channels=1 if gray else 3)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_builds_its_model_and_schedule(path: Path):
    config = load_config(path)
    assert resolved(config).num_exits == len(config.model.grid_sizes)
    rates = learning_rates(config.train, steps_per_epoch=10)
    assert len(rates) == 10 * (config.train.epochs + config.train.cooldown_epochs)
    # The cosine is taken over all epochs, so that a long warm-up ends below the peak.
    assert 0.9 * config.train.learning_rate < rates.max() <= np.float32(config.train.learning_rate)
    assert config.output == f"runs/{path.stem}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_states_commands_hardware_and_time(path: Path):
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"python train.py --config config/{path.stem}.yaml" in header
    assert f"--checkpoint runs/{path.stem}/last.ckpt" in header
    if path.stem != "quickstart":
        assert "bash scripts/run_distribute_train.sh " in header and f" config/{path.stem}.yaml " in header
    for word in ("Hardware: ", "Time: ", "Published"):
        assert word in header


def test_the_promised_recipes_are_shipped():
    dvt = [f"dvt_{name}_imagenet" for name in IMAGENET]
    plain = [f"{name}_imagenet" for name in IMAGENET]
    others = ["dvt_deit_small_two_exits_imagenet", "cifar10_transfer", "cifar100_transfer", "finetune_folder"]
    assert {path.stem for path in SHIPPED} == {*dvt, *plain, *others, "smoke_cpu", "quickstart"}


@pytest.mark.parametrize("backbone", IMAGENET)
def test_imagenet_recipes_are_the_published_ones(backbone: str):
    config = recipe(f"dvt_{backbone}_imagenet")
    batch_size, rate, decay = IMAGENET[backbone]
    train = config.train
    assert config.model.name == f"dvt_{backbone}" and config.model.grid_sizes == [7, 10, 14]
    assert (train.batch_size, train.learning_rate, train.weight_decay) == (batch_size, rate, decay)
    assert train.base_batch_size == 8 * batch_size and train.accumulation_steps == 1
    assert (train.optimizer, train.clip_norm, train.exit_weights) == ("adamw", None, None)
    assert (train.epochs, train.cooldown_epochs, train.warmup_epochs) == (300, 10, 20)
    published = PUBLISHED_RATES[f"lr/dvt_{'t2t_vit_14' if backbone.startswith('deit') else backbone}"]
    np.testing.assert_allclose(learning_rates(train, 2)[::2], published, rtol=1e-6)
    assert (train.label_smoothing, train.ema_decay) == (0.1, 0.99996)
    assert config.augment == AugmentSection("rand-m9-mstd0.5-inc1", "random", erasing=0.25, mixup=0.8, cutmix=1.0)
    assert resolved(config).drop_path_rate == 0.1 and resolved(config).dropout_rate == 0.0
    # Evaluation: at 256, while training too; thresholds from 50,000 augmented training images.
    assert (train.eval_every_epochs, train.eval_resize_size, config.data.resize_size) == (1, 256, None)
    assert (config.data.calibration_images, config.data.hold_out_calibration) == (50000, False)


@pytest.mark.parametrize("backbone", IMAGENET)
def test_plain_backbones_differ_from_the_dvt_in_the_cascade_alone(backbone: str):
    dvt, plain = recipe(f"dvt_{backbone}_imagenet"), recipe(f"{backbone}_imagenet")
    assert plain.model.grid_sizes == [14]
    model = replace(dvt.model, grid_sizes=[14], feature_reuse=None, relation_reuse=None)
    # A plain T2T-ViT was published with another crop.
    train = replace(dvt.train, eval_resize_size=248 if backbone.startswith("t2t") else 256)
    assert plain == replace(dvt, model=model, train=train, output=plain.output)


def test_the_two_exit_recipe_is_the_published_setting():
    config = recipe("dvt_deit_small_two_exits_imagenet")
    model, train = resolved(config), config.train
    assert (model.name, model.grid_sizes, model.dropout_rate) == ("dvt_deit_small", (7, 14), 0.1)
    assert (train.batch_size, train.learning_rate, train.base_batch_size) == (64, 0.00044375, 256)
    assert (train.warmup_epochs, train.weight_decay) == (40, 0.05)
    assert config.augment == AugmentSection("autoaugment", mixup=0.2)
    assert "78.7 %" in (CONFIG_FOLDER / "dvt_deit_small_two_exits_imagenet.yaml").read_text()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_cifar_recipes_are_the_published_one(dataset: str):
    config = recipe(f"{dataset}_transfer")
    train = config.train
    assert config.data.dataset == dataset and resolved(config).image_size == 224
    assert (config.data.mean, config.data.std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (train.epochs, train.batch_size, train.learning_rate, train.backbone_lr_scale) == (60, 64, 0.05, 0.01)
    assert (train.min_learning_rate, train.warmup_epochs, train.label_smoothing) == (2e-4, 0, 0.0)
    assert config.augment == AugmentSection()


def test_nothing_is_selected_on_test_images():
    for name in ("quickstart", "cifar10_transfer", "cifar100_transfer"):
        train = recipe(name).train
        assert train.eval_every_epochs == 0 or train.keep_best == 0


def photographs(folder: Path, per_class: int) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("first", "second"):
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(rng.integers(0, 256, (40, 52, 3), np.uint8)).save(folder / split / name / f"{i}.jpg")
    return folder


@pytest.mark.slow
def test_the_smoke_recipe_trains_on_four_images_per_class(tmp_path: Path):
    from dvt.training.run import train

    config = load_config(CONFIG_FOLDER / "smoke_cpu.yaml")
    config.data.path, config.output = str(photographs(tmp_path / "images", 4)), str(tmp_path / "run")
    assert train(config).exists()


def test_fine_tuning_without_weights_is_refused():
    config = recipe("finetune_folder")
    with pytest.raises(CheckpointError, match=r"there is no checkpoint WEIGHTS\.ckpt"):
        initial_weights(resolved(config), config.train.init_checkpoint)


@pytest.mark.parametrize("config", [RunConfig(), CHANGED], ids=["defaults", "changed"])
def test_what_is_saved_loads_equal(config: RunConfig, tmp_path: Path):
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config


def test_every_key_is_saved():
    saved = config_to_yaml(RunConfig())
    for key in key_hints(RunConfig):
        assert f"{key.rpartition('.')[2]}:" in saved


def test_files_and_overrides_are_laid_over_each_other(tmp_path: Path):
    first = write(tmp_path, "train: {epochs: 30, batch_size: 8}\nseed: 1", "a.yaml")
    second = write(tmp_path, "train:\n  batch_size: 16\nmodel: {grid_sizes: [2, 4]}", "b.yaml")
    config = load_config([first, second], {"seed": 2, "train.epochs": 40, "data": {"path": "here"}})
    assert config == replace(
        RunConfig(seed=2),
        train=TrainSection(epochs=40, batch_size=16),
        model=ModelSection(grid_sizes=[2, 4]),
        data=DataSection(path="here"),
    )


def test_a_file_may_leave_to_the_next_what_fits_only_together(tmp_path: Path):
    first = write(tmp_path, "train: {epochs: 3}", "a.yaml")
    second = write(tmp_path, "train: {warmup_epochs: 1}", "b.yaml")
    assert load_config([first, second]).train.epochs == 3
    with pytest.raises(ConfigError, match=r"train.warmup_epochs 20 is more than train.epochs 3"):
        load_config(first)


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path: Path):
    assert load_config(write(tmp_path, "train: {learning_rate: 5e-4}")).train.learning_rate == 5e-4


def test_a_path_is_no_yaml():
    for text in ("3", "-", "null", "[a]"):
        assert typed_value("output", text, Path) == text


def test_no_keys_are_all_defaults(tmp_path: Path):
    assert load_config(write(tmp_path, "{}")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("epochs: 3", "unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("batch_size: 3", "unknown key 'batch_size'; did you mean 'train.batch_size' or 'eval.batch_size'?"),
        ("trian: {epochs: 3}", "unknown key 'trian'; did you mean 'train'?"),
        ("modle.depth: 3", "unknown key 'modle.depth'; did you mean 'model.depth'?"),
        ("zzz: 3", "unknown key 'zzz'"),
        ("train: 3", "train is 3; it is a section and needs keys of its own, such as train.epochs"),
        ("train:", "train is None; it is a section"),
        ("train: {epochs: many}", "train.epochs is 'many'; it must be a whole number"),
        ("train: {epochs: 2.5}", "train.epochs is 2.5; it must be a whole number"),
        ("train: {epochs: null}", "train.epochs is null; it must be a whole number"),
        ("train: {epochs: 0}", "train.epochs is 0; it must be a whole number of at least 1"),
        ("train: {schedule_unit: day}", "train.schedule_unit is 'day'; it must be one of step, epoch"),
        ("model: {depth: true}", "model.depth is True; it must be a whole number, or null"),
        ("model: {grid_sizes: 7}", "model.grid_sizes is 7; it must be a list of whole numbers, such as [7, 10, 14]"),
        ("model: {grid_sizes: [7, x]}", "model.grid_sizes is [7, 'x']; it must be a list of whole numbers"),
        ("data: {hold_out_calibration: maybe}", "data.hold_out_calibration is 'maybe'; it must be true or false"),
        ("data: {path: 5}", "data.path is 5; it must be text"),
        ("device_target: TPU", "device_target is 'TPU'; it must be one of auto, CPU, GPU, Ascend"),
        ("- 1\n- 2", "holds [1, 2]; it must hold keys with values"),
        ("just words", "holds 'just words'; it must hold keys with values"),
        ("seed: 1\ntrain: [1", "line 2, column 10 is not valid YAML"),
        ("seed: 1\nseed: 2", "line 1, column 1 is not valid YAML: 'seed' is given twice"),
        ("seed: 1\n---\nseed: 2", "line 2, column 1 is not valid YAML: expected a single document"),
        ("seed: 2024-13-01", "is not valid YAML: month must be in 1..12"),
        ("\0", "is not valid YAML: unacceptable character #x0000"),
        ("", "is empty; it must hold keys with values, such as `seed: 0`"),
        ("# nothing yet", "is empty; it must hold keys with values, such as `seed: 0`"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert message in str(refused.value)
    if "at least" not in message:  # what does not fit is seen only after merging
        assert str(path) in str(refused.value)


def test_what_is_no_file_of_text_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", "seed: 1", "there.yaml")
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"output: caf\xe9")
    for name, message in (
        ("folder", "is a folder; give a configuration file in YAML .such as .*there.yaml"),
        ("link.yaml", "there is no configuration file .*link.yaml, a link to gone.yaml"),
        ("pipe.yaml", "is a pipe or a device; write the configuration to a file first"),
        ("latin.yaml", "is not UTF-8 text; save it as UTF-8"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_brackets_without_end_are_refused(tmp_path: Path):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    try:
        with pytest.raises(ConfigError, match=r"given.yaml is not valid YAML: maximum recursion depth"):
            load_config(write(tmp_path, "seed: " + 300 * "["))
    finally:
        sys.setrecursionlimit(limit)


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path, "", "quickstart.yaml")
    with pytest.raises(
        ConfigError, match=r"there is no configuration file .*quikstart.yaml; did you mean .*quickstart"
    ):
        load_config(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(tmp_path / "nowhere" / "x.yaml")


@pytest.mark.parametrize("given", ["O2", "o2"])
def test_a_choice_of_an_earlier_version_is_replaced_with_a_warning(
    given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files._warn_once.cache_clear()
    assert load_config(write(tmp_path, f"jit_level: {given}")).jit_level == "auto"
    assert [record.message for record in caplog.records if "jit_level O2" in record.message] == [
        "jit_level O2 is no longer offered, since MindSpore gives it up; auto is taken"
    ]
    with pytest.raises(ConfigError, match="auto, O0, O1"):
        config_from_dict({"jit_level": "O3"})
