"""The migration guide is what happens."""

from __future__ import annotations

from pathlib import Path

from guide import shape, walk

# Of these lines there may be more or fewer, or none: they tell of time, load and luck.
_PASSING = ("…", "time and WAL", "saves", "# ", "observing")


def test_every_command_of_the_guide_says_what_the_guide_says(tmp_path: Path) -> None:
    with walk(tmp_path) as commands:
        seen = 0
        for command, wanted, told, code, output in commands:
            seen += 1
            assert code == wanted, f"$ {command}\n{output}"
            said = " ".join(shape(output))  # where a line is folded depends on how long its numbers are
            lacking = [line for line in shape(told) if line not in said and not line.startswith(_PASSING)]
            assert not lacking, f"$ {command}\n{output}"
    assert seen >= 10
    assert (tmp_path / "backup.sql").is_file()
