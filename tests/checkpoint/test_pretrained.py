"""Models as folders and as safetensors: exact both ways, whole or not at all, read by every command, damage refused."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dvt
from dvt.checkpoint import Checkpoint, native, read_checkpoint, save_checkpoint
from dvt.checkpoint.card import card
from dvt.checkpoint.native import save_pretrained
from dvt.checkpoint.transfer import initial_weights
from dvt.cli import main as cli
from dvt.convert import exit_rows, parameter_shapes, reference_shapes, to_reference
from dvt.early_exit.certify import Certificate
from dvt.errors import CheckpointError
from dvt.models.variants import ModelConfig, model_config

SIZES = {"image_size": 24, "grid_sizes": (2, 3, 4), "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 24}
CONFIG = model_config("dvt_deit_small", num_classes=3, **SIZES)
CERTIFICATE = Certificate((0.5, 0.25, -1e8), "changes", 2.5, 0.95, 5000, 3250, "", 1.25, 2.0, 2.5, 0.5, 0.75, 0)
METADATA = {
    "class_names": ["Läufer", "\N{CAT FACE}", "<b>"],
    "preprocessing": {"image_size": 24, "mean": [0.1]},
    "thresholds": [0.5, 0.25, -1e8],
    "results": {"anytime_classification": [60.0, 70.5, 80.25]},
    "early_exit": {"thresholds": [0.5, 0.25, -1e8], "accuracy": 79.5, "expected_gmacs": 0.5}
    | {"exit_fractions": [0.5, 0.25, 0.25], "certificate": json.loads(json.dumps(CERTIFICATE.to_json()))},
    "measured": {"images_per_second": 1234.5, "processor": "A Processor"},
    "config": {"data": {"dataset": "image_folder"}},
}


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


WEIGHTS = arrays(parameter_shapes(CONFIG))
FULL = METADATA | {"model": CONFIG}


def assert_is(found: Checkpoint, weights: dict[str, np.ndarray] = WEIGHTS, metadata: dict = METADATA) -> None:
    assert found.model == CONFIG
    assert found.metadata == metadata | {"format": 1, "model": CONFIG.to_dict()}
    assert list(found.weights) == list(weights)
    for name, value in weights.items():
        assert found.weights[name].dtype == value.dtype and found.weights[name].tobytes() == value.tobytes(), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(WEIGHTS, tmp_path / "model", FULL)


@pytest.mark.parametrize("naming", ["dvt", "published"])
def test_a_folder_there_and_back_is_exact(tmp_path: Path, naming: str):
    folder = save_pretrained(WEIGHTS, tmp_path / "new" / "model", FULL, naming=naming)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_is(read_checkpoint(folder))
    assert_is(read_checkpoint(folder / "model.safetensors"))
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    assert_is(read_checkpoint(tmp_path / "alone.safetensors"))
    stored = load_file(folder / "model.safetensors")
    names = parameter_shapes(CONFIG) if naming == "dvt" else reference_shapes(CONFIG)
    assert {name: value.shape for name, value in stored.items()} == names


def test_a_model_there_and_back(tmp_path: Path):
    model = dvt.build_model("dvt_deit_small", num_classes=3, **SIZES)
    again, loaded = dvt.from_pretrained(dvt.save_pretrained(model, tmp_path / "model", METADATA))
    assert loaded.metadata["class_names"] == METADATA["class_names"] and again.config == model.config
    for name, parameter in again.parameters_dict().items():
        np.testing.assert_array_equal(parameter.asnumpy(), model.parameters_dict()[name].asnumpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dvt_t2t_vit_12", "dvt_t2t_vit_14", "dvt_deit_small"])
def test_published_names_are_the_released_ones(tmp_path: Path, name: str):
    with gzip.open(Path(__file__).parents[1] / "reference" / "released_tensors.json.gz") as packed:
        released = {key: tuple(shape) for key, shape in json.load(packed)[name]}
    config = model_config(name)
    weights = arrays(parameter_shapes(config))
    save_pretrained(weights, tmp_path / "model", {"model": config}, naming="published")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {key: value.shape for key, value in stored.items()} == released
    for key, value in to_reference(config, weights).items():
        assert stored[key].tobytes() == value.tobytes()


def test_what_is_edited_in_config_json_counts(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == METADATA["class_names"] and config["thresholds"] == METADATA["thresholds"]
    config["class_names"] = ["a", "b", "c"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(folder).metadata["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_save_that_is_cut_off_leaves_the_earlier_model_or_the_new_one(folder: Path, steps: int, monkeypatch):
    new, left, place = {name: value + 1 for name, value in WEIGHTS.items()}, iter(range(steps)), native.put_in_place

    def cut_off(written: Path, path: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        place(written, path)

    monkeypatch.setattr(native, "put_in_place", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(new, folder, FULL | {"class_names": ["x", "y", "z"]})
    expected = (WEIGHTS, METADATA) if steps == 0 else (new, METADATA | {"class_names": ["x", "y", "z"]})
    assert_is(read_checkpoint(folder), *expected)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("place", [0, 4, 8, 300, -1000, -1])
def test_flipped_bits_are_found(folder: Path, place: int):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[place] ^= 0x10
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|not a MindSpore checkpoint|cannot be read|another network"):
        read_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 5, 9, 500, 0.5, -1])
def test_truncated_weights(folder: Path, kept: float):
    content = (folder / "model.safetensors").read_bytes()
    kept = int(kept * len(content)) if isinstance(kept, float) else kept
    (folder / "model.safetensors").write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"cut short|not a MindSpore checkpoint"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 1', "\ud800"])
def test_a_config_that_cannot_be_read(folder: Path, content: str):
    (folder / "config.json").write_text(content, errors="surrogatepass")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_checkpoint(folder)


def test_each_class_has_a_name(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"class_names": ["a", "b"]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="class_names must be a list of 3 names"):
        dvt.from_pretrained(folder)


def test_a_config_of_another_model(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"]["depth"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"the weights do not fit"):
        dvt.from_pretrained(folder)


def test_the_weights_alone_and_a_missing_config(folder: Path):
    (folder / "config.json").unlink()
    assert_is(read_checkpoint(folder))


def test_models_of_others_are_not_overwritten(tmp_path: Path):
    (tmp_path / "vit").mkdir()
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(CheckpointError, match="a model of another package"):
        save_pretrained(WEIGHTS, tmp_path / "vit", FULL)
    with pytest.raises(CheckpointError, match="holds another network"):
        read_checkpoint(tmp_path / "vit")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another folder"):
        save_pretrained(WEIGHTS, tmp_path / "file", FULL)


def test_a_released_model_as_safetensors(tmp_path: Path, monkeypatch):
    """As safetensors' own converter writes it: no metadata, the names of a trainer in front; no PyTorch is needed."""
    from dvt.models.variants import VARIANTS

    monkeypatch.setitem(VARIANTS, "tiny", {**VARIANTS["dvt_deit_small"], "embed_dim": 32, "depth": 1, "num_heads": 2})
    config = model_config("tiny")
    tensors = arrays(reference_shapes(config))
    save_file({f"module.{name}": value for name, value in tensors.items()}, tmp_path / "released.safetensors")
    found = read_checkpoint(tmp_path / "released.safetensors")
    assert found.model == config
    for name, value in to_reference(config, found.weights).items():
        assert value.tobytes() == tensors[name].tobytes()
    assert cli.main(["convert", str(tmp_path / "released.safetensors"), str(tmp_path / "out.ckpt")]) == 0
    assert read_checkpoint(tmp_path / "out.ckpt").model == config


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_released_model_in_sixteen_bits(kind: str, tmp_path: Path, monkeypatch):
    """Converters write such files to save space; NumPy has no bfloat16, which is the upper half of a float32."""
    from dvt.models.variants import VARIANTS

    monkeypatch.setitem(VARIANTS, "tiny", {**VARIANTS["dvt_deit_small"], "embed_dim": 32, "depth": 1, "num_heads": 2})
    config = model_config("tiny")
    tensors = arrays(reference_shapes(config))
    halves = {name: (value.view(np.uint32) >> 16).astype("<u2") for name, value in tensors.items()}
    if kind == "F16":
        halves = {name: value.astype("<f2") for name, value in tensors.items()}
        expected = {name: value.astype(np.float32) for name, value in halves.items()}
    else:
        expected = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in tensors.items()}
    header, end = {}, 0
    for name, value in halves.items():
        offsets = [end, end := end + value.nbytes]
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    content = b"".join([len(text).to_bytes(8, "little"), text, *(value.tobytes() for value in halves.values())])
    (tmp_path / "half.safetensors").write_bytes(content)
    assert cli.main(["convert", str(tmp_path / "half.safetensors"), str(tmp_path / "out.ckpt")]) == 0
    model, found = dvt.checkpoint.load_model(tmp_path / "out.ckpt")
    assert found.model == config
    weights = {name: value.asnumpy() for name, value in model.parameters_dict().items()}
    for name, value in to_reference(config, weights).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_training_starts_from_safetensors(tmp_path: Path, folder: Path):
    name = "exits.2.blocks.0.attn.qkv.weight"
    np.testing.assert_array_equal(initial_weights(CONFIG, folder).weights[name], WEIGHTS[name])
    alone = model_config("dvt_deit_small", num_classes=5, **{**SIZES, "grid_sizes": (4,)})
    plain = arrays({row.theirs: row.shape for row in exit_rows(alone, 0)})
    save_file(plain, tmp_path / "deit.safetensors")
    found = initial_weights(CONFIG, tmp_path / "deit.safetensors")
    np.testing.assert_array_equal(found.weights[name], plain["blocks.0.attn.qkv.weight"])


def test_the_card_says_what_is_known(folder: Path):
    text = (folder / "README.md").read_text(encoding="utf-8")
    for expected in ("dvt_deit_small", "80.25 %", "0.5, 0.25, every image", "accuracy: 79.5"):
        assert expected in text
    assert f"\n## Certificate\nCertified: {CERTIFICATE.promise()[11:]}.\nFrom {CERTIFICATE.evidence()}.\n" in text
    for expected in ("## Certificate", "1234", "A Processor", "Läufer", "trained on: image_folder"):
        assert expected in text
    save_pretrained(WEIGHTS, folder.parent / "bare", {"model": CONFIG})
    bare = (folder.parent / "bare" / "README.md").read_text(encoding="utf-8")
    assert "## Model" not in bare and not any(f"## {title}" in bare for title in ("Early", "Cert", "Measured", "Data"))


def test_a_card_without_a_certificate_says_why():
    for early_exit, said in (
        ({"not_certified": "trained on these images"}, "Not certified: trained on these images."),
        ({"certificate": {"limit": 1.0}}, "What is stored of it cannot be read: certificate."),
        ({"gmacs_bound": {"gmacs": 0.6, "confidence": 0.95, "budget": 0.5}}, "which is above the budget of 0.5."),
    ):
        text = card(CONFIG, {"early_exit": {"thresholds": [0.5, 0.25, -1e8]} | early_exit}, Path())
        assert said in text.partition("\n## Certificate\n")[2].splitlines()[0]


def test_the_card_says_which_classes_were_measured(tmp_path: Path):
    present = {"count": 2, "anytime_accuracy": [70.0, 80.0, 90.0], "recommended_accuracy": None}
    save_pretrained(WEIGHTS, tmp_path / "model", FULL | {"classes_present": present})
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "images of 2 of the 3 classes" in card and "70.00, 80.00, 90.00 %" in card


def test_a_card_by_hand_stays(folder: Path):
    (folder / "accuracy_gmacs.png").write_bytes(b"png")
    save_pretrained(WEIGHTS, folder, {"model": CONFIG, "class_names": ["p", "q", "r"]})
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "classes: p, q, r" in text and "Läufer" not in text and "(accuracy_gmacs.png)" in text
    (folder / "README.md").write_text("# By hand\n")
    save_pretrained(WEIGHTS, folder, FULL)
    assert (folder / "README.md").read_text() == "# By hand\n"


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own, folder, back = tmp_path / "own.ckpt", tmp_path / "model", tmp_path / "back.ckpt"
    save_checkpoint(own, WEIGHTS, FULL)
    assert cli.main(["convert", str(own), str(folder)]) == 0
    assert cli.main(["convert", str(folder), str(back)]) == 0
    assert back.read_bytes() == own.read_bytes()
    weights = tmp_path / "weights.safetensors"
    assert cli.main(["convert", str(folder), str(weights), "--naming", "published"]) == 0
    assert_is(read_checkpoint(weights))
    capsys.readouterr()
    for arguments, said in (
        ([own, folder], "exists already; --force replaces it"),
        ([own, tmp_path / "other.ckpt"], "is no PyTorch file"),
        ([folder, tmp_path / "other.ckpt", "--naming", "published"], "released names are for"),
        ([folder, tmp_path / "other", "--weights", "ema"], "is no PyTorch file"),
    ):
        assert cli.main(["convert", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other.ckpt").exists() and not (tmp_path / "other").exists()
    assert cli.main(["convert", str(own), str(folder), "--force"]) == 0
    capsys.readouterr()
    for checkpoint in (folder, own):
        assert cli.main(["card", str(checkpoint)]) == 0
        assert capsys.readouterr().out == (folder / "README.md").read_text(encoding="utf-8")


def test_models_without_released_names(tmp_path: Path):
    config: ModelConfig = model_config("dvt_deit_small", share_blocks=True, num_classes=3, **SIZES)
    weights = arrays(parameter_shapes(config))
    with pytest.raises(CheckpointError, match="model.share_blocks"):
        save_pretrained(weights, tmp_path / "model", {"model": config}, naming="published")
    assert read_checkpoint(save_pretrained(weights, tmp_path / "model", {"model": config})).model == config
