"""An error about a value names the file that sets the value: the site file, or a file of a group."""

from pathlib import Path
from typing import Optional

import pytest

from ftdist.base.errors import ConfigError, DataError, FtdistError, LaunchError
from ftdist.launch.config.places import naming_files
from tests.unit.compose_tools import composed

SITE = "launch: {slurm: {partition: gpuu, options: ['--qos=low']}}"


@pytest.mark.parametrize(
    ("words", "found", "said"),
    [
        ([], "launch.slurm.partition=gpuu: unknown", "launch.slurm.partition is set in {site}"),
        ([], "--qos=low in launch.slurm.options: unknown\nmore", "launch.slurm.options is set in {site}"),
        ([], "name=smoke is bad", "name is set in experiment/smoke.yaml"),
        (["launch/site=x"], "launch.slurm.partition=x: no", "launch.slurm.partition is set in launch/site/x.yaml"),
        (["launch.slurm.partition=x"], "launch.slurm.partition=x: unknown", None),
        ([], "launch.slurm.account=x and RUN/launch.slurm.partition=x", None),
        ([], "launch.slurm.partition=gpuu, which {site} sets", None),
    ],
)  # fmt: skip
def test_the_file_of_a_wrong_value_is_named(
    words: list[str], found: str, said: Optional[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTDIST_SITE", str(site := tmp_path / "site.yaml"))
    site.write_text(SITE)
    (tmp_path / "launch" / "site").mkdir(parents=True)
    (tmp_path / "launch" / "site" / "x.yaml").write_text("# @package launch\nslurm: {partition: x}\n")
    found, said = found.format(site=site), said and said.format(site=site)
    for kind in (ConfigError, DataError, LaunchError):  # a run that has failed is no wrong value
        with pytest.raises(FtdistError) as error, naming_files():
            composed("--config-dir", str(tmp_path), "experiment=smoke", "launch=slurm", *words)
            raise kind(found, "another", "use it")
        named = said is not None and kind is not LaunchError
        first, line, rest = found.partition("\n")
        assert error.value.found == (f"{first} ({said}){line}{rest}" if named else found)
        assert str(error.value).endswith("\n  expected: another\n  fix:      use it")


def test_the_files_of_an_earlier_config_are_forgotten() -> None:
    with pytest.raises(ConfigError) as error, naming_files():
        raise ConfigError("launch.kind=x")
    assert error.value.found == "launch.kind=x"
