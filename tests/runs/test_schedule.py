"""Which task comes next, without any worker."""

from __future__ import annotations

from robench.runs.schedule import Schedule
from robench.runs.tasks import Chunk, Training


def schedule(groups, starts=(0, 2, 4), in_order=False, seconds=(), trainings=()) -> Schedule:
    names = [cell.name for group in groups for cell, _ in group.cells]
    firsts = [group.cells[0][0].name for group in groups]
    return Schedule.of(
        groups,
        {name: list(starts) for name in names},
        dict(zip(names, seconds, strict=False)),
        dict(zip(firsts, trainings, strict=False)),
        in_order,
    )


def test_one_worker_has_the_order_of_the_plan(synthetic):
    groups = synthetic(2, 2)
    names = [cell.name for group in groups for cell, _ in group.cells]
    plan = schedule(groups, (0, 2), in_order=True, seconds=(1, 9, 1, 9), trainings=(1, 9))
    tasks, worn = [], None
    while not plan.finished:
        task = plan.next(worn)
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
    assert [plan.next(None) for _ in range(3)] == [Training(1), Training(2), Training(0)]
    assert plan.next(None) is None


def test_a_worker_stays_with_its_defense_and_takes_long_chunks_first(synthetic):
    groups = synthetic(2, 2)
    names = [cell.name for group in groups for cell, _ in group.cells]
    plan = schedule(groups, starts=(0,), seconds=(1.0, 5.0, 2.0, 90.0))
    for task in (plan.next(None), plan.next(None)):
        plan.trained(task)
    assert plan.next(0).cell == names[1]  # the longer one of its own defense
    assert plan.next(None).cell == names[3]  # where most is left
    assert plan.next(0).cell == names[0]
    assert plan.next(0).cell == names[2]  # nothing of its own is left


def test_what_a_cell_fits_is_fitted_once_and_others_wait_only_if_they_need_it(synthetic):
    (group,) = synthetic(1, 1)
    name = group.cells[0][0].name
    plan = schedule([group])
    plan.trained(plan.next(None))
    first, second = plan.next(0), plan.next(0)
    assert (first.start, first.fits, second.start, second.fits) == (0, True, 2, False)
    plan.back(second, blocked=True)
    assert plan.next(0) is None  # the third would need it, too
    plan.done(first)
    again = plan.next(0)
    assert again == Chunk(0, name, 2, True) and plan.next(0).fits


def test_a_lost_chunk_that_fitted_is_the_one_that_fits_again(synthetic):
    (group,) = synthetic(1, 1)
    plan = schedule([group])
    plan.trained(plan.next(None))
    first = plan.next(0)
    plan.back(plan.next(0), blocked=True)
    plan.back(first)
    assert plan.next(0) == first


def test_what_is_given_up_is_finished_when_its_chunks_are_back(synthetic):
    (group,) = synthetic(1, 1)
    plan = schedule([group])
    plan.trained(plan.next(None))
    chunk = plan.next(0)
    plan.give_up(chunk.cell)
    assert not plan.finished and plan.next(0) is None
    plan.done(chunk)
    assert plan.finished
