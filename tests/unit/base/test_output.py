"""Output on any terminal, to any reader, and paths as they are printed."""

import io
import os
import sys
from pathlib import Path

import pytest

from ftdist.base import output


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setattr(output, "_folder", None)
    return tmp_path / "runs"


def test_a_path_is_printed_as_short_as_possible(here: Path) -> None:
    assert output.short_path(here / "a b") == "a b" and output.quoted_path(here / "a b") == "'a b'"
    assert output.short_path(here.parent / "elsewhere") == str(here.parent / "elsewhere")


def test_a_name_that_begins_like_an_option_is_a_path_in_a_command(here: Path) -> None:
    assert output.quoted_path(here / "-x") == output.quoted_path("-x") == "./-x"
    assert output.quoted_path(here / "~x") == "'./~x'" and output.short_path(here / "-x") == "-x"


def test_a_process_in_another_folder_prints_paths_for_its_user(here: Path) -> None:
    output.show_paths_from("")
    assert output.short_path(here) == output.short_path(".") == str(here)
    assert output.short_path("a") == str(here / "a")
    output.show_paths_from(str(here.parent))
    assert output.short_path(here / "a") == output.short_path("a") == f"{here.name}/a"
    output.show_paths_from("/elsewhere")
    assert output.short_path("a") == str(here / "a")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"28.70 -> 14.35 ? k?tten ?..."), ("latin-1", b"28.70 -> 14.35 ? k\xe4tten ?...")]
)
def test_what_a_stream_cannot_show_is_replaced(encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüß".encode()), encoding="ascii"))
    output.accept_any_text()
    assert len(sys.stdin.read()) == 6, "each byte that is no ASCII is one replacement"
    for stream in (sys.stdout, sys.stderr):
        print("28.70 → 14.35 🐈 kätten \udcff…", end="", file=stream, flush=True)
        assert stream.buffer.getvalue() == shown  # type: ignore[attr-defined]


def test_a_name_that_is_not_utf_8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    output.accept_any_text()
    print("ä → \udcff", end="", flush=True)
    assert sys.stdout.buffer.getvalue() == "ä → ?".encode()  # type: ignore[attr-defined]


def test_a_reader_that_ends_first_and_a_closed_stream_cause_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for stream in (open(writer, "w"), None):  # noqa: PTH123, SIM115 - | head, and >&-
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, None if name != "stdout" else stream)
        output.accept_any_text()
        output.accept_any_text()
        for _ in range(2):
            print("lost", flush=True)
        print("lost", file=sys.stderr, flush=True)
        assert sys.stdin.read() == ""
        sys.stdout.close()


def test_a_full_disk_is_reported_once_and_later_output_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_reported", False)
    with open("/dev/full", "w") as full, (tmp_path / "out").open("w") as file:  # noqa: PTH123
        safe = output.PipeSafeOutput(full)
        for _ in range(2):
            print("lost", file=safe, flush=True)
        assert os.fstat(full.fileno()).st_rdev == Path("/dev/full").stat().st_rdev, "it is tried again"
        os.dup2(file.fileno(), full.fileno())
        print("written", file=safe, flush=True)
    assert (tmp_path / "out").read_text() == "written\n"
    said = capfd.readouterr().err
    assert said == "warning: some output cannot be written (No space left on device) and is lost\n"


def test_a_reader_that_ends_first_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # noqa: PTH123
        for _ in range(2):
            print("lost", file=output.PipeSafeOutput(pipe), flush=True)
    assert capfd.readouterr().err == ""
