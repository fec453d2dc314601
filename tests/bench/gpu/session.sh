#!/usr/bin/env bash
# On a machine with one GPU: run the tests of the mark gpu, then the benchmark, in at most 14 minutes. No network.
# usage: tests/bench/gpu/session.sh [OUT]     default: build/gpu
# It uses python3 (or $PYTHON), which must have torch, transformers, accelerate and pytest. What else is needed is
# installed into a temporary folder from the folder that tests/bench/gpu/wheels.sh has made (build/gpu-wheels, or $WHEELS).
# PARTS=tests or PARTS=bench runs one of the two, TEST_ARGS="-k head" and BENCH_ARGS="--only head" a part of it.
# OUT gets tests.log, bench-gpu.md and bench-gpu.json. The exit code is 0 if all tests passed and all numbers were right.
set -uo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-build/gpu} wheels=${WHEELS:-build/gpu-wheels} python=${PYTHON:-python3}
parts=${PARTS:-tests bench} tests_s=${TESTS_S:-330} bench_s=${BENCH_S:-470}
mkdir -p "$out"
out=$(realpath "$out")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

if compgen -G "$wheels/*.whl" >/dev/null; then
  # A wheel is installed only if the machine lacks the package: its own versions fit its torch.
  missing=()
  for wheel in "$wheels"/*.whl; do
    name=$(basename "$wheel" | cut -d- -f1)
    "$python" -I -c "import importlib.metadata as m, sys; m.version(sys.argv[1])" "$name" 2>/dev/null || missing+=("$wheel")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "${missing[@]}" || exit 2
  fi
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

# ftdist as in its wheel: launch, conf and slurm are packages inside it.
mkdir "$site/run"
cp -r ftdist tests pyproject.toml "$site/run"
cp -r launch conf slurm "$site/run/ftdist"
cd "$site/run"

failed=0 workers=()
"$python" -c "import xdist" 2>/dev/null && workers=(-n 4)
if [[ " $parts " == *" tests "* ]]; then
  timeout -k 10 "$tests_s" "$python" -m pytest -v "${workers[@]}" -m gpu -p no:cacheprovider ${TEST_ARGS:-} tests/gpu \
    tests/unit/model tests/unit/train/test_throughput.py tests/ranks/test_gpu.py 2>&1 | tee "$out/tests.log" |
    tail -n 40 || failed=1
fi
if [[ " $parts " == *" bench "* ]]; then
  "$python" -m tests.bench.gpu --out "$out" --limit "$bench_s" ${BENCH_ARGS:-} || failed=1
fi
exit $failed
