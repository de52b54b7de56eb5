-- send: stores a batch of messages and hands them to the gateways that hold
-- their addresses.
--
-- KEYS  1 lease  2 line  3 num
--       then for each distinct address: holders, log, stream
--       then evm, when events are written
-- ARGV  1 fresh epoch  2 messages kept  3 stream TTL ms  4 log TTL ms
--       5 channel prefix  6 the history line the gateway knows ('': any)
--       7 events kept ('0': none is written)  8 1 when an event has the frame in it
--       then for each message: head, frame, and origin when events are written
--         head   16 bytes of H(sender, id), 3 digits: the address, from 1, then
--                8 bytes of H(content), 13 digits: the time of the message in ms,
--                + or - for whether it may be the first to its address, then the
--                rest of its record's head (protocol/envelope.go), from the space
--                behind the offset to the address
--         frame  the message as its receiver gets it, without its position
--         origin where it came from, as its event says it (protocol.AppendMessageOrigin);
--                '': it has none
-- Returns Redis' history line, and nothing else was done when it is not the one
-- the gateway knows; otherwise it is followed by one line for each message, all
-- joined by LF:
--   "status epoch offset devices ms"  status r (routed) or s (stored); devices is
--                                     the connections of the gateways that
--                                     confirmed; ms is the message's time
--   "c"                               the id was used for another content
--   "n"                               nobody has written to the address, and it may
--                                     not be the first: nothing was stored
-- Atomic: offsets, log, dedupe, the publish behind them and the event, so receivers
-- see every address's offsets in order whichever gateway sent. Runs twice safely: a
-- message whose (sender, id) is known gets its first answer again and goes
-- nowhere. Nothing fails after the first write but a server out of memory, which
-- Redis checks before the script.
--
-- This is the hot path: one HMGET, one XADD and one HGETALL for a message, one
-- HSET for an address, one PUBLISH for a gateway; with events one HINCRBY and one
-- XADD more for a message.

--#include clock
--#include line
--#include life
--#include log

local call, sub, byte = redis.call, string.sub, string.byte
local fresh, kept, streamTTL, logTTL, prefix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local line = historyLine()
if ARGV[6] ~= '' and ARGV[6] ~= line then return line end
local eventsKept, framed = ARGV[7], ARGV[8] == '1'
local evented = eventsKept ~= '0'
local stride = evented and 3 or 2       -- of what each message has in ARGV
local n = math.floor((#KEYS - 3) / 3) -- distinct addresses
local nowMs, nowS = int(now), int(now / 1000)

-- By address: the head of its log, and holders as gateway, count, ...
local logs, held = {}, {}
-- By message: its address, key of dedupe, H(content) and the line to answer.
local address, key, content, answer = {}, {}, {}, {}
local offset, ms = {}, {}
-- By message, where events are written: its place in ARGV.
local at = {}
-- By message of this call, under H(sender, id) and address.
local seen = {}
-- By gateway: the records of its envelope.
local envelope, gateways = {}, {}

-- A dedupe record is the field H(sender, id); the value is H(content), the
-- generation, and the line that was answered.
local function answerAgain(record, ch)
  return sub(record, 1, 8) == ch and sub(record, 10) or 'c'
end

local function holders(a)
  local h = call('HGETALL', KEYS[1 + 3 * a])
  for i = 1, #h, 2 do
    if not envelope[h[i]] then
      envelope[h[i]] = {}
      gateways[#gateways + 1] = h[i]
    end
  end
  held[a] = h
  return h
end

local m = 0
for i = 9, #ARGV, stride do
  m = m + 1
  local head, frame = ARGV[i], ARGV[i + 1]
  local id, dk, ch = sub(head, 1, 19), sub(head, 1, 16), sub(head, 20, 27)
  local hundreds, tens, ones = byte(head, 17, 19)
  local a = hundreds * 100 + tens * 10 + ones - 5328 -- the codes of '0', 111 times
  local L, same, prior = logs[a], seen[id], nil
  if not L then
    local v = call('HMGET', KEYS[2 + 3 * a], 'h', dk)
    L, prior = parseLog(v[1], line, fresh), v[2]
    if L.top == 0 then L.ext = '0' end -- a register may have made the head; the stream begins now
    logs[a] = L
  elseif not same then
    prior = call('HGET', KEYS[2 + 3 * a], dk)
  end
  if same then
    answer[m] = content[same] == ch and same or 'c'
  elseif prior then
    answer[m] = answerAgain(prior, ch)
  elseif L.top == 0 and byte(head, 41) == 45 then
    answer[m] = 'n'
  else
    if L.new then
      call('UNLINK', KEYS[3 + 3 * a])
      L.new = nil
    end
    L.top, L.count = L.top + 1, L.count + 1
    local off = int(L.top)
    call('XADD', KEYS[3 + 3 * a], 'MAXLEN', '~', kept, off .. '-' .. nowMs, '1', frame)
    local h = held[a] or holders(a)
    if h[1] then
      local record = L.epoch .. ' ' .. off .. sub(head, 42) .. frame
      for j = 1, #h, 2 do
        local e = envelope[h[j]]
        e[#e + 1] = record
      end
    end
    seen[id] = m
    address[m], key[m], content[m], offset[m], ms[m] = a, dk, ch, off, sub(head, 28, 40)
    if evented and ARGV[i + 2] ~= '' then at[m] = i end
  end
end

-- One numbered publish for each gateway. Only receivers that Redis counts are
-- called routed, and not those of a gateway whose lease is over.
local reached = {}
for i = 1, #gateways do
  local gw = gateways[i]
  local number = call('HINCRBY', KEYS[3], gw, 1)
  local r = redis.pcall(PUBLISH, prefix .. gw, '\1m' .. int(number) .. '\n' .. table.concat(envelope[gw]))
  reached[gw] = type(r) == 'number' and r > 0 and not (leaseEnded(KEYS[1], gw) and not quietTime(KEYS[2]))
end

-- event: one stored message, for who is told of them. The field sent is what is
-- answered; frame has the content.
local function event(place, sent)
  local number = int(call('HINCRBY', KEYS[3], 'evm', 1))
  local origin, stream = ARGV[place + 2], KEYS[#KEYS]
  if framed then
    call('XADD', stream, 'MAXLEN', '~', eventsKept, '*', 'n', number, 'type', 'message', 'ms', nowMs, 'sent', sent,
      'origin', origin, 'frame', ARGV[place + 1])
  else
    call('XADD', stream, 'MAXLEN', '~', eventsKept, '*', 'n', number, 'type', 'message', 'ms', nowMs, 'sent', sent,
      'origin', origin)
  end
end

for i = 1, m do
  local a = address[i]
  if a then
    local L, h, devices, status = logs[a], held[a], '0', 's '
    for j = 1, #h, 2 do
      if reached[h[j]] then
        devices = status == 's ' and h[j + 1] or int(devices + h[j + 1])
        status = 'r '
      end
    end
    local text = status .. L.epoch .. ' ' .. offset[i] .. ' ' .. devices .. ' ' .. ms[i]
    answer[i] = text
    if at[i] then event(at[i], text) end
    local record = content[i] .. L.gen .. text
    if not L.key then
      L.key, L.record = key[i], record
    else
      local more = L.more
      if not more then
        more = {}
        L.more = more
      end
      more[#more + 1] = key[i]
      more[#more + 1] = record
    end
  elseif type(answer[i]) == 'number' then
    answer[i] = answer[answer[i]]
  end
end

-- A generation is closed when it holds 256 records and is 10 minutes old; the one
-- before the last is swept, some fields with each call.
local function rotate(L, logKey)
  if L.cursor ~= '-' then
    local swept = tostring((tonumber(L.gen) + 1) % 3)
    -- Faster than this call adds records, or a busy log would never be swept.
    local r = call('HSCAN', logKey, L.cursor, 'COUNT', math.max(64, 2 * #(L.more or {})))
    local old = {}
    for i = 1, #r[2], 2 do
      if #r[2][i] == 16 and sub(r[2][i + 1], 9, 9) == swept then old[#old + 1] = r[2][i] end
    end
    for i = 1, #old, 4000 do
      call('HDEL', logKey, unpack(old, i, math.min(i + 3999, #old)))
    end
    L.cursor = r[1] == '0' and '-' or r[1]
  elseif L.count >= 256 and nowS - L.since >= 600 then
    L.gen, L.count, L.since, L.cursor = tostring((tonumber(L.gen) + 1) % 3), 0, nowS, '0'
  end
end

-- What is stored just before the next extension must not expire early.
local slack = 2 * 3600000
-- Hourly, and when a log begins: its expiry moves on, and what is older than the
-- retention leaves the stream. Entry ids are offset-ms, so the first one young
-- enough is found by halving.
local function extend(L, logKey, stream)
  call('PEXPIRE', logKey, logTTL + slack)
  call('PEXPIRE', stream, streamTTL + slack)
  local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local cutoff = now - streamTTL
  if not oldest or tonumber(string.match(oldest[1], '%d+$')) >= cutoff then return end
  local lo, hi = tonumber(string.match(oldest[1], '^%d+')), L.top
  while lo < hi do
    local mid = math.floor((lo + hi) / 2)
    local e = call('XRANGE', stream, int(mid), '+', 'COUNT', 1)[1]
    if e and tonumber(string.match(e[1], '%d+$')) < cutoff then lo = mid + 1 else hi = mid end
  end
  call('XTRIM', stream, 'MINID', int(lo))
end

local looked = false
for a = 1, n do
  local L, logKey = logs[a], KEYS[2 + 3 * a]
  if L and L.key then
    if L.rolled then call('HSET', logKey, 'p', pushPair(logKey, L.rolled)) end
    if L.count >= 256 or L.cursor ~= '-' then rotate(L, logKey) end
    local due = nowS - L.ext >= 3600
    if due then L.ext = nowS end
    if L.more then
      call('HSET', logKey, 'h', formatLog(L), L.key, L.record, unpack(L.more))
    else
      call('HSET', logKey, 'h', formatLog(L), L.key, L.record)
    end
    if due then
      extend(L, logKey, KEYS[3 + 3 * a])
      looked = true
    end
  end
end
-- What an event says of a message is not kept for longer than the message is.
if evented and looked then
  call('PEXPIRE', KEYS[#KEYS], streamTTL + slack)
  call('XTRIM', KEYS[#KEYS], 'MINID', int(now - streamTTL))
end
if m == 0 then return line end
return line .. '\n' .. table.concat(answer, '\n')
