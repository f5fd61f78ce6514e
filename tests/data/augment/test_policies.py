"""RandAugment and AutoAugment: pixels and arguments as in the reference, and what is drawn how often.

reference/randaugment.npz holds one image and the results of all operations, equal ones once (see
reference/make_references.py); the fill colour was (124, 116, 104). reference/randaugment.args.json holds the arguments.
"""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.data.augment.draws import stream_key, uniforms
from dvt.data.augment.policies import AUTO_AUGMENT, OPERATIONS, build_policy

REFERENCE = Path(__file__).parents[2] / "reference"
FILL = (124, 116, 104)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE / "randaugment.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def photo(reference):
    return Image.fromarray(reference["image"])


def steps_of(policy, count, seed=0):
    return [policy.steps(draws) for draws in uniforms(stream_key(seed), np.arange(count), policy.draws).tolist()]


def parse(key):
    """Operation, magnitude, sign and resampling of a name of the reference."""
    name, magnitude, sign, interpolation = key.split("/")
    return name, float(magnitude), 1 if sign == "+" else -1, RESAMPLING[interpolation]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_pixels_equal_the_reference_bit_for_bit(operation, reference, photo):
    cases = [
        (key, row)
        for key, row in zip(reference["names"], reference["rows"], strict=True)
        if key.startswith(f"{operation}/")
    ]
    assert len(cases) == 12
    for key, row in cases:
        name, magnitude, sign, resample = parse(key)
        argument = OPERATIONS[name].argument(magnitude, sign)
        result = OPERATIONS[name].apply(photo, argument, resample, FILL)
        np.testing.assert_array_equal(np.asarray(result), reference["results"][row], err_msg=key)


def test_arguments_equal_the_reference():
    stored = json.loads((REFERENCE / "randaugment.args.json").read_text())
    assert {key.split("/")[0] for key in stored} == set(OPERATIONS)
    for key, expected in stored.items():
        name, magnitude, sign, _ = parse(key)
        argument = OPERATIONS[name].argument(magnitude, sign)
        assert ([] if argument is None else [argument]) == expected, key


@pytest.mark.parametrize(
    ("operation", "weakest", "strongest"),
    [
        ("Rotate", 0, 30),
        ("Posterize", 4, 0),
        ("Solarize", 256, 0),
        ("SolarizeAdd", 0, 110),
        ("Color", 1, 1.9),
        ("Sharpness", 1, 1.9),
        ("ShearX", 0, 0.3),
        ("TranslateY", 0, 0.45),
    ],
)
def test_arguments_at_both_ends(operation, weakest, strongest):
    assert OPERATIONS[operation].argument(0, 1) == weakest
    assert OPERATIONS[operation].argument(10, 1) == pytest.approx(strongest)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_grey_images_are_treated_as_equal_channels(operation, photo):
    grey = photo.convert("L")
    argument = OPERATIONS[operation].argument(9, -1)
    result = OPERATIONS[operation].apply(grey, argument, RESAMPLING["bicubic"], (116,))
    assert result.mode == "L" and result.size == grey.size
    same = OPERATIONS[operation].apply(grey.convert("RGB"), argument, RESAMPLING["bicubic"], (116,) * 3)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(same)[..., 0])


def test_rand_augment_draws_evenly_and_applies_half():
    steps = steps_of(build_policy(RAND_AUGMENT, FILL), 12_000)
    numbers = Counter(len(drawn) for drawn in steps)
    for count, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(numbers[count] - 12_000 * share) < 4 * (12_000 * share * (1 - share)) ** 0.5
    operations = Counter(step.operation for drawn in steps for step in drawn)
    expected = operations.total() / 15
    chi_square = sum((operations[name] - expected) ** 2 / expected for name in OPERATIONS)
    assert operations.keys() == OPERATIONS.keys() and chi_square < 36.1  # 99.9 % of 14 degrees of freedom
    # With replacement: of the pairs applied, one in 15 is a repetition.
    pairs = [drawn for drawn in steps if len(drawn) == 2]
    repeated = sum(first.operation == second.operation for first, second in pairs)
    assert abs(repeated - len(pairs) / 15) < 4 * (len(pairs) * 14 / 225) ** 0.5


def test_rand_augment_magnitudes_signs_and_interpolation():
    scipy_stats = pytest.importorskip("scipy.stats")
    steps = [step for drawn in steps_of(build_policy(RAND_AUGMENT, FILL), 12_000) for step in drawn]
    angles = np.array([step.argument for step in steps if step.operation == "Rotate"])
    magnitudes = np.abs(angles) / 3
    assert magnitudes.max() == 10 and magnitudes.min() > 6
    clipped = (magnitudes == 10).mean()
    assert abs(clipped - scipy_stats.norm.sf(2)) < 4 * (0.0228 * 0.9772 / len(magnitudes)) ** 0.5
    below = magnitudes[magnitudes < 10]
    truncated = scipy_stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert scipy_stats.kstest(below, truncated.cdf).pvalue > 1e-3
    factors = np.array([step.argument for step in steps if step.operation in ("Color", "Brightness")])
    resampling = np.array([step.resample == RESAMPLING["bicubic"] for step in steps])
    for halves in (angles > 0, factors > 1, resampling):
        assert abs(halves.mean() - 0.5) < 4 * (0.25 / len(halves)) ** 0.5
    assert {step.resample for step in steps} == set(RESAMPLING.values())


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_extreme_random_numbers_stay_in_range(draw, photo):
    for name in (RAND_AUGMENT, "autoaugment"):
        policy = build_policy(name, FILL)
        assert policy(photo, [draw] * policy.draws).size == photo.size


@pytest.mark.parametrize(
    ("draw", "magnitude"),
    # The quantiles of one standard deviation below and above the mean, and of what is clipped.
    [(0.158655254, 8.5), (0.5, 9), (0.841344746, 9.5), (0.99, 10), (1 - 2**-53, 10)],
)
def test_the_magnitude_is_a_quantile_of_the_clipped_normal_distribution(draw, magnitude):
    rotate = (list(OPERATIONS).index("Rotate") + 0.5) / len(OPERATIONS)
    step, _ = build_policy(RAND_AUGMENT, FILL).steps([rotate, 0.0, draw, 0.0, 0.0] * 2)
    assert step.operation == "Rotate" and step.argument == pytest.approx(3 * magnitude, abs=1e-6)


def test_auto_augment_draws_one_sub_policy_with_its_probabilities():
    policy = build_policy("autoaugment", FILL)
    assert len(AUTO_AUGMENT) == 25
    count = 1000
    draws = uniforms(stream_key(0), np.arange(count), policy.draws)
    for index, sub_policy in enumerate(AUTO_AUGMENT):
        draws[:, 0] = (index + 0.5) / 25
        steps = [policy.steps(row) for row in draws.tolist()]
        expected = sum(probability for _, probability, _ in sub_policy)
        deviation = (sum(p * (1 - p) for _, p, _ in sub_policy) / count) ** 0.5
        assert abs(np.mean([len(drawn) for drawn in steps]) - expected) <= 4 * deviation
        assert {step.operation for drawn in steps for step in drawn} == {name for name, p, _ in sub_policy if p > 0}
        order = [name for name, _, _ in sub_policy]
        assert all([step.operation for step in drawn] == order for drawn in steps if len(drawn) == 2)
    chosen = np.floor(uniforms(stream_key(1), np.arange(5000), 1)[:, 0] * 25)
    assert set(chosen) == set(range(25))


@pytest.mark.parametrize(
    ("operation", "arguments"),
    # Posterize 8, 7, 6, 5: 4 + 3.2, 2.8, 2.4, 2.0 bits; Solarize 5, 4, 3, 8, 7 tenths of 256; factors 0.1 + 0.18 each.
    [
        ("Posterize", {7, 6}),
        ("Solarize", {128, 102, 76, 204, 179}),
        ("Color", {0.1, 0.82, 0.46, 1.54}),
        ("Contrast", {1.54}),
        ("Sharpness", {1.36}),
        ("Rotate", {27, -27, 24, -24, 9, -9}),
        ("ShearX", {0.15, -0.15}),
        ("Equalize", {None}),
    ],
)
def test_auto_augment_arguments_follow_the_ranges_of_the_paper(operation, arguments):
    drawn = [step for drawn in steps_of(build_policy("autoaugment", FILL), 4000) for step in drawn]
    found = {step.argument for step in drawn if step.operation == operation}
    if operation != "Equalize":
        found = {round(argument, 6) for argument in found}
    assert found == arguments


@pytest.mark.parametrize("name", [RAND_AUGMENT, "autoaugment"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_policies_are_pure_functions_and_can_be_pickled(name, mode, photo):
    image = photo.convert(mode)
    before = np.asarray(image).copy()
    policy = build_policy(name, FILL[: len(image.getbands())])
    restored = pickle.loads(pickle.dumps(policy))
    changed = 0
    for draws in uniforms(stream_key(0), np.arange(60), policy.draws).tolist():
        result = policy(image, draws)
        assert result.mode == mode and result.size == image.size
        np.testing.assert_array_equal(np.asarray(result), np.asarray(restored(image, draws)))
        changed += not np.array_equal(np.asarray(result), before)
    np.testing.assert_array_equal(np.asarray(image), before)
    assert 30 < changed <= 60


def test_two_operations_are_applied_one_after_the_other(photo):
    policy = build_policy(RAND_AUGMENT, FILL)
    names = list(OPERATIONS)
    invert, translate = ((names.index(name) + 0.5) / len(names) for name in ("Invert", "TranslateX"))
    # Magnitude 9, the sign minus, bicubic.
    result = policy(photo, [invert, 0.1, 0.5, 0.9, 0.9, translate, 0.1, 0.5, 0.9, 0.9])
    offset = -0.405 * photo.width
    inverted = Image.fromarray(255 - np.asarray(photo))
    expected = inverted.transform(
        photo.size, Image.Transform.AFFINE, (1, 0, offset, 0, 1, 0), RESAMPLING["bicubic"], fillcolor=FILL
    )
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
    assert np.asarray(result)[:, : int(-offset)].reshape(-1, 3).tolist() == [list(FILL)] * (64 * int(-offset))


def test_names(photo):
    assert build_policy("none", FILL) is None
    policy = build_policy(RAND_AUGMENT, (124,))
    with pytest.raises(ValueError, match="one per channel"):
        policy(photo, [0.0] * policy.draws)
