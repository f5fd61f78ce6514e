"""Run configurations: every shipped YAML loads, nothing is lost on disk, and mistakes are named."""

from dataclasses import replace
from pathlib import Path

import pytest

from dvt.config import DataSection, EvalSection, ModelSection, RunConfig, TrainSection
from dvt.config_io import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    describe_type,
    key_hints,
    load_config,
    save_config,
)
from dvt.errors import ConfigError

CONFIG_FOLDER = Path(__file__).parents[1] / "config"
SHIPPED = sorted(CONFIG_FOLDER.glob("*.yaml"))

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
    data=DataSection(dataset="cifar10", path="1e3", mean=[0.5, 0.25, 1e-7], std=[1.0, 2.0, 3.0], item_sizes=[14, 28]),
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_builds_its_model(path: Path):
    config = load_config(path)
    gray = config.data.dataset.startswith("fashion_mnist")
    model = config.model.resolve(config.model.num_classes or 10, in_channels=1 if gray else 3)
    assert model.num_exits == len(config.model.grid_sizes or model.grid_sizes)
    assert path.stem in path.read_text(encoding="utf-8").partition("\n\n")[0], "the header must hold the command"


def test_the_quick_start_and_the_three_imagenet_recipes_are_shipped():
    names = {path.stem for path in SHIPPED}
    models = ("dvt_t2t_vit_12", "dvt_t2t_vit_14", "dvt_deit_small")
    assert {"quickstart", *(f"{model}_imagenet" for model in models)} <= names


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


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    assert load_config(write(tmp_path, "# nothing yet\n")) == RunConfig()


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
        ("train: {epochs: 0}", "train.epochs is 0; it must be at least 1"),
        ("train: {schedule_unit: day}", "train.schedule_unit is 'day'; it must be one of step, epoch"),
        ("model: {depth: true}", "model.depth is True; it must be a whole number or null"),
        ("model: {grid_sizes: 7}", "model.grid_sizes is 7; it must be a list of whole numbers, such as [7, 10, 14]"),
        ("model: {grid_sizes: [7, x]}", "model.grid_sizes is [7, 'x']; it must be a list of whole numbers"),
        ("data: {hold_out_calibration: maybe}", "data.hold_out_calibration is 'maybe'; it must be true or false"),
        ("data: {path: 5}", "data.path is 5; it must be text"),
        ("device_target: TPU", "device_target is 'TPU'; it must be one of auto, CPU, GPU, Ascend"),
        ("- 1\n- 2", "holds [1, 2]; it must hold keys with values"),
        ("just words", "holds 'just words'; it must hold keys with values"),
        ("seed: 1\ntrain: [1", "line 2, column 10 is not valid YAML"),
        ("seed: 1\nseed: 2", "line 1, column 1 is not valid YAML: 'seed' is given twice"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert message in str(refused.value)
    if "at least" not in message:  # what does not fit is seen only after merging
        assert str(path) in str(refused.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path, "", "quickstart.yaml")
    with pytest.raises(
        ConfigError, match=r"there is no configuration file .*quikstart.yaml; did you mean .*quickstart"
    ):
        load_config(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_types_in_words():
    assert describe_type(int | None) == "a whole number or null"
    assert describe_type(list[float]) == "a list of numbers, such as [0.5, 0.5, 0.5]"
    assert describe_type(list[list[int]] | None).startswith("a list of lists of whole numbers")
