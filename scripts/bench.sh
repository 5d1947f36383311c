#!/bin/sh
# Times the references beside torch's own operators: scripts/bench.sh --help
exec "$(dirname -- "$0")/kata.sh" bench "$@"
