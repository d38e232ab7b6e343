"""Real processes: killed, forked, ended in every way there is. What record() had spooled is delivered once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from recorder_rig import KeptSink, assert_closed_account, recording, until

RIG = Path(__file__).parent


def run(folder: Path, code: str, *, wait: bool = True) -> subprocess.Popen[str]:
    """A process with a recorder ``r`` whose sink appends what it stores to the file ``stored``, a line each."""
    head = f"""
        import json, os, sys, threading, time, signal
        sys.path.insert(0, {str(RIG)!r})
        from recorder_program import file_recorder
        r = file_recorder({str(folder)!r})
    """
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        said, complaint = child.communicate(timeout=60)
        child.said = said  # type: ignore[attr-defined]
        assert not complaint, complaint
    return child


def stored(folder: Path) -> list[list[object]]:
    path = folder / "stored"
    # Somebody may be writing the last line.
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def test_a_program_that_simply_ends_has_delivered_everything(tmp_path: Path) -> None:
    child = run(tmp_path, "for n in range(500): r.record('a.b', metadata={'n': n})")
    assert child.returncode == 0
    assert len(stored(tmp_path)) == 500
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_end_of_a_program_is_not_held_up_by_an_outage(tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    before = time.monotonic()
    child = run(tmp_path, "for n in range(500): r.record('a.b')")
    assert child.returncode == 0
    assert time.monotonic() - before < 10
    (tmp_path / "down").unlink()
    run(tmp_path, "r.record('a.c')\nwhile r.stats().stored < 501: time.sleep(0.01)")
    assert len({line[0] for line in stored(tmp_path)}) == len(stored(tmp_path)) == 501


@pytest.mark.parametrize(
    "point", ["spool.before_commit", "spool.after_commit", "spool.before_settle", "spool.after_settle"]
)
def test_killed_at_any_point_what_was_spooled_is_delivered(tmp_path: Path, point: str) -> None:
    code = f"""
        for n in range(400):
            recorded = r.record('a.b')
            if recorded.wait(5):
                print(recorded.id, flush=True)
            if n == 200:
                os.environ['AFTERWRITE_FAILPOINTS'] = ''
                from afterwrite import failpoints
                failpoints.arm('{point}=kill')
    """
    child = run(tmp_path, code)
    assert child.returncode == -signal.SIGKILL
    spooled = set(child.said.split())  # type: ignore[attr-defined]
    assert len(spooled) > 200
    sink = KeptSink()
    for line in stored(tmp_path):
        sink.activities[str(line[0])] = None  # type: ignore[assignment]
    with recording(tmp_path, sink) as (recorder, _):
        recorder.record("a.c")
        until(lambda: recorder.stats().spooled == 0 and recorder.stats().stored > 0)
        until(lambda: spooled <= set(sink.activities))
        assert len(sink.activities) <= len(spooled) + 2
        assert_closed_account(recorder)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_living_process_takes_over_from_a_killed_one_and_only_one_of_several_does(tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    killed = run(tmp_path, "for n in range(3000): r.record('a.b')\nr.record('a.b').wait()\nos.kill(os.getpid(), 9)")
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "down").unlink()
    heirs = [
        run(tmp_path, "r.record('a.c')\nsys.stdin.readline()\nprint(r.stats().adopted)", wait=False) for _ in range(3)
    ]
    until(lambda: len(stored(tmp_path)) >= 3004, 20)
    adopted = [int(heir.communicate("\n", timeout=30)[0]) for heir in heirs]
    assert sorted(adopted) == [0, 0, 3001]
    assert len({line[0] for line in stored(tmp_path)}) == len(stored(tmp_path)) == 3004


def test_a_forked_child_has_a_spool_of_its_own_and_the_parents_goes_on(tmp_path: Path) -> None:
    code = """
        r.record('parent.before')
        children = []
        for n in range(4):
            r.record('parent.before')
            child = os.fork()
            if child == 0:
                assert r.stats().recorded == 0
                for k in range(50): r.record('child.one')
                assert r.flush(10)
                assert r.stats().recorded == r.stats().stored == 50
                sys.exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        for n in range(50): r.record('parent.after')
        assert r.flush(10)
        print(json.dumps([r.stats().recorded, r.stats().stored]))
    """
    child = run(tmp_path, code)
    assert child.returncode == 0
    assert child.said == "[55, 55]\n"  # type: ignore[attr-defined]
    found = stored(tmp_path)
    assert len({line[0] for line in found}) == len(found) == 255
    assert len({line[2] for line in found if line[1] == "child.one"}) == 4
    assert list((tmp_path / "spool").iterdir()) == []


def test_forking_under_fire_neither_stands_still_nor_loses(tmp_path: Path) -> None:
    code = """
        stop = threading.Event()
        def work():
            while not stop.is_set():
                r.record('parent.one'); time.sleep(0)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads: t.start()
        for n in range(15):
            child = os.fork()
            if child == 0:
                for k in range(20): r.record('child.one')
                ok = r.record('child.one').wait(10)
                r.close()
                os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for t in threads: t.join()
        assert r.flush(20)
        s = r.stats()
        assert s.recorded == s.stored + sum(s.dropped.values()), s
        print(s.stored)
    """
    child = run(tmp_path, code)
    assert child.returncode == 0
    found = stored(tmp_path)
    assert sum(line[1] == "child.one" for line in found) == 15 * 21
    assert len({line[0] for line in found}) == len(found) == int(child.said) + 15 * 21  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing_deliver_at_their_end(tmp_path: Path, method: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(f"""
        import os, sys, multiprocessing
        sys.path.insert(0, {str(RIG)!r})
        from recorder_program import file_recorder
        r = file_recorder({str(tmp_path)!r})
        def work(n):
            for k in range(10): r.record('worker.one')
        if __name__ == "__main__":
            r.record('main.one')
            ctx = multiprocessing.get_context({method!r})
            workers = [ctx.Process(target=work, args=(n,)) for n in range(3)]
            for w in workers: w.start()
            for w in workers: w.join()
            assert all(w.exitcode == 0 for w in workers)
        """)
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(stored(tmp_path)) == 31
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_child_takes_over_from_its_killed_parent(tmp_path: Path) -> None:
    """It has inherited the descriptors of the parent's locks, those of files that the parent had taken over too."""
    (tmp_path / "down").touch()
    run(tmp_path, "for n in range(100): r.record('first.one')\nr.record('first.one').wait()\nos.kill(os.getpid(), 9)")
    code = """
        r.record('parent.one').wait()
        while r.stats().adopted < 101: time.sleep(0.01)
        if os.fork():
            os.kill(os.getpid(), 9)
        r.record('child.one')
        while r.stats().stored < 103: time.sleep(0.01)
        print(r.stats().adopted)
    """
    child = run(tmp_path, code, wait=False)
    until(lambda: child.poll() is not None, 20)
    (tmp_path / "down").unlink()
    said, complaint = child.communicate(timeout=30)
    assert (said, complaint) == ("102\n", "")
    assert len({line[0] for line in stored(tmp_path)}) == len(stored(tmp_path)) == 103
