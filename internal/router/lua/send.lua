-- send: stores a batch of messages and hands them to the gateways that hold
-- their addresses.
--
-- KEYS  1 lease  2 line  3 num
--       then for each distinct address: holders, log, stream
-- ARGV  1 fresh epoch  2 messages kept  3 stream TTL ms  4 log TTL ms
--       5 channel prefix  6 number of distinct addresses n, then n addresses
--       then for each message: head, frame
--         head   16 bytes of H(sender, id), 8 bytes of H(content), 3 digits: the
--                address, from 1, then the time of the message in ms
--         frame  the message as its receiver gets it, without its position
-- Returns one line for each message, joined by LF:
--   "status epoch offset devices ms"  status r (routed) or s (stored); devices is
--                                     the connections of the gateways that
--                                     confirmed; ms is the message's time
--   "c"                               the id was used for another content
-- Atomic: offsets, log, dedupe, and the publish behind them, so receivers see
-- every address's offsets in order whichever gateway sent. Runs twice safely: a
-- message whose (sender, id) is known gets its first answer again and goes
-- nowhere. Nothing fails after the first write but a server out of memory, which
-- Redis checks before the script.

--#include clock
--#include line
--#include life
--#include log

local fresh, kept, streamTTL, logTTL, prefix = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local n = tonumber(ARGV[6])
local line = historyLine()
local logs, out, dest, gateways, records = {}, {}, {}, {}, {}

-- Dedupe records are the fields gen .. H(sender, id); the value is H(content)
-- and the line that was answered.
local function open(a, dk)
  local key = KEYS[2 + 3 * a]
  local L = logs[a]
  if not L then
    local v = redis.call('HMGET', key, 'h', '0' .. dk, '1' .. dk, '2' .. dk)
    L = parseLog(v[1], line, fresh)
    L.key, L.holders, L.stream, L.seen, L.writes = key, KEYS[1 + 3 * a], KEYS[3 + 3 * a], {}, {}
    L.head = ' ' .. #ARGV[6 + a] .. ' '
    L.address = ARGV[6 + a]
    logs[a] = L
    return L, v[2] or v[3] or v[4]
  end
  if L.seen[dk] then return L, nil, L.seen[dk] end
  local v = redis.call('HMGET', key, '0' .. dk, '1' .. dk, '2' .. dk)
  return L, v[1] or v[2] or v[3]
end

-- A generation is closed when it holds 256 records and is 10 minutes old; the one
-- before the last is swept, some fields with each call.
local function rotate(L)
  if L.cursor ~= '-' then
    local r = redis.call('HSCAN', L.key, L.cursor, 'MATCH', (L.gen + 1) % 3 .. '?*', 'COUNT', 64)
    local old = {}
    for i = 1, #r[2], 2 do
      if #r[2][i] == 17 then old[#old + 1] = r[2][i] end
    end
    for i = 1, #old, 4000 do
      redis.call('HDEL', L.key, unpack(old, i, math.min(i + 3999, #old)))
    end
    L.cursor = r[1] == '0' and '-' or r[1]
  elseif L.count >= 256 and now - L.since >= 600000 then
    L.gen, L.count, L.since, L.cursor = (L.gen + 1) % 3, 0, now, '0'
  end
end

-- Hourly, and when a log begins: its expiry moves on, and what is older than the
-- retention leaves the stream. Entry ids are offset-ms, so the first one young
-- enough is found by halving.
local function extend(L)
  redis.call('PEXPIRE', L.key, logTTL)
  redis.call('PEXPIRE', L.stream, streamTTL)
  local oldest = redis.call('XRANGE', L.stream, '-', '+', 'COUNT', 1)[1]
  local cutoff = now - streamTTL
  if not oldest or tonumber(string.match(oldest[1], '%d+$')) >= cutoff then return end
  local lo, hi = tonumber(string.match(oldest[1], '^%d+')), L.top
  while lo < hi do
    local mid = math.floor((lo + hi) / 2)
    local e = redis.call('XRANGE', L.stream, int(mid), '+', 'COUNT', 1)[1]
    if e and tonumber(string.match(e[1], '%d+$')) < cutoff then lo = mid + 1 else hi = mid end
  end
  redis.call('XTRIM', L.stream, 'MINID', int(lo))
end

local function append(L, m, dk, ch, ms, frame)
  if L.new then redis.call('UNLINK', L.stream) L.new = nil end
  L.top = L.top + 1
  local off = int(L.top)
  redis.call('XADD', L.stream, 'MAXLEN', '~', kept, off .. '-' .. int(now), '1', frame)
  if not L.held then
    L.held = redis.call('HGETALL', L.holders)
    for i = 1, #L.held, 2 do
      local gw = L.held[i]
      if not dest[gw] then
        dest[gw] = {}
        gateways[#gateways + 1] = gw
      end
    end
  end
  local record = L.epoch .. ' ' .. off .. L.head .. #frame .. '\n' .. L.address
  for i = 1, #L.held, 2 do
    local d = dest[L.held[i]]
    d[#d + 1] = record
    d[#d + 1] = frame
  end
  L.count = L.count + 1
  L.seen[dk] = m
  records[m] = { L = L, dk = dk, ch = ch, off = off, ms = ms }
end

local m = 0
for i = 7 + n, #ARGV, 2 do
  m = m + 1
  local head = ARGV[i]
  local dk, ch = string.sub(head, 1, 16), string.sub(head, 17, 24)
  local L, prior, same = open(tonumber(string.sub(head, 25, 27)), dk)
  if same then
    out[m] = records[same].ch == ch and same or 'c'
  elseif prior then
    out[m] = string.sub(prior, 1, 8) == ch and string.sub(prior, 9) or 'c'
  else
    append(L, m, dk, ch, string.sub(head, 28), ARGV[i + 1])
  end
end

-- One numbered publish for each gateway. Only receivers that Redis counts are
-- called routed, and not those of a gateway whose lease is over.
local reached = {}
for i = 1, #gateways do
  local gw = gateways[i]
  local number = redis.call('HINCRBY', KEYS[3], gw, 1)
  local r = redis.pcall(PUBLISH, prefix .. gw, '\1m' .. int(number) .. '\n' .. table.concat(dest[gw]))
  reached[gw] = type(r) == 'number' and r > 0 and not (leaseEnded(KEYS[1], gw) and not quietTime(KEYS[2]))
end

for i = 1, m do
  local rec = records[i]
  if rec then
    local L, devices, status = rec.L, 0, 's'
    for j = 1, #L.held, 2 do
      if reached[L.held[j]] then
        devices = devices + tonumber(L.held[j + 1])
        status = 'r'
      end
    end
    out[i] = status .. ' ' .. L.epoch .. ' ' .. rec.off .. ' ' .. devices .. ' ' .. rec.ms
    local w = L.writes
    w[#w + 1] = L.gen .. rec.dk
    w[#w + 1] = rec.ch .. out[i]
  elseif type(out[i]) == 'number' then
    out[i] = out[out[i]]
  end
end

for a = 1, n do
  local L = logs[a]
  if L and #L.writes > 0 then
    if L.rolled then redis.call('HSET', L.key, 'p', pushPair(L.key, L.rolled)) end
    rotate(L)
    local due = now - L.ext >= 3600000
    if due then L.ext = now end
    redis.call('HSET', L.key, 'h', formatLog(L), unpack(L.writes))
    if due then extend(L) end
  end
end
return table.concat(out, '\n')
