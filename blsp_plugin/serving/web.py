"""Listening: uvicorn, less patient than it is.

Authors
 * The blsp_plugin team 2026
"""

import json
import logging
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from blsp_plugin.errors import BadInput
from blsp_plugin.serving.refusals import Refusal

__all__ = ["serve"]

logger = logging.getLogger(__name__)


def _impatient(seconds):
    """A protocol that ends connections on which no request comes.

    uvicorn waits without end for the headers of a request.
    """

    class Impatient(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self._expect()

        def connection_lost(self, exc):
            self._expecting.cancel()
            super().connection_lost(exc)

        def on_response_complete(self):
            self._expecting.cancel()
            super().on_response_complete()
            self._expect()

        def send_400_response(self, msg):
            # What uvicorn says here is a constant; OpenAI's form, too.
            body = Refusal(msg).json()
            super().send_400_response(json.dumps(body))

        def _expect(self):
            self._expecting = self.loop.call_later(seconds, self._give_up)

        def _give_up(self):
            busy = self.cycle and not self.cycle.response_complete
            if not busy and not self.transport.is_closing():
                self.transport.close()

    return Impatient


def serve(app, host, port, limits):
    """Listen until somebody ends it.

    Arguments
    ---------
    app : fastapi.FastAPI
        From `make_app`.
    host : str
        Address to listen at.
    port : int
        0: any that is free.
    limits : Limits
        Of the callers.

    Raises
    ------
    BadInput
        If nobody can listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"{host}, port {port}: cannot listen there ({error}); choose "
            "another --host or --port"
        ) from error
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving at http://%s:%d/v1", shown, port)
    config = uvicorn.Config(
        app,
        http=_impatient(limits.read_seconds),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # More open connections than requests: most of them are idle.
        limit_concurrency=2 * limits.queue + 256,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        backlog=1024,
    )
    uvicorn.Server(config).run(sockets=[listener])
