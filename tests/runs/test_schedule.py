"""Which task comes next, without any worker."""

from __future__ import annotations

import pytest

from robench.runs.schedule import Schedule
from robench.runs.tasks import Chunk, Training


def schedule(groups, starts=(0, 2, 4), workers=4, seconds=(), trainings=()) -> Schedule:
    names = [cell.name for group in groups for cell, _ in group.cells]
    firsts = [group.cells[0][0].name for group in groups]
    return Schedule.of(
        groups,
        {name: list(starts) for name in names},
        dict(zip(names, seconds, strict=False)),
        dict(zip(firsts, trainings, strict=False)),
        workers,
    )


def one(plan: Schedule, worn: int | None = None) -> Training | Chunk:
    """What a worker does next, which is one thing."""
    (task,) = plan.next(worn)
    return task


def test_one_worker_has_the_order_of_the_plan(synthetic):
    groups = synthetic(2, 2)
    names = [cell.name for group in groups for cell, _ in group.cells]
    plan = schedule(groups, (0, 2), workers=1, seconds=(1, 9, 1, 9), trainings=(1, 9))
    tasks, worn = [], None
    while not plan.finished:
        task = one(plan, worn)
        worn = task.group
        tasks.append(task)
        (plan.trained if isinstance(task, Training) else plan.done)(task)
    expected = []
    for number in range(2):
        expected.append(Training(number))
        for name in names[2 * number : 2 * number + 2]:
            expected += [Chunk(number, name, start) for start in (0, 2)]
    assert tasks == expected


def test_trainings_come_first_and_the_longest_before(synthetic):
    plan = schedule(synthetic(3, 1), trainings=(1.0, 50.0, 2.0))
    assert [one(plan) for _ in range(3)] == [Training(1), Training(2), Training(0)]
    assert plan.next(None) == []


def test_a_worker_stays_with_its_defense_and_takes_long_chunks_first(synthetic):
    groups = synthetic(2, 2)
    names = [cell.name for group in groups for cell, _ in group.cells]
    plan = schedule(groups, starts=(0,), seconds=(1.0, 5.0, 2.0, 90.0))
    for task in (one(plan), one(plan)):
        plan.trained(task)
    assert one(plan, 0).cell == names[1]  # the longer one of its own defense
    assert one(plan).cell == names[3]  # where most is left
    assert one(plan, 0).cell == names[0]
    assert one(plan, 0).cell == names[2]  # nothing of its own is left


def test_what_a_cell_fits_is_fitted_once_and_others_wait_only_if_they_need_it(synthetic):
    (group,) = synthetic(1, 1)
    name = group.cells[0][0].name
    plan = schedule([group])
    plan.trained(one(plan))
    first, second = one(plan, 0), one(plan, 0)
    assert (first.start, first.fits, second.start, second.fits) == (0, True, 2, False)
    plan.back(second, blocked=True)
    assert plan.next(0) == []  # the third would need it, too
    plan.done(first)
    again = one(plan, 0)
    assert again == Chunk(0, name, 2, True) and one(plan, 0).fits


def test_a_lost_chunk_that_fitted_is_the_one_that_fits_again(synthetic):
    (group,) = synthetic(1, 1)
    plan = schedule([group])
    plan.trained(one(plan))
    first = one(plan, 0)
    plan.back(one(plan, 0), blocked=True)
    plan.back(first)
    assert one(plan, 0) == first


def test_what_is_given_up_is_finished_when_its_chunks_are_back(synthetic):
    (group,) = synthetic(1, 1)
    plan = schedule([group])
    plan.trained(one(plan))
    chunk = one(plan, 0)
    plan.give_up(chunk.cell)
    assert not plan.finished and plan.next(0) == []
    plan.done(chunk)
    assert plan.finished


def given(plan: Schedule) -> list[int]:
    """How many chunks each call of a worker gets, until none is left."""
    sizes = []
    while tasks := plan.next(0):
        sizes.append(len(tasks))
    return sizes


@pytest.mark.parametrize(
    ("seconds", "workers", "sizes"),
    [
        (0.125, 2, [8, 8, 8, 8, 4, 2, 1, 1]),  # a second each, then a worker's part of what is left
        (0.125, 1, [1] * 40),
        (0.125, 100, [1] * 40),
        (0.6, 2, [1] * 40),
        (30.0, 2, [1] * 40),
        (0.0, 2, [1] * 40),  # nobody knows how long they are
    ],
)
def test_short_chunks_go_together_up_to_a_second_and_a_part(synthetic, seconds, workers, sizes):
    (group,) = synthetic(1, 1, behaviors=41, chunk=1)
    plan = schedule([group], range(41), workers, seconds=(41 * seconds,))
    plan.trained(one(plan))
    first = one(plan, 0)  # it may fit what the cell fits once, and goes alone
    assert first.fits
    plan.done(first)
    assert given(plan) == sizes


def test_after_a_loss_chunks_go_alone(synthetic):
    (group,) = synthetic(1, 1, behaviors=21, chunk=1)
    plan = schedule([group], range(21), workers=2, seconds=(2.1,))
    plan.trained(one(plan))
    plan.done(one(plan, 0))
    together = plan.next(0)
    assert len(together) == 10
    for chunk in together:
        plan.back(chunk)
    assert given(plan) == [1] * 20


def test_at_the_end_of_a_cell_chunks_go_together_while_another_has_more(synthetic):
    (group,) = synthetic(1, 2, behaviors=21, chunk=1)
    plan = schedule([group], range(21), workers=2, seconds=(2.1, 0.63))
    plan.trained(one(plan))
    for work in plan.by_name.values():
        work.fitted = True
    # A second; half of the 1.73 s that are left; all that the cell has; half of 0.63 s
    assert given(plan)[:4] == [10, 9, 2, 11]
