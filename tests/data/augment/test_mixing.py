"""Mixup and cutmix: targets, shares, partners, and how often each is drawn."""

import numpy as np
import pytest

from dvt.data.augment.mixing import Mixing

COUNT, SIDE, CLASSES = 6, 32, 10
LABELS = np.array([3, 1, 4, 1, 5, 9])


def made_batch(count=COUNT, side=SIDE):
    """Every pixel of image i is i + 1, plus a little noise that tells pixels apart."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 0.5, (count, 3, side, side)).astype(np.float32)
    return images + np.arange(1, count + 1, dtype=np.float32)[:, None, None, None]


def mixed(mixing, key, labels=LABELS):
    images = made_batch(len(labels))
    result, targets = mixing(images, labels, key)
    assert result is images and result.dtype == np.float32
    assert targets.shape == (len(labels), mixing.num_classes) and targets.dtype == np.float32
    return result, targets


def shares(targets, labels=LABELS):
    """How much of each target belongs to its own class, where its partner's is another one (no smoothing)."""
    own, partner = targets[np.arange(len(labels)), labels], targets[np.arange(len(labels)), labels[::-1]]
    different = labels != labels[::-1]
    np.testing.assert_allclose((own + partner)[different], 1, rtol=1e-6)
    return own[different]


def test_mixup_blends_each_image_with_its_mirror_image_in_the_batch():
    before = made_batch()
    for key in range(20):
        images, targets = mixed(Mixing(0.8, 0.0, 0.0, CLASSES), key)
        share = shares(targets)
        assert np.ptp(share) < 1e-6 and 0 <= share[0] <= 1
        np.testing.assert_allclose(images, share[0] * before + (1 - share[0]) * before[::-1], rtol=1e-5)


def test_cutmix_pastes_one_box_of_the_mirror_image_and_counts_what_it_pasted():
    before = made_batch()
    pasted_shares = []
    for key in range(60):
        images, targets = mixed(Mixing(0.0, 1.0, 0.0, CLASSES), key)
        pasted = images == before[::-1]
        assert (pasted | (images == before)).all()
        np.testing.assert_array_equal(pasted, np.broadcast_to(pasted[:1, :1], pasted.shape))  # one box for all
        box = pasted[0, 0]
        assert box.sum() == box.any(axis=0).sum() * box.any(axis=1).sum()  # a filled rectangle, or nothing
        np.testing.assert_allclose(shares(targets), 1 - box.mean(), rtol=1e-5)
        pasted_shares.append(box.mean())
    assert len(set(pasted_shares)) > 30


def test_boxes_are_squares_around_uniform_centres_cut_off_at_the_edges():
    before, squares, centres = made_batch(2), [], []
    for key in range(1500):
        images, _ = mixed(Mixing(0.0, 1.0, 0.0, CLASSES), key, labels=LABELS[:2])
        box = (images == before[::-1])[0, 0]
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        if len(rows) and rows[0] > 0 and columns[0] > 0 and rows[-1] < SIDE - 1 and columns[-1] < SIDE - 1:
            squares.append((len(rows), len(columns)))
        if len(rows) and len(rows) < 6:  # small boxes lie around their centre up to the cut-off
            centres.append((rows.mean(), columns.mean()))
    squares, centres = np.array(squares), np.array(centres)
    np.testing.assert_array_equal(squares[:, 0], squares[:, 1])
    assert not (squares % 2).any()  # the half of a side is rounded down
    assert len(centres) > 30
    np.testing.assert_allclose(centres.mean(axis=0), SIDE / 2, atol=4 * SIDE / (12 * len(centres)) ** 0.5)


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_shares_of_mixup_follow_the_beta_distribution(alpha):
    mixing = Mixing(alpha, 0.0, 0.0, 2)
    share = np.array(
        [mixing(np.zeros((2, 1, 1, 1), np.float32), np.array([0, 1]), key)[1][0, 0] for key in range(3000)]
    )
    variance = 1 / (4 * (2 * alpha + 1))
    np.testing.assert_allclose(share.mean(), 0.5, atol=4 * (variance / 3000) ** 0.5)
    np.testing.assert_allclose(share.var(), variance, atol=0.005)  # some three standard deviations


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_shares_of_cutmix_follow_the_beta_distribution_less_what_is_cut_off(alpha):
    mixing = Mixing(0.0, alpha, 0.0, 2)
    images = np.zeros((2, 1, SIDE, SIDE), np.float32)
    share = [mixing(images, np.array([0, 1]), key)[1][0, 0] for key in range(3000)]
    rng = np.random.default_rng(0)
    half = np.sqrt(rng.beta(alpha, alpha, (100_000, 1))) * SIDE // 2
    centre = rng.integers(SIDE, size=(100_000, 2))
    sides = np.minimum(centre + half, SIDE) - np.maximum(centre - half, 0)
    expected = 1 - sides.prod(axis=1) / SIDE**2
    levels = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(share, levels), np.quantile(expected, levels), atol=0.03)


def test_each_of_the_two_is_drawn_for_half_of_the_batches():
    before = made_batch(2)
    mixing = Mixing(0.8, 1.0, 0.0, CLASSES)
    count, cutmixes = 1000, 0
    for key in range(count):
        images, _ = mixed(mixing, key, labels=LABELS[:2])
        cutmixes += ((images == before) | (images == before[::-1])).all()
    assert abs(cutmixes - count / 2) < 4 * (count / 4) ** 0.5


def test_targets_are_smoothed_and_sum_to_one():
    smooth = Mixing(0.8, 1.0, 0.1, CLASSES)
    hard = Mixing(0.8, 1.0, 0.0, CLASSES)
    for key in range(10):
        targets = mixed(smooth, key)[1]
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(targets, 0.9 * mixed(hard, key)[1] + 0.1 / CLASSES, rtol=1e-5)


def test_without_mixing_images_stay_and_targets_are_smoothed_labels():
    mixing = Mixing(0.0, 0.0, 0.1, CLASSES)
    images, targets = mixed(mixing, key=0)
    np.testing.assert_array_equal(images, made_batch())
    np.testing.assert_allclose(targets[np.arange(COUNT), LABELS], 0.91, rtol=1e-6)
    assert np.isclose(targets, 0.01).sum() == COUNT * (CLASSES - 1)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_a_batch_depends_on_its_key_alone(mixup, cutmix):
    mixing = Mixing(mixup, cutmix, 0.1, CLASSES)
    images, targets = mixed(mixing, key=2**63 + 7)
    same_images, same_targets = mixed(Mixing(mixup, cutmix, 0.1, CLASSES), key=2**63 + 7)
    np.testing.assert_array_equal(images, same_images)
    np.testing.assert_array_equal(targets, same_targets)
    assert (mixed(mixing, key=2**63 + 8)[1] != targets).any()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_the_middle_image_of_an_odd_batch_is_its_own_partner(mixup, cutmix):
    images, targets = mixed(Mixing(mixup, cutmix, 0.0, CLASSES), key=1, labels=LABELS[:5])
    np.testing.assert_array_equal(images[2], made_batch(5)[2])
    assert targets[2, LABELS[2]] == pytest.approx(1)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_grey_images_and_partners_of_the_same_class(mixup, cutmix):
    images = made_batch()[:, :1].copy()
    _, targets = Mixing(mixup, cutmix, 0.0, CLASSES)(images, LABELS, 3)
    assert images.shape == (COUNT, 1, SIDE, SIDE)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    same = np.full(COUNT, 7)
    np.testing.assert_allclose(Mixing(mixup, cutmix, 0.0, CLASSES)(made_batch(), same, 3)[1][:, 7], 1, rtol=1e-6)
