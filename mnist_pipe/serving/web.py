"""The HTTP interface: requests in, predictions out, and the page. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import jinja2
import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from mnist_pipe.errors import InputError, PipelineError, UnavailableError, describe, message_and_code
from mnist_pipe.inference.classifier import Predictions
from mnist_pipe.params.schema import ServeParams
from mnist_pipe.serving import access, bodies
from mnist_pipe.serving.follower import Served
from mnist_pipe.serving.schemas import BODY, Failure, Health, Model, Reply

PAGE, DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
_DIGITS = 6  # of a probability; float32 has seven
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_STATUS = {"/predict": "POST", "/model": "GET", "/healthz": "GET"}


class Answers(Protocol):
    """What stands behind the interface: the model, and the metrics."""

    async def classify(self, images: NDArray[np.uint8]) -> tuple[Served, Predictions]:
        """Classify images as `Images.pixels` has them, and return the model that did it with its predictions."""

    async def saliency(self, served: Served, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return `Classifier.saliency` of each image."""

    async def prepare(self, work: Callable[[], bodies.Images]) -> bodies.Images:
        """Run the preparation of a body where it blocks no other request."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which requests come."""

    def state(self) -> tuple[Served, str]:
        """Return the model that serves, and why another one does not, if the alias names another."""

    def count(self, *, status: int, seconds: float) -> None:
        """Count a finished request to `/predict`."""


def build(answers: Answers, *, params: ServeParams, token_sha256: str) -> FastAPI:
    """Return the application.

    Args:
        answers: the model and the metrics.
        params: the limits.
        token_sha256: the digest of the token that requests must carry; empty if none is needed.
    """
    limit = access.RateLimit(params.requests_per_second)
    bearer = HTTPBearer(auto_error=False, description="the line in .state/secrets/serve")

    async def admit(request: Request) -> None:
        if not access.is_authorized(request.headers.get("authorization", ""), token_sha256=token_sha256):
            got = "another one" if "authorization" in request.headers else "none"
            fix = "send the header Authorization: Bearer TOKEN"
            raise HTTPException(401, describe(request.url.path, "the token", "be the endpoint's", got=got, fix=fix))

    guards = [Depends(bearer), Depends(admit)]  # the first is for the OpenAPI document alone
    app = FastAPI(
        title="mnist-pipe",
        description="Predictions of a registered model for pictures and arrays of pixels.",
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        lifespan=lambda _: answers.running(),
        responses={401: {"model": Failure}},
    )
    app.add_exception_handler(PipelineError, _on_pipeline_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)
    page, docs = _secured(PAGE.read_text(encoding="utf-8")), None

    @app.post(
        "/predict",
        dependencies=guards,
        responses={200: {"model": Reply}, **{code: {"model": Failure} for code in (400, 413, 415, 422, 429, 503)}},
        openapi_extra=BODY,
    )
    async def predict(
        request: Request,
        min_confidence: Annotated[
            float, Query(ge=0, le=1, description="below this probability the answer has no label")
        ] = 0.0,
        saliency: Annotated[bool, Query(description="whether to return the saliency of each image")] = False,
    ) -> Response:
        """Classify one picture, or one or many arrays."""
        if not limit.admits():
            rule = f"be at most {params.requests_per_second:g} a second"
            raise HTTPException(
                429,
                describe("/predict", "requests", rule, got="more", fix="try again in a second"),
                {"Retry-After": "1"},
            )
        content_type = _content_type(request)
        body = await _body(request, max_bytes=params.max_body_bytes)
        facts = answers.state()[0].classifier.facts
        read = partial(bodies.read_images, body, content_type, max_images=params.max_images, facts=facts)
        images, doubt = read() if content_type == bodies.RAW else await answers.prepare(read)
        served, found = await answers.classify(images)
        maps = await answers.saliency(served, images) if saliency else None
        return _json(_reply(served, found, images, maps, doubt=doubt, min_confidence=min_confidence))

    @app.get("/model", dependencies=guards, responses={200: {"model": Model}})
    async def model() -> Response:
        """Return the model that serves."""
        served, problem = answers.state()
        return _json({**served.describe(), "problem": problem or None})

    @app.get("/healthz", responses={200: {"model": Health}})
    async def healthz() -> Response:
        """Return 200 while the endpoint serves; no token is needed."""
        served, _ = answers.state()
        return _json({"status": "ok", "model": f"{served.model.name}/{served.model.version}"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        nonlocal docs
        docs = docs or _secured(_render_docs(app))
        return docs

    app.add_middleware(_Counted, count=answers.count)
    return app


async def _body(request: Request, *, max_bytes: int) -> bytes:
    """Return the body; stop reading when it is longer than `max_bytes`.

    Raises:
        HTTPException: it is longer.
    """
    announced = request.headers.get("content-length", "0")
    got, parts = int(announced) if announced.isdigit() else 0, []
    if got <= max_bytes:
        got = 0
        async for part in request.stream():
            got += len(part)
            if got > max_bytes:
                break
            parts.append(part)
    if got > max_bytes:
        raise HTTPException(
            413, describe("the body", "its length", f"be at most {max_bytes} bytes", got=f"{got} bytes")
        )
    return b"".join(parts)


def _content_type(request: Request) -> str:
    given = request.headers.get("content-type", "")
    content_type = given.partition(";")[0].strip().lower()
    if content_type not in bodies.CONTENT_TYPES:
        rule = f"be one of {', '.join(bodies.CONTENT_TYPES)}"
        raise HTTPException(415, describe("/predict", "Content-Type", rule, got=repr(given)))
    return content_type


def _reply(
    served: Served,
    found: Predictions,
    images: NDArray[np.uint8],
    maps: list[NDArray[np.float32]] | None,
    *,
    doubt: str,
    min_confidence: float,
) -> dict[str, Any]:
    """Return the content of the reply, a `Reply`."""
    predictions = []
    rows = found.probabilities.astype(np.float64).round(_DIGITS).tolist()
    for number, (label, name, row) in enumerate(zip(found.classes.tolist(), found.labels, rows, strict=True)):
        is_sure = float(found.probability[number]) >= min_confidence
        predictions.append(
            {
                "label": label if is_sure else None,
                "name": name if is_sure else None,
                "probability": row[label],
                "probabilities": row,
                "seen": _base64(images[number]),
                **({"saliency": _base64(np.rint(255 * maps[number]).astype(np.uint8))} if maps else {}),
            }
        )
    model = {"name": served.model.name, "version": served.model.version}
    return {"model": model, "predictions": predictions, "doubt": doubt or None}


def _base64(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(image.tobytes()).decode()


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(content, separators=(",", ":"))
    return Response(body, status, {**_HEADERS, **(headers or {})}, "application/json")


def _failure(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)


async def _on_pipeline_error(_: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, InputError) else 503 if isinstance(error, UnavailableError) else 500
    return _failure(str(error), status)


async def _on_invalid_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    rule = re.sub(r"^Input should (be )?", "be ", first["msg"].partition(", unable")[0])
    return _failure(describe("the query", str(first["loc"][-1]), rule, got=repr(first.get("input"))), 422)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405):
        known = ", ".join(f"{method} {path}" for path, method in _STATUS.items())
        message = describe(request.url.path, "the request", f"be one of {known}", got=request.method)
    headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else {}
    return _failure(message, error.status_code, {**headers, **(error.headers or {})})


async def _on_error(_: Request, error: Exception) -> Response:
    return _failure(message_and_code(error)[0].removesuffix("; add --debug for the traceback"), 500)


class _Counted:
    """An ASGI middleware that counts the requests to `/predict`."""

    def __init__(self, app: Any, *, count: Callable[..., None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """Pass the request on; count it if it is a prediction."""
        if scope["type"] != "http" or scope["path"] != "/predict":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # the client left before an answer

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:
            raise
        except BaseException:
            status = 500
            raise
        finally:
            self._count(status=status, seconds=time.perf_counter() - started)


def _secured(html: str) -> HTMLResponse:
    """Return the page with a content security policy that admits its own script and style and nothing else."""
    sources = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"
            for found in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {sources['script'] or chr(39) + 'none' + chr(39)}; "
        f"style-src {sources['style']}; connect-src 'self'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={**_HEADERS, "Content-Security-Policy": policy})


def _render_docs(app: FastAPI) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    schema = app.openapi()
    return environment.from_string(DOCS.read_text(encoding="utf-8")).render(
        schema=schema, whole=json.dumps(schema, indent=2)
    )
