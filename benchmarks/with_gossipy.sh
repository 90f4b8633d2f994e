#!/bin/sh
# benchmarks/beside_gossipy.py in build/gossipy: an environment that sees the packages of .venv and adds gossipy
# (gossipy-dfl, Apache-2.0) and what it lacks there, without torch.
set -e
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
if [ ! -e build/gossipy/.done ]; then
    "$python" -m venv --without-pip build/gossipy
    site=$(build/gossipy/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/project.pth"
    "$python" -m pip install --quiet --no-deps --target "$site" gossipy-dfl==0.0.1 dill pandas python-dateutil \
        pytz six tzdata pyparsing ||
        { echo "gossipy cannot be installed here, so there is nothing to stand beside" >&2; exit 0; }
    # p2pfl.cli and p2pfl.simulations are found by the same finder as in .venv.
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    finder=$(basename "$(ls "$packages"/__editable___p2pfl_node_*_finder.py)" .py)
    echo "import $finder; $finder.install()" > "$site/z-after-project.pth"
    touch build/gossipy/.done
fi
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec build/gossipy/bin/python -P benchmarks/beside_gossipy.py "$@"
