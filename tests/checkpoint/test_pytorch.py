"""The files of released PyTorch checkpoints and the command that converts them. Skipped where PyTorch is missing."""

import argparse
import copy
import errno
import os
import pickle
import resource
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from dvt.checkpoint import load_model, read_checkpoint, save_checkpoint
from dvt.checkpoint.pytorch import convert_from_pytorch, read_weights
from dvt.cli import main as cli
from dvt.convert import exit_rows, from_reference, reference_shapes, to_reference_state_dict
from dvt.errors import CheckpointError
from dvt.models.cascade import build_model
from dvt.models.variants import VARIANTS, model_config
from reliability.faults import ended, forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is optional: pip install -r requirements-torch.txt")


@pytest.fixture
def tiny(monkeypatch):
    """A variant small enough to write and read in no time, among those that are recognised."""
    monkeypatch.setitem(
        VARIANTS, "tiny", {"tokenizer": "t2t", "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_hidden": 64}
    )
    return model_config("tiny")


@pytest.fixture
def released(torch, tiny):
    """What a released file holds; NumPy numbers and tensors stand where the published tools may have left them."""
    rng = np.random.default_rng(1)
    return {
        "model_state_dict": OrderedDict(
            (name, torch.from_numpy(value)) for name, value in arrays(reference_shapes(tiny)).items()
        ),
        "flops": [0.4725, np.float64(1.4622), 3.4968],
        "anytime_classification": [torch.tensor(70.25), 75.5, np.float32(79.1)],
        "dynamic_threshold": torch.from_numpy(rng.random((59, 3), dtype=np.float32)),
        "budgeted_batch_classification": [rng.random(59).tolist(), rng.random(59)],
    }


def same(left, right):
    """The same tensors; of results the same numbers, as plain lists or not."""
    assert list(left) == list(right)
    for key in left:
        if key == "model_state_dict":
            assert list(left[key]) == list(right[key])
            assert all(left[key][name].equal(value) for name, value in right[key].items())
        else:
            assert [list(map(float, np.ravel(each))) for each in left[key]] == [
                list(map(float, np.ravel(each))) for each in right[key]
            ]
    return True


def main(arguments):
    return cli.main(["convert", *arguments])


def check_refused(capsys, arguments, message, *, left=()):
    folder = Path(arguments[0]).parent
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert message in err
    assert sorted(path.name for path in folder.iterdir()) == sorted(left)


@pytest.mark.parametrize("legacy", [False, True])
def test_file_there_and_back_is_exact(torch, released, tiny, tmp_path, capsys, legacy):
    source, middle, back = tmp_path / "in.pth.tar", tmp_path / "out.ckpt", tmp_path / "back.pth.tar"
    torch.save(released, source, _use_new_zipfile_serialization=not legacy)
    assert main([str(source), str(middle)]) == 0
    report = capsys.readouterr().out
    assert "tiny, 3 exits (7x7, 10x10, 14x14 tokens), 1000 classes" in report
    assert f"model_state_dict, {len(released['model_state_dict'])} tensors" in report
    assert "flops, anytime_classification, dynamic_threshold, budgeted_batch_classification" in report

    checkpoint = read_checkpoint(middle)
    assert checkpoint.model == tiny
    results = checkpoint.metadata["results"]
    assert results["flops"] == [0.4725, 1.4622, 3.4968]
    np.testing.assert_array_equal(np.float32(results["dynamic_threshold"]), released["dynamic_threshold"].numpy())

    assert main(["--to-pytorch", str(middle), str(back)]) == 0
    again = torch.load(back, weights_only=False)
    assert same(again, released)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth.tar", "in.pth.tar", "out.ckpt"]


def test_the_written_checkpoint_fills_a_model(torch, released, tmp_path):
    torch.save(released, tmp_path / "in.pth.tar")
    assert main([str(tmp_path / "in.pth.tar"), str(tmp_path / "out.ckpt"), "--model", "tiny"]) == 0
    model, _ = load_model(tmp_path / "out.ckpt")
    state_dict = OrderedDict((name, torch.from_numpy(v)) for name, v in to_reference_state_dict(model).items())
    assert same({"model_state_dict": state_dict}, {"model_state_dict": released["model_state_dict"]})


def test_a_bare_state_dict_with_module_prefix(torch, released, tmp_path, capsys):
    bare = {f"module.{name}": value for name, value in released["model_state_dict"].items()}
    torch.save(bare, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.ckpt")]) == 0
    assert "stored results: none" in capsys.readouterr().out
    assert "results" not in read_checkpoint(tmp_path / "out.ckpt").metadata


def test_a_checkpoint_of_the_published_trainer(torch, released, tmp_path, capsys):
    """It holds the arguments of the training, a Namespace, with paths in them."""
    args = argparse.Namespace(lr=1e-3, model="tiny", output_dir=Path("runs"), inner=argparse.Namespace(local_rank=0))
    content = {"epoch": 299, "state_dict": released["model_state_dict"], "optimizer": {"state": {}}, "args": args}
    torch.save(content, tmp_path / "in.pth.tar")
    assert main([str(tmp_path / "in.pth.tar"), str(tmp_path / "out.ckpt")]) == 0
    assert "left out: epoch, optimizer, args" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "out.ckpt").model.name == "tiny"


@pytest.mark.parametrize("prefix", ["module.model.", "_orig_mod."])
def test_names_as_trainers_write_them(torch, released, tmp_path, capsys, prefix):
    wrapped = {f"{prefix}{name}": value for name, value in released["model_state_dict"].items()}
    torch.save({"state_dict": wrapped}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.ckpt")]) == 0
    first = next(iter(released["model_state_dict"]))
    assert f"names: {prefix}{first} is read as {first}, and the others alike" in capsys.readouterr().out


def test_several_sets_of_weights(torch, released, tmp_path, capsys):
    plain = released["model_state_dict"]
    averaged = OrderedDict((name, value + 1) for name, value in plain.items())
    content = {
        "epoch": 299,
        "arch": "tiny",
        "state_dict": plain,
        "state_dict_ema": averaged,
        "optimizer": {"state": {}},
    }
    torch.save(content, tmp_path / "in.pth.tar")
    assert main([str(tmp_path / "in.pth.tar"), str(tmp_path / "ema.ckpt")]) == 0
    report = capsys.readouterr().out
    assert "weights: state_dict_ema" in report
    assert "not taken: state_dict (" in report
    assert "left out: epoch, arch, optimizer" in report
    assert main([str(tmp_path / "in.pth.tar"), str(tmp_path / "plain.ckpt"), "--weights", "state_dict"]) == 0
    ema, other = (read_checkpoint(tmp_path / name).weights for name in ("ema.ckpt", "plain.ckpt"))
    np.testing.assert_array_equal(ema["exits.0.head.bias"], other["exits.0.head.bias"] + 1)
    with pytest.raises(CheckpointError, match="no weights under 'best'; it has 'state_dict', 'state_dict_ema'"):
        convert_from_pytorch(tmp_path / "in.pth.tar", tmp_path / "x.ckpt", weights_key="best")


def test_a_model_that_shapes_do_not_tell_still_comes_back(torch, tmp_path):
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_hidden": 64, "grid_sizes": (2, 4), "image_size": 56}
    model = build_model("dvt_deit_small", **shape)
    save_checkpoint(tmp_path / "own.ckpt", model, {})
    assert main(["--to-pytorch", str(tmp_path / "own.ckpt"), str(tmp_path / "own.pth.tar")]) == 0
    assert main([str(tmp_path / "own.pth.tar"), str(tmp_path / "again.ckpt")]) == 0
    first, second = read_checkpoint(tmp_path / "own.ckpt"), read_checkpoint(tmp_path / "again.ckpt")
    assert first.model == second.model
    assert set(first.weights) == set(second.weights)
    assert all(np.array_equal(value, second.weights[name]) for name, value in first.weights.items())


def test_force_replaces(torch, released, tmp_path, capsys):
    source, target = tmp_path / "in.pth.tar", tmp_path / "out.ckpt"
    torch.save(released, source)
    target.write_text("precious")
    check_refused(capsys, [source, target], "exists already", left=["in.pth.tar", "out.ckpt"])
    assert target.read_text() == "precious"
    assert main([str(source), str(target), "--force"]) == 0
    assert read_checkpoint(target).model.name == "tiny"
    capsys.readouterr()
    check_refused(capsys, [target, target, "--force"], "it is the input", left=["in.pth.tar", "out.ckpt"])


class Malicious:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "raw", "in results"])
def test_nothing_in_the_file_is_executed(torch, released, tmp_path, capsys, how):
    mark, source = tmp_path / "executed", tmp_path / "in.pth.tar"
    if how == "raw":
        source.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    elif how == "in results":
        torch.save({**released, "flops": Malicious(mark)}, source)
    else:
        torch.save({"model_state_dict": Malicious(mark)}, source, _use_new_zipfile_serialization=how == "zip")
    check_refused(capsys, [source, tmp_path / "out.ckpt"], "system", left=["in.pth.tar"])
    assert not mark.exists()


@pytest.mark.parametrize("claims", ["compressed", "shared"])
def test_archives_that_unpack_to_more_than_they_are(torch, released, tmp_path, capsys, claims):
    """They are refused by the sizes in their list of contents, before anything is unpacked."""
    source = tmp_path / "in.pth.tar"
    torch.save({"model_state_dict": {"w": torch.zeros(2**22)}}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as whole, zipfile.ZipFile(source, "w") as packed:
        for part in whole.infolist():
            method = zipfile.ZIP_DEFLATED if claims == "compressed" else zipfile.ZIP_STORED
            packed.writestr(part.filename, whole.read(part), method)
        if claims == "shared":  # many names for the same bytes
            largest = max(packed.filelist, key=lambda part: part.file_size)
            for k in range(50):
                packed.filelist.append(copy.copy(largest))
                packed.filelist[-1].filename = f"plain/data/{k + 1}"
    (tmp_path / "plain").unlink()
    tracemalloc.start()
    check_refused(capsys, [source, tmp_path / "out.ckpt"], "would unpack to", left=["in.pth.tar"])
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_too_little_memory_is_not_called_damage(torch, tmp_path):
    torch.save({"w": torch.zeros(2**25)}, tmp_path / "in.pth")
    said = tmp_path / "said"

    def read() -> None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26,) * 2)
        try:
            read_weights(tmp_path / "in.pth")
        except CheckpointError as error:
            said.write_text(str(error))

    assert ended(forked(read)) == 0
    assert "there is too little memory for it" in said.read_text()


def test_a_plain_backbone_is_named_as_such(torch, tmp_path, capsys):
    """The advice leads somewhere: a training starts from it."""
    config = model_config("dvt_deit_small", grid_sizes=(14,))
    torch.save({row.theirs: torch.zeros(row.shape) for row in exit_rows(config, 0)}, tmp_path / "plain.ckpt")
    arguments = [tmp_path / "plain.ckpt", tmp_path / "out.ckpt"]
    check_refused(capsys, arguments, "train.init_checkpoint", left=["plain.ckpt"])


def test_a_whole_pickled_network_is_refused(torch, tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "in.pth.tar")
    message = "is refused, and nothing in it was run: besides tensors, numbers and NumPy arrays it asks for torch.nn"
    check_refused(capsys, [tmp_path / "in.pth.tar", tmp_path / "out.ckpt"], message, left=["in.pth.tar"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 200, 0.5, 0.99, -5])
def test_a_truncated_file(torch, released, tmp_path, capsys, legacy, kept):
    source = tmp_path / "in.pth.tar"
    torch.save(released, source, _use_new_zipfile_serialization=not legacy)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * kept)] if isinstance(kept, float) else content[:kept])
    check_refused(capsys, [source, tmp_path / "out.ckpt"], "cut short or damaged", left=["in.pth.tar"])


def other_network(content, torch):
    return {"model_state_dict": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (other_network, [], "holds another network"),
        (lambda c, t: {"epoch": 3}, [], "holds no weights"),
        (lambda c, t: [1, 2], [], "holds no weights"),
        (lambda c, t: c, ["--model", "dvt_t2t_vit_12"], "does not hold dvt_t2t_vit_12, but tiny"),
        (lambda c, t: c, ["--model", "tynie"], "unknown model 'tynie'"),
        (lambda c, t: c, ["--weights", "ema"], "no weights under 'ema'"),
        (
            lambda c, t: c["model_state_dict"].pop("normal_token.norm.bias") is c or c,
            [],
            "1 missing (normal_token.norm.bias)",
        ),
        (lambda c, t: c["model_state_dict"].update(stray=t.zeros(1)) or c, [], "1 unexpected (stray)"),
        (lambda c, t: {**c, "flops": {"a": 1}}, [], "stored flops holds a dict"),
    ],
)
def test_files_that_are_refused(torch, released, tmp_path, capsys, change, options, message):
    torch.save(change(released, torch), tmp_path / "in.pth.tar")
    arguments = [tmp_path / "in.pth.tar", tmp_path / "out.ckpt", *options]
    check_refused(capsys, arguments, message, left=["in.pth.tar"])


def test_a_checkpoint_of_ours_in_the_wrong_direction(torch, tiny, tmp_path, capsys):
    save_checkpoint(tmp_path / "in.ckpt", from_reference(tiny, arrays(reference_shapes(tiny))), {"model": tiny})
    check_refused(capsys, [tmp_path / "in.ckpt", tmp_path / "out.ckpt"], "--to-pytorch converts it", left=["in.ckpt"])


@pytest.mark.parametrize("back", [False, True])
def test_paths_that_are_refused(torch, released, tiny, tmp_path, capsys, back):
    source = tmp_path / ("in.ckpt" if back else "in.pth.tar")
    if back:
        save_checkpoint(source, from_reference(tiny, arrays(reference_shapes(tiny))), {"model": tiny})
    else:
        torch.save(released, source)
    (tmp_path / "folder").mkdir()
    left = [source.name, "folder"]
    option = ["--to-pytorch"] if back else []
    for arguments, message in [
        ([tmp_path / "nothing", tmp_path / "out.ckpt"], "there is no"),
        ([source, tmp_path / "nowhere" / "out.ckpt"], "does not exist"),
        ([tmp_path / "folder", tmp_path / "out.ckpt"], "folder"),
        ([source, "/proc/out.ckpt"], "error: "),
    ]:
        check_refused(capsys, [*arguments, *option], message, left=left)
    if not back:
        check_refused(capsys, [source, tmp_path / "out.pth"], "must end in .ckpt", left=left)
    else:
        check_refused(capsys, [source, tmp_path / "folder", *option], "is a folder", left=left)
        arguments = [source, tmp_path / "out.pth.tar", "--to-pytorch", "--model", "dvt_deit_small"]
        check_refused(capsys, arguments, "does not hold dvt_deit_small, but tiny", left=left)


@pytest.mark.parametrize("back", [False, True])
def test_a_disk_that_is_full_in_the_end_is_a_failure_on_the_way(
    torch, released, tiny, tmp_path, capsys, monkeypatch, back
):
    source = tmp_path / ("in.ckpt" if back else "in.pth.tar")
    if back:
        save_checkpoint(source, from_reference(tiny, arrays(reference_shapes(tiny))), {"model": tiny})
    else:
        torch.save(released, source)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    arguments = [str(source), str(tmp_path / ("out.pth.tar" if back else "out.ckpt"))]
    assert main([*arguments, *(["--to-pytorch"] if back else [])]) == 1
    assert "make room or choose another folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [source.name]


def test_without_pytorch_the_remedy_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "in.pth.tar").write_bytes(b"PK\x03\x04")
    message = "pip install 'torch>=2.6'"
    check_refused(capsys, [tmp_path / "in.pth.tar", tmp_path / "out.ckpt"], message, left=["in.pth.tar"])


def test_help_and_wrong_options(capsys):
    for arguments, code in [(["--help"], 0), ([], 2), (["a", "b", "--to-pytorch", "--weights", "x"], 2)]:
        assert main(arguments) == code
    assert "--to-pytorch" in capsys.readouterr().out


def test_the_script_runs_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "missing.pth.tar", "out.ckpt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no checkpoint missing.pth.tar. There is none in .\n"


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS)
def test_the_command_on_a_model_of_full_size(torch, tmp_path, model):
    state_dict = OrderedDict(
        (name, torch.from_numpy(value)) for name, value in arrays(reference_shapes(model_config(model))).items()
    )
    content = {"model_state_dict": state_dict, "flops": [1.0, 2.0, 3.0]}
    source, middle, back = tmp_path / "in.pth.tar", tmp_path / "out.ckpt", tmp_path / "back.pth.tar"
    torch.save(content, source)
    for arguments in ([source, middle], [middle, back, "--to-pytorch"]):
        done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"model: {model}, 3 exits" in done.stdout
    assert same(torch.load(back, weights_only=True), content)
