"""The queue: passes are shared and bounded, large requests do not hold up small ones, and only a bad request fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from ternarize_cli.runtime import Encoder, Tokens
from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.batcher import Batcher
from ternarize_cli.serve.jobs import Job
from ternarize_cli.serve.metrics import Metrics
from ternarize_cli.serve.tasks import TokenVectors, Vectors


def with_batcher(use: Callable[[Batcher, Metrics], Awaitable[Any]], *, room: int = 4096, most: int = 10_000) -> Any:
    """Runs a coroutine function with a batcher, and ends the batcher."""

    async def main() -> Any:
        metrics = Metrics()
        batcher = Batcher(room, most, metrics)
        batcher.start()
        result = await use(batcher, metrics)
        await asyncio.wait_for(batcher.stop(), 60)
        assert not batcher.is_alive
        assert metrics.waiting.values[""] == 0
        return result

    return asyncio.run(main())


def test_requests_of_one_turn_share_a_pass_and_get_their_own_vectors(encoder: Encoder) -> None:
    texts = [f"{'cat ' * (i % 7)}dog {'tree ' * (i % 3)}" for i in range(60)]

    async def use(batcher: Batcher, metrics: Metrics) -> np.ndarray:
        jobs = [batcher.submit(Vectors(encoder), texts[i : i + 1 + i % 3]) for i in range(60)]
        done = await asyncio.gather(*(job.future for job in jobs))
        assert metrics.batch_size._sum == sum(len(job.items) for job in jobs)
        assert sum(metrics.batch_size._counts) == 1
        return [job.result for job in done]

    for i, made in enumerate(with_batcher(use)):
        expected = encoder.encode(texts[i : i + 1 + i % 3])
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("room", [1, 7, 40, 100_000])
def test_a_vector_does_not_depend_on_the_size_of_passes(encoder: Encoder, room: int) -> None:
    texts = [f"{'cat ' * (i % 11)}dog {'tree ' * (i % 3)}" for i in range(50)]

    async def use(batcher: Batcher, metrics: Metrics) -> list[Job]:
        return await asyncio.gather(*(batcher.submit(Vectors(encoder), texts[i:]).future for i in (0, 20, 49)))

    for job, first in zip(with_batcher(use, room=room), (0, 20, 49), strict=True):
        np.testing.assert_array_equal(job.result, encoder.encode(texts[first:]))
        assert job.tokens == sum(len(tokens.ids) for tokens in encoder.tokenize(texts[first:]))


def test_a_pass_has_at_most_so_many_tokens(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> list[int]:
        await batcher.submit(Vectors(encoder), ["cat"] * 100).future  # 3 tokens each
        return metrics.batch_tokens._counts

    counts = with_batcher(use, room=32)
    assert counts[5] == 10  # more than 16 tokens and at most 32: ten passes of ten texts
    assert sum(counts) == 10


def test_a_small_request_overtakes_a_large_one(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> list[str]:
        ended: list[str] = []
        large = batcher.submit(Vectors(encoder), ["a cat in a tree by the river"] * 2000).future
        large.add_done_callback(lambda _: ended.append("large"))
        await asyncio.sleep(0.005)
        small = batcher.submit(Vectors(encoder), ["cat"]).future
        small.add_done_callback(lambda _: ended.append("small"))
        await asyncio.gather(large, small)
        return ended

    assert with_batcher(use, room=100) == ["small", "large"]


def test_groups_take_turns(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> list[str]:
        ended: list[str] = []
        for name, task, count in (("long", Vectors(encoder), 500), ("short", TokenVectors(encoder), 20)):
            batcher.submit(task, ["cat"] * count).future.add_done_callback(lambda _, name=name: ended.append(name))
        while len(ended) < 2:
            await asyncio.sleep(0.01)
        return ended

    assert with_batcher(use, room=30) == ["short", "long"]


def test_only_the_bad_request_of_a_pass_fails(encoder: Encoder) -> None:
    unknown = Tokens([2, 9999, 3], [0, 0, 0])

    async def use(batcher: Batcher, metrics: Metrics) -> list[Any]:
        tasks = [Vectors(encoder), Vectors(encoder, truncate=False)]
        items: list[tuple[int, Any]] = [(0, "cat"), (0, unknown), (1, "cat " * 99), (1, "dog"), (0, "dog")]
        jobs = [batcher.submit(tasks[task], [item]) for task, item in items]
        return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)

    made = with_batcher(use)
    assert [type(one) for one in made] == [Job, Refusal, Refusal, Job, Job]
    assert [str(error) for error in made[1:3]] == [
        "a token has the id 9999, and the model's table has 48 rows",
        "an input has more than the 64 tokens that the model reads",
    ]
    np.testing.assert_array_equal(made[3].result, encoder.encode(["dog"]))


def test_a_bad_text_far_into_a_request_fails_that_request_alone(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> list[Any]:
        task = Vectors(encoder, truncate=False)
        jobs = [batcher.submit(task, ["cat"] * 200 + end) for end in (["dog"], ["dog " * 99])]
        return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)

    good, bad = with_batcher(use, room=64)
    assert good.result.shape == (201, 32)
    assert isinstance(bad, Refusal)


def test_what_nobody_waits_for_is_not_computed(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> float:
        jobs = [batcher.submit(Vectors(encoder), ["a cat in a tree by the river"] * 1000) for _ in range(5)]
        for job in jobs[1:]:
            job.future.cancel()
        await jobs[0].future
        return metrics.batch_size._sum

    assert with_batcher(use, room=100) == 1000


def test_a_request_that_is_given_up_halfway_leaves_the_queue(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> float:
        job = batcher.submit(Vectors(encoder), ["a cat in a tree by the river"] * 5000)
        while not metrics.batch_size._sum:
            await asyncio.sleep(0.001)
        job.future.cancel()
        while metrics.waiting.values[""]:
            await asyncio.sleep(0.001)
        return metrics.batch_size._sum

    assert 0 < with_batcher(use, room=50) < 5000


def test_a_full_queue_refuses_and_recovers(encoder: Encoder) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> None:
        first = batcher.submit(Vectors(encoder), ["cat"] * 8)
        with pytest.raises(Refusal, match="8 texts are waiting, and with 3 more there would be more than 10") as full:
            batcher.submit(Vectors(encoder), ["cat"] * 3)
        assert full.value.fault is Fault.OVERLOADED
        assert full.value.headers == [(b"retry-after", b"1")]
        await first.future
        await batcher.submit(Vectors(encoder), ["cat"] * 10).future

    with_batcher(use, most=10)


def test_stopping_computes_all_that_was_submitted(encoder: Encoder) -> None:
    async def main() -> list[bool]:
        batcher = Batcher(50, 1000, Metrics())
        batcher.start()
        jobs = [batcher.submit(Vectors(encoder), ["a cat in a tree"] * 20) for _ in range(20)]
        await batcher.stop()
        await asyncio.sleep(0)
        return [job.future.done() for job in jobs]

    assert asyncio.run(main()) == [True] * 20


class Broken(Vectors):
    """A task that fails where nothing can tell whose fault it is."""

    def size(self, item: object) -> int:
        raise MemoryError("no memory")


def test_an_error_outside_of_any_pass_fails_the_requests_and_not_the_thread(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(batcher: Batcher, metrics: Metrics) -> list[Any]:
        jobs = [batcher.submit(task, ["cat"]) for task in (Vectors(encoder), Broken(encoder))]
        made = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        return [*made, await batcher.submit(Vectors(encoder), ["cat"]).future]

    made = with_batcher(use)
    assert [str(error) for error in made[:2]] == ["the model failed; the server's log says how"] * 2
    assert made[0].fault is Fault.FAILED
    assert made[2].result.shape == (1, 32)
    assert "MemoryError: no memory" in caplog.text
