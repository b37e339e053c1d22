"""Writes a Dockerfile for the wheel of a model."""

__all__ = ["dockerfile"]

_SERVES = """EXPOSE 8080
CMD ["--serve", "--host", "0.0.0.0", "--port", "8080"]
"""


def dockerfile(wheel: str, name: str, *, serves: bool) -> str:
    """Returns a Dockerfile that installs a wheel, and runs its command as a user who owns nothing.

    The wheel is mounted while it is installed, so that the image does not hold it a second time. The line that runs a
    server publishes its port to the machine itself only, and sets a key: a container listens on all its interfaces.

    Args:
        wheel: the name of the wheel's file, which lies beside the Dockerfile.
        name: the name of the wheel's package and command.
        serves: whether a container serves on port 8080 if no other arguments are given.
    """
    run = "docker run -p 127.0.0.1:8080:8080 -e TERNARIZE_API_KEY=..." if serves else "docker run -i --rm"
    what = f"'/tmp/{wheel}[serve]'" if serves else f"/tmp/{wheel}"
    return f"""# docker build -t {name.lower()} . && {run} {name.lower()}
FROM python:3.12-slim
RUN --mount=type=bind,source={wheel},target=/tmp/{wheel} \\
    pip install --no-cache-dir {what} && useradd --system --no-create-home runner
USER runner
ENTRYPOINT ["{name}"]
{_SERVES if serves else ""}"""
