"""Where files are made: whole or not at all, and what a killed process left is removed by the next."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from glmd_runtime.errors import OutputError, UsageError
from glmd_runtime.files import scratch
from glmd_runtime.files.scratch import check_place, put_in_place, scratch_folder, whole_file, work_folder, writing


@pytest.fixture(autouse=True)
def another_process() -> None:
    """It looks at a folder when it first writes there."""
    scratch._remove_abandoned.cache_clear()


def left_behind(folder: Path, name: str = ".model.glmd.k3v9x0ab") -> Path:
    """The scratch folder of a process that is no more."""
    left = folder / name
    left.mkdir()
    (left / "held").touch()
    (left / "half").write_text("half a bundle")
    return left


def test_what_a_killed_process_left_is_removed_whatever_is_made(tmp_path: Path) -> None:
    left = left_behind(tmp_path)
    with whole_file(tmp_path / "report.json") as partial:
        partial.write_text("{}")
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_somebody_holds_or_is_none_of_ours_stays(tmp_path: Path) -> None:
    held, foreign = left_behind(tmp_path), tmp_path / ".model.glmd.backups0"
    foreign.mkdir()
    (foreign / "notes").touch()
    with FileLock(held / "held"), scratch_folder(tmp_path / "model.glmd"):
        pass
    assert (held / "half").exists() and foreign.exists()


def test_one_that_was_killed_before_it_held_its_folder_leaves_none(tmp_path: Path) -> None:
    (tmp_path / ".model.glmd.k3v9x0ab").mkdir()
    with scratch_folder(tmp_path / "other"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_that_make_and_tidy_up_at_once(tmp_path: Path) -> None:
    """None takes another's folder for abandoned."""
    def make(number: int) -> None:
        for _ in range(25):
            scratch._remove_abandoned.cache_clear()
            with whole_file(tmp_path / f"{number}.json") as partial:
                partial.write_text("{}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(make, range(6)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.json" for number in range(6)]


def test_two_at_the_same_path_do_not_meet(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "a") as one:
        scratch._remove_abandoned.cache_clear()
        with scratch_folder(tmp_path / "a") as other:
            assert one != other and one.exists()


@pytest.mark.parametrize("able", [True, False])
def test_a_folder_takes_the_place_of_another(able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not able:
        monkeypatch.setattr(scratch, "_exchanged", lambda one, other: False)
    place = tmp_path / "place"
    for content in ("old", "new"):
        with scratch_folder(place) as folder:
            made = folder / "made"
            made.mkdir()
            (made / "content").write_text(content)
            put_in_place(made, place, overwrite=True)
        assert (place / "content").read_text() == content
    assert list(tmp_path.iterdir()) == [place]


def test_what_was_taken_away_by_a_process_that_was_killed_then_comes_back(tmp_path: Path) -> None:
    (left_behind(tmp_path) / "old").mkdir()
    with scratch_folder(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model.glmd"]


def test_a_full_disk_is_one_error_that_names_the_file_and_anything_else_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    said = r"a\.json could not be written to its end: No space .* Make room"
    with pytest.raises(OutputError, match=said), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), writing(path):
        (tmp_path / "absent").read_bytes()


def test_whether_there_is_a_place_can_be_asked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "not" / "yet" / "a.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "lost").symlink_to(tmp_path / "gone")
    for taken in ("notes", "lost"):
        with pytest.raises(UsageError, match=f"{taken} is no folder"):
            check_place(tmp_path / taken / "new" / "a.json")
    # Of the folder itself alone: one in which it lies may be closed. For root every folder is writable.
    monkeypatch.setattr("os.access", lambda folder, _: folder == tmp_path)
    check_place(tmp_path / "a.json")
    for closed in (tmp_path.parent / "a.json", Path("/")):
        with pytest.raises(UsageError, match="cannot be written to"):
            check_place(closed)


def test_a_disk_without_room_for_a_folder_is_full_and_no_wrong_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(OutputError, match="Make room"), whole_file(tmp_path / "a.json"):
        pass
    with pytest.raises(OutputError, match="glmd-export could not"), work_folder("glmd-export"):
        pass
    with pytest.raises(UsageError, match="is a directory"), whole_file(tmp_path):
        pass
