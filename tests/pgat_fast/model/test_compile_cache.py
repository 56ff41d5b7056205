"""Cache of compiled code in the user's cache folder, and removal of damaged files."""

import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from pgat_fast.model.compile_cache import LIST, VARIABLE, cache_advice, cache_folder, compile_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of compiled code in an empty user cache."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def library(size: int = 256) -> bytes:
    """Return a 64-bit ELF file with one section and the section header table at its end."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 40, size - 64)
    struct.pack_into("<HH", header, 58, 64, 1)
    return bytes(header).ljust(size, b"\0")


def compiled(folder: Path) -> list[Path]:
    """Write files like those of a compiler into the cache, and record them."""
    with compile_cache() as cache:
        assert cache is not None
        (folder / "locks").mkdir(exist_ok=True)
        paths = [folder / "ab" / "one.main.so", folder / "ab" / "one.main.cpp", folder / "fxgraph" / "entry"]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(library())
        cache.record()
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="where the user's cache is on Linux")
def test_folder_is_in_the_users_cache_and_names_the_versions(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.is_relative_to(tmp_path / "pgat_fast")
    assert cache.name.startswith("torch-2.")
    assert "-python-3." in cache.name
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the specification forbids")
    assert cache_folder().is_relative_to(Path.home() / ".cache")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"


@pytest.mark.parametrize("before", [None, "chosen"])
def test_environment_is_restored(
    before: str | None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv(VARIABLE, str(tmp_path / before))
    initial_value = os.environ.get(VARIABLE)
    with suppress(ZeroDivisionError), compile_cache():
        assert os.environ[VARIABLE] == str(cache if before is None else tmp_path / before)
        raise ZeroDivisionError
    assert os.environ.get(VARIABLE) == initial_value


def test_complete_files_are_kept(cache: Path) -> None:
    paths = compiled(cache)
    with compile_cache():
        assert all(path.exists() for path in paths)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("damage", [b"", library()[:100], library()[:-1] + b"x"], ids=["empty", "cut", "changed"])
def test_damaged_files_are_removed_and_reported(
    place: int, damage: bytes, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = compiled(cache)
    paths[place].write_bytes(damage)
    with compile_cache():
        assert [path.exists() for path in paths] == [k != place for k in range(3)]
    assert (
        f"1 damaged or unfinished files of an earlier compilation removed, such as {paths[place].name}" in caplog.text
    )


def test_unlisted_files_are_removed(cache: Path) -> None:
    paths = compiled(cache)
    unlisted = cache / "cd" / "left.main.so"
    unlisted.parent.mkdir()
    unlisted.write_bytes(library())
    with compile_cache():
        assert not unlisted.exists()
        assert all(path.exists() for path in paths)


def test_only_broken_libraries_are_removed_from_a_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "other.so").write_bytes(library())
    (tmp_path / "other.py").write_bytes(b"")
    (tmp_path / "broken.so").write_bytes(b"")
    (tmp_path / "cut.so").write_bytes(library()[:200])
    with compile_cache():
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["other.py", "other.so"]


def test_nothing_is_removed_while_another_process_compiles(cache: Path) -> None:
    paths = compiled(cache)
    paths[0].write_bytes(b"")
    with FileLock(cache / "pgat-fast.locks" / "user-1.lock"), compile_cache():
        assert paths[0].exists()
    with compile_cache():
        assert not paths[0].exists()


@pytest.mark.parametrize("before", [None, "chosen"], ids=["exclusive", "shared"])
def test_library_locked_by_torch_is_kept(before: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check torch's lock, held by a process that uses torch.compile in the folder without `compile_cache`."""
    if before is not None:
        monkeypatch.setenv(VARIABLE, str(cache))
    paths = compiled(cache)
    paths[0].write_bytes(b"")
    with FileLock(cache / "locks" / "one.lock"), compile_cache():
        assert paths[0].exists()
    with compile_cache():
        assert not paths[0].exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ab/one.main.so": 1}'])
def test_damaged_list_causes_a_compilation_but_no_error(content: str, cache: Path) -> None:
    paths = compiled(cache)
    (cache / LIST).write_text(content)
    with compile_cache() as active_cache:
        assert active_cache is not None
        assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("before", [None, "chosen"], ids=["exclusive", "shared"])
@pytest.mark.parametrize("place", [0, 2])
def test_folder_in_place_of_file_is_removed(
    place: int, before: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv(VARIABLE, str(cache))
    paths = compiled(cache)
    paths[place].unlink()
    (paths[place] / "inner").mkdir(parents=True)
    with compile_cache():
        assert not paths[place].exists()
        assert all(path.is_file() for path in paths if path != paths[place])


def test_torch_uses_its_own_folder_if_none_can_be_created(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pgat_fast").write_text("in the way")
    with compile_cache() as active_cache:
        assert active_cache is None
        assert VARIABLE not in os.environ
        os.environ[VARIABLE] = "as torch does"
    assert VARIABLE not in os.environ
    assert "compiled code cannot be kept" in caplog.text
    assert str(tmp_path / "pgat_fast") in caplog.text


@pytest.mark.parametrize("fault", ["a file", "read-only"])
def test_unusable_folder_that_the_user_chose_is_not_used(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = tmp_path / "chosen"
    monkeypatch.setenv(VARIABLE, str(chosen))
    if fault == "a file":
        chosen.write_text("in the way")
    else:  # permissions do not bind every user: what a folder of somebody else raises
        chosen.mkdir()

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(chosen))

        monkeypatch.setattr("pgat_fast.model.compile_cache.FileLock.acquire", refuse)
    with compile_cache() as active_cache:
        assert active_cache is None
        assert VARIABLE not in os.environ
    assert os.environ[VARIABLE] == str(chosen)
    assert str(chosen) in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="where the user's cache is on Linux")
def test_user_without_home_folder_keeps_no_compiled_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with compile_cache() as active_cache:
        assert active_cache is None
    assert f"set the environment variable {VARIABLE} to a folder" in caplog.text
    assert f"set the environment variable {VARIABLE}" in cache_advice()
