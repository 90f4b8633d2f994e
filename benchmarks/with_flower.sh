#!/bin/sh
# benchmarks/beside_flower.py, and Flower's simulation (flwr, Apache-2.0, with Ray) in build/flower: an environment
# of its own, without torch.  Arguments go to the benchmark.
set -e
cd "$(dirname "$0")/.."
if [ ! -e build/flower/.done ]; then
    .venv/bin/python -m venv build/flower
    build/flower/bin/python -m pip install --quiet "flwr[simulation]==1.42.0" ||
        { echo "Flower cannot be installed here, so there is nothing to stand beside" >&2; exit 0; }
    touch build/flower/.done
fi
exec .venv/bin/python benchmarks/beside_flower.py "$@"
