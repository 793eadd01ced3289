# Shared by demo.sh and bench.sh: a work directory that is always cleaned up, sample bytes, mounts. Sourced, not run.
# shellcheck shell=bash

# Settings of the user must not change what is shown and measured.
unset "${!LAZYCOPY_@}"

# common_work PREFIX NEEDED_MIB: makes WORK, with the sub-directory state for the origin, and has it removed at every ending.
common_work() {
  local base=${TMPDIR:-/var/tmp} free_mib
  if [[ $base = *[[:space:]]* ]]; then
    echo "$1: TMPDIR must not contain spaces: $base" >&2
    exit 1
  fi
  free_mib=$(df -Pm "$base" | awk 'NR == 2 { print $4 }')
  if [ "$free_mib" -lt "$2" ]; then
    echo "$1: needs $2 MiB in $base, free are $free_mib MiB (set TMPDIR to another directory)" >&2
    exit 1
  fi
  WORK=$(mktemp -d "$base/lazycopy-$1.XXXXXX")
  trap common_cleanup EXIT
  trap 'echo; exit 130' INT
  trap 'exit 143' TERM HUP
  mkdir "$WORK/state"
}

# Everything of this run is below WORK: mounts first, then the server, then the files.
common_cleanup() {
  local status=$? mounted
  trap '' INT TERM HUP
  set +e
  common_end_jobs
  while read -r mounted; do
    "${LAZYCOPY:-false}" unmount --force "$mounted" >/dev/null 2>&1
    if mountpoint -q "$mounted" 2>/dev/null || ! stat "$mounted" >/dev/null 2>&1; then
      fusermount3 -u -z "$mounted" 2>/dev/null || umount -l "$mounted" 2>/dev/null
    fi
  done < <(awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo)
  origin_stop "$WORK/state"
  wait 2>/dev/null
  # The daemon closes its files in the moment after its mount is gone.
  rm -rf --one-file-system "$WORK" 2>/dev/null || { sleep 1; rm -rf --one-file-system "$WORK"; }
  exit "$status"
}

# Ends what runs in the background: asked first, killed after 3 s (a reader of a mount that hangs can only be killed).
common_end_jobs() {
  local children
  children=$(jobs -pr)
  [ -n "$children" ] || return 0
  # shellcheck disable=SC2086 # one process id per word
  kill $children 2>/dev/null
  for _ in {1..30}; do
    [ -n "$(jobs -pr)" ] || return 0
    sleep 0.1
  done
  # shellcheck disable=SC2086
  kill -KILL $children 2>/dev/null
}

# Without the kernel's FUSE there is nothing to show: says so in one line and ends.
common_need_fuse() {
  if [ ! -c /dev/fuse ] || ! (exec 3<>/dev/fuse) 2>/dev/null; then
    echo "$1: /dev/fuse cannot be opened here, so nothing can be mounted; what works without it: make test-short, and make build, whose 'lazycopy doctor' says what is missing" >&2
    exit 1
  fi
}

# random_bytes COUNT: that many bytes that do not repeat.
random_bytes() {
  if command -v openssl >/dev/null; then
    # A stream cipher over zeros is four times as fast as /dev/urandom.
    head -c "$1" /dev/zero | openssl enc -aes-128-ctr -nosalt -pass "pass:$RANDOM$RANDOM$RANDOM" -pbkdf2 -iter 1 2>/dev/null
  else
    head -c "$1" /dev/urandom
  fi
}

# The program under test: $LAZYCOPY if set, else the release build, made now.
common_build() {
  if [ -n "${LAZYCOPY:-}" ]; then
    echo "$1: using $LAZYCOPY"
    return
  fi
  echo "$1: building the program (minutes the first time, seconds afterwards) ..."
  cargo build --release --locked --quiet
  LAZYCOPY=$PWD/${CARGO_TARGET_DIR:-target}/release/lazycopy
}
