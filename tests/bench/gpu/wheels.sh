#!/usr/bin/env bash
# Collect what a GPU machine without network lacks beside torch, transformers, accelerate and pytest: a few small wheels.
# usage: tests/bench/gpu/wheels.sh [FOLDER [PYTHON_VERSION]]     default: build/gpu-wheels 3.12
# Run it where there is network, in the environment of this checkout. Then take the checkout and the folder along.
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=${1:-build/gpu-wheels} version=${2:-3.12}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"
export DS_BUILD_OPS=0 PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# Pure Python, but published as source only; ftdist itself, because its folders are not its packages.
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$folder" . deepspeed antlr4-python3-runtime
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$folder" \
  omegaconf hydra-core hjson pydantic pydantic-core annotated-types typing-inspection typing-extensions msgpack \
  py-cpuinfo einops psutil rich markdown-it-py mdurl pygments ninja peft pytest-timeout pytest-xdist execnet
du -sh "$folder"
