#!/usr/bin/env bash
# Everything that wants a GPU, in one round of at most nine minutes: tests, then measurements. Works
# from a bare checkout beside a torch >= 2.11. Writes gpu_round.json and gpu_round.md to a folder.
#   benchmarks/gpu_round.sh [FOLDER]
#   WHEELS=folder benchmarks/gpu_round.sh    # without an index: packages that the machine lacks
#   DEVICE=cpu benchmarks/gpu_round.sh       # rehearse it where there is no GPU: small, no figures
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
site=$PWD
if [ -n "${WHEELS:-}" ]; then
    target=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --target "$target" "$WHEELS"/*.whl
    site=$site:$target
fi
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
exec "$python" benchmarks/gpu_round.py --device "${DEVICE:-cuda}" --out "${1:-runs/gpu_round}"
