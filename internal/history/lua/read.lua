-- read: the head of logs, and a page of each.
--
-- KEYS  for each address: log, stream
-- ARGV  1 fresh epoch  2 log TTL ms  3 bytes a page may hold
--       then for each address: direction ('a' above the offset, 'b' below it,
--       '-' for the head alone), offset, limit of messages
-- Returns for each address { epoch, top, first, pairs, more (0 or 1),
--   { offset-ms, frame, offset-ms, frame, ... } }; above: ascending, from the one
--   next to the offset; below: descending, from the one next to it.
-- Atomic per address. Writes only where a log is new or Redis' history line
-- changed, so that there is an epoch to tell. Runs twice safely.

--#include clock
--#include line
--#include log

local line = historyLine()
local fresh, ttl, maxBytes = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Small steps, so that a page of large messages is not read whole to be cut.
local STEP = 16
-- What a frame gets on its way to a client: its position, a comma.
local TAIL = 64

local function page(stream, direction, offset, limit)
  local out, bytes, n = {}, 0, 0
  local at = direction == 'a' and int(offset + 1) or int(offset - 1)
  if direction == 'b' and offset <= 1 then return out, 0 end
  while true do
    local entries
    if direction == 'a' then
      entries = redis.call('XRANGE', stream, at, '+', 'COUNT', STEP)
    else
      entries = redis.call('XREVRANGE', stream, at, '-', 'COUNT', STEP)
    end
    for i = 1, #entries do
      local id, frame = entries[i][1], entries[i][2][2]
      if n == limit or (n > 0 and bytes + #frame + TAIL > maxBytes) then return out, 1 end
      out[#out + 1], out[#out + 2] = id, frame
      n, bytes = n + 1, bytes + #frame + TAIL
      at = tonumber(string.match(id, '^%d+'))
    end
    if #entries < STEP then return out, 0 end
    at = direction == 'a' and int(at + 1) or int(at - 1)
    if at == '0' then return out, 0 end
  end
end

local out, k = {}, 1
for i = 4, #ARGV, 3 do
  local L = openLog(KEYS[k], KEYS[k + 1], line, fresh, ttl)
  local entries, more = {}, 0
  if ARGV[i] ~= '-' then
    entries, more = page(KEYS[k + 1], ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
  end
  out[#out + 1] = { L.epoch, int(L.top), int(firstOffset(L, KEYS[k + 1])), redis.call('HGET', KEYS[k], 'p') or '', more, entries }
  k = k + 2
end
return out
