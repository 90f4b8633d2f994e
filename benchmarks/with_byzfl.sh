#!/bin/sh
# benchmarks/robust.py beside ByzFL, in build/byzfl: an environment that sees the packages of .venv and adds
# ByzFL alone, without what it asks for, because it would replace torch.  Arguments go to the benchmark.
set -e
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
if [ ! -e build/byzfl/.done ]; then
    "$python" -m venv --without-pip build/byzfl
    site=$(build/byzfl/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/project.pth"
    "$python" -m pip install --quiet --no-deps --target "$site" byzfl==0.0.11
    touch build/byzfl/.done
fi
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec env PYTHONPATH="$PWD" build/byzfl/bin/python benchmarks/robust.py "$@"
