"""The refusal of images that a model does not take."""

from __future__ import annotations

from mnist_pipe.errors import InputError


def check(model: str, rule: str, in_shape: tuple[int, int, int], *, is_valid: bool, num_classes: int = 0) -> None:
    """Check that a model takes the images of a data set.

    Args:
        model: the model's name.
        rule: the condition, as a phrase.
        in_shape: channels, height and width of the images.
        is_valid: whether the condition holds.
        num_classes: the number of classes, if the condition is about it too.

    Raises:
        InputError: the condition does not hold.
    """
    if not is_valid:
        got = "x".join(map(str, in_shape)) + (f" and {num_classes} classes" if num_classes else "")
        raise InputError.invalid(
            f"the model {model}",
            "the images",
            rule,
            got=got,
            fix="name another one in the recipe and search.space.model",
        )
