#!/usr/bin/env bash
# Installs what building and running need on Debian 12 (Rust stable is taken to be there), or says exactly what to install.
#
#   scripts/setup.sh            build and run
#   scripts/setup.sh --test     and what the tests and the demo need
#   scripts/setup.sh --bench    and what the benchmark needs
#   scripts/setup.sh --check [--test|--bench]   only looks; exit 1 if something is missing
#
# Never starts a service and never changes the Rust toolchain. Quick when everything is there.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

level=build
check_only=no
for argument in "$@"; do
  case $argument in
    --test) level="test" ;;
    --bench) level=bench ;;
    --check) check_only=yes ;;
    *)
      sed -n '2,9s/^# \{0,1\}//p' "$0"
      [ "$argument" = --help ] && exit 0
      exit 2
      ;;
  esac
done

missing=()

# needs PACKAGE COMMAND-OR-FILE: notes the package if the command or file is not there.
needs() {
  if [[ $2 = /* ]]; then
    [ -e "$2" ] && return
  elif command -v "$2" >/dev/null; then
    return
  fi
  [[ " ${missing[*]-} " = *" $1 "* ]] || missing+=("$1")
}

needs build-essential cc
needs build-essential make
needs pkg-config pkg-config
needs ca-certificates /etc/ssl/certs/ca-certificates.crt
needs curl curl
needs fuse3 fusermount3
needs util-linux findmnt
if [ "$level" != build ]; then
  needs nginx nginx
  needs libnginx-mod-http-lua /usr/lib/nginx/modules/ngx_http_lua_module.so
  needs libnginx-mod-http-dav-ext /usr/lib/nginx/modules/ngx_http_dav_ext_module.so
  needs apache2-bin /usr/sbin/apache2
  needs attr setfattr
  needs acl setfacl
  needs rsync rsync
  needs e2fsprogs mkfs.ext4
  needs xfsprogs mkfs.xfs
  needs btrfs-progs mkfs.btrfs
  needs strace strace
  needs python3 python3
  needs openssl openssl
  needs procps pkill
  needs openssh-server sshd
  needs openssh-client ssh
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
fi
if [ "$level" = bench ]; then
  needs aria2 aria2c
  needs rclone rclone
  needs fio fio
  needs s3fs s3fs
  needs sshfs sshfs
fi

# What apt cannot help with is said in any case.
if ! command -v cargo >/dev/null; then
  echo "setup: cargo is missing: install Rust stable from https://rustup.rs" >&2
  exit 1
fi
if [ ! -e /dev/fuse ]; then
  echo "setup: note: there is no /dev/fuse here: building and 'make test-short' work, mounting does not (load the fuse module, or give the container the device)" >&2
fi

# What the tests of sources talk to and Debian has not: S3, Azure, GCS, WebDAV. One that cannot be had is named, and its tests do not run.
servers() {
  [ "$level" = build ] || [ "$check_only" = yes ] || "$(dirname "$0")/servers.sh" install ||
    echo "setup: note: the tests of those sources need them (scripts/servers.sh install)" >&2
}

if [ ${#missing[@]} -eq 0 ]; then
  servers
  exit 0
fi

# give_up REASON: names the command that a person can run.
give_up() {
  echo "setup: $1; install by hand: ${missing[*]}" >&2
  echo "setup: on Debian: sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
}

[ "$check_only" = no ] || give_up "missing packages"
command -v apt-get >/dev/null || give_up "there is no apt-get here"
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || give_up "not root, and there is no sudo"
  # Asks for a password only where a person can type one.
  sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; } || give_up "not root, and sudo is not allowed"
  as_root=(sudo)
fi

# Packages must not start their services: invoke-rc.d asks policy-rc.d. One that is there already is left alone.
policy=/usr/sbin/policy-rc.d
made_policy=no
forbid_services() {
  [ ! -e "$policy" ] || return 0
  made_policy=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
}
allow_services() {
  [ "$made_policy" = no ] || "${as_root[@]}" rm -f "$policy"
  made_policy=no
}
trap allow_services EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
forbid_services

echo "setup: installing ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
"${apt[@]}" update || echo "setup: apt-get update failed, trying with the old lists" >&2
"${apt[@]}" install --no-install-recommends "${missing[@]}" || give_up "apt-get install failed"

# A server that came only for the tests is not started at the next boot either.
for service in nginx:nginx openssh-server:ssh; do
  if [[ " ${missing[*]} " = *" ${service%:*} "* ]] && command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable "${service#*:}.service" >/dev/null 2>&1 ||
      echo "setup: note: could not disable ${service#*:}.service; it would start at the next boot" >&2
  fi
done
servers
