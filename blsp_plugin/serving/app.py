"""The routes of the server.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import hmac
import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from blsp_plugin.serving.exchange import Exchange, refusal_response
from blsp_plugin.serving.refusals import Refusal

__all__ = ["make_app"]


def make_app(service, api_key=None):
    """The server's ASGI application.

    Arguments
    ---------
    service : Service
        That answers; closed with the application.
    api_key : str, optional
        That callers must have.

    Returns
    -------
    fastapi.FastAPI
    """
    began = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await service.close()

    # No pages about itself: they load scripts from elsewhere.
    app = FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    def check_key(request):
        if api_key is None:
            return
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        same = hmac.compare_digest(key.strip().encode(), api_key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refusal(
                "give the API key as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"Connection": "close"},
            )

    @app.post("/v1/chat/completions")
    async def completions(request: Request):
        check_key(request)
        return Exchange(service)

    @app.get("/v1/models")
    async def models(request: Request):
        check_key(request)
        return {"object": "list", "data": [_card(service, began)]}

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str):
        check_key(request)
        if name != service.name:
            raise Refusal(
                f"there is no {name!r} here", "model", 404, "model_not_found"
            )
        return _card(service, began)

    @app.get("/health")
    async def health():
        healthy = await service.engine.healthy()
        status = "ok" if healthy else "the LLM does not answer"
        return JSONResponse({"status": status}, 200 if healthy else 503)

    @app.get("/metrics")
    async def metrics(request: Request):
        check_key(request)
        return service.figures()

    @app.exception_handler(Refusal)
    async def refused(request, refusal):
        return refusal_response(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return refusal_response(Refusal("the request is not valid"))

    @app.exception_handler(HTTPException)
    async def unknown(request, error):
        refusal = Refusal(
            f"{request.method} {request.url.path}: {error.detail}",
            status=error.status_code,
            headers=error.headers,
        )
        return refusal_response(refusal)

    return app


def _card(service, began):
    return {
        "id": service.name,
        "object": "model",
        "created": began,
        "owned_by": "blsp_plugin",
        "max_model_len": service.room,
    }
