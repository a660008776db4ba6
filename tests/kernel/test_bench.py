"""The benchmarks of this tier run, with numbers too small to measure anything."""

import pytest

from ipsec_lab import guest_inside
from ipsec_lab.bench_kernel import DURATIONS, RATIOS
from ipsec_lab.bench_suites import SUITES
from ipsec_lab.netns import missing_programs


@pytest.mark.parametrize("task", [RATIOS, DURATIONS, SUITES])
def test_a_benchmark_gives_its_rows(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if task == RATIOS and missing_programs("iperf3"):
        pytest.skip("needs iperf3")
    said = []
    arguments = {"quick": True, "runs": 1, "seconds": 1.0}
    # Only meanwhile: the report of this test goes to the host by the same function.
    with monkeypatch.context() as patch:
        patch.setattr(guest_inside, "say", said.append)
        assert guest_inside.task_of(task)(arguments, guest_inside.FORKS) == 0
    assert said
    for line in said:
        assert line["row"]["ours"], line
