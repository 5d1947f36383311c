"""A process that is killed as it writes: where it stops, and what is said of it."""

import os

import pytest

from dojo.simulation.crashes import killed_at_byte, killed_before_change

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_write_is_cut_at_the_byte(tmp_path):
    file = tmp_path / "weights"
    assert killed_at_byte(3, lambda: file.write_bytes(b"12345"))
    assert file.read_bytes() == b"123"
    assert not killed_at_byte(5, lambda: file.write_bytes(b"12345"))
    assert file.read_bytes() == b"12345"


def test_every_change_of_a_folder_can_be_the_last(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("old")

    def save():
        new.write_text("new")
        old.read_text()
        new.replace(old)

    left = []
    for change in range(3):
        killed = killed_before_change(change, save)
        left.append((killed, sorted(path.name for path in tmp_path.iterdir()), old.read_text()))

    assert left == [
        (True, ["old"], "old"),
        (True, ["new", "old"], "old"),
        (False, ["old"], "new"),
    ]


def test_what_it_does_to_memory_is_lost_and_what_it_prints_is_not_seen(capfd):
    seen = []
    assert not killed_at_byte(1000, lambda: seen.append(1) or print("a line"))
    assert not seen
    assert not capfd.readouterr().out


def test_code_that_raises_is_told():
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        killed_at_byte(10, lambda: 1 / 0)
