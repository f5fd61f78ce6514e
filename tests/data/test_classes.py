"""Class folders and the classes of a model: by names, by ImageNet's wnids, by a map."""

import json
from pathlib import Path

import pytest
from data_files import write_image

from dvt.config import DataSection
from dvt.data import load_evaluation, load_splits, load_validation
from dvt.data.classes import ModelClasses, imagenet_classes
from dvt.errors import ConfigError, DataError

WHERE = Path("photos/val")


def test_imagenet_has_1000_classes_in_the_order_of_their_wnids():
    classes = imagenet_classes()
    assert len(classes) == len(set(classes.values())) == 1000 and list(classes) == sorted(classes)
    assert list(classes.items())[0] == ("n01440764", "tench")
    assert list(classes.items())[-1] == ("n15075141", "toilet tissue")
    assert list(classes).index("n02110185") == 250 and classes["n02110185"] == "Siberian husky"


def test_folders_are_matched_by_name_by_wnid_and_by_words():
    assert ModelClasses(3, ["owl", "cat", "dog"]).matched(["cat", "owl"], WHERE) == ([1, 0], ["owl", "cat", "dog"])
    folders = ["n01440764", "n02110185", "n15075141"]
    for model in (ModelClasses(1000), ModelClasses(1000, list(imagenet_classes()))):
        places, names = model.matched(folders, WHERE)
        assert places == [0, 250, 999] and names == list(imagenet_classes())
        assert model.matched(["Siberian husky", "tench"], WHERE)[0] == [250, 0]
        assert model.words[:2] == ["tench", "goldfish"]
    assert ModelClasses(2).matched(["a", "b"], WHERE) == ([0, 1], ["a", "b"])  # all of a model without names: in order


@pytest.mark.parametrize(
    ("model", "folders", "message"),
    [
        (
            ModelClasses(1000),
            ["n01440764", "x", "y", "z", "zz"],
            r"4 of the 5 .*: x, y, z and 1 more.*n01440764 \(tench\), n",
        ),
        (ModelClasses(1000), [f"{i:04d}" for i in range(1000)], r"1,000 of the 1,000 .*0000, 0001, 0002 and 997 more"),
        (
            ModelClasses(3, ["cat", "dog", "owl"]),
            ["Cat"],
            r"no classes of the model: Cat. .* such as cat, dog, owl",
        ),
        (ModelClasses(7), ["a", "b"], r"2 of the 2 .*It has 7 classes, without names; rename .* --data.class_map FILE"),
    ],
)
def test_folders_without_a_match_are_named_with_what_would_match(model, folders, message):
    with pytest.raises(DataError, match=message):
        model.matched(folders, WHERE)


def test_a_map_says_what_names_do_not(tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"fish": "tench", "dogs": "n02110185", "paper": 999}))
    assert ModelClasses(1000, class_map=str(file)).matched(["dogs", "fish", "n01443537", "paper"], WHERE)[0] == [
        *(250, 0, 1, 999)
    ]
    file.write_text("fish: 2\ndogs: owl\n")
    assert ModelClasses(3, ["cat", "dog", "owl"], str(file)).matched(["dogs", "fish"], WHERE)[0] == [2, 2]
    for content, message in (
        ("fish: 3", r"maps fish to 3; give a class index from 0 to 2 or a class name, such as cat, dog, owl"),
        ("fish: -1", "maps fish to -1"),
        ("fish: true", "maps fish to True"),
        ("fish: [1]", "maps fish to .1."),
        ("fish: bird", "maps fish to 'bird'"),
        ("7: 1", "must map folders, in quotes"),
        ("[1, 2]", "must map folders, in quotes"),
        ("a: b: c", "cannot be read"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            ModelClasses(3, ["cat", "dog", "owl"], str(file)).matched(["fish"], WHERE)
    with pytest.raises(ConfigError, match=r"gone\.json cannot be read: No such file"):
        ModelClasses(3, None, str(tmp_path / "gone.json")).matched(["fish"], WHERE)


@pytest.fixture
def some(tmp_path) -> Path:
    """Two classes of 1,000 in train/, two in val/, and an empty folder."""
    for part, names in (("train", ("n01440764", "n02110185")), ("val", ("n02110185", "n15075141"))):
        for name in names:
            for i in range(3):
                write_image(tmp_path / part / name / f"{i}.png", (20, 30), seed=i)
        (tmp_path / part / "n01443537").mkdir()
    return tmp_path


def test_images_of_some_classes_are_labelled_as_the_model_does(some):
    data = DataSection(path=str(some), calibration_images=4)
    splits = load_evaluation(data, 16, 0, ModelClasses(1000))
    assert splits.sizes == {"train": 6, "calibration": 4, "val": 6} and len(splits.class_names) == 1000
    assert splits.labels("val").tolist() == [250] * 3 + [999] * 3 and set(splits.labels("train")) == {0, 250}
    assert [labels.tolist() for _, labels in splits.batches("val", 4)] == [[250, 250, 250, 999], [999, 999]]
    assert load_validation(data, 16, ModelClasses(1000)).labels("val").tolist() == splits.labels("val").tolist()
    with pytest.raises(DataError, match="no images in 1 class folder"):  # training wants images of all classes
        load_splits(data, 16, 0)
    with pytest.raises(ConfigError, match="data.class_map is set, but it is for the evaluation"):
        load_splits(DataSection(path=str(some), class_map="map.json"), 16, 0)
    with pytest.raises(ConfigError, match="data.class_map is set, but has no effect on data.dataset cifar10"):
        DataSection(dataset="cifar10", class_map="map.json")
