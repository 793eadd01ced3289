#!/usr/bin/env bash
# Measures lazycopy beside curl, 16 parallel curls, aria2c and rclone mount on a paced origin (20 ms per request, 60 MB/s per
# connection from the first byte), published files beside the native file, and many small files beside cp. Prints a table with method and spread, writes JSON.
#
#   scripts/bench.sh [--quick] [--only SHAPE] [--tools ours,curl,aria2,rclone] [--runs N] [--json FILE]
#
#   --quick        1 run on smaller files (some minutes; full: about an hour)
#   --only SHAPE   request, first, lookup, tail, random, sequential, parallel, small, reopen, verify, published, copy, copyhttp, delta, s3 or sftp; may be given several times
#   --tools LIST   only these; default: all that are installed
#   --runs N       runs per number (default 5; the median is shown with min and max)
#   --json FILE    default bench-results/TIME.json
#   --copy-files N, --copy-mib N, --delta-files N   sizes of copy (default 50000 files, 2048 MiB) and delta (1000000 files)
#
# LAZYCOPY=path measures another binary than target/release/lazycopy. Works below ${TMPDIR:-/var/tmp} (14 GiB, --quick 2 GiB) and removes it.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/origin.sh
source scripts/common.sh

quick=no
tools=""
arguments=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --tools) tools=${2:-} && shift ;;
    --only | --runs | --json | --copy-files | --copy-mib | --delta-files) shift ;;
    *)
      sed -n '2,14s/^# \{0,1\}//p' "$0"
      [ "$1" = --help ] && exit 0
      exit 2
      ;;
  esac
  shift || { echo "bench: an option lacks its value" >&2; exit 2; }
done

big_mib=1024 part_mib=512 needed_mib=14000
if [ "$quick" = yes ]; then big_mib=256 part_mib=128 needed_mib=2000; fi

common_need_fuse bench
if [ -z "$tools" ] || [[ ,$tools, = *,ours,* ]]; then
  common_build bench
fi
common_work bench "$needed_mib"

echo "bench: making the origin's files: $big_mib MiB and 4 x $part_mib MiB"
mkdir "$WORK/origin" "$WORK/runs"
random_bytes $((big_mib * 1024 * 1024)) >"$WORK/origin/big.bin"
for number in 1 2 3 4; do
  random_bytes $((part_mib * 1024 * 1024)) >"$WORK/origin/part$number.bin"
done
LATENCY_MS=20 RATE_MB=60 origin_start "$WORK/state" "$WORK/origin"

# In the background and waited for, so that the traps of this script run at once.
LAZYCOPY=${LAZYCOPY:-} python3 -B scripts/bench.py --url "$ORIGIN_URL" --origin "$WORK/origin" --work "$WORK/runs" "${arguments[@]}" &
wait $!
