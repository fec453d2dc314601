"""The site file gives defaults, and a wrong one is refused."""

from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch.config.site import site_defaults
from tests.helpers.users import as_other_user, needs_root, open_to_all
from tests.unit.compose_tools import composed


def test_the_site_file_gives_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDIST_SITE", str(tmp_path / "site.yaml"))
    (tmp_path / "site.yaml").write_text(
        'launch:\n  timeout_s: 1e3\n  wait: yes\n  slurm: {time: "12:00:00", mem: 0, account: null, '
        "env: {A: 1, B: 'yes'}, modules: [a, b]}\n"
    )
    launch = composed("experiment=smoke").launch
    slurm = launch.slurm
    assert (slurm.time, slurm.mem, slurm.account, slurm.env) == ("12:00:00", "0", None, {"A": "1", "B": "yes"})
    assert (launch.timeout_s, launch.wait, slurm.modules) == (1000, True, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("launch: {slrum: {}}", "site.yaml: Key 'slrum' not in 'LaunchConfig'"),
        ("train: {max_steps: many}", "site.yaml: Value 'many'"),
        ("[1, 2]", "site.yaml holds list"),
        ("launch", "site.yaml holds str"),
        ("launch: [1", "cannot read"),
        ("launch: !!python/object:os.system {}", "cannot read"),
    ],
)
def test_a_wrong_site_file_is_refused(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDIST_SITE", str(tmp_path / "site.yaml"))
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        composed("experiment=smoke")
    assert says in error.value.found and "site.yaml" in error.value.found


@needs_root
def test_a_site_file_of_another_user_is_refused_for_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site := open_to_all(tmp_path) / "site.yaml").touch(0o600)
    monkeypatch.setenv("FTDIST_SITE", str(site))
    assert as_other_user(site_defaults).startswith(f"AccessError: no permission to read {site}: {site} belongs to root")
