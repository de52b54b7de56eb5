-- carry: a gateway's turn in carrying one group's events to one sink.
--
-- KEYS  1 ev or evm  2 sinks  3 num
-- ARGV  1 sink  2 gateway  3 lease ms  4 how many events to read, at most; 0: only
--       keep the lease, -1: give it up  5 read, as the last answer said; '' when none did
--       6 number of the last event acknowledged here (0: none)  7 ev or evm, then the
--       stream ids to acknowledge
-- Returns { state, read, top, acked, lost, again, events {id, {field, value, ...}} }
--   state  held: another gateway carries them. kept: this one goes on. taken: this
--          one begins, where the one before it left off. new: Redis knew nothing of
--          the sink
--   read   number of the last event read by anyone, top: of the last one written,
--          acked: up to which all are acknowledged
--   lost   events found to be trimmed before a gateway could read them, also as an answer had it that nobody may have got
--   again  1 when the events were read before, by whoever did not acknowledge them
-- The field of sinks, the sink or "<sink> evm", holds "gateway end-of-lease read acked".
-- Atomic: the judgement of the lease and everything it allows, so two gateways never
-- read at a time and the events of one user stay in order.
-- Runs twice safely: a caller who did not get the answer names a read that is not
-- the stored one, and gets what that answer held once more.

--#include clock

local sink, gw, count, counter = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[7]
local field = counter == 'ev' and sink or sink .. ' ' .. counter
local top = tonumber(redis.call('HGET', KEYS[3], counter)) or 0
local known = redis.call('HGET', KEYS[2], field)
local holder, till, read, acked = string.match(known or '', '^(%S+) (%d+) (%d+) (%d+)$')
read, acked = tonumber(read) or 0, tonumber(acked) or 0
local state, lost, again, events = 'kept', 0, 0, {}
local most = 512 * 1024 -- bytes of events in an answer, about

local function answer()
  return { state, int(read), int(top), int(acked), int(lost), again, events }
end
local function save(till)
  redis.call('HSET', KEYS[2], field, gw .. ' ' .. int(till) .. ' ' .. int(read) .. ' ' .. int(acked))
end
local function numberOf(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'n' then return tonumber(fields[i + 1]) end
  end
  return read + 1
end
-- A sink seen for the first time gets what is kept; what was trimmed before is not its loss.
local function create()
  redis.pcall('XGROUP', 'CREATE', KEYS[1], sink, '0', 'MKSTREAM')
  if not holder then
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    read = top
    if first then read = numberOf(first) - 1 end
    acked = read
  end
end
-- ask(command): a command on the group, which is made anew where it is missing.
local function ask(command)
  local r = command()
  if type(r) == 'table' and r.err and string.find(r.err, 'NOGROUP', 1, true) then
    create()
    r = command()
  end
  return r
end

if holder and holder ~= gw then
  -- A lease that ends later than any can was given by a clock that has been set back since, or by that of a
  -- master that failed: its holder says it anew within a second, or is dead.
  local runs = tonumber(till) > now and tonumber(till) <= now + 2 * tonumber(ARGV[3])
  if runs or count <= 0 then
    state = 'held'
    return answer()
  end
  state = 'taken'
elseif not holder then
  if count < 0 then return answer() end
  state = 'new'
  create()
end

if #ARGV > 7 then
  ask(function() return redis.pcall('XACK', KEYS[1], sink, unpack(ARGV, 8)) end)
  -- No more than was read: a failover may have forgotten what the gateway still knows.
  acked = math.max(acked, math.min(tonumber(ARGV[6]), read))
end
if count <= 0 then
  save(count < 0 and 0 or now + tonumber(ARGV[3]))
  return answer()
end

-- What was read and not acknowledged comes first: from a gateway that died, or in an
-- answer that this one never got. It is no more than one batch.
if state == 'taken' or ARGV[5] ~= int(read) then
  local cursor = '0-0'
  repeat
    local r = ask(function() return redis.pcall('XAUTOCLAIM', KEYS[1], sink, gw, 0, cursor, 'COUNT', 1000) end)
    if r.err then return redis.error_reply(r.err) end
    cursor = r[1]
    for i = 1, #r[2] do
      if r[2][i] then events[#events + 1] = r[2][i] end
    end
    lost = lost + #(r[3] or {})
  until cursor == '0-0'
  -- What was found to be lost when these were read, only that answer said: it is said again, rather twice than never.
  lost = math.max(lost, read - acked - #events)
  if #events > 0 then again = 1 end
  if state == 'taken' then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], sink, holder) end
end
if #events == 0 then
  acked = math.max(acked, read)
  -- A few at a time, no more than those before let expect to have room: a gateway that can't get an answer in time
  -- would ask for the same for ever, and Redis does nothing else while it puts it together.
  local bytes = 0
  repeat
    local want = 4
    if #events > 0 then want = math.max(1, math.min(16, math.floor((most - bytes) * #events / bytes))) end
    want = math.min(want, count - #events)
    local r = ask(function() return redis.pcall('XREADGROUP', 'GROUP', sink, gw, 'COUNT', want, 'STREAMS', KEYS[1], '>') end)
    if r and r.err then
      if #events == 0 then return redis.error_reply(r.err) end
      break -- what was read before is given out
    end
    local more = r and r[1] and r[1][2] or {}
    for i = 1, #more do
      events[#events + 1] = more[i]
      for _, v in ipairs(more[i][2]) do bytes = bytes + #v end
      local n = numberOf(more[i])
      lost = lost + math.max(0, n - read - 1)
      read = n
    end
  until #more < want or #events == count or bytes >= most
end
save(now + tonumber(ARGV[3]))
return answer()
