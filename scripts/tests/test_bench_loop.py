import pytest

from dojo.benchmarks import loop

pytest.importorskip("pytest_watcher")


def test_a_save_is_timed_beside_pytest_watcher(project, monkeypatch):
    monkeypatch.setattr(loop, "SAVES", 2)
    with loop.copied(project, "01_scale") as (copy, kata):
        ours = loop.ours_from_save(copy, kata)
        theirs = loop.theirs_from_save(copy, kata)
    assert 0 < ours < theirs


def test_a_soak_sees_neither_files_nor_processes_left(project):
    with loop.copied(project, "01_scale") as (copy, kata):
        growth = loop.soak(copy, kata, runs=20)
    assert (growth.runs, growth.files, growth.children) == (20, 0, 0)


def test_the_learners_own_file_is_not_touched(project, kata):
    before = kata.botched.read_bytes()
    with loop.copied(project, "01_scale") as (_, copied):
        copied.botched.write_text("something else")
    assert kata.botched.read_bytes() == before
