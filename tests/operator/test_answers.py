"""Slow answers, asked for in the background."""

from __future__ import annotations

import asyncio

import pytest

from limbeck_operator.answers import Answers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def asked(answers: list[object]):
    """Something to ask that gives one answer after the other; an exception is raised."""

    async def ask() -> object:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return ask


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def news() -> list[str]:
    return []


@pytest.fixture
def answers(clock, news) -> Answers[str, object]:
    return Answers(news.append, lambda error: f"failed: {error}", least=10.0, pace=10.0, clock=clock)


def test_nobody_waits_and_an_answer_is_good_for_a_while(answers, clock, news):
    async def run():
        ask = asked(["first", "second"])
        assert answers.look("a", 1, ask) is None
        assert answers.look("a", 1, ask) is None  # it is being asked
        await settled()
        assert news == ["a"]
        assert answers.look("a", 1, ask) == "first"
        clock.now += 9.9
        assert answers.look("a", 1, ask) == "first"
        clock.now += 0.2
        assert answers.look("a", 1, ask) == "first"  # the old one, while it is asked again
        await settled()
        assert answers.look("a", 1, ask) == "second"

    asyncio.run(run())


def test_the_same_answer_is_no_news(answers, clock, news):
    async def run():
        ask = asked(["same", "same"])
        answers.look("a", 1, ask)
        await settled()
        clock.now += 11
        answers.look("a", 1, ask)
        await settled()
        assert news == ["a"]

    asyncio.run(run())


def test_the_answer_to_another_question_is_none(answers, news):
    async def run():
        answers.look("a", "one", asked(["1"]))
        await settled()
        other = asked(["2"])
        assert answers.look("a", "other", other) is None
        await settled()
        assert answers.look("a", "other", other) == "2"

    asyncio.run(run())


def test_what_fails_is_an_answer_too(answers, clock):
    async def run():
        ask = asked([OSError("no route"), "there"])
        answers.look("a", 1, ask)
        await settled()
        assert answers.look("a", 1, ask) == "failed: no route"
        clock.now += 11
        answers.look("a", 1, ask)
        await settled()
        assert answers.look("a", 1, ask) == "there"

    asyncio.run(run())


def test_while_something_is_done_the_answer_is_not_known(answers, news):
    async def run():
        answers.look("a", 1, asked(["before"]))
        await settled()
        done, release = [], asyncio.Event()

        async def act() -> None:
            await release.wait()
            done.append(1)

        answers.do("a", 1, act)
        answers.do("a", 1, act)  # it is under way
        ask = asked(["after"])
        assert answers.look("a", 1, ask) is None
        release.set()
        await settled()
        assert (done, news) == ([1], ["a", "a"])
        assert answers.look("a", 1, ask) is None  # asked now, and not before
        await settled()
        assert answers.look("a", 1, ask) == "after"

    asyncio.run(run())


def test_what_could_not_be_done_is_told_as_the_answer(answers):
    async def run():
        async def act() -> None:
            raise OSError("refused")

        answers.do("a", 1, act)
        await settled()
        assert answers.look("a", 1, asked([])) == "failed: refused"

    asyncio.run(run())


def test_many_are_asked_less_often_and_few_at_once(clock):
    most = 0

    async def run():
        nonlocal most
        asking = 0
        answers: Answers[int, int] = Answers(lambda key: None, lambda error: -1, at_once=3, pace=10.0, least=1.0)
        assert answers.seconds == 1.0

        async def ask() -> int:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            await asyncio.sleep(0)
            asking -= 1
            return 1

        for key in range(500):
            answers.look(key, 1, ask)
        while any(answers.look(key, 1, ask) is None for key in range(500)):
            await asyncio.sleep(0)
        assert answers.seconds == 50.0
        answers.forget(0)
        assert answers.look(0, 1, ask) is None
        await answers.close()
        assert answers.seconds == 1.0

    asyncio.run(run())
    assert most == 3


def test_what_is_forgotten_while_it_is_asked_leaves_nothing_behind(clock):
    async def run():
        answers: Answers[int, int] = Answers(lambda key: None, lambda error: -1, pace=1.0, least=1.0, clock=clock)

        async def ask() -> int:
            await asyncio.sleep(0)
            return 1

        for key in range(50):
            answers.look(key, 1, ask)
            answers.forget(key)
        for _ in range(100):
            await settled()
        assert answers.seconds == 1.0
        answers.look(1, 1, ask)
        answers.forget(1)
        answers.look(1, 1, ask)  # it is asked about again
        await settled()
        assert answers.look(1, 1, ask) == 1

    asyncio.run(run())


def test_what_was_stopped_before_it_began_is_asked_again(answers):
    async def run():
        answers.look("a", 1, asked(["never"]))
        await answers.close()
        ask = asked(["there"])
        answers.look("a", 1, ask)
        await settled()
        assert answers.look("a", 1, ask) == "there"

    asyncio.run(run())
