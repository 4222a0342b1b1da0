"""Test slant and deslanting against bars drawn by hand, scipy's shear and the definition of the moments."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from studies.common.deskew import deslanted, slant


def _bar(lean: float, *, thick: float = 3.0) -> NDArray[np.float32]:
    """Return an image, float32 `(28, 28)`, of a bar of 18 rows that leans right by `lean` pixels per row upwards."""
    y, x = np.mgrid[:28, :28] - 13.5
    distance = np.abs(x + lean * y)
    bar = np.clip(thick / 2 + 0.5 - distance, 0, 1) * (np.abs(y) < 9)
    return bar.astype(np.float32)


def _blots(num_images: int) -> NDArray[np.float32]:
    """Return smooth random shapes, float32 `(num_images, 28, 28)`, at least eight pixels away from the border."""
    noise = np.random.default_rng(0).random((num_images, 28, 28))
    blots = ndimage.gaussian_filter(noise, (0, 2, 2))
    blots = np.clip((blots - 0.5) * 12, 0, 1)
    blots[:, :8] = blots[:, -8:] = blots[:, :, :8] = blots[:, :, -8:] = 0
    return blots.astype(np.float32)


@pytest.mark.parametrize("lean", [-0.6, -0.25, 0.0, 0.1, 0.5])
def test_the_slant_of_a_bar_is_its_lean(lean: float) -> None:
    assert slant(_bar(lean)[None])[0] == pytest.approx(lean, abs=0.01)


def test_a_bar_like_a_slash_leans_to_the_right() -> None:
    assert slant(np.fliplr(np.eye(28))[None])[0] == pytest.approx(1.0)
    assert slant(np.eye(28)[None])[0] == pytest.approx(-1.0)


def test_the_slant_is_the_ratio_of_the_central_moments() -> None:
    blots = _blots(20)
    for image, ours in zip(blots, slant(blots), strict=True):
        y, x = np.mgrid[:28, :28]
        centre_y, centre_x = ndimage.center_of_mass(image)
        covariance = (image * (y - centre_y) * (x - centre_x)).sum()
        variance = (image * (y - centre_y) ** 2).sum()
        assert ours == pytest.approx(-covariance / variance, rel=1e-9, abs=1e-12)


def test_a_shear_adds_to_the_slant() -> None:
    blots = _blots(10)
    sheared = np.stack(
        [ndimage.affine_transform(b, [[1, 0], [0.3, 1]], offset=[0, -0.3 * 13.5], order=1) for b in blots]
    )
    np.testing.assert_allclose(slant(sheared) - slant(blots), 0.3, atol=0.01)


def test_deslanting_agrees_with_scipys_shear_about_the_centre_of_mass() -> None:
    blots = _blots(20)
    for image, lean, ours in zip(blots, slant(blots), deslanted(blots), strict=True):
        centre, _ = ndimage.center_of_mass(image)
        # scipy maps output coordinates to input coordinates, so the shift of a row has the opposite sign.
        theirs = ndimage.affine_transform(image, [[1, 0], [-lean, 1]], offset=[0, lean * centre], order=1)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_deslanted_image_has_no_slant_and_keeps_its_ink_and_centre() -> None:
    images = np.concatenate([_blots(20), _bar(0.5)[None], _bar(-0.4)[None]])
    upright = deslanted(images)
    np.testing.assert_allclose(slant(upright), 0, atol=1e-5)
    np.testing.assert_allclose(upright.sum((1, 2)), images.sum((1, 2)), rtol=1e-5)
    for before, after in zip(images, upright, strict=True):
        np.testing.assert_allclose(ndimage.center_of_mass(after), ndimage.center_of_mass(before), atol=1e-4)


def test_an_upright_bar_stays_as_it_is() -> None:
    np.testing.assert_array_equal(deslanted(_bar(0.0)[None])[0], _bar(0.0))


def test_a_batch_is_deslanted_like_single_images() -> None:
    images = np.tile(_blots(7), (300, 1, 1))
    np.testing.assert_array_equal(deslanted(images)[-7:], deslanted(images[-7:]))


def test_images_without_an_axis_stay_unchanged() -> None:
    images = np.zeros((2, 28, 28), np.float32)
    images[1, 9, 3:20] = 1
    assert slant(images).tolist() == [0, 0]
    np.testing.assert_array_equal(deslanted(images), images)
