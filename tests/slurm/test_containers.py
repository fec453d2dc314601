"""Runs in containers, with commands in place of pyxis and singularity that run the job without a container. As in an
image, there are no commands of Slurm, and ``python3`` is the interpreter that has ftdist."""

import sys
from pathlib import Path

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish
from tests.slurm.cluster import Cluster
from tests.slurm.test_runs import NODES, RUN, SHORT, metrics, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

SINGULARITY = """\
echo "$@" >>{log}
[ "$1" = exec ] || exit 7
while [[ $1 == exec || $1 == --* ]]; do shift; done
shift
PATH={inside} exec "$@"
"""
PYXIS = """\
options=() image=
while [[ $1 == --* ]]; do
  case $1 in --container-*) image=$1; echo "$1" >>{log} ;; *) options+=("$1") ;; esac
  shift
done
echo "pyxis: importing the image"
exec /usr/bin/srun "${{options[@]}}" ${{image:+/usr/bin/env PATH={inside}}} "$@"
"""


@pytest.mark.parametrize(
    ("container", "command", "text"), [("singularity", "singularity", SINGULARITY), ("pyxis", "srun", PYXIS)]
)
def test_a_run_in_containers(
    container: str, command: str, text: str, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inside, outside, log = RunDir(tmp_path / "run"), tmp_path / "inside", tmp_path / "outside", tmp_path / "log"
    for folder, name, script in (
        (outside, command, text.format(log=log, inside=inside)), (inside, "python3", f'exec {sys.executable} "$@"\n'),
    ):  # fmt: skip
        folder.mkdir()
        (folder / name).write_text("#!/bin/bash\n" + script)
        (folder / name).chmod(0o755)
    (inside / "bash").symlink_to("/bin/bash")
    monkeypatch.setitem(slurm.env, "PATH", f"{outside}:{slurm.env['PATH']}")
    image = (f"launch.slurm.container={container}", "launch.slurm.container_image=/images/ft.sif")
    output = finish(
        slurm.ftdist("train", *RUN, *SHORT, *NODES, *image, "launch.nproc_per_node=1", f"run_dir={run.path}")
    )
    assert run.read_status()["state"] == "done" and metrics(run) == undisturbed(SHORT, 2), output
    mount = f"{run.path}:{run.path}"
    assert log.read_text().count(f"--bind={mount}" if container == "singularity" else f"mounts={mount}") >= 3
