"""The means of the chaos room's faults do what they say, or say why they are missing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import machine
from tests.chaos.faults import load_all


def test_a_small_disk_is_full_to_the_last_page_and_keeps_what_was_there(tmp_path: Path) -> None:
    if (why := machine.no_tmpfs()) is not None:
        pytest.skip(f"not injected here: {why}")
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    (folder / "kept").write_bytes(b"x" * 10_000)
    disk = machine.SmallDisk(folder, 1 << 20)
    try:
        disk.move_in()
        assert (folder / "kept").read_bytes() == b"x" * 10_000
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (folder / "more").write_bytes(b"y" * 8192)
        disk.free()
        (folder / "more").write_bytes(b"y" * 8192)
        disk.move_out()
    finally:
        disk.give_up()
    assert (folder / "kept").read_bytes() == b"x" * 10_000
    assert (folder / "more").stat().st_size == 8192
    assert not (folder / "balloon").exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_share_of_cpu_binds_who_is_in_it_and_nobody_afterwards() -> None:
    if (why := machine.no_cpu_group()) is not None:
        pytest.skip(f"not injected here: {why}")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinner:
        try:
            time.sleep(0.3)
            with machine.cpu_share([spinner.pid], 0.1):
                before, began = machine.cpu_seconds(spinner.pid), time.monotonic()
                time.sleep(2.0)
                used = machine.cpu_seconds(spinner.pid) - before
                assert used < 0.2 * (time.monotonic() - began)
            assert not list(machine.CGROUP_V1_CPU.glob("aos-chaos-*"))
        finally:
            spinner.kill()


def test_a_false_clock_is_false_and_the_monotonic_one_is_true(tmp_path: Path) -> None:
    if (why := machine.no_faketime()) is not None:
        pytest.skip(f"not injected here: {why}")
    (tmp_path / "clock").write_text("-3600\n")
    environ = {
        "LD_PRELOAD": str(machine.faketime()), "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    program = "import time; print(time.time(), time.monotonic())"
    said = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    wall, monotonic = map(float, said.stdout.split())
    assert wall == pytest.approx(time.time() - 3600, abs=30)
    assert monotonic == pytest.approx(time.monotonic(), abs=30)


@pytest.mark.parametrize("number", [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 34, 39])
def test_the_fault_has_hands_and_says_whether_it_can_be_injected(number: int) -> None:
    fault = load_all()[number]
    assert fault.inject.__name__ != "no_hands"
    assert fault.missing() is None or fault.missing()
