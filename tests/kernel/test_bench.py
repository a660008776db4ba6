"""The benchmarks of this tier run, with numbers too small to measure anything."""

import pytest

from ipsec_lab import bench_kernel, bench_suites, guest_inside
from ipsec_lab.netns import missing_programs


@pytest.mark.parametrize("bench", [bench_kernel, bench_suites], ids=["kernel", "suites"])
def test_a_benchmark_gives_its_rows(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench is bench_kernel and missing_programs("iperf3"):
        pytest.skip("needs iperf3")
    said = []
    arguments = {"quick": True, "runs": 1, "seconds": 1.0}
    # Only meanwhile: the report of this test goes to the host by the same function.
    with monkeypatch.context() as patch:
        patch.setattr(guest_inside, "say", said.append)
        assert bench.measure(arguments, guest_inside.FORKS) == 0
    assert said
    for line in said:
        assert line["row"]["ours"], line
