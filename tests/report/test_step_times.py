"""Where a step's time went, from traces whose times are known."""

import pytest

from mmtrain.nn.regions import PREFIX, region
from mmtrain.report.step_times import read_step_times, what_bounds

MAIN, OTHER, STREAM = 1, 2, 7


def span(name, start, end, *, cat="user_annotation", tid=MAIN, correlation=None):
    """An event in milliseconds."""
    args = {} if correlation is None else {"correlation": correlation}
    event = {"ph": "X", "cat": cat, "name": name, "tid": tid, "args": args}
    return event | {"ts": start * 1e3, "dur": (end - start) * 1e3}


def named(name, start, end):
    return span(PREFIX + name, start, end)


def host_step(at=0.0, wait=10.0):
    """100 ms and the wait; 5 of them after the optimizer."""
    names = ["copy to the device", "forward: vision", "forward: text", "loss", "backward"]
    edges = [5, 25, 35, 40, 80]
    start, spans = at + wait, [named("waiting for data", at, at + wait)]
    for name, begin, end in zip(names, [0, *edges], edges, strict=False):
        spans.append(named(name, start + begin, start + end))
    spans.append(named("optimizer", start + 80, start + 95))
    return [named("step", at, start + 100), *spans]


def test_the_parts_of_a_host_step_add_up_to_it():
    times = read_step_times([*host_step(), *host_step(at=110), {"ph": "M", "name": "process"}])
    assert times.steps == 2 and times.step == pytest.approx(110)
    assert times.idle is None
    assert sum(times.parts.values()) == pytest.approx(110)
    assert times.parts == pytest.approx(
        {
            "waiting for data": 10,
            "copy to the device": 5,
            "forward: vision": 20,
            "forward: text": 10,
            "loss": 5,
            "backward": 40,
            "optimizer": 15,
            "elsewhere": 5,
        }
    )
    assert what_bounds(times).startswith("Computing bounds it: backward takes 36%")


def test_a_region_within_another_counts_for_itself_alone():
    inner = [named("forward: vision", 60, 70), named("loss", 62, 63)]
    parts = read_step_times([*host_step(), *inner]).parts
    assert parts["backward"] == pytest.approx(30)
    assert parts["forward: vision"] == pytest.approx(29)
    assert parts["loss"] == pytest.approx(6)


def device_step(*, gap=0.0, nccl=()):
    """Kernels that run after the host is done with them, those of backward launched elsewhere."""
    host = [named("step", 0, 30), named("forward: vision", 1, 5), named("backward", 6, 20)]
    host.append(named("optimizer", 20, 24))
    work = []
    for number, (moment, thread, start, end) in enumerate(
        [(2, MAIN, 3, 40), (10, OTHER, 40 + gap, 90 + gap), (21, MAIN, 90 + gap, 100 + gap)]
    ):
        host.append(
            span("launch", moment, moment, cat="cuda_runtime", tid=thread, correlation=number)
        )
        work.append(span("gemm", start, end, cat="kernel", tid=STREAM, correlation=number))
    for start, end in nccl:
        work.append(span("ncclDevKernel_AllReduce", start, end, cat="kernel", tid=STREAM + 1))
    return [*host, *work]


def test_a_device_works_for_the_region_that_launched_it_whatever_the_thread():
    times = read_step_times(device_step())
    assert times.step == pytest.approx(100)
    assert times.parts == pytest.approx({"forward: vision": 37, "backward": 50, "optimizer": 10})
    assert times.idle == pytest.approx(3)


def test_communication_counts_alone_where_nothing_else_runs():
    times = read_step_times(device_step(gap=30, nccl=[(30, 65), (80, 85)]))
    assert times.communication == pytest.approx(40)
    assert times.exposed == pytest.approx(25)
    assert times.idle == pytest.approx(3 + 5)
    times = read_step_times(device_step(gap=60, nccl=[(40, 100)]))
    assert "Communication bounds it" in what_bounds(times)


@pytest.mark.parametrize(
    ("events", "word"),
    [(host_step(wait=60.0), "data"), (device_step(gap=60), "host"), (device_step(), "Computing")],
)
def test_the_sentence_names_what_bounds_a_step(events, word):
    assert word in what_bounds(read_step_times(events))


def test_a_trace_without_a_step_is_refused():
    with pytest.raises(ValueError, match="no training step"):
        read_step_times([span("aten::mm", 0, 1, cat="cpu_op")])


def test_a_region_is_nothing_where_no_trace_is_made():
    assert type(region("loss")).__name__ == "nullcontext"
