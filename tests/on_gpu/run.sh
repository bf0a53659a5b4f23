#!/usr/bin/env bash
# All checks of a GPU, in less than five minutes; docs/cuda.md says what is run and reported.
#   tests/on_gpu/run.sh [--out FOLDER] [--simulator] [--only STAGE,..]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" -B "$here" "$@"
