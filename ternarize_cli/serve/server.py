"""Opens models and a socket, serves until a signal comes, and then answers what was accepted before it ends.

SIGTERM, SIGINT   new connections are refused; every request that has come is answered, with `Connection: close`,
                  also on connections that were idle a moment ago; then the process ends with 0
a second one      the process ends at once
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import re
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import uvicorn

from ternarize_cli.errors import InputError, reason
from ternarize_cli.runtime import Encoder
from ternarize_cli.runtime.image_encoder import modules_of
from ternarize_cli.runtime.native.threads import set_threads
from ternarize_cli.runtime.opening import open_model
from ternarize_cli.serve.application import Application
from ternarize_cli.serve.connection import Connection, SeldomLog, most_connections
from ternarize_cli.serve.hosts import is_loopback, names_of_loopback
from ternarize_cli.serve.models import Served
from ternarize_cli.serve.options import ServeOptions
from ternarize_cli.serve.search_api import SearchIndex
from ternarize_cli.serve.service import Service
from ternarize_cli.storage.digests import content_hash

__all__ = ["serve"]

_log = logging.getLogger(__name__)
_QUIET = 0.5
"""Seconds without a request after which idle connections are closed, when the server ends."""
_UNREAD = 30
"""Seconds that clients have to send the rest of a request, and to read their answers, when the server ends."""
_IDLE = 75
"""Seconds that a connection may be idle: longer than the 60 of usual proxies, which then end it first."""
_BACKLOG = 1024


def serve(
    folders: Mapping[str, Path],
    options: ServeOptions,
    *,
    index: SearchIndex | None = None,
    ready: Callable[[str, list[Served]], None] = lambda url, models: None,
) -> None:
    """Serves packed models until SIGTERM or SIGINT comes; warns if other machines reach the server without a key.

    Args:
        folders: the folder of each model, by the name that clients call it by.
        options: where to listen, and the bounds.
        index: an index that /search and /documents answer from.
        ready: is called with the server's address and its models when it takes requests.

    Raises:
        InputError: the address or the certificate can't be used.
        CheckpointError: a model is damaged.
        UnavailableError: a model can't run without PyTorch, or the compiled library is missing.
        KeyboardInterrupt: a second signal came, and requests were left unanswered.
    """
    _check_certificate(options)
    if (threads := options.threads) is not None:
        set_threads(lambda: threads)
    with _bound(options) as listener:
        models = [_opened(name, folder) for name, folder in folders.items()]
        service = Service(models, options)
        host, port = listener.getsockname()[:2]
        application = Application(service, index, _hosts(options, host))
        scheme = "https" if options.tls_cert else "http"
        if options.api_key is None and not is_loopback(host):
            told = "warning: other machines reach this server (--host %s), and everybody there may ask; set %s"
            _log.warning(told, options.host, "TERNARIZE_API_KEY")
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(_config(application, options), application, service, lambda: ready(url, models))
        gc.collect()
        gc.freeze()  # the collector need not look at models and modules again
        server.run(sockets=[listener])
    if server.force_exit:
        raise KeyboardInterrupt("ended by a second signal; some requests were not answered")


class _Server(uvicorn.Server):
    """Runs the application, and ends as the module's documentation says."""

    def __init__(
        self, config: uvicorn.Config, application: Application, service: Service, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._application, self._service, self._ready = application, service, ready
        self._full = SeldomLog()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.batcher.start()
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._look_for_files()
        return await super().on_tick(counter)

    def _look_for_files(self) -> None:
        """Warns if the process can't open files, since the event loop then drops new connections without a word."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE):
                self._full.warn("warning: new connections are dropped: %s (ulimit -n)", e.strerror)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.is_closing = True
        await asyncio.sleep(0)  # take the connections that wait to be accepted
        for listener in self.servers:
            listener.close()
        quiet, answered = 0.0, self.server_state.total_requests
        while quiet < _QUIET and self.server_state.connections and not self.force_exit:
            await asyncio.sleep(0.05)
            is_busy = self._service.batcher.held > 0 or self.server_state.total_requests != answered
            quiet, answered = 0.0 if is_busy else quiet + 0.05, self.server_state.total_requests
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._service.batcher.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _config(application: Application, options: ServeOptions) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=most_connections() + 1,
        timeout_graceful_shutdown=_UNREAD,
        timeout_keep_alive=_IDLE,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        backlog=_BACKLOG,
    )


def _hosts(options: ServeOptions, address: str) -> re.Pattern[bytes] | None:
    """Returns the Host headers that are answered; None: all, for clients that have a key or come from anywhere."""
    if options.api_key is not None or not is_loopback(address):
        return None
    return names_of_loopback(options.host, address)


def _check_certificate(options: ServeOptions) -> None:
    """Checks the files for HTTPS before models are opened.

    Raises:
        InputError: the certificate or its key can't be read, they do not fit each other, or the key has a password.
    """
    if options.tls_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key, lambda: "")
    except (OSError, ValueError) as e:
        raise InputError(
            f"the certificate {options.tls_cert} can't be used: {reason(e)}",
            hint="pass PEM files without a password: --tls-cert FILE --tls-key FILE",
        ) from e


def _bound(options: ServeOptions) -> socket.socket:
    """Binds a socket, which does not listen yet, so that an address in use is found before models are opened.

    Raises:
        InputError: the address is unknown, not of this machine, in use, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as e:
        raise InputError(f"--host {options.host}: {reason(e)}", hint="--host 127.0.0.1") from e
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        listener.close()
        hint = "--port 0 takes a free port" if e.errno in (errno.EADDRINUSE, errno.EACCES) else "--host 127.0.0.1"
        raise InputError(f"can't listen on {options.host}, port {options.port}: {e.strerror}", hint=hint) from e
    return listener


def _opened(name: str, folder: Path) -> Served:
    """Opens a model, and runs it once, so that the first client does not wait for it.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnavailableError: the model can't run here.
    """
    model = open_model(folder)
    sha256 = content_hash(folder)
    if not isinstance(model, Encoder):
        model.logits(model.tokenize(["a"]))
        return Served(name, model, sha256)
    if "text" in model.reads:
        model.encode(["a"])
    if "image" in model.reads:
        from PIL import Image

        model.encode_images([Image.new("RGB", (8, 8))])
    modules = modules_of(folder)
    pooling = "" if modules.pooling is None else "+".join(modules.pooling.modes)
    normalizes = modules.normalizes and modules.dimensions is None  # a vector that is cut at the end is shorter than 1
    return Served(name, model, sha256, pooling, normalizes)
