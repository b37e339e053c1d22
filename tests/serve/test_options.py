"""The options of a server are checked where they are made, with words that hold for each command that makes them."""

from typing import Any

import pytest
from typer.testing import CliRunner

from ternarize_cli.cli.app import app
from ternarize_cli.data.image_decoding import MAX_PIXELS
from ternarize_cli.errors import InputError
from ternarize_cli.serve.options import ServeOptions

SIZES = ("max_batch_tokens", "max_queue", "max_client_batch_size", "max_characters", "max_body", "max_pixels")


@pytest.mark.parametrize("port", [-5, -1, 65_536, 99_999, 10**30])
def test_a_port_that_there_is_not_is_refused(port: int) -> None:
    with pytest.raises(InputError, match=f"there is no port {port}") as refused:
        ServeOptions(port=port)
    assert refused.value.hint == "--port 8080, or --port 0 for a free one"


@pytest.mark.parametrize("key", ["", " ", "two words", "clé", "a\nb"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="the API key is empty, or has blanks") as refused:
        ServeOptions(api_key=key)
    assert refused.value.hint == "export TERNARIZE_API_KEY=$(openssl rand -hex 32)"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 10**12, 1.5, "8", True])
def test_sizes_are_whole_numbers_within_bounds(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}; it must be a whole number, 1 or more"):
        ServeOptions(**{name: value})


@pytest.mark.parametrize("threads", [0, -1, 1.5, "8"])
def test_threads_are_a_whole_number(threads: Any) -> None:
    with pytest.raises(InputError, match=f"threads is {threads!r}; it must be a whole number, 1 or more"):
        ServeOptions(threads=threads)


def test_a_host_is_needed() -> None:
    with pytest.raises(InputError, match="the host to listen on is empty"):
        ServeOptions(host="")


def test_no_more_pixels_are_allowed_than_are_decoded() -> None:
    assert ServeOptions(max_pixels=MAX_PIXELS).max_pixels == MAX_PIXELS
    with pytest.raises(InputError, match="at most 89,478,485"):
        ServeOptions(max_pixels=MAX_PIXELS + 1)


def test_the_help_names_the_variable_with_the_key() -> None:
    assert "TERNARIZE_API_KEY" in CliRunner().invoke(app, ["serve", "--help"]).output
