"""The types of replies, for the OpenAPI document; the replies themselves are plain dictionaries."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

_IMAGE = {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _IMAGE}}},
            },
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary", "description": "784 bytes an image, row by row"}
            },
        },
    }
}
"""The body of `POST /predict`, which FastAPI cannot derive from a signature."""


class Version(BaseModel):
    """The model that answered."""

    name: str
    version: int


class Prediction(BaseModel):
    """The answer for one image."""

    label: int | None = Field(description="number of the most probable class; null if the model abstains")
    name: str | None = Field(description="name of that class")
    probability: float = Field(description="probability of the most probable class")
    probabilities: list[float] = Field(description="probabilities of all classes; they sum to 1")
    seen: str = Field(description="the 28 x 28 grey pixels that the network saw, light on dark, row by row, in base64")
    saliency: str | None = Field(
        default=None, description="if asked for: how strongly each pixel moves the answer, 28 x 28 bytes in base64"
    )


class Reply(BaseModel):
    """The answers for the images of a request, in their order."""

    model: Version
    predictions: list[Prediction]
    doubt: str | None = Field(description="why a picture may show something else than one digit on plain paper")


class Model(Version):
    """The model that serves."""

    content_sha256: str = Field(description="digest of weights and card")
    accuracy: float | None = Field(description="accuracy on the test split, as registered")
    dataset: str | None
    labels: list[str] = Field(description="names of the classes, in the order of the probabilities")
    problem: str | None = Field(description="why the version that the alias names does not serve, if it does not")


class Health(BaseModel):
    """The sign of life."""

    status: str
    model: str


class Failure(BaseModel):
    """What is wrong, in one line."""

    error: str
