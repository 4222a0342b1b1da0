"""The MLflow model of a registered version, as code: MLflow runs this file in place of loading a pickle.

Its copy lies in the version's folder, beside the weights, the card and the modules that it imports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray


class RegisteredClassifier(PythonModel):  # type: ignore[misc]
    """Model from images, uint8 `(N, height, width)` or in colour `(N, 3, height, width)`, to probabilities, float32."""

    def load_context(self, context: Any) -> None:  # noqa: ARG002
        """Load the weights beside this file, after checking them against their manifest."""
        # MLflow runs this file also while it saves a version, which needs no torch.
        from mnist_pipe.inference.classifier import Classifier

        self._classifier = Classifier.load(Path(__file__).parent)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: np.ndarray,  # MLflow warns of other type hints
        params: Any = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Return the calibrated probabilities of each image, whose pixels are integers of any width in 0 to 255."""
        images = np.asarray(model_input)
        # Spark has no unsigned bytes, and MLflow hands on the signed integers that it has.
        if images.dtype.kind in "iu" and images.size and images.min() >= 0 and images.max() <= 255:
            images = images.astype(np.uint8)
        return self._classifier.probabilities(images)


set_model(RegisteredClassifier())
