-- The paced origin: static files with a fixed latency per request and a fixed rate per request from the first byte.
-- nginx's own limit_rate gives every request its first second free, so the pace is kept here.
-- Loaded once per worker by scripts/origin.sh; serve() answers one request.

local ffi = require "ffi"

ffi.cdef [[
struct origin_statx_time { int64_t sec; uint32_t nsec; int32_t pad; };
struct origin_statx {
  uint32_t mask, blksize; uint64_t attributes; uint32_t nlink, uid, gid; uint16_t mode, pad;
  uint64_t ino, size, blocks, attributes_mask;
  struct origin_statx_time atime, btime, ctime, mtime;
  uint64_t rest[16];
};
int statx(int dirfd, const char *path, int flags, unsigned int mask, struct origin_statx *out);
struct origin_timespec { int64_t sec; int64_t nsec; };
int clock_gettime(int clock, struct origin_timespec *out);
int open(const char *path, int flags, ...);
int close(int fd);
int64_t pread(int fd, void *buf, size_t count, int64_t offset);
]]

local C = ffi.C
local AT_FDCWD, STATX_BASIC, CLOCK_MONOTONIC = -100, 0x7ff, 1
local O_CLOEXEC = 0x80000
local S_IFMT, S_IFREG, S_IFDIR = 0xf000, 0x8000, 0x4000
local PIECE_BYTES = 128 * 1024
local STRING_BYTES = 32 * 1024 -- below the size from which LuaJIT maps and unmaps memory for every string

local stat_out = ffi.new("struct origin_statx")
local time_out = ffi.new("struct origin_timespec")
local buffer = ffi.new("char[?]", PIECE_BYTES)

local function now()
  C.clock_gettime(CLOCK_MONOTONIC, time_out)
  return tonumber(time_out.sec) + tonumber(time_out.nsec) / 1e9
end

-- Waits until `due` (seconds of now()); a wait below nginx's timer resolution of 1 ms is made up for by the next one.
local function sleep_until(due)
  local ahead_ms = math.floor((due - now()) * 1000 + 0.5)
  if ahead_ms >= 1 then
    ngx.update_time()
    ngx.sleep(ahead_ms / 1000)
  end
end

local function is_in(list, tag)
  return list == "*" or list:find(tag, 1, true) ~= nil
end

-- The first and last byte to send and the status. More than one range, or a malformed one, is answered with the whole file (RFC 9110 14.2).
local function select_range(header, size)
  local first, last = header:match("^bytes=(%d*)-(%d*)$")
  if not first or (first == "" and last == "") then return 0, size - 1, 200 end
  if first == "" then
    first, last = math.max(0, size - tonumber(last)), size - 1
  else
    first, last = tonumber(first), math.min(last == "" and size - 1 or tonumber(last), size - 1)
  end
  if first > last then return nil, nil, 416 end
  return first, last, 206
end

local function send(path, first, last, bytes_per_s, started)
  local fd = C.open(path, O_CLOEXEC)
  if fd < 0 then return end
  local counters = ngx.shared.origin
  local offset, sent = first, 0
  while offset <= last do
    local got = tonumber(C.pread(fd, buffer, math.min(PIECE_BYTES, last - offset + 1), offset))
    if got <= 0 then break end
    local strings = {}
    for at = 0, got - 1, STRING_BYTES do
      strings[#strings + 1] = ffi.string(buffer + at, math.min(STRING_BYTES, got - at))
    end
    -- A piece is there when a line of this rate would have carried it.
    sleep_until(started + (sent + got) / bytes_per_s)
    ngx.print(strings)
    if not ngx.flush(true) then break end
    offset, sent = offset + got, sent + got
    counters:incr("bytes", got, 0)
  end
  C.close(fd)
end

local origin = {}

-- Sleeps the latency of one request and counts it.
function origin.delay(latency_ms)
  ngx.shared.origin:incr("requests", 1, 0)
  if latency_ms > 0 then
    ngx.update_time()
    ngx.sleep(latency_ms / 1000)
  end
end

-- Answers what was counted since the start, for the benchmark's "bytes fetched per byte asked".
function origin.counters()
  local counters = ngx.shared.origin
  ngx.header.content_type = "text/plain"
  ngx.say(counters:get("requests") or 0, " ", counters:get("bytes") or 0)
end

-- Answers a GET or HEAD of a file; directories go to nginx's autoindex.
function origin.serve(bytes_per_s)
  local started = now()
  local path, headers, method = ngx.var.request_filename, ngx.req.get_headers(), ngx.req.get_method()
  if method ~= "GET" and method ~= "HEAD" then return ngx.exit(405) end
  if C.statx(AT_FDCWD, path, 0, STATX_BASIC, stat_out) ~= 0 then return ngx.exit(404) end
  local kind = bit.band(stat_out.mode, S_IFMT)
  if kind == S_IFDIR then return ngx.exec("@index") end
  if kind ~= S_IFREG then return ngx.exit(403) end

  local size, mtime = tonumber(stat_out.size), tonumber(stat_out.mtime.sec)
  local etag, modified = string.format('"%x-%x"', mtime, size), ngx.http_time(mtime)
  if headers["If-Match"] then
    if not is_in(headers["If-Match"], etag) then return ngx.exit(412) end
  elseif headers["If-Unmodified-Since"] then
    local since = ngx.parse_http_time(headers["If-Unmodified-Since"])
    if since and mtime > since then return ngx.exit(412) end
  end
  if headers["If-None-Match"] and is_in(headers["If-None-Match"], etag) then
    ngx.header["ETag"] = etag
    return ngx.exit(304)
  end

  local first, last, status = 0, size - 1, 200
  local condition = headers["If-Range"]
  if method == "GET" and headers["Range"] and (not condition or condition == etag or condition == modified) then
    first, last, status = select_range(headers["Range"], size)
  end
  ngx.header["Accept-Ranges"] = "bytes"
  if status == 416 then
    ngx.header["Content-Range"] = "bytes */" .. string.format("%d", size)
    return ngx.exit(416)
  end
  ngx.status = status
  ngx.header["ETag"], ngx.header["Last-Modified"] = etag, modified
  ngx.header["Content-Type"] = "application/octet-stream"
  ngx.header["Content-Length"] = string.format("%d", last - first + 1)
  if status == 206 then
    ngx.header["Content-Range"] = string.format("bytes %d-%d/%d", first, last, size)
  end
  ngx.send_headers()
  if method == "GET" and size > 0 then send(path, first, last, bytes_per_s, started) end
end

return origin
