"""Writes a Dockerfile for the wheel of a model."""

__all__ = ["dockerfile"]


def dockerfile(wheel: str, name: str) -> str:
    """Returns a Dockerfile that installs a wheel, and runs its command as a user who owns nothing.

    Args:
        wheel: the name of the wheel's file, which lies beside the Dockerfile.
        name: the name of the wheel's package and command.
    """
    return f"""# docker build -t {name.lower()} . && echo "a text" | docker run -i --rm {name.lower()}
FROM python:3.12-slim
COPY {wheel} /tmp/
RUN pip install --no-cache-dir /tmp/{wheel} && rm /tmp/{wheel} && useradd --system --no-create-home runner
USER runner
ENTRYPOINT ["{name}"]
"""
