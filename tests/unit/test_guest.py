"""The host's side of the virtual machine, without one: what is said, silence, and its end."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ipsec_lab import guest
from ipsec_lab.guest import Guest
from ipsec_lab.netns import LabError


class Stub(Guest):
    """A shell script in place of the machine."""

    script = ""

    def _command(self) -> list[str]:
        return ["sh", "-c", f"cd {self.shared} && {self.script}"]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guest, "missing", lambda: None)
    monkeypatch.setattr(guest, "_hot_files", list)
    machines = []

    def start(script: str, **options) -> Stub:
        machine = Stub(**options)
        machines.append(machine)
        machine.script = script
        machine.start("module:function", {"some": 1})
        return machine

    yield start
    for machine in machines:
        machine.close()


def test_lines_come_until_it_is_done(stub) -> None:
    script = """echo '{"a": 1}' >> said.jsonl; sleep 0.3; printf '{"b"' >> said.jsonl; sleep 0.3
    printf ': 2}\n{"done": 0}\n' >> said.jsonl; sleep 60"""
    assert list(stub(script).lines()) == [{"a": 1}, {"b": 2}]


def test_it_gets_its_task(stub) -> None:
    machine = stub("""(cat task.json; echo; echo '{"done": 0}') > said.jsonl""")
    (task,) = machine.lines()
    assert (task["task"], task["arguments"]) == ("module:function", {"some": 1})
    assert task["environment"][guest.INSIDE] == "1"


def test_an_early_end_shows_the_console(stub) -> None:
    machine = stub("""echo '{"a": 1}' >> said.jsonl; echo Kernel panic; exit 1""")
    lines = machine.lines()
    assert next(lines) == {"a": 1}
    with pytest.raises(LabError, match=r"ended before it was done(?s:.*)Kernel panic"):
        next(lines)


def test_silence_shows_the_console(stub) -> None:
    machine = stub("echo last words; sleep 60", patience=0.5)
    with pytest.raises(LabError, match=r"said nothing for 0\.5 s(?s:.*)last words"):
        next(machine.lines())


def test_the_machine_ends_with_its_process(tmp_path: Path) -> None:
    """Also when that is killed and can do nothing about it."""
    script = textwrap.dedent(
        """
        import sys, time
        from ipsec_lab import guest
        guest.missing, guest._hot_files = lambda: None, list
        class Stub(guest.Guest):
            def _command(self):
                return ["sh", "-c", "echo $$ > " + sys.argv[1] + "; sleep 60; true"]
        Stub().start("a:b", {})
        time.sleep(60)
        """
    )
    pid_file = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", script, str(pid_file)])
    _wait_for(lambda: pid_file.exists() and pid_file.read_text().strip() != "")
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def _wait_for(reached) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


FORKING = """
import sys
from pathlib import Path
from ipsec_lab.guest_forks import run_beside

def gateway(arguments):
    print("gateway", *arguments, flush=True)
    if "wait" in arguments:
        import time
        time.sleep(60)
    sys.exit(7)

def work(forks):
    import signal
    log = Path(sys.argv[1])
    own = Path("/proc/self/ns/net")
    first = forks.gateway(["one"], namespace=own, log=log, env={})
    assert first.wait(20) == 7, first.returncode
    second = forks.gateway(["two", "wait"], namespace=own, log=log, env={})
    assert second.poll() is None
    second.kill()
    assert second.wait(20) == -signal.SIGKILL
    return 5

sys.exit(run_beside(work, gateway))
"""


@pytest.mark.root
def test_forked_gateways(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(log)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (5, "")
    assert log.read_text().splitlines()[0] == "gateway one"
