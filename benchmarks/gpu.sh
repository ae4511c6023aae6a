#!/usr/bin/env bash
# Everything that only a GPU can show, in eight minutes of one: tests marked gpu, speed beside plain diffusers, seconds
# and memory of each stage, and that results are those of the processor. Needs a checkout, Python with torch, and no
# network.
#
#     benchmarks/gpu.sh [--out FOLDER] [--small]        writes FOLDER/gpu.json and FOLDER/summary.txt
#     DEVICE=cpu benchmarks/gpu.sh --small              the same script on a processor, with tiny models
#
# FOLDER is $OUT, or gpu-results. The exit code is not 0 where a part failed; the others are done all the same. SLOWER=4
# gives each part four times its seconds, on a machine that is busy.
#
# What the machine lacks beside torch is carried as wheels in .whl (or $WHEELS), and put into a folder of its own. On a
# machine with a network, of the same Python and Linux:
#
#     grep -vE '^(torch|triton|nvidia-|cuda-)' requirements.lock >carried.txt
#     python3 -m pip download --no-deps --only-binary=:all: -d .whl -r carried.txt pytest hypothesis
#
# torchvision has to be of the torch that is there. In an environment of `make`, PYTHON=.venv/bin/python and no wheels.
set -uo pipefail
cd "$(dirname "$0")/.."

device=${DEVICE:-cuda} out=${OUT:-gpu-results} small=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --small) small=(--small); shift ;;
    *) echo "gpu.sh: there is no option $1; there are --out FOLDER and --small" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
mkdir -p "$out/logs" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
rm -f "$out"/*.json "$out/summary.txt"

wheels=${WHEELS:-.whl}
if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl || exit 2
fi
export PYTHONPATH="$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Nothing is fetched, whoever would.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 ENGRAM_CACHE="$work/cache"

failed=0
part() { # NAME SECONDS COMMAND ...: within so many seconds, its output in a log
    local name=$1 seconds=$(($2 * ${SLOWER:-1})) begun=$SECONDS
    shift 2
    echo "gpu.sh: $name, at most $seconds s" >&2
    timeout --kill-after=5 "$seconds" "$@" >"$out/logs/$name.log" 2>&1
    local code=$?
    [ $code -eq 0 ] || { failed=1; echo "gpu.sh: $name failed ($code), see $out/logs/$name.log" >&2; }
    if [ ! -f "$out/$name.json" ]; then # tests write none, and neither does what was stopped
        local why="[]"
        [ $code -eq 0 ] || why="[\"exit code $code\"]"
        printf '{"seconds": %d, "failed": %s}\n' $((SECONDS - begun)) "$why" >"$out/$name.json"
    fi
}
measure() { part "$1" "$2" "$python" -m benchmarks.gpu "$1" --device "$device" --out "$work/$1" "${small[@]}"; keep "$1"; }
keep() { # what is read, not models and stores
    for file in "$work/$1"/*.json; do [ ! -f "$file" ] || cp "$file" "$out"; done
}

measure flags 40
measure equality 50
measure speed 130
measure reference 60
measure full 100
part tests 80 "$python" -m pytest -q -p no:cacheprovider -m gpu tests
"$python" -m benchmarks.gpu summary --out "$out" || failed=1
exit $failed
