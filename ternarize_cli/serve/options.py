"""What `ternarize serve` takes: where it listens, who may ask, and how much it takes at once."""

from dataclasses import dataclass, field
from typing import Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import MANY, THREADS, Option, check_fields, plain_signature

__all__ = ["ServeOptions"]

_LAST_PORT = 65_535
_DECODED = 89_478_485
"""The most pixels that `data.image_decoding` decodes; this module imports no library, and that one does."""
_BATCH_OF_THREAD, _LEAST_BATCH = 512, 1024
"""Tokens. Passes of MiniLM on 2 cores take 8% longer for each text with half of these, and no less with more."""


@plain_signature
@dataclass(frozen=True)
class ServeOptions:
    """How models are served.

    Attributes:
        host: the address to listen on; the default is reached from this machine only.
        port: the port; 0 takes a free one.
        api_key: what clients send as `Authorization: Bearer KEY`; None: everybody may ask who reaches the server, on a
            loopback address only by a name of this machine.
        tls_cert: a PEM file with the certificate and its chain; None: plain HTTP.
        tls_key: a PEM file with the certificate's private key; None: `tls_cert` holds it, too.
        threads: CPU threads; None: all cores.
        max_batch_tokens: the most tokens in a pass of the model; a single longer text has a pass of its own. None: 512
            for each thread, but at least 1,024.
        max_queue: the most texts and images that wait; requests beyond are answered with 429.
        max_client_batch_size: the most texts and images in a request.
        max_characters: the most characters in a text.
        max_body: the most bytes in a request's body.
        max_pixels: the most pixels of an image; decoding takes some 16 bytes of memory for each.
    """

    host: Annotated[str, Option("Address to listen on; 0.0.0.0 is every IPv4 address of this machine.")] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 takes a free one.", min=0, max=_LAST_PORT)] = 8080
    api_key: Annotated[
        str | None,
        Option(
            "Answer only requests with `Authorization: Bearer KEY`; better set TERNARIZE_API_KEY in the environment, "
            "which other users can't see.",
            metavar="KEY",
            envvar="TERNARIZE_API_KEY",
        ),
    ] = field(default=None, repr=False)
    tls_cert: Annotated[str | None, Option("Certificate for HTTPS, a PEM file.", metavar="FILE")] = None
    tls_key: Annotated[str | None, Option("Private key of the certificate, a PEM file.", metavar="FILE")] = None
    threads: Annotated[int | None, THREADS] = None
    max_batch_tokens: Annotated[
        int | None, Option("Most tokens in a pass of the model; default: 512 a thread.", min=1, max=MANY)
    ] = None
    max_queue: Annotated[int, Option("Most texts and images that wait; requests beyond get 429.", min=1, max=MANY)] = (
        8192
    )
    max_client_batch_size: Annotated[
        int, Option("Most texts and images in a request; more get 413.", min=1, max=MANY)
    ] = 2048
    max_characters: Annotated[int, Option("Most characters in a text; more get 413.", min=1, max=MANY)] = 131_072
    max_body: Annotated[int, Option("Most bytes in a request's body; more get 413.", min=1, max=MANY)] = 8_000_000
    max_pixels: Annotated[int, Option("Most pixels of an image; more get 413.", min=1, max=_DECODED)] = 16_000_000

    @property
    def batch_tokens(self) -> int:
        """The most tokens in a pass of the model."""
        from ternarize_cli.runtime.native.processors import processors

        return self.max_batch_tokens or max(_LEAST_BATCH, _BATCH_OF_THREAD * (self.threads or processors()))

    def __post_init__(self) -> None:
        """Checks each option, and the options against each other.

        Raises:
            InputError: a number is out of its bounds; the host is empty; the API key is empty, not ASCII or has blanks,
                which a header can't carry; a private key has no certificate; or a request may have more texts than may
                wait.
        """
        if isinstance(self.port, int) and not 0 <= self.port <= _LAST_PORT:
            raise InputError(f"there is no port {self.port}", hint="--port 8080, or --port 0 for a free one")
        check_fields(self)
        if not self.host:
            raise InputError("the host to listen on is empty", hint="--host 127.0.0.1")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise InputError(
                "the API key is empty, or has blanks or characters that are not ASCII, which a header can't carry",
                hint="export TERNARIZE_API_KEY=$(openssl rand -hex 32)",
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise InputError("--tls-key needs the certificate that it belongs to", hint="--tls-cert FILE")
        if self.max_client_batch_size > self.max_queue:
            raise InputError(
                f"a request may have {self.max_client_batch_size:,} texts, and only {self.max_queue:,} may wait",
                hint=f"--max-queue {self.max_client_batch_size}",
            )
