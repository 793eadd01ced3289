#!/usr/bin/env bash
# The paced origin: nginx on loopback with a fixed latency per request and a fixed rate per connection from the first byte.
#
#   scripts/origin.sh start STATE ROOT    serves ROOT, prints its URL; STATE is an empty directory of its own (conf, logs, pid)
#   scripts/origin.sh stop STATE          ends it and waits until it is gone
#
# Environment: PORT (0 = a free one), LATENCY_MS (20), RATE_MB (60 = 60 000 000 bytes/s; 0 = unpaced, plain static files), WORKERS (1).
# Sourced, it gives the functions origin_start and origin_stop. GET /.origin/counters answers "requests bytes" since the start.

ORIGIN_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ORIGIN_MODULES=${ORIGIN_MODULES:-/usr/lib/nginx/modules}

# A port that nothing listens on, below the range that the kernel hands out by itself.
origin_free_port() {
  local port attempt
  for attempt in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return 0
    fi
  done
  echo "origin: no free port after $attempt attempts" >&2
  return 1
}

# origin_config STATE ROOT PORT: the nginx configuration.
origin_config() {
  local state=$1 root=$2 port=$3 latency=${LATENCY_MS:-20} rate=${RATE_MB:-60} serve=""
  if [ "$rate" != 0 ]; then
    serve="content_by_lua_block { origin.serve($rate * 1000000) }"
  fi
  if [ "$(id -u)" = 0 ]; then
    echo "user root;" # the tree may be readable by its owner only
  fi
  cat <<CONF
load_module $ORIGIN_MODULES/ndk_http_module.so;
load_module $ORIGIN_MODULES/ngx_http_lua_module.so;
worker_processes ${WORKERS:-1};
worker_rlimit_nofile 4096;
pid $state/nginx.pid;
error_log $state/error.log warn;
events { worker_connections 2048; }
http {
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000;
  absolute_redirect off;
  client_body_temp_path $state/body;
  proxy_temp_path $state/proxy;
  fastcgi_temp_path $state/fastcgi;
  uwsgi_temp_path $state/uwsgi;
  scgi_temp_path $state/scgi;
  lua_package_path "$ORIGIN_SCRIPTS/?.lua;;";
  lua_shared_dict origin 64k;
  init_by_lua_block { origin = require "origin" }
  server {
    listen 127.0.0.1:$port backlog=1024;
    root $root;
    location = /.origin/counters { content_by_lua_block { origin.counters() } }
    location / {
      access_by_lua_block { origin.delay($latency) }
      autoindex on;
      $serve
    }
    location @index { autoindex on; }
  }
}
CONF
}

# origin_start STATE ROOT: sets ORIGIN_URL. The server has a session of its own, so Ctrl-C does not end it: origin_stop does.
origin_start() {
  local state root port=${PORT:-0}
  state=$(realpath "$1") || return 1
  root=$(realpath "$2") || return 1
  if ! PATH=$PATH:/usr/sbin command -v nginx >/dev/null || [ ! -e "$ORIGIN_MODULES/ngx_http_lua_module.so" ]; then
    echo "origin: nginx with its lua module is missing: scripts/setup.sh --test installs it" >&2
    return 1
  fi
  if [ "$port" = 0 ]; then
    port=$(origin_free_port) || return 1
  fi
  origin_config "$state" "$root" "$port" >"$state/nginx.conf"
  # Without the two variables every piece that nginx sends is memory mapped, faulted in and unmapped again: twice the CPU time.
  if ! PATH=$PATH:/usr/sbin MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 \
    nginx -p "$state" -c "$state/nginx.conf" 2>"$state/start.log"; then
    echo "origin: nginx does not start:" >&2
    cat "$state/start.log" >&2
    return 1
  fi
  # shellcheck disable=SC2034 # for the script that sources this one
  ORIGIN_URL=http://127.0.0.1:$port/
}

# origin_stop STATE: no error if it is not running.
origin_stop() {
  local pid tick
  pid=$(cat "$1/nginx.pid" 2>/dev/null) || return 0
  [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null || return 0
  for tick in {1..100}; do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.05
  done
  echo "origin: nginx $pid does not end after $((tick / 20)) s, killed" >&2
  pkill -KILL -P "$pid" || true
  kill -KILL "$pid" 2>/dev/null || true
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  case "${1:-} $#" in
    "start 3") origin_start "$2" "$3" && echo "$ORIGIN_URL" ;;
    "stop 2") origin_stop "$2" ;;
    *)
      sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
fi
